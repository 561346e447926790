"""Thresholds from honest denoisings: the false alarms asked for, and what they catch."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from emdn_models import EmdnError
from emdn_models.metrics import null, outside, residual_statistics, statistics

DOSE = 30.0


def residuals(rng, count, extra=0.0):
    """Residuals of a mild blur, which are far from white; ``extra`` is signal it removes."""
    raw = rng.poisson(DOSE, (count, 32, 32)).astype(float)
    denoised = gaussian_filter(raw, (0, 1, 1))
    return residual_statistics(raw + extra, denoised, gain=1, tile=16)


@pytest.fixture(scope="module")
def thresholds():
    rng = np.random.default_rng(0)
    return null([residuals(rng, 100) for _ in range(4)], level=0.05)


def test_false_alarms_are_as_rare_as_asked(thresholds):
    assert thresholds.draws == 400
    flags = outside(residuals(np.random.default_rng(1), 400), thresholds)
    assert set(flags) == set(thresholds.low)
    for name, flagged in flags.items():
        assert flagged.shape == (400, *thresholds.low[name].shape)
        # The chance that the thresholds have, and that of 400 new draws.
        assert flagged.mean() == pytest.approx(0.05, abs=0.045), name
    assert np.mean([flagged.mean() for flagged in flags.values()]) == pytest.approx(0.05, abs=0.01)


def test_honest_residuals_are_not_white(thresholds):
    # White ones have a deviation of 1: a threshold taken from Poisson noise would reject them all.
    assert thresholds.high["std"] < 1 - 3 / np.sqrt(2 * 32 * 32)
    assert thresholds.high["lag_x"] < -0.05


def test_removed_signal_is_outside(thresholds):
    y, x = np.mgrid[:32, :32]
    lattice = 4 * np.cos(2 * np.pi * x / 4) * ((y < 16) & (x < 16))
    flags = outside(residuals(np.random.default_rng(2), 50, lattice), thresholds)
    assert flags["tile_peak"][:, 0, 0].mean() > 0.9
    assert flags["tile_peak"][:, 1, 1].mean() < 0.3


def test_the_limits_are_order_statistics():
    rng = np.random.default_rng(0)
    honest = residuals(rng, 39)
    found = null([honest], level=0.1)
    ordered = np.sort(honest.frame.std)
    assert (found.low["std"], found.high["std"]) == (ordered[1], ordered[-2])
    single = residual_statistics(np.full((32, 32), 9.0), np.full((32, 32), 8.0), 1, tile=16)
    assert statistics(single)["std"].shape == (1,)
    assert outside(single, found)["mean"].shape == (1,)


def test_what_is_refused(thresholds):
    rng = np.random.default_rng(0)
    few = residuals(rng, 38)
    with pytest.raises(EmdnError, match="found 38 denoisings, expected 39 or more"):
        null([few], level=0.05)
    null([residuals(rng, 39)], level=0.05)
    with pytest.raises(EmdnError, match="found 0 denoisings"):
        null([])
    with pytest.raises(EmdnError, match="level: found 0"):
        null([few], level=0)
    raw = rng.poisson(DOSE, (50, 40, 32)).astype(float)
    other = residual_statistics(raw, raw, 1, tile=16)
    with pytest.raises(EmdnError, match="found 40 x 32 pixels with tiles of 16, expected 32 x 32"):
        outside(other, thresholds)
    with pytest.raises(EmdnError, match="expected 40 x 32 pixels with tiles of 16"):
        null([other, few], level=0.1)
