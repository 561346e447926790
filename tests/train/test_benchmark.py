"""The record that machines are compared by: complete, true to its data, and one line."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from emdn_models import FormatError, ModelError, metrics
from emdn_train import benchmark as benchmarking
from emdn_train.benchmark import benchmark, likeness, line, pictures
from emdn_train.checkpointing import Fitted
from emdn_train.cli import main
from emdn_train.config import BenchmarkConfig


@pytest.fixture(scope="module")
def data(gratings, tmp_path_factory) -> Path:
    """The gratings, their test frames as pictures too."""
    root = tmp_path_factory.mktemp("data") / "gratings"
    shutil.copytree(gratings, root)
    for part, name in (("raw", "noise"), ("truth", "clean")):
        folder = root / "inference" / part
        folder.mkdir(parents=True)
        with h5py.File(root / "test" / f"graphene_img_{name}.h5") as file:
            for number, frame in enumerate(file["images"][..., 0]):
                tifffile.imwrite(folder / f"frame_{number}.tif", frame)
    return root


@pytest.fixture(scope="module")
def found(data, tmp_path_factory) -> dict:
    """The record of a run by the command, in SciML-Bench's spelling."""
    out = tmp_path_factory.mktemp("out")
    with pytest.raises(SystemExit) as left:
        main(["benchmark", str(data), "--out", str(out), "-b", "epochs=3,lr=0.001",
              "--benchmark_specific", "batch_size=8", "--device=cpu", "--seed=4"])  # fmt: skip
    assert not left.value.code
    return json.loads((out / "record.json").read_text())


def test_a_record_says_what_was_run_on_what(found) -> None:
    default = BenchmarkConfig()
    assert (default.batch_size, default.epochs, default.lr) == (128, 2, None)
    assert found["model"] == {"name": "unet", "preset": "paper", "parameters": 122_737}
    assert found["data"]["what"] == "32 frames of 64 x 64"
    assert (found["data"]["train"], found["data"]["inference"]) == (32, 4)
    training = found["training"]
    assert (training["epochs"], training["batch_size"]) == (3, 8)
    assert training["recipe"]["lr"] == 1e-3
    assert (training["recipe"]["loss"], training["recipe"]["weight_decay"]) == ("mse", 0)
    assert (training["patch"], training["steps"], found["seed"]) == (64, 12, 4)
    assert len(training["loss"]) == 3
    assert training["start_db"].keys() == training["gain_db"].keys()
    assert found["machine"]["versions"].keys() >= {"emdn", "torch", "numpy"}


def test_psnr_is_that_of_the_pictures_and_sciml_benchs_is_beside(found, data) -> None:
    """MSE and PSNR of batches of 64, the range taken for 255, as its inference prints them."""
    raw, truth = pictures(data, "raw"), pictures(data, "truth")
    span = truth.max((1, 2)) - truth.min((1, 2))
    psnr = metrics.psnr(raw, truth, span).mean()
    assert found["noisy"]["psnr_db"] == pytest.approx(psnr, abs=1e-3)
    mse = float(np.mean((raw.astype(float) - truth) ** 2))
    sciml = found["noisy"]["sciml_bench"]
    assert sciml["mse"] == pytest.approx(mse, rel=1e-5)
    assert sciml["psnr_db"] == pytest.approx(20 * np.log10(255 / mse**0.5), abs=1e-3)
    # Of more than one batch the mean over batches, whatever their sizes.
    frames = np.zeros((65, 12, 12), np.float32)
    truth = frames + np.arange(65, dtype=np.float32)[:, None, None] // 64 + 1
    truth[:, 0, 0] += 1e-4  # a frame needs a range
    sciml = likeness(frames, truth)["sciml_bench"]
    assert sciml["mse"] == pytest.approx(2.5, rel=1e-4)
    assert sciml["psnr_db"] == pytest.approx(20 * np.log10(255) - 10 * np.log10(2), abs=1e-2)


def test_the_line_has_all_that_machines_are_compared_by(found) -> None:
    text = line(found)
    assert "\n" not in text
    own = found["inference"]
    for part in ("unet paper (122,737 parameters)", "images/s of 64 x 64", "s an epoch of 32",
                 f"{own['frames/s']:.4g} frames/s on cpu", "PSNR", "SSIM"):  # fmt: skip
        assert part in text


def test_what_makes_no_record_is_refused(data, gratings, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(benchmarking, "simulate", asked.append)
    with pytest.raises(FormatError, match="inference/raw: not found"):
        benchmark(BenchmarkConfig(data=tmp_path / "new", out=tmp_path, frames=20))
    assert (asked[0].out, asked[0].frames, asked[0].kind) == (tmp_path / "new", 20, "graphene")
    with pytest.raises(FormatError, match="inference/raw: not found"):
        benchmark(BenchmarkConfig(data=gratings, out=tmp_path))
    fitted = Fitted(name="unet", status="diverged")
    monkeypatch.setattr(benchmarking, "fit", lambda _: [fitted])
    with pytest.raises(ModelError, match="diverged, no record"):
        benchmark(BenchmarkConfig(data=data, out=tmp_path))
