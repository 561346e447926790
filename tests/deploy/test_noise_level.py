"""The spectrum of a frame's noise, and which frames are looked at."""

import numpy as np
import pytest

from emdn_deploy import noise_level


@pytest.mark.parametrize("size", [32, 64, 256])
def test_white_noise_is_not_spread_whatever_the_image(size: int) -> None:
    rng = np.random.default_rng(size)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    film = np.fft.irfft2(
        np.fft.rfft2(rng.normal(size=(size, size))) * (radius < 0.2), s=(size, size)
    )
    frame = (rng.normal(size=(size, size)) + 3 * film).astype(np.float32)
    assert noise_level.frame_noise(frame, np.ones((size, size), bool))[2] == 1


@pytest.mark.parametrize(("count", "side"), [(1, 64), (2, 512), (64, 4096), (1000, 64)])
def test_samples_are_bounded_and_spread(count: int, side: int) -> None:
    spans = noise_level.sample(lambda start, stop: (start, stop), count, (side, side))
    starts, run = [start for start, _ in spans], spans[0][1] - spans[0][0]
    assert len(starts) * run <= noise_level.MAX_FRAMES
    assert len(starts) * run * side**2 <= max(noise_level.MAX_PIXELS, run * side**2)
    assert run == min(3, count)
    assert starts[0] == 0
    assert max(starts) + run <= count
    if count == 1000 and side == 64:
        assert starts[-1] == 997
        assert len(starts) == 21
