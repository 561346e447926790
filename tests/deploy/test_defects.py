"""Bad pixels: found where planted, and nothing else taken for one."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import correction, defects
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.readers import open_frames
from emdn_models.errors import FormatError


def find(frames: np.ndarray, gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
    stack = np.asarray(frames, np.float32)
    return defects.outliers(
        lambda start, stop: stack[start:stop], len(stack), stack.shape[1:], gain, offset
    )


@pytest.mark.parametrize("dose", [0.05, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("count", [1, 12, 64])
def test_a_clean_stack_has_none(lattice, dose: float, count: int) -> None:
    assert find(lattice(dose, (count, 128, 128))).sum() == 0


def test_sharp_atoms_are_not_bad(lattice) -> None:
    """Columns one pixel wide, ten times the background, at a high dose."""
    y, x = np.mgrid[:128, :128]
    peaks = np.exp(-(((y % 8) - 3.3) ** 2 + ((x % 8) - 3.8) ** 2) / 2)
    frames = np.random.default_rng(0).poisson(500 * (0.1 + peaks), (20, 128, 128))
    assert find(frames).sum() == 0


def test_hot_and_dead_pixels_are_found(lattice) -> None:
    frames = lattice(20.0, (24, 128, 128)) * 3.0 + 50
    planted = np.zeros((128, 128), bool)
    planted[[5, 40, 0, 127, 90], [7, 64, 0, 127, 30]] = True
    hot = planted.copy()
    hot[100:102, 40:42] = True
    frames[:, hot] += 900
    dead = np.zeros_like(planted)
    dead[:, 77] = True
    dead[20, 20] = True
    frames[:, dead] = 50
    found = find(frames, 3.0, 50.0)
    assert not (found & ~(hot | dead)).any()
    assert found[hot].all()
    assert found[20, 20]
    assert found[:, 77].all()


@pytest.mark.parametrize("factor", [0, 8])
def test_groups_of_two_by_two_are_found(lattice, factor: int) -> None:
    frames = lattice(40.0, (16, 128, 128))
    planted = np.zeros((128, 128), bool)
    for row, column in ((30, 40), (2, 77), (120, 100)):
        planted[row : row + 2, column : column + 2] = True
    frames[:, planted] *= factor
    assert (find(frames) == planted).all()


def test_one_frame_is_little_proof(lattice) -> None:
    """A cosmic ray's faint tail in a single frame is left; a hot pixel is not."""
    frames = lattice(100.0, (1, 128, 128))
    frames[0, 30, 30] = 100 + 13 * np.sqrt(100)
    frames[0, 90, 90] = 1000
    found = find(frames)
    assert found[90, 90]
    assert found.sum() == 1


def test_repeated_frames_have_none(lattice) -> None:
    """A video with every frame three times, and a loop of four frames."""
    frames = lattice(20.0, (20, 128, 128))
    assert find(np.repeat(frames, 3, axis=0)).sum() == 0
    assert find(np.tile(frames[:4], (15, 1, 1))).sum() == 0


def test_upright_lattice_rows_are_not_lines() -> None:
    x = np.arange(128)
    truth = 400 * (1 + 0.8 * np.cos(2 * np.pi * x / 8)) * np.ones((128, 1))
    frames = np.random.default_rng(0).poisson(truth, (16, 128, 128))
    assert find(frames).sum() == 0
    assert find(frames.swapaxes(1, 2)).sum() == 0


def test_too_many_are_the_specimen() -> None:
    frames = np.random.default_rng(0).poisson(5, (20, 64, 64)).astype(float)
    frames[:, ::5, ::5] = 500
    assert find(frames).sum() == 0


@pytest.mark.parametrize("shape", [(40, 50), (3, 3), (1, 9)])
def test_bad_pixels_become_the_mean_of_good_neighbours(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    mask = rng.random(shape) < 0.2
    mask.ravel()[0] = False
    frames = rng.random((3, *shape)).astype(np.float32)
    before = frames.copy()
    frames[:, mask] = np.nan
    defects.plan(mask).apply(frames)
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
    defects.plan(mask).apply(frames)
    np.testing.assert_allclose(frames, 1)
    with pytest.raises(ValueError, match="no pixel"):
        defects.plan(np.ones((4, 4), bool))


def test_no_defects_change_nothing() -> None:
    frames = np.ones((1, 4, 4), np.float32)
    defects.plan(np.zeros((4, 4), bool)).apply(frames)
    np.testing.assert_array_equal(frames, 1)


@pytest.fixture
def stack(tmp_path: Path):
    """Write frames to a file and prepare them with options."""

    def prepare(frames: np.ndarray, **options) -> tuple[correction.Prepared, np.ndarray]:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["frames"] = frames
        with open_frames(path) as opened:
            ready = correction.prepare(opened, DenoiseOptions(**options))
            return ready, ready.read(0, len(frames))

    return prepare


def test_gaps_at_the_largest_number_are_filled(stack, lattice) -> None:
    """Dectris marks gaps and dead pixels with the type's largest number."""
    frames = lattice(8.0, (6, 64, 64)).astype(np.uint32)
    frames[:, 30:40] = 2**32 - 1
    ready, read = stack(frames)
    assert ready.bad_pixels == 640
    assert read.max() < 60
    assert ready.scale.gain == 1.0


def test_references_are_applied(stack, lattice, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sensitivity = rng.uniform(0.7, 1.3, (64, 64))
    dark = rng.uniform(90, 110, (64, 64))
    electrons = lattice(50.0, (8, 64, 64))
    np.save(tmp_path / "dark.npy", np.stack([dark - 1, dark + 1]))
    np.save(tmp_path / "gain.npy", 1 / sensitivity)
    ready, read = stack(
        electrons * sensitivity + dark, dark=tmp_path / "dark.npy", gain_map=tmp_path / "gain.npy"
    )
    np.testing.assert_allclose(read, electrons, atol=1e-3)
    assert ready.scale.gain == pytest.approx(1, abs=0.05)


def test_a_given_mask_is_filled(stack, lattice, tmp_path: Path) -> None:
    frames = lattice(50.0, (4, 32, 32))
    mask = np.zeros((32, 32), np.uint8)
    mask[4, 5] = 1
    np.save(tmp_path / "mask.npy", mask)
    ready, read = stack(frames, defects=tmp_path / "mask.npy", keep_bad_pixels=True)
    assert ready.bad_pixels == 1
    around = frames[0, 3:6, 4:7].sum() - frames[0, 4, 5]
    assert read[0, 4, 5] == pytest.approx(around / 8)


def test_references_of_another_size_are_refused(stack, lattice, tmp_path: Path) -> None:
    np.save(tmp_path / "dark.npy", np.zeros((16, 16)))
    with pytest.raises(FormatError, match=r"is 16 x 16, the frames are 32 x 32"):
        stack(lattice(5.0, (2, 32, 32)), dark=tmp_path / "dark.npy")


def test_hot_pixels_are_kept_when_asked(stack, lattice) -> None:
    frames = lattice(20.0, (12, 64, 64))
    frames[:, 10, 10] = 5000
    ready, read = stack(frames)
    assert ready.bad_pixels == 1
    assert read[:, 10, 10].max() < 60
    ready, read = stack(frames, keep_bad_pixels=True)
    assert ready.bad_pixels == 0
    assert read[0, 10, 10] == 5000
