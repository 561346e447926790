"""Linearity: 1 and 0 for filters that keep intensities, whatever the noise; the loss otherwise."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from emdn_models import EmdnError
from emdn_models.metrics import linearity


@pytest.fixture(scope="module")
def frames():
    """Raw counts (8, 128, 160) of few electrons, and the scene: a slope, waves, a lattice."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:128, :160]
    scene = 2 + np.sin((x - 80) / 60) + 0.002 * y + 0.3 * np.cos(1.5 * x) * np.cos(1.3 * y)
    return rng.poisson(scene, (8, 128, 160)).astype(float), scene


def test_a_blur_is_linear(frames):
    raw, _ = frames
    found = linearity(gaussian_filter(raw, (0, 4, 4)), raw)
    assert found.slope == pytest.approx(1, abs=0.01 + 2 * found.slope_error)
    assert found.slope_error < 0.02
    assert found.intercept == pytest.approx(0, abs=0.04)


def test_the_truth_itself_is_linear_within_its_error():
    rng = np.random.default_rng(1)
    scene = 0.7 + 0.15 * np.sin(np.arange(128) / 20) * np.ones((128, 1))
    z, naive = [], []
    for _ in range(60):
        raw = rng.poisson(scene, (2, 128, 128))
        found = linearity(np.broadcast_to(scene, raw.shape), raw)
        z.append((1 / found.slope - 1) / (found.slope_error / found.slope**2))
        given, out = (
            np.broadcast_to(one, raw.shape).reshape(2, 8, 16, 8, 16).mean(axis=(2, 4)).ravel()
            for one in (raw, scene)
        )
        naive.append(np.polyfit(given, out, 1)[0])
    assert abs(np.mean(z)) < 0.45
    assert 0.75 < np.std(z) < 1.3
    # Regressed the other way, noise in the raw means flattens the line.
    assert np.mean(naive) < 0.85


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, 0.75), (1.2, -0.1)])
def test_a_distorted_scale_is_found(frames, slope, intercept):
    raw, scene = frames
    found = linearity(slope * np.broadcast_to(scene, raw.shape) + intercept, raw)
    assert found.slope == pytest.approx(slope, rel=0.03)
    assert found.intercept == pytest.approx(intercept, abs=0.05)
    assert found.raw.shape == found.denoised.shape == (16,)
    assert (np.diff(found.denoised) > 0).all()


def test_invalid_pixels_do_not_count(frames):
    raw, scene = frames
    valid = np.random.default_rng(1).random(scene.shape) < 0.55 + 0.4 * (np.arange(160) > 80)
    spoilt = np.where(valid, raw, 1e5)
    found = linearity(0.5 * np.broadcast_to(scene, raw.shape) + 2, spoilt, valid=valid)
    assert found.slope == pytest.approx(0.5, abs=0.02)
    assert found.intercept == pytest.approx(2, abs=0.04)


def test_no_statement_is_made_without_contrast(frames):
    raw, _ = frames
    assert np.isnan(linearity(np.full_like(raw, 1.5), raw).slope)
    with pytest.raises(EmdnError, match="found 2 blocks of 64 x 64"):
        linearity(raw[0], raw[0], block=64, valid=np.arange(160) < 64 + np.zeros((128, 1)))
