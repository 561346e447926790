"""Variants of other precisions: how they are asked for, found, refused and recorded."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser, cli, denoise, session
from emdn_deploy.check.stack import completed
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.session import resolve
from emdn_deploy.writers import recorded
from emdn_models import pretrained
from emdn_models.errors import DeviceError, ModelError


@pytest.fixture
def shipped(tmp_path: Path, make_model, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, one of which has a variant: the same blur, under its name."""
    folder = tmp_path / "weights"
    folder.mkdir()

    def entry(path: Path) -> dict[str, object]:
        return {"file": path.name, "sha256": pretrained.sha256(path)}

    models = {
        name: {**entry(make_model(folder / f"{name}.onnx", model=name)), "preset": "test",
               "parameters": 9, "gflop_256": 0.0035}
        for name in ("unet", "dncnn")
    }  # fmt: skip
    variant = make_model(folder / "unet.int8.onnx", model="unet", precision="int8")
    models["unet"]["variants"] = {"int8": entry(variant)}
    (folder / "index.json").write_text(json.dumps({"default": "unet", "models": models}))
    monkeypatch.setattr(pretrained, "WEIGHTS", folder)
    pretrained.index.cache_clear()
    yield folder
    pretrained.index.cache_clear()


@pytest.mark.parametrize("model", [None, "unet", "path"])
def test_a_variant_is_found_beside_its_model(shipped: Path, model: str | None, lattice) -> None:
    variant = shipped / "unet.int8.onnx" if model == "path" else model
    model = shipped / "unet.onnx" if model == "path" else model
    assert resolve(variant, "int8") == shipped / "unet.int8.onnx"
    assert resolve(model) == shipped / "unet.onnx"
    assert Denoiser(variant, precision="int8").session.info.precision == "int8"
    assert Denoiser(model).session.info.precision == "fp32"
    frames = lattice(20.0, (2, 32, 40))
    made = denoise(frames, variant, precision="int8")
    np.testing.assert_array_equal(made, denoise(frames, model))


def test_a_missing_variant_is_an_error_that_names_those_there_are(shipped: Path) -> None:
    with pytest.raises(ModelError, match="dncnn has no int8 variant; those that have one: unet"):
        Denoiser("dncnn", precision="int8")
    with pytest.raises(ModelError, match="unet has no fp16 variant; those that have one: none"):
        Denoiser("unet", precision="fp16")
    with pytest.raises(ModelError, match=r"dncnn\.onnx: is fp32, not int8"):
        Denoiser(shipped / "dncnn.onnx", precision="int8")


def test_int8_stays_on_the_cpu(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "cuda_obstacle", lambda: "")
    assert session.open_session("unet", "auto", precision="int8").device == "cpu"
    with pytest.raises(DeviceError, match="int8 variants are for the CPU; use fp32 on CUDA"):
        session.open_session("unet", "cuda", precision="int8")


def test_a_run_says_and_records_its_precision(
    shipped: Path, tmp_path: Path, lattice, capsys
) -> None:
    source = tmp_path / "movie.h5"
    with h5py.File(source, "w") as file:
        file["frames"] = lattice(20.0, (6, 32, 40)).astype(np.uint16)
    with pytest.raises(SystemExit) as left:
        cli.main(["denoise", str(source), "--precision", "int8", "--device", "cpu"])
    assert not left.value.code
    assert "model      unet in int8 on cpu" in capsys.readouterr().out
    facts = recorded(source.with_name("movie_denoised.h5"))
    assert facts["precision"] == "int8"
    assert facts["model_sha256"] == pretrained.sha256(shipped / "unet.int8.onnx")
    # A later check denoises as the run did.
    options = completed(DenoiseOptions(), facts)
    assert (options.model, options.precision) == ("unet", "int8")
