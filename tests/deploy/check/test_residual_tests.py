"""The statistics of residuals: what white noise gives, and what each kind of wrong adds."""

from dataclasses import replace

import numpy as np
import pytest

from emdn_deploy.check.camera import Camera
from emdn_deploy.check.residual_tests import BANDS, measure
from emdn_models.errors import EmdnError

SIZE = 96, 130
CAMERA = Camera(2.5, 40.0, 3.0, 0.0, False)
EVERY = np.ones(SIZE, bool)


@pytest.fixture(scope="module")
def frames():
    """Ideal denoising: raw (40, 96, 130) with counting and read noise, and their scene."""
    rng = np.random.default_rng(0)
    truth = 60 + 12.5 * np.sin(np.arange(SIZE[1]) / 20) * np.ones((SIZE[0], 1), np.float32)
    truth = truth.astype(np.float32)
    return np.stack([CAMERA.draw(truth, rng) for _ in range(40)]), truth


def measured(raw, denoised, good=EVERY):
    return [measure(one, denoised, CAMERA, good) for one in raw]


def simple(found, name):
    return np.array([one.simple[name] for one in found])


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_an_ideal_residual_is_white_with_unit_variance(frames, share) -> None:
    raw, truth = frames
    good = np.random.default_rng(1).random(SIZE) <= share
    found = measured(np.where(good, raw, 1e6), truth, good)
    root = np.sqrt(good.sum())
    for name, expected, spread in (("std", 1, 1 / (2**0.5 * root)), ("lag", 0, 1 / root)):
        scores = (simple(found, name) - expected) / spread
        assert abs(scores.mean()) < 4 / 40**0.5 + 0.1
    assert np.mean([one.bands for one in found], axis=0)[1:] == pytest.approx(1, abs=0.05)
    assert found[0].bands.shape == (BANDS,)
    for name in ("columns", "rows"):  # the largest of about a hundred normal numbers
        assert 2 < simple(found, name).mean() < 3.3
    fields = np.stack([one.fields for one in found])
    assert fields.std(axis=(0, 2, 3)) == pytest.approx(share**0.5, abs=0.1)


def test_each_wrong_raises_its_statistic(frames) -> None:
    raw, truth = frames
    raw = raw[:8]
    ideal, noise = measured(raw, truth), raw - truth
    left = [measure(one, truth + 0.3 * (one - truth), CAMERA, EVERY) for one in raw]
    assert simple(left, "std").mean() == pytest.approx(0.7, abs=0.02)
    smeared = measured(truth + (noise + np.roll(noise, 1, 2)) / np.sqrt(2), truth)
    assert simple(smeared, "lag").mean() == pytest.approx(0.25, abs=0.04)
    for name, at in (("columns", np.s_[:, 17]), ("rows", np.s_[17])):
        stripe = np.zeros(SIZE, np.float32)
        stripe[at] = 10
        assert simple(measured(raw + stripe, truth), name).min() > 5
        assert simple(measured(raw + stripe, truth), f"{name}_added").max() == 0
    lattice = 3 * np.cos(2 * np.pi * np.arange(SIZE[1]) / 5).astype(np.float32)
    removed = measured(raw + lattice, truth)
    assert simple(removed, "peak").min() > 3 * simple(ideal, "peak").max()
    assert simple(removed, "peak_x") == pytest.approx(0.2, abs=0.01)
    added = measured(raw, truth + lattice)
    assert simple(added, "lattice_added").min() > 2 * simple(ideal, "lattice_added").max()
    bright = truth.copy()
    bright[30:36, 50:56] += 25
    for one in measured(raw, bright):
        assert abs(one.spots[0].y - 33) + abs(one.spots[0].x - 53) < 6
        assert one.spots[0].z < -5


def test_dark_pixels_are_not_divided_by_zero() -> None:
    raw = np.full((16, 16), 4, np.float32)
    denoised = raw.copy()
    denoised[:4] = -1
    scaled = Camera(1.0, 0.0, 0.0, 0.0, True).in_sigma(raw, denoised)
    assert scaled[0, 0] == pytest.approx(5 / np.sqrt(0.01 * denoised.mean()))
    assert (scaled[4:] == 0).all()


def test_an_offset_above_the_mean_is_refused(frames) -> None:
    with pytest.raises(EmdnError, match="expected more than the offset, 500"):
        measure(frames[0][0], frames[1], replace(CAMERA, offset=500.0), EVERY)
