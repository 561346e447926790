"""Calibrated standard deviations: the fit finds what is there, and files hold it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import Denoiser
from emdn_models import ModelError, pretrained
from emdn_train import calibrate as calibration
from emdn_train.calibrate import calibrate, coverage, fit, mended, recordings


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The shipped U-Net, calibrated on a few small frames."""
    folder = tmp_path_factory.mktemp("weights")
    index = json.loads((pretrained.WEIGHTS / "index.json").read_text())
    for entry in index["models"].values():
        entry.pop("sigma", None)
    (folder / "index.json").write_text(json.dumps(index))
    shutil.copy(pretrained.WEIGHTS / "unet.onnx", folder)
    calibrate(folder, ("unet",), frames=12, size=64)
    return folder


def test_the_fit_finds_the_factors() -> None:
    known, rng = (17, 0.004), np.random.default_rng(0)
    spread = rng.lognormal(-6, 1.5, 200_000).astype(np.float32)
    noise = rng.uniform(0.2, 3, 200_000).astype(np.float32)
    variance = known[0] * spread + known[1] * noise
    errors = variance * rng.chisquare(1, 200_000).astype(np.float32)
    found = fit(errors, spread, noise)
    assert found[0] == pytest.approx(known[0], rel=0.03)
    assert found[1] == pytest.approx(known[1], rel=0.03, abs=1e-4)


def test_frames_are_the_same_every_time_and_of_all_detectors() -> None:
    first, again = list(recordings(7, 64)), list(recordings(7, 64))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.noisy, other.noisy)
        assert np.isfinite(one.noisy).all()
    counts = [np.array_equal(one.noisy, np.rint(one.noisy)) for one in first]
    assert set(counts) == {False, True}  # a CCD gives no whole numbers of electrons
    assert len({one.clean.tobytes() for one in first}) == 7


def test_faulty_pixels_are_filled_and_do_not_count() -> None:
    clean = np.full((16, 16), 100, np.float32)
    noisy = np.random.default_rng(0).poisson(clean).astype(np.float32)
    noisy[3, 4], noisy[9, 9] = 5000, 0
    found = mended(noisy, clean)
    assert np.argwhere(~found.valid).tolist() == [[3, 4], [9, 9]]
    assert 60 < found.noisy[3, 4] < 140
    assert noisy[3, 4] == 5000


def test_a_calibration_holds_and_leaves_the_rest_of_the_index_alone(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    entry = index["models"]["unet"].pop("sigma")
    shipped = json.loads((pretrained.WEIGHTS / "index.json").read_text())
    for one in shipped["models"].values():
        one.pop("sigma", None)
    assert index == shipped
    assert entry["frames"] == 12
    assert entry["inside"] == pytest.approx([0.683, 0.954], abs=0.1)
    denoiser = Denoiser(folder / "unet.onnx", threads=1)
    assert denoiser.calibration is not None
    assert denoiser.calibration.spread == entry["spread"] > 1
    assert denoiser.calibration.noise == entry["noise"] > 0
    shares = []
    for one in list(recordings(20, 64))[12:]:  # to which it was not fitted
        denoised, sigma = denoiser.denoise_with_sigma(one.noisy)
        shares.append(coverage(denoised, sigma, one.clean, one.valid))
    assert np.mean(shares, 0) == pytest.approx((0.683, 0.954), abs=0.15)


def test_what_cannot_be_calibrated_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"index\.json: cannot be read .* emdn-train export"):
        calibrate(tmp_path)
    with pytest.raises(ModelError, match="has no resnet; it has cafcn, dncnn"):
        calibrate(folder, ("resnet",))
    with pytest.raises(ModelError, match="unet was exported anew meanwhile"):
        pretrained.add_facts(folder, "unet", "0" * 64, {})


def test_a_model_of_several_frames_gets_others_of_the_same_scene() -> None:
    clean = np.full((40, 50), 30, np.float32)
    noisy = np.random.default_rng(1).poisson(clean).astype(np.float32)
    stack = calibration.resting_movie(noisy, clean, 5)
    np.testing.assert_array_equal(stack[2], noisy)
    np.testing.assert_array_equal(stack, calibration.resting_movie(noisy, clean, 5))
    assert stack.var() == pytest.approx(30, rel=0.05)
    assert len({one.tobytes() for one in stack}) == 5
