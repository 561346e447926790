"""Fourier ring correlation: a direct sum, analytic values of white signals, and what fools it."""

import numpy as np
import pytest

from emdn_models import EmdnError
from emdn_models.metrics import (
    ONE_SEVENTH,
    against_truth,
    half_bit,
    ring_correlation,
    sigma,
    spectral_snr,
)


def direct(first, second):
    """Take the same sums over the full complex plane, coefficient by coefficient."""
    height, width = first.shape
    rows, columns = np.arange(height), np.arange(width)
    waves_y = np.exp(-2j * np.pi * np.outer(rows, rows) / height)
    waves_x = np.exp(-2j * np.pi * np.outer(columns, columns) / width)
    f, g = (waves_y @ frame @ waves_x for frame in (first, second))
    step = 1 / min(height, width)
    rings = {}
    for v in range(-(height // 2), (height + 1) // 2):
        for u in range(-(width // 2), (width + 1) // 2):
            radius = np.sqrt((v / height) ** 2 + (u / width) ** 2)
            ring = round(radius / step)
            if ring and (ring + 0.5) * step <= 0.5 + 1e-12:
                rings.setdefault(ring, []).append((radius, f[v, u], g[v, u]))
    curve, frequency, pixels = [], [], []
    for ring in sorted(rings):
        radius, a, b = map(np.array, zip(*rings[ring], strict=True))
        power = np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2)
        curve.append(np.sum(a * b.conj()).real / np.sqrt(power))
        frequency.append(radius.mean())
        pixels.append(len(a))
    return np.array(curve), np.array(frequency), np.array(pixels)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (33, 20), (21, 32), (31, 31)])
def test_it_is_the_direct_sum(size):
    rng = np.random.default_rng(0)
    common = rng.normal(size=size)
    first, second = (common + rng.normal(size=size) + 50 for _ in range(2))
    curve, frequency, pixels = direct(first, second)
    found = ring_correlation(first, second)
    np.testing.assert_allclose(found.correlation, curve, atol=1e-10)
    np.testing.assert_allclose(found.frequency, frequency)
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_allclose(found.independent, pixels / 2)


@pytest.mark.parametrize("window", ["none", "hann"])
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_white_signals_have_the_correlation_and_scatter_that_theory_says(window, size):
    rng = np.random.default_rng(0)
    snr = 0.6
    frames = rng.normal(size=(3, 150, *size))
    signal = np.sqrt(snr) * frames[0]
    found = ring_correlation(signal + frames[1], signal + frames[2], window)
    assert found.correlation[:, 3:].mean() == pytest.approx(snr / (1 + snr), abs=0.01)
    pooled = ring_correlation(signal + frames[1], signal + frames[2], window, pooled=True)
    np.testing.assert_allclose(pooled.independent, 150 * found.independent)
    assert spectral_snr(pooled.correlation)[3:].mean() == pytest.approx(snr, rel=0.03)
    alone = ring_correlation(frames[1] + 40, frames[2] + 40, window)
    scores = alone.correlation * np.sqrt(2 * alone.independent)
    assert scores.std(axis=0) == pytest.approx(1, abs=0.25)
    assert scores.std() == pytest.approx(1, abs=0.05)
    assert (alone.correlation > sigma(alone.independent)).mean() < 0.002


def test_an_invented_lattice_fools_two_denoised_frames_but_not_a_raw_one():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :80]
    raw = rng.poisson(5.0, (2, 64, 80)).astype(float)
    invented = raw.mean() + np.cos(1.1 * x) + np.cos(0.55 * x + 0.95 * y) + 0.05 * (raw - 5)
    ring = np.argmin(np.abs(ring_correlation(*raw).frequency - 1.1 / (2 * np.pi)))
    both = ring_correlation(invented[0], invented[1])
    held_out = ring_correlation(invented[0], raw[1])
    threshold = sigma(held_out.independent)[ring]
    assert both.correlation[ring] > 0.95
    assert abs(held_out.correlation[ring]) < threshold < both.correlation[ring]


def test_correlation_with_the_truth_is_found_without_it():
    rng = np.random.default_rng(0)
    truth, a, b = rng.normal(size=(3, 200, 48, 48))
    denoised = truth + 0.4 * a
    against_raw = ring_correlation(denoised, truth + 2 * b, pooled=True).correlation
    raw_raw = ring_correlation(truth + 2 * a, truth + 2 * b, pooled=True).correlation
    found = against_truth(against_raw, raw_raw)
    with_it = ring_correlation(denoised, truth, pooled=True).correlation
    np.testing.assert_allclose(found[3:], with_it[3:], atol=0.06)
    assert found[3:].mean() == pytest.approx(1 / np.sqrt(1.16), abs=0.01)
    assert np.isnan(against_truth(0.1, -0.2))


def test_a_window_removes_the_cross_of_unequal_edges():
    rng = np.random.default_rng(0)
    ramp = 3 * np.arange(64) * np.ones((64, 1))
    first, second = ramp + rng.normal(size=(2, 20, 64, 64))
    high = ring_correlation(first, second).frequency > 0.2
    assert ring_correlation(first, second).correlation[:, high].mean() > 0.5
    assert abs(ring_correlation(first, second, "hann").correlation[:, high].mean()) < 0.03


def test_thresholds_have_the_published_values():
    assert pytest.approx(1 / 7) == ONE_SEVENTH
    np.testing.assert_allclose(sigma([18, 50]), 3 / np.sqrt([18, 50]))
    # Half a bit in the sum of two is an SNR of 0.2071 in each; many pixels leave 0.1716.
    assert half_bit(1e12) == pytest.approx(0.2071 / 1.2071, abs=1e-4)
    assert half_bit(50) == pytest.approx((2.071 + 1.9102) / (12.071 + 0.9102), abs=1e-9)
    assert spectral_snr(0.5) == 1
    assert spectral_snr(0.5, average=True) == 2


def test_what_is_refused():
    frame = np.ones((8, 8))
    with pytest.raises(EmdnError, match="found 3 x 8 pixels"):
        ring_correlation(frame[:3], frame[:3])
    with pytest.raises(EmdnError, match="window: found 'hamming'"):
        ring_correlation(frame, frame, "hamming")
    assert np.isnan(ring_correlation(frame, frame).correlation).all()
