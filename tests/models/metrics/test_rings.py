"""Rings of a half transform are those of the full one."""

import numpy as np
import pytest

from emdn_models.metrics import rings


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (33, 20), (21, 32), (31, 31)])
def test_sums_are_those_over_the_full_transform(size):
    power = np.abs(np.fft.fft2(np.random.default_rng(0).normal(size=size))) ** 2
    radius = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, size), indexing="ij"))
    step = 1 / min(size)
    number = np.rint(radius / step)
    own = rings(*size)
    every = [number == one for one in range(1, int(0.5 / step - 0.5 + 1e-12) + 1)]
    total = own.total(power[:, : size[1] // 2 + 1])
    np.testing.assert_allclose(total, [power[ring].sum() for ring in every])
    np.testing.assert_allclose(own.frequency, [radius[ring].mean() for ring in every])
    np.testing.assert_allclose(own.pixels, [ring.sum() for ring in every])
