"""Frames against the truth: the numbers, and what is refused."""

import numpy as np
import pytest

from emdn_deploy.evaluate import evaluate, text
from emdn_models import metrics
from emdn_models.errors import EmdnError, FormatError


@pytest.fixture
def paths(stacks, scene, saved):
    raw, clean = stacks(3)
    truth = np.repeat(scene()[None], 3, axis=0).astype(np.float32)
    truth[1] *= 1.5
    return (clean, truth, raw), saved(clean, truth, raw)


def test_the_numbers_are_those_of_the_metrics(paths, saved) -> None:
    (clean, truth, raw), (denoised, true, noisy) = paths
    table = evaluate(denoised, true, noisy)
    ranges = np.ptp(truth, axis=(1, 2))
    np.testing.assert_allclose(table["psnr_db"], metrics.psnr(clean, truth, ranges))
    np.testing.assert_allclose(table["ssim"], metrics.ssim(clean, truth, ranges))
    np.testing.assert_allclose(table["gain_db"], metrics.gain_db(raw, clean, truth))
    said = text(table).splitlines()
    [psnr] = [line.split() for line in said if line.startswith("psnr_db")]
    assert psnr[-2:] == [f"{table['psnr_db'].min():.4f}", "1"]
    stated = evaluate(denoised, true, data_range=500.0)
    np.testing.assert_allclose(stated["psnr_db"], metrics.psnr(clean, truth, 500.0))
    assert "gain_db" not in stated.columns
    one = evaluate(*saved(clean, truth[:1]))  # one truth for all
    np.testing.assert_allclose(one["ssim"][0], metrics.ssim(clean[0], truth[0], ranges[0]))
    assert one.height == 3
    assert np.isinf(evaluate(*saved(clean, clean))["psnr_db"].to_numpy()).all()


def test_what_does_not_fit_is_refused(paths, saved) -> None:
    (clean, truth, raw), _ = paths
    with pytest.raises(FormatError, match="found 2 frames of 64 x 80, expected 3"):
        evaluate(*saved(clean, truth[:2]))
    with pytest.raises(FormatError, match="expected 3 frames of 64 x 80"):
        evaluate(*saved(clean, truth, raw[:, :50]))
    for wrong, given in ((truth, -1), (np.full_like(clean, 3), None)):
        with pytest.raises(EmdnError, match="above 0"):
            evaluate(*saved(clean, wrong), data_range=given)
    truth[2, 0, 0] = np.inf
    with pytest.raises(FormatError, match="frame 2 that are not finite"):
        evaluate(*saved(clean, truth))
