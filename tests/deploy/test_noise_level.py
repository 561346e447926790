"""Noise of blocks against the same, taken the long way round, and which frames are looked at."""

import numpy as np
import pytest

from emdn_deploy import noise_level
from emdn_deploy.noise_level import NoiseLevel, Sample


def direct(frames: np.ndarray, good: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Subtract two frames without what they have in common, pixel by pixel.

    How much that is, pixels in ``used`` tell.
    """
    before, after = frames
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
    inner = np.pad(np.lib.stride_tricks.sliding_window_view(good, (3, 3)).all(axis=(2, 3)), 1)
    enough = blocks(inner.astype(float), np.ones_like(good)) > 0.25
    assert enough.all() != faulty
    found = noise_level.block_moments(frames, good)
    used = good & np.kron(enough, np.ones((16, 16), bool))
    pairs = [direct(frames[[at, at + 1]], good, used) for at in (0, 1)]
    passed = [np.pad(noise_level.high_pass(pair[None])[0], 1) for pair in pairs]
    expected = {
        "mean": [blocks((frames[at] + frames[at + 1]) / 2, good) for at in (0, 1)],
        "temporal": [blocks(pair**2, good) for pair in pairs],
        "lagged": [blocks(direct(frames[[0, 2]], good, used) ** 2, good)],
        "temporal_high": [blocks(one**2, inner) for one in passed],
    }
    for name, images in expected.items():
        values = np.concatenate([image[enough] for image in images])
        np.testing.assert_allclose(found[name], values, rtol=1e-9, err_msg=name)
    # Nothing but noise is left, of unit variance relative to the mean of counts.
    assert found["temporal"].mean() == pytest.approx((frames[:, good].mean() - 1000), rel=0.1)
    if not faulty:
        np.testing.assert_allclose(noise_level.difference(*frames[:2]), pairs[0], atol=1e-9)


def test_a_flare_does_not_decide_on_the_contrast(frames: np.ndarray) -> None:
    frames[0] = frames[2] + np.random.default_rng(1).normal(0, 1, (48, 64))
    frames[2, 20, 20] += 3000
    found = noise_level.block_moments(frames[[0, 2]], np.ones((48, 64), bool))
    assert np.median(found["temporal"]) < 2


def test_equal_frames_have_no_noise_at_all(frames: np.ndarray) -> None:
    found = noise_level.block_moments(frames[[1, 1, 1]] / 3, np.ones((48, 64), bool))
    assert not any(found[name].any() for name in ("temporal", "lagged", "temporal_high"))
    assert found["high"].all()


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 40), (17, 33)])
def test_small_frames_are_one_block_and_more(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).poisson(9, (3, *size)).astype(np.float64)
    found = noise_level.block_moments(frames, np.ones(size, bool))
    assert found["temporal"].size == 2 * max(1, size[1] // 16)
    assert all(np.isfinite(values).all() for values in found.values())
    assert bool(found["high"].size) == (min(size) > 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [32, 64, 256])
def test_white_noise_is_not_spread_whatever_the_image(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    film = np.fft.irfft2(
        np.fft.rfft2(rng.normal(size=(size, size))) * (radius < 0.2), s=(size, size)
    )
    frame = (rng.normal(size=(size, size)) + 3 * film).astype(np.float32)
    assert noise_level.frame_noise(frame, np.ones((size, size), bool))[1] == 1


@pytest.mark.parametrize("count", [1, 2, 5, 64, 1000])
@pytest.mark.parametrize("side", [64, 512, 4096])
def test_samples_are_bounded_and_spread(count: int, side: int) -> None:
    starts, run = noise_level.sample_starts(count, (side, side))
    assert len(starts) * run <= noise_level.MAX_FRAMES
    assert len(starts) * run * side**2 <= max(noise_level.MAX_PIXELS, run * side**2)
    assert run == min(3, count)
    assert starts[0] == 0
    assert max(starts) + run <= count
    if count == 1000 and side == 64:
        assert starts[-1] == 997
        assert len(starts) == 21


def test_a_long_stack_is_looked_at_in_bands_all_over() -> None:
    """Looking takes a few per cent of the time that denoising takes, and misses no place."""
    rows = np.arange(512, dtype=np.float32)[None, :, None] * np.ones((1, 1, 64), np.float32)
    sample = Sample.of(lambda start, stop: rows.repeat(stop - start, 0), 100, (512, 64))
    found = NoiseLevel(sample)
    assert found.mean.size < 0.3 * 2 * 21 * (512 * 64 / 256)
    assert found.mean.min() < 40
    assert found.mean.max() > 470
    assert not found.temporal.any()


@pytest.mark.parametrize(
    ("values", "step"),
    [([-3.5, 7.0, 10.5], 3.5), (np.random.default_rng(0).random(999), 0), ([0.0], 0)],
)
def test_the_step_of_whole_multiples(values: list[float], step: float) -> None:
    found = noise_level.common_step(np.sort(np.asarray(values, np.float32)).astype(float))
    assert found == pytest.approx(step)
