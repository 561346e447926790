"""Block statistics against the same, taken the long way round."""

import numpy as np
import pytest

from emdn_deploy import moments


def direct(
    frames: np.ndarray, good: np.ndarray, first: int, second: int, used: np.ndarray | None = None
) -> np.ndarray:
    """Subtract two frames without what they have in common, pixel by pixel.

    How much that is, pixels in ``used`` tell.
    """
    used = good if used is None else used
    before, after = frames[first], frames[second]
    pair, both = (after - before) / np.sqrt(2), (before + after) / 2
    pair, both = pair - pair[good].mean(), both - both[good].mean()
    return pair - both * (pair[used] @ both[used]) / (both[used] @ both[used])


def blocks(image: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Average good pixels over blocks of 16 x 16."""
    down, across = (length // 16 for length in image.shape)
    cut = [part[: down * 16, : across * 16].reshape(down, 16, across, 16) for part in (image, good)]
    with np.errstate(invalid="ignore"):
        return (cut[0] * cut[1]).sum(axis=(1, 3)) / cut[1].sum(axis=(1, 3))


@pytest.fixture
def frames() -> np.ndarray:
    """Three frames of the same structure; the beam fades from one to the next."""
    rng = np.random.default_rng(0)
    truth = 40 + 30 * np.sin(np.arange(48) / 5)[:, None] * np.cos(np.arange(64) / 7)
    return np.stack([rng.poisson(truth * beam) for beam in (1.0, 0.8, 0.6)]) + 1000.0


@pytest.mark.parametrize("faulty", [False, True])
def test_products_give_what_pixels_give(frames: np.ndarray, faulty: bool) -> None:
    good = np.ones((48, 64), bool)
    if faulty:
        good[16:32, 16:31] = False  # of one block too little is left
        good[40, ::3] = False
        frames[:, ~good] = 0
    inner = good.copy()
    inner[[0, -1]] = inner[:, [0, -1]] = False
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            inner[1:-1, 1:-1] &= np.roll(good, (down, across), (0, 1))[1:-1, 1:-1]
    kept = blocks(inner.astype(float), np.ones_like(good)) > 0.25
    assert kept.all() != faulty
    found = moments.measure(frames, good)
    used = good & np.kron(kept, np.ones((16, 16), bool))
    pairs = [direct(frames, good, at, at + 1, used) for at in (0, 1)]
    passed = [np.pad(moments.high_pass(pair[None])[0], 1) for pair in pairs]
    expected = {
        "mean": [blocks((frames[at] + frames[at + 1]) / 2, good) for at in (0, 1)],
        "temporal": [blocks(pair**2, good) for pair in pairs],
        "lagged": [blocks(direct(frames, good, 0, 2, used) ** 2, good)],
        "temporal_high": [blocks(one**2, inner) for one in passed],
    }
    for name, images in expected.items():
        values = np.concatenate([image[kept] for image in images])
        np.testing.assert_allclose(found[name], values, rtol=1e-9, err_msg=name)
    # Nothing but noise is left, of unit variance relative to the mean of counts.
    assert found["temporal"].mean() == pytest.approx((frames[:, good].mean() - 1000), rel=0.1)


def test_the_difference_is_that_of_the_products(frames: np.ndarray) -> None:
    good = np.ones((48, 64), bool)
    good[3, 5:9] = False
    np.testing.assert_allclose(
        moments.difference(frames[0], frames[1], good)[good],
        direct(frames, good, 0, 1)[good],
        atol=1e-9,
    )


def test_a_flare_does_not_decide_on_the_contrast(frames: np.ndarray) -> None:
    frames[0] = frames[2] + np.random.default_rng(1).normal(0, 1, (48, 64))
    frames[2, 20, 20] += 3000
    found = moments.measure(frames[[0, 2]], np.ones((48, 64), bool))
    assert np.median(found["temporal"]) < 2


def test_equal_frames_have_no_noise_at_all(frames: np.ndarray) -> None:
    found = moments.measure(frames[[1, 1, 1]] / 3, np.ones((48, 64), bool))
    assert not any(found[name].any() for name in ("temporal", "lagged", "temporal_high"))
    assert found["high"].all()


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 40), (17, 33)])
def test_small_frames_are_one_block_and_more(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).poisson(9, (3, *size)).astype(np.float64)
    found = moments.measure(frames, np.ones(size, bool))
    assert found["temporal"].size == 2 * max(1, size[1] // 16)
    assert all(np.isfinite(values).all() for values in found.values())
    assert bool(found["high"].size) == (min(size) > 2)
