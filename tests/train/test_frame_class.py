"""Models for a class of frames: what they are fitted to, start from, and are saved as."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from emdn_models import ModelError, checkpoint
from emdn_models.errors import FormatError
from emdn_models.nets import build
from emdn_models.spec import spec_of
from emdn_train import cli, uncertainty
from emdn_train.config import FitConfig
from emdn_train.data import open_split
from emdn_train.fit import fit
from emdn_train.noise import DETECTORS
from emdn_train.start import start_from


@pytest.fixture(scope="module")
def both(gratings, tmp_path_factory):
    """The gratings, every other one recorded by a scanned probe."""
    root = tmp_path_factory.mktemp("both")
    for split, count in (("train", 32), ("test", 4)):
        shutil.copytree(gratings / split, root / split)
        scanned = np.arange(count) % 2 == 0
        dqe = np.where(scanned, DETECTORS["stem"].dqe0, DETECTORS["counting"].dqe0)
        even = {"beam_x": 0.0, "beam_y": 0.0, "beam_width_u": 1e6, "beam_width_v": 1e6,
                "beam_angle": 0.0, "beam_mean": 1.0}  # fmt: skip
        pl.DataFrame(
            {
                "kind": ["grating"] * count,
                "detector": np.where(scanned, "stem", "counting"),
                "electrons_per_pixel": 40 / dqe,
            }
        ).with_columns(**{key: pl.lit(value) for key, value in even.items()}).write_parquet(
            root / split / "graphene_img_metadata.parquet"
        )
    return root


@pytest.mark.parametrize(("kind", "first"), [("stem", 0), ("tem", 1)])
def test_a_class_has_its_frames_alone(both, kind, first):
    with open_split(both, "train") as every, open_split(both, "train", kind) as own:
        assert len(own) == 16
        assert set(own.table["detector"] == "stem") == {kind == "stem"}
        numbers = np.arange(first, 32, 2)
        for name in ("clean", "noisy", "relative"):
            whole, part = getattr(every, name), getattr(own, name)
            np.testing.assert_array_equal(part(slice(None)), whole(numbers))
            np.testing.assert_array_equal(part([3, 1]), whole(numbers[[3, 1]]))


def test_a_class_that_the_data_lack_is_named(gratings, both, tmp_path):
    config = FitConfig(data=gratings, out=tmp_path, models=("ffdnet",), frame_class="stem")
    with pytest.raises(FormatError, match=r"train: has no table of detectors .* class stem"):
        fit(config)
    shutil.copytree(both, tmp_path / "tem")
    table = tmp_path / "tem/test/graphene_img_metadata.parquet"
    pl.read_parquet(table).with_columns(detector=pl.lit("ccd")).write_parquet(table)
    with pytest.raises(FormatError, match="test: none of its 4 frames is of class stem"):
        open_split(tmp_path / "tem", "test", "stem")


def drawn(name, seed=3):
    torch.manual_seed(seed)
    state = {key: value.numpy() for key, value in build(name).state_dict().items()}
    return checkpoint.Weights("shipped", state, {"status": "fitted", "recipe": {"steps": seed}})


def fitted(both, out, start):
    with pytest.raises(SystemExit) as left:
        cli.main(
            ["fit", "--data", str(both), "--out", str(out), "--models", "ffdnet", "--class", "stem",
             "--patch", "32", "--epochs", "1", "--batch-size", "8", "--lr", "1e-9",
             "--device", "cpu", "--from", str(start)]
        )  # fmt: skip
    assert not left.value.code
    return checkpoint.load(out / checkpoint.FILE_NAME)


def test_it_starts_from_its_model_and_then_from_itself(both, tmp_path, caplog):
    caplog.set_level("INFO")
    start, out = tmp_path / "from.h5", tmp_path / "out"
    checkpoint.save(start, {"ffdnet": drawn("ffdnet")})
    made = fitted(both, out, start)
    assert list(made) == ["ffdnet@stem"]
    for key, value in drawn("ffdnet").state.items():
        np.testing.assert_allclose(made["ffdnet@stem"].state[key], value, atol=1e-6)
    recipe = made["ffdnet@stem"].metadata["recipe"]
    assert recipe["start"] == {"steps": 3, "model": "ffdnet"}
    assert recipe["data"] == "16 frames of 64 x 64, simulated (grating), of class stem alone"
    assert recipe["steps"] == 2, "16 frames of 32 are scanned"
    assert f"ffdnet@stem: starts from ffdnet of {start}" in caplog.messages
    checkpoint.save(start, {"ffdnet": drawn("ffdnet", 4), "ffdnet@stem": drawn("ffdnet", 5)})
    config = FitConfig(models=("ffdnet",), frame_class="stem", start=start)
    assert start_from(build("ffdnet"), "ffdnet@stem", config) == {"steps": 5}


def test_what_is_no_longer_shipped_is_no_start(caplog):
    caplog.set_level("INFO")
    config = FitConfig(models=("cafcn",), frame_class="stem", start="shipped")
    start_from(build("cafcn"), "cafcn@stem", config)
    assert caplog.messages[0].startswith("cafcn@stem: starts from cafcn of ")


def test_its_name_is_made_of_its_model_s_and_the_class(tmp_path):
    assert spec_of("cafcn@stem") is spec_of("cafcn")
    for name in ("resnet", "resnet@stem", "cafcn@", "cafcn@../a"):
        with pytest.raises(ModelError, match=f"no model is called '{name}'; there are cafcn"):
            spec_of(name)
    config = FitConfig(out=tmp_path, models=("cafcn@stem",))
    with pytest.raises(ModelError, match=r"^cafcn@stem: is fitted to a class .* by --class$"):
        fit(config)


@pytest.mark.parametrize("kind", ["stem", "tem"])
def test_it_is_calibrated_on_frames_of_its_class(kind, tmp_path, monkeypatch):
    modes, used = [], []

    def exposed(scene, *others):
        modes.append(scene.mode)
        return real(scene, *others)

    def calibrate_one(denoiser, frames):
        used.extend(frames)
        return {}

    real = uncertainty.exposed
    monkeypatch.setattr(uncertainty, "exposed", exposed)
    monkeypatch.setattr(uncertainty, "calibrate_one", calibrate_one)
    session = SimpleNamespace(info=SimpleNamespace(sha256="0"))
    monkeypatch.setattr(uncertainty, "Denoiser", lambda *_, **__: SimpleNamespace(session=session))
    name = f"cafcn@{kind}"
    index = {"models": {name: {"file": "a.onnx", "sha256": "0"}}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    uncertainty.calibrate(tmp_path, (name,), frames=3, size=32)
    assert len(used) == 3
    assert set(modes) == {"stem" if kind == "stem" else "hrtem"}
