"""The check in every run: printed, recorded, and naming the frames that stand out."""

import numpy as np
import pytest

from emdn_deploy import denoise_file
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.report import summary
from emdn_deploy.writers import recorded


@pytest.fixture
def run(box_model, tmp_path):
    def run(frames):
        path = tmp_path / "frames.npy"
        np.save(path, frames)
        given = {"gain": 1, "offset": 0, "to": "hspy", "overwrite": True}
        return denoise_file.run(path, DenoiseOptions(model=str(box_model), device="cpu", **given))

    return run


def test_what_the_quick_check_says_is_recorded(run):
    """Also which frame has lost its structure; a stack without noise is not checked."""
    frames = np.random.default_rng(0).poisson(60.0, (9, 64, 80))
    assert recorded(run(frames).output)["check"].startswith("PASS: 0 of 9 frames flagged")
    frames[4, :, ::2] += 20  # finer than the box that the model averages over
    report = run(frames)
    assert list(report.check.flagged) == [4]
    found = recorded(report.output)
    assert (found["check"], found["check_frames"]) == (report.record["check"], "4")
    assert "1 of 9 frames flagged (4)" in found["check"]
    assert "check" not in recorded(run(np.full((3, 32, 32), 7.0)).output)


def test_a_model_that_is_off_in_the_mean_is_named(dimming, tmp_path, caplog):
    """The frames are mended; that the model was wrong is said, printed and recorded."""
    frames = np.random.default_rng(0).poisson(60.0, (9, 64, 80))
    np.save(tmp_path / "a.npy", frames)
    options = DenoiseOptions(model=str(dimming), device="cpu", gain=1, offset=0, to="hspy")
    report = denoise_file.run(tmp_path / "a.npy", options)
    assert report.record["intensity_ratio"] == pytest.approx(1, abs=1e-6)
    net = report.record["net_intensity_ratio"]
    assert net == pytest.approx(0.9, abs=0.01)
    assert report.record["largest_shift"] == pytest.approx(0.1, abs=0.01)
    assert "the model changed the mean intensity by -10" in caplog.text
    assert len(report.check.flagged) == 9
    assert recorded(report.output)["net_intensity_ratio"] == net
    (line,) = (one for one in summary(report).splitlines() if one.startswith("mean"))
    assert f"(network alone {net:.5f}, worst frame 10 % off, corrected)" in line
