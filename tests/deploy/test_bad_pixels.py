"""Bad pixels: found where planted, nothing else taken for one, and filled in."""

import numpy as np
import pytest

from emdn_deploy import bad_pixels

Y, X = np.mgrid[:128, :128]


def find(frames: np.ndarray, gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
    stack = np.asarray(frames, np.float32)
    return bad_pixels.outliers([stack[at : at + 3] for at in range(0, len(stack), 3)], gain, offset)


def spots(width: float, height: float) -> np.ndarray:
    at = np.random.default_rng(2).uniform(8, 120, (12, 2))
    return 1 + height * sum(np.exp(-((Y - y) ** 2 + (X - x) ** 2) / 2 / width**2) for y, x in at)


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize(
    "clean",
    [
        *(dose * (1 + 0.3 * np.cos(0.5 * X + 0.3 * Y)) for dose in (0.05, 1.0, 300.0)),
        500 * (0.1 + np.exp(-(((Y % 8) - 3.3) ** 2 + ((X % 8) - 3.8) ** 2) / 2)),  # sharp atoms
        400 * (1 + 0.8 * np.cos(2 * np.pi * X / 8)),
        # Diffraction spots of few pixels have a rim, hot pixels have none.
        *(spots(width, height) for width in (0.7, 1.5) for height in (50, 5000)),
        5 + 495 * ((X % 5 == 0) & (Y % 5 == 0)),  # too many to be the camera's
    ],
)
def test_what_the_specimen_shows_is_not_bad(clean: np.ndarray, count: int) -> None:
    frames = np.random.default_rng(0).poisson(clean, (count, 128, 128))
    assert find(frames).sum() == find(frames.swapaxes(1, 2)).sum() == 0


def test_repeated_frames_have_none(lattice) -> None:
    """A video with every frame three times, and a loop of four frames."""
    frames = lattice(20.0, (20, 128, 128))
    assert find(np.repeat(frames, 3, axis=0)).sum() == 0
    assert find(np.tile(frames[:4], (15, 1, 1))).sum() == 0


def test_hot_and_dead_pixels_groups_and_columns_are_found(lattice) -> None:
    frames = lattice(40.0, (24, 128, 128)) * 3.0 + 50
    hot, dead = np.zeros((2, 128, 128), bool)
    hot[[5, 40, 0, 127, 90], [7, 64, 0, 127, 30]] = hot[100:102, 40:42] = hot[2:4, 71:73] = True
    frames[:, hot] += 1500
    dead[:, 77] = dead[20, 20] = dead[30:32, 40:42] = dead[120:122, 100:102] = True
    frames[:, dead] = 50
    assert (find(frames, 3.0, 50.0) == (hot | dead)).all()


def test_what_is_bright_in_few_frames_is_not_bad(lattice) -> None:
    """A cosmic ray's faint tail in a single frame is left as well; a hot pixel is not."""
    frames = np.random.default_rng(3).poisson(10, (9, 64, 64)).astype(float)
    frames[:, 20, 20] += 300
    frames[4, 40, 40] = 60000
    frames[::3, 50, 10] = 5000
    assert np.argwhere(find(frames)).tolist() == [[20, 20]]
    frames = lattice(100.0, (1, 128, 128))
    frames[0, 30, 30] = 100 + 13 * np.sqrt(100)
    frames[0, 90, 90] = 1000
    assert np.argwhere(find(frames)).tolist() == [[90, 90]]


@pytest.mark.parametrize("shape", [(40, 50), (3, 3), (1, 9)])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_bad_pixels_become_the_mean_of_good_neighbours(shape: tuple[int, int], share) -> None:
    rng = np.random.default_rng(1)
    mask = rng.random(shape) < share
    mask.ravel()[0] = False
    frames = rng.random((3, *shape)).astype(np.float32)
    before = frames.copy()
    frames[:, mask] = np.nan
    bad_pixels.plan(mask).apply(frames)
    np.testing.assert_array_equal(frames[:, ~mask], before[:, ~mask])
    assert np.isfinite(frames).all()
    for y, x in np.argwhere(mask)[:20]:
        window = slice(max(0, y - 1), y + 2), slice(max(0, x - 1), x + 2)
        good = ~mask[window]
        if good.any():
            expected = before[:, *window][:, good].mean(axis=1)
            np.testing.assert_allclose(frames[:, y, x], expected, rtol=1e-5)


def test_a_wide_gap_is_filled() -> None:
    mask = np.zeros((200, 160), bool)
    mask[:, 20:120] = True
    frames = np.ones((2, 200, 160), np.float32)
    frames[:, mask] = np.nan
    bad_pixels.plan(mask).apply(frames)
    np.testing.assert_allclose(frames, 1)
    with pytest.raises(ValueError, match="no pixel"):
        bad_pixels.plan(np.ones((4, 4), bool))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_what_is_neither_saturated_nor_a_gap(count: int) -> None:
    rng = np.random.default_rng(1)
    size = (count, 96, 96)
    half = np.where(np.arange(96) < 48, 0, 5)
    others = {
        "sparse": rng.poisson(0.01, size).astype("u2"),
        "counts": rng.poisson(20, size).astype("u4"),
        "vacuum": rng.poisson(half, size).astype("u2"),
        "vacuum above": rng.poisson(half[:, None], size).astype("u2"),
        "inverted": (255 - rng.poisson(0.3, size)).astype("u1"),
        "events": (255 * (rng.random(size) < 0.5)).astype("u1"),
        "dark-corrected": rng.normal(0, 2, size).round().astype("i2"),
        "constant": np.full(size, 7, "f4"),
    }
    for name, frames in others.items():
        found = bad_pixels.find_flagged([frames.astype("f4")], frames.dtype)
        every = found.masked | found.single | found.saturated
        assert not every.any(), name
        assert found.limit is None, name
