"""What the models are compared with, where no frames are needed; the rest is with quality."""

import numpy as np
import pytest

from emdn_train import baselines


@pytest.mark.parametrize("mean", [0.05, 0.3, 1, 3, 10, 100])
def test_the_inverse_is_unbiased(mean: float) -> None:
    counts = np.arange(int(mean + 12 * mean**0.5 + 30))
    logarithms = counts * np.log(mean) - mean - np.cumsum(np.log(np.maximum(counts, 1)))
    expectation = np.exp(logarithms) @ baselines.anscombe(counts.astype(np.float32))
    assert baselines.unbiased_inverse(np.array([expectation])) == pytest.approx(mean, rel=5e-3)
