"""The check in every run: printed, recorded, and naming the frames that stand out."""

import json

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
        options = DenoiseOptions(
            model=str(box_model), device="cpu", threads=1, gain=1, offset=0, to="hspy"
        )
        return denoise_file.run(path, options)

    return run


def test_what_the_quick_check_says_is_recorded(run):
    report = run(np.random.default_rng(0).poisson(60.0, (9, 64, 80)))
    assert report.check.failing == ()
    assert report.record["check"].startswith("PASS: 0 of 9 frames flagged")
    found = recorded(report.output)
    assert (found["check"], found["check_frames"]) == (report.record["check"], "none")


def test_a_frame_whose_structure_is_lost_is_listed(run):
    frames = np.random.default_rng(0).poisson(60.0, (9, 64, 80))
    frames[4, :, ::2] += 20  # finer than the box that the model averages over
    report = run(frames)
    assert report.check.failing == (4,)
    assert "1 of 9 frames flagged (4)" in report.record["check"]
    assert recorded(report.output)["check_frames"] == "4"


def test_a_stack_without_noise_is_not_checked(run):
    report = run(np.full((3, 32, 32), 7.0))
    assert report.check is None
    assert "check" not in recorded(report.output)


def test_the_line_is_printed_and_in_the_json(box_model, tmp_path, capsys):
    from emdn_deploy.cli import main

    np.save(tmp_path / "a.npy", np.random.default_rng(0).poisson(60.0, (2, 64, 80)))
    common = ["denoise", str(tmp_path / "a.npy"), "--model", str(box_model), "--overwrite"]
    for extra in ([], ["--json"]):
        with pytest.raises(SystemExit):
            main([*common, *extra])
    text, line = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert "check      PASS: 0 of 2 frames flagged" in text
    assert json.loads(line)["check"].startswith("PASS: 0 of 2")


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
    assert len(report.check.failing) == 9
    assert recorded(report.output)["net_intensity_ratio"] == net
    (line,) = (one for one in summary(report).splitlines() if one.startswith("mean"))
    assert f"(network alone {net:.5f}, worst frame 10 % off, corrected)" in line


def test_what_rounding_does_to_the_mean_is_in_the_ratio(box_model, tmp_path):
    frames = np.random.default_rng(0).poisson(250.0, (4, 48, 48)).astype(np.float32)
    np.save(tmp_path / "a.npy", frames)
    options = DenoiseOptions(model=str(box_model), device="cpu", dtype="uint8", gain=1, offset=0)
    report = denoise_file.run(tmp_path / "a.npy", options)
    assert report.record["saturated_pixels"]
    assert report.record["intensity_ratio"] < 0.9998
    assert report.record["net_intensity_ratio"] == pytest.approx(1, abs=1e-4)
