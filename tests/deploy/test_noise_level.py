"""Noise of blocks and of spectra, and which frames are looked at."""

import numpy as np
import pytest

from emdn_deploy import noise_level
from emdn_deploy.noise_level import NoiseLevel, Sample


@pytest.mark.parametrize("faulty", [False, True])
def test_blocks_hold_the_noise_of_counts_and_nothing_else(faulty: bool) -> None:
    """Of three frames of the same structure, while the beam fades, far above the offset."""
    rng = np.random.default_rng(0)
    truth = 40 + 30 * np.sin(np.arange(160) / 5)[:, None] * np.cos(np.arange(128) / 7)
    frames = np.stack([rng.poisson(truth * beam) for beam in (1.0, 0.8, 0.6)]) + 1000.0
    good = np.ones((160, 128), bool)
    if faulty:
        good[16:32, 16:31] = False  # of one block too little is left
        good[40, ::3] = False
        frames[:, ~good] = 0
    found = noise_level.blocks(frames, good)
    level = frames[:, good].mean() - 1000
    for name in ("temporal", "high", "lagged"):
        assert getattr(found, name).mean() == pytest.approx(level, rel=0.1), name
        blocks = (80 - faulty) * (1 if name == "lagged" else 2)
        assert getattr(found, name).size == blocks
    assert found.mean.mean() == pytest.approx(1000 + level, rel=0.01)
    equal = noise_level.blocks(frames[[1, 1, 1]] / 3, good)
    assert not any(getattr(equal, name).any() for name in ("temporal", "lagged", "high"))


@pytest.mark.parametrize("size", [32, 64, 256])
def test_white_noise_is_not_spread_whatever_the_image(size: int) -> None:
    rng = np.random.default_rng(size)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    film = np.fft.irfft2(
        np.fft.rfft2(rng.normal(size=(size, size))) * (radius < 0.2), s=(size, size)
    )
    frame = (rng.normal(size=(size, size)) + 3 * film).astype(np.float32)
    assert noise_level.frame_noise(frame, np.ones((size, size), bool))[1] == 1


@pytest.mark.parametrize(("count", "side"), [(1, 64), (2, 512), (64, 4096), (1000, 64)])
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
    rows = np.arange(512, dtype=np.float32)[:, None] * np.ones((1, 64), np.float32)
    sample = Sample.of(
        lambda start, stop: np.stack([rows + number for number in range(start, stop)]),
        100,
        (512, 64),
    )
    found = NoiseLevel(sample)
    assert found.blocks.mean.size < 0.3 * 2 * 21 * (512 * 64 / 256)
    assert found.blocks.mean.min() < 40
    assert found.blocks.mean.max() > 470
    np.testing.assert_allclose(found.blocks.temporal, 0, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "step"),
    [([-3.5, 7.0, 10.5], 3.5), (np.random.default_rng(0).random(999), 0), ([0.0], 0)],
)
def test_the_step_of_whole_multiples(values: list[float], step: float) -> None:
    found = noise_level.common_step(np.sort(np.asarray(values, np.float32)).astype(float))
    assert found == pytest.approx(step)
