import numpy as np
import pytest

from emdn_deploy import stacks
from emdn_models.errors import FormatError


def test_every_frame_gets_its_mean() -> None:
    rng = np.random.default_rng(0)
    # Counts on a camera's offset, where float32 sums would lose the last digits.
    frames = (rng.poisson(3.0, (3, 512, 512)) + 1e4).astype(np.float32)
    denoised = (frames + np.array([5, -0.25, 0])[:, None, None]).astype(np.float32)
    shifts = stacks.keep_means(stacks.means(frames), denoised)
    np.testing.assert_allclose(shifts, [-5, 0.25, 0], atol=1e-3)
    np.testing.assert_allclose(stacks.means(denoised), frames.mean(axis=(1, 2), dtype=np.float64))
    np.testing.assert_allclose(denoised, frames, atol=2e-3)


def test_a_frame_without_a_mean_is_named() -> None:
    frames = np.ones((4, 8, 8), np.float32)
    frames[2, 3, 3] = np.inf
    frames[3] = np.nan
    with pytest.raises(FormatError, match="frame 12 has pixels that are not finite"):
        stacks.means(frames, 10)
    frames[:] = np.finfo(np.float32).max
    assert np.isfinite(stacks.means(frames)).all()


def test_an_array_is_not_copied_for_nothing() -> None:
    frames = np.zeros((2, 3, 4), np.float32)
    assert np.shares_memory(stacks.as_stack(frames), frames)
