"""Fourier ring correlation: a direct sum, analytic values of white signals, and what fools it."""

import numpy as np
import pytest

from emdn_models import EmdnError
from emdn_models.metrics import ring_correlation


def direct(first, second):
    """Take the same sums over the full transform, coefficient by coefficient."""
    window = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in first.shape))
    f, g = (np.fft.fft2((frame - frame.mean()) * window) for frame in (first, second))
    radius = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, first.shape), indexing="ij"))
    step = 1 / min(first.shape)
    rings = np.rint(radius / step)
    curve, frequency = [], []
    for ring in range(1, int(0.5 / step - 0.5 + 1e-12) + 1):
        a, b = f[rings == ring], g[rings == ring]
        power = np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2)
        curve.append(np.sum(a * b.conj()).real / np.sqrt(power))
        frequency.append(radius[rings == ring].mean())
    return np.array(frequency), np.array(curve)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (33, 20), (21, 32), (31, 31)])
def test_it_is_the_direct_sum(size):
    rng = np.random.default_rng(0)
    common = rng.normal(size=size)
    pair = [common + rng.normal(size=size) + 50 for _ in range(2)]
    np.testing.assert_allclose(ring_correlation(*pair), direct(*pair), atol=1e-10)


def test_white_signals_have_the_correlation_that_theory_says():
    rng = np.random.default_rng(0)
    signal, *noise = np.sqrt([[[[0.6]]], [[[1]]], [[[1]]]]) * rng.normal(size=(3, 100, 48, 96))
    found = [ring_correlation(signal[n] + noise[0][n], signal[n] + noise[1][n]) for n in range(100)]
    assert np.mean([curve[3:] for _, curve in found]) == pytest.approx(0.6 / 1.6, abs=0.01)


def test_an_invented_lattice_fools_two_denoised_frames_but_not_a_raw_one():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :80]
    raw = rng.poisson(5.0, (2, 64, 80)).astype(float)
    invented = raw.mean() + np.cos(1.1 * x) + np.cos(0.55 * x + 0.95 * y) + 0.05 * (raw - 5)
    frequency, both = ring_correlation(*invented)
    ring = np.argmin(np.abs(frequency - 1.1 / (2 * np.pi)))
    assert both[ring] > 0.95
    assert abs(ring_correlation(invented[0], raw[1])[1][ring]) < 0.4


def test_small_frames_are_refused_and_flat_ones_agree_on_nothing():
    frame = np.ones((8, 8))
    with pytest.raises(EmdnError, match=r"found shape \(3, 8\), expected a frame of at least 4"):
        ring_correlation(frame[:3], frame[:3])
    assert np.isnan(ring_correlation(frame, frame)[1]).all()
