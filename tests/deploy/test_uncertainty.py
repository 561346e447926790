"""The mean over eight orientations, its standard deviation, and where its calibration is from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import Denoiser, uncertainty
from emdn_deploy.dose import Intensity
from emdn_deploy.uncertainty import Calibration, ensemble, estimate
from emdn_models import MODELS, pretrained

SCALE = Intensity(scale=25.0, gain=2.0, offset=10.0, sigma=10.0, note="")


def test_mean_and_variance_are_those_of_the_eight_answers() -> None:
    """With a denoiser that is different in every direction, on frames that are not square."""
    frames = 1e6 + np.random.default_rng(0).normal(size=(2, 6, 11)).astype(np.float32)

    def run(stack: np.ndarray) -> np.ndarray:
        assert stack.flags.c_contiguous
        return stack + 3 * np.roll(stack - 1e6, 1, axis=1) - np.roll(stack - 1e6, 2, axis=2)

    turned = [np.rot90(frames, quarters, (1, 2)) for quarters in range(4)]
    answers = [np.rot90(run(one.copy()), -quarters, (1, 2)) for quarters, one in enumerate(turned)]
    answers += [
        np.rot90(run(one[:, :, ::-1].copy())[:, :, ::-1], -quarters, (1, 2))
        for quarters, one in enumerate(turned)
    ]
    mean, variance = ensemble(run, frames)
    np.testing.assert_allclose(mean, np.mean(answers, 0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(variance, np.var(answers, 0, np.float64, ddof=1), rtol=0.01)
    assert mean.dtype == variance.dtype == np.float32
    assert not ensemble(lambda stack: stack * 2, frames)[1].any()


def test_sigma_is_calibrated_in_the_units_of_the_frames() -> None:
    """Two terms, written out; the noise of a pixel of e electrons is gain * sqrt(e)."""
    mean = np.full((1, 20, 20), 10 + 2 * 36, np.float32)
    mean[0, 0, 0] = -50  # below the offset
    variance = np.random.default_rng(0).random((1, 20, 20)).astype(np.float32)
    found = estimate(mean, variance, SCALE, Calibration(3.0, 0.5))
    spread = variance[0, 1:10, 4:13].mean()
    assert found[0, 5, 8] == pytest.approx(np.sqrt(3 * spread + 0.5 * 2**2 * 36))
    spread, least = variance[0, :5, :5].mean(), uncertainty._LEAST_LEVEL
    assert found[0, 0, 0] == pytest.approx(np.sqrt(3 * spread + 0.5 * 2**2 * 25 * least))
    np.testing.assert_array_equal(estimate(mean, variance, SCALE, None), np.sqrt(variance))


def write_index(path: Path, entry: object) -> None:
    index = {"default": "box", "models": {"box": {"file": path.name, "sigma": entry}}}
    path.with_name("index.json").write_text(json.dumps(index))


def test_arrays_get_a_calibrated_sigma(make_model, tmp_path: Path, lattice, caplog) -> None:
    path, frames = make_model(tmp_path / "box.onnx"), lattice(20.0, (3, 33, 40))
    write_index(path, {"spread": 4.0, "noise": 0.25, "weights_sha256": "0" * 64})
    denoiser = Denoiser(path)
    mean, found = denoiser.denoise_with_sigma(frames, gain=1.0, offset=0.0)
    assert mean.shape == found.shape == frames.shape
    assert mean.dtype == found.dtype == np.float32
    assert not caplog.records
    scale = Intensity(frames.mean(), 1.0, 0.0, np.sqrt(frames.mean()), "")
    both = ensemble(lambda one: denoiser.run(one, scale), frames.astype(np.float32))
    np.testing.assert_allclose(found, estimate(*both, scale, Calibration(4, 0.25)), rtol=1e-4)
    np.testing.assert_allclose(mean, both[0], rtol=1e-5)
    camera = denoiser.denoise_with_sigma(3.5 * frames + 70, gain=3.5, offset=70.0)[1]
    np.testing.assert_allclose(camera, 3.5 * found, rtol=1e-3)
    # An index of others is left alone: it is the raw spread, and a warning says so.
    other = {"spread": 1.0, "noise": 1.0, "weights_sha256": "1" * 64}
    for entry in (None, {"spread": 1.0}, other):
        write_index(path, entry)
        assert Denoiser(path).calibration is None
    _, bare = Denoiser(path).denoise_with_sigma(frames, gain=1.0, offset=0.0)
    assert "uncalibrated for box: the raw spread" in caplog.text
    np.testing.assert_allclose(bare, np.sqrt(both[1]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models_are_calibrated_wherever_their_file_lies(name: str, tmp_path: Path) -> None:
    entry = pretrained.index()["models"][name]["sigma"]
    copied = shutil.copy(pretrained.onnx_path(name), tmp_path / "mine.onnx")
    found = Denoiser(copied, threads=1).calibration
    assert found == Calibration(entry["spread"], entry["noise"])
