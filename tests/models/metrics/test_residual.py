"""The residual of a denoiser: what white noise gives, and what each kind of wrong adds."""

import numpy as np
import pytest

from emdn_models import EmdnError
from emdn_models.metrics import normalised, residual_statistics

SIZE = 96, 130
GAIN, OFFSET, READ = 2.5, 40.0, 3.0


@pytest.fixture(scope="module")
def frames():
    """Ideal denoising: raw (40, 96, 130) with counting and read noise, and their scene."""
    rng = np.random.default_rng(0)
    x = np.arange(SIZE[1])
    electrons = 8 + 5 * np.sin(x / 20) * np.ones((SIZE[0], 1))
    counts = rng.poisson(electrons, (40, *SIZE))
    raw = GAIN * counts + OFFSET + READ * rng.normal(size=counts.shape)
    return raw, np.broadcast_to(GAIN * electrons + OFFSET, raw.shape)


def camera(raw, denoised, **options):
    return residual_statistics(raw, denoised, GAIN, OFFSET, READ, tile=32, **options)


def check_white(found):
    """Every statistic against its standard error for white residuals."""
    pixels, tile = SIZE[0] * SIZE[1], 32 * 32
    for moments, size in ((found.frame, pixels), (found.tile, tile)):
        for values, expected, spread in (
            (moments.mean, 0, 1 / np.sqrt(size)),
            (moments.std, 1, 1 / np.sqrt(2 * size)),
            (moments.lag_x, 0, 1 / np.sqrt(size)),
            (moments.lag_y, 0, 1 / np.sqrt(size)),
        ):
            scores = (values - expected) / spread
            assert abs(scores.mean()) < 4 / np.sqrt(scores.size) + 0.05  # about the own mean
            assert 0.75 < scores.std() < 1.3
        assert np.median(moments.peak) == pytest.approx(np.log(size / 2 / np.log(2)), abs=0.7)
    assert np.abs(found.power.mean(axis=0)[2:] - 1).max() < 0.15
    assert found.power.mean() == pytest.approx(1, abs=0.01)
    assert found.columns.std() == pytest.approx(1, abs=0.05)
    assert found.rows.std() == pytest.approx(1, abs=0.05)


def test_an_ideal_residual_is_white_with_unit_variance(frames):
    found = camera(*frames)
    check_white(found)
    assert found.tile.mean.shape == (40, 3, 4)
    assert found.side == 32
    assert found.columns.shape == (40, SIZE[1])
    assert found.rows.shape == (40, SIZE[0])
    np.testing.assert_array_equal(found.largest_column, np.abs(found.columns).max(axis=1))
    assert (found.dark == 0).all()


def test_a_single_frame_has_the_same_numbers(frames):
    raw, clean = frames
    every, one = camera(raw[:3], clean[:3]), camera(raw[2], clean[2])
    for part in ("frame", "tile"):
        for name, values in vars(getattr(one, part)).items():
            np.testing.assert_allclose(values, getattr(getattr(every, part), name)[2])
    np.testing.assert_allclose(one.power, every.power[2])
    np.testing.assert_allclose(one.rows, every.rows[2])
    assert one.largest_row.shape == ()


def test_noise_left_in_and_noise_invented_change_the_deviation(frames):
    raw, clean = frames
    kept = camera(raw, clean + 0.3 * (raw - clean))
    assert kept.frame.std == pytest.approx(0.7, abs=0.02)
    assert kept.power.mean() == pytest.approx(0.49, abs=0.02)


def test_a_removed_lattice_is_a_peak_where_it_was(frames):
    raw, clean = frames
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    period = 4.0
    lattice = 3 * np.cos(2 * np.pi * x / period) * ((y < 32) & (x < 32))
    found = camera(raw + lattice, clean)
    ideal = camera(raw, clean)
    assert found.tile.peak[:, 0, 0].min() > 1.5 * ideal.tile.peak.max()
    np.testing.assert_allclose(found.tile.peak[:, 1:], ideal.tile.peak[:, 1:])
    ring = np.argmin(np.abs(found.frequency - 1 / period))
    assert (found.power - ideal.power).mean(axis=0).argmax() == pytest.approx(ring, abs=1)


@pytest.mark.parametrize(("axis", "name"), [(1, "column"), (0, "row")])
def test_a_stripe_is_found(frames, axis, name):
    raw, clean = frames
    stripe = np.zeros(SIZE)
    stripe[(slice(None),) * axis + (17,)] = 10
    found = camera(raw + stripe, clean)
    scores = getattr(found, name + "s")
    assert (np.abs(scores).argmax(axis=1) == 17).all()
    assert getattr(found, "largest_" + name).min() > 5
    other = "row" if name == "column" else "column"
    assert getattr(found, "largest_" + other).max() < 5.5


@pytest.mark.parametrize(("axis", "name"), [(2, "lag_x"), (1, "lag_y")])
def test_correlation_along_one_axis_is_told_from_the_other(frames, axis, name):
    raw, clean = frames
    smeared = clean + (raw - clean + np.roll(raw - clean, 1, axis)) / np.sqrt(2)
    found = camera(smeared, clean).frame
    assert getattr(found, name) == pytest.approx(0.5, abs=0.06)
    assert getattr(found, "lag_y" if name == "lag_x" else "lag_x") == pytest.approx(0, abs=0.05)


def test_invalid_pixels_do_not_count(frames):
    raw, clean = frames
    valid = np.random.default_rng(1).random(SIZE) > 0.2
    valid[32:64, 32:64] = False
    found = camera(np.where(valid, raw, 1e6), clean, valid=valid)
    assert np.isnan(found.tile.mean[:, 1, 1]).all()
    whole = np.ones((3, 4), bool)
    whole[1, 1] = False
    assert found.frame.std == pytest.approx(1, abs=0.05)
    smeared = clean + (raw - clean + np.roll(raw - clean, 1, 2)) / np.sqrt(2)
    lags = camera(np.where(valid, smeared, 1e6), clean, valid=valid).frame
    assert lags.lag_x == pytest.approx(0.5, abs=0.06)
    assert lags.lag_y == pytest.approx(0, abs=0.06)
    assert found.tile.std[:, whole].mean() == pytest.approx(1, abs=0.01)
    assert found.power.mean() == pytest.approx(1, abs=0.01)
    assert found.columns.std() == pytest.approx(1, abs=0.05)
    same = camera(raw, clean, valid=np.ones(SIZE, bool))
    np.testing.assert_allclose(same.tile.lag_y, camera(raw, clean).tile.lag_y, atol=1e-12)


def test_dark_pixels_are_counted_and_not_divided_by_zero():
    raw = np.full((16, 16), 4.0)
    denoised = raw.copy()
    denoised[:4] = -1
    scaled, dark = normalised(raw, denoised, gain=1)
    assert dark == 0.25
    assert scaled[0, 0] == pytest.approx(5 / np.sqrt(0.01 * denoised.mean()))
    assert (scaled[4:] == 0).all()


def test_what_is_refused(frames):
    raw, clean = frames
    with pytest.raises(EmdnError, match="expected more than the offset, 500"):
        normalised(raw, clean, 1, 500)
    with pytest.raises(EmdnError, match="gain: found 0"):
        normalised(raw, clean, 0)
    with pytest.raises(EmdnError, match="read 0 or more"):
        normalised(raw, clean, 1, 0, -1)
    with pytest.raises(EmdnError, match="tile: found 4"):
        residual_statistics(raw, clean, 1, tile=4)
