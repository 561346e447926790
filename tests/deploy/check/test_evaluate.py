"""Frames against the truth: the numbers, and what is refused."""

import numpy as np
import pytest

from emdn_deploy.evaluate import evaluate, summary
from emdn_models import metrics
from emdn_models.errors import EmdnError, FormatError


@pytest.fixture
def paths(stacks, scene, saved):
    raw, clean = stacks(3)
    truth = np.repeat(scene()[None], 3, axis=0).astype(np.float32)
    truth[1] *= 1.5
    return (clean, truth, raw), saved(clean, truth, raw)


def test_the_numbers_are_those_of_the_metrics(paths) -> None:
    (clean, truth, raw), (denoised, true, noisy) = paths
    table = evaluate(denoised, true, noisy)
    ranges = np.ptp(truth, axis=(1, 2))
    np.testing.assert_allclose(table["data_range"], ranges)
    np.testing.assert_allclose(table["psnr_db"], metrics.psnr(clean, truth, ranges))
    np.testing.assert_allclose(table["ssim"], metrics.ssim(clean, truth, ranges))
    np.testing.assert_allclose(table["gain_db"], metrics.gain_db(raw, clean, truth))
    np.testing.assert_allclose(table["dose_gain"], metrics.dose_gain(raw, clean, truth))
    rows = {row["quantity"]: row for row in summary(table).to_dicts()}
    psnr, ratio = rows["psnr_db"], rows["mean_ratio"]
    assert (psnr["frame"], ratio["frame"]) == (1, 1)
    assert psnr["worst"] == pytest.approx(table["psnr_db"].min())


def test_a_given_range_and_a_single_truth(paths, saved) -> None:
    (clean, truth, _), (denoised, true, _) = paths
    stated = evaluate(denoised, true, data_range=500.0)
    np.testing.assert_allclose(stated["psnr_db"], metrics.psnr(clean, truth, 500.0))
    assert "gain_db" not in stated.columns
    one = evaluate(*saved(clean, truth[:1]))
    np.testing.assert_allclose(one["ssim"][0], stated_ssim(clean[0], truth[0]))
    assert one.height == 3


def stated_ssim(frame, truth) -> float:
    return float(metrics.ssim(frame, truth, np.ptp(truth)))


def test_what_does_not_fit_is_refused(paths, saved) -> None:
    (clean, truth, raw), (denoised, true, _) = paths
    with pytest.raises(FormatError, match="found 2 frames of 64 x 80, expected 3"):
        evaluate(*saved(clean, truth[:2]))
    with pytest.raises(FormatError, match="expected 3 frames of 64 x 80"):
        evaluate(*saved(clean, truth, raw[:, :50]))
    with pytest.raises(EmdnError, match="above 0"):
        evaluate(denoised, true, data_range=-1)
    with pytest.raises(EmdnError, match="constant"):
        evaluate(*saved(clean, np.full_like(clean, 3)))
    truth[2, 0, 0] = np.inf
    with pytest.raises(FormatError, match="frame 2 that are not finite"):
        evaluate(*saved(clean, truth))


def test_equal_frames_have_an_infinite_psnr(paths, saved) -> None:
    (clean, _, _), _ = paths
    table = evaluate(*saved(clean, clean))
    assert np.isinf(table["psnr_db"].to_numpy()).all()
