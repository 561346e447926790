"""Copies for a class: which frames and doses they see, what they start from, how they are saved."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from emdn_models import ModelError, checkpoint
from emdn_models.classes import CLASSES
from emdn_models.errors import FormatError
from emdn_models.nets import build
from emdn_train import uncertainty
from emdn_train.batches import Specimens
from emdn_train.config import FitConfig
from emdn_train.data import open_split
from emdn_train.fit import fit
from emdn_train.noise import DETECTORS
from emdn_train.recipes import RECIPES
from emdn_train.source import Simulated, chance
from emdn_train.specialise import OfClass, source_of
from emdn_train.validate import LEVELS, validation

RECIPE = RECIPES["benchmark"]
CPU = torch.device("cpu")


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


@pytest.fixture(scope="module")
def source(both):
    with open_split(both, "train") as split:
        yield Simulated(Specimens.of(split), RECIPE, 32, CPU)


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_a_class_gives_its_frames_at_its_doses(kind, source):
    own = source_of(kind, source)
    assert isinstance(own, OfClass)
    frames = own.share.frames
    assert len(own) == len(frames) == 16
    assert (source.specimens.scanned[frames] == (kind.mode == "stem")).all()
    levels = torch.cat(
        [own.batch(torch.arange(len(own)), chance(0, n)).scale.flatten() for n in range(8)]
    )
    low, high = kind.electrons
    assert ((levels >= low * 0.999) & (levels <= high * 1.001)).all()
    # The whole band is drawn and not a corner of it.
    reached = levels.log10().max() - levels.log10().min()
    assert reached > 0.5 * (3.5 if kind.name == "stem" else 1)


def test_all_frames_are_drawn_as_before(source):
    indices = torch.arange(8)
    one, other = (one.batch(indices, chance(1)) for one in (source, source_of(None, source)))
    assert torch.equal(one.noisy, other.noisy)
    same = tuple(torch.full((8,), value) for value in RECIPE.snr)
    torch.testing.assert_close(source.batch(indices, chance(1), same).scale, one.scale)


def test_validation_is_of_the_class(both):
    with open_split(both, "test") as split:
        specimens = Specimens.of(split)
        low = validation(specimens, LEVELS, 16, 64, 0, CLASSES["tem-low"])
        high = validation(specimens, LEVELS, 16, 64, 0, CLASSES["tem-high"])
    for batches, kind in ((low, "tem-low"), (high, "tem-high")):
        levels = torch.cat([batch.scale.flatten() for batch in batches])
        assert len(levels)
        assert all(CLASSES[kind].holds(float(level)) for level in levels)
    # Two of the four frames are TEM's, each in one of the bands at each level.
    assert [len(a.noisy) + len(b.noisy) for a, b in zip(low, high, strict=True)] == [2, 2, 2]


def test_a_class_that_the_data_lack_is_named(gratings, tmp_path):
    saved = tmp_path / "from.h5"
    checkpoint.save(saved, {"ffdnet": drawn("ffdnet")})
    config = FitConfig(data=gratings, out=tmp_path, models=("ffdnet@stem",), start=saved)
    with pytest.raises(FormatError, match="none of its 32 frames can be of the class stem"):
        fit(config)


def drawn(name, seed=3):
    torch.manual_seed(seed)
    state = {key: value.numpy() for key, value in build(name).state_dict().items()}
    return checkpoint.Weights("shipped", state, {"status": "fitted", "recipe": {"steps": seed}})


def tuned(both, out, start, **changes):
    given = {"models": ("ffdnet@stem",), "patch": 32, "epochs": 1, "batch_size": 8, "lr": 1e-9}
    (result,) = fit(FitConfig(data=both, out=out, start=start, device="cpu", **(given | changes)))
    return result, checkpoint.load(out / checkpoint.FILE_NAME)


def test_a_copy_starts_from_its_model_and_then_from_itself(both, tmp_path, caplog):
    caplog.set_level("INFO")
    start = tmp_path / "from.h5"
    checkpoint.save(start, {"ffdnet": drawn("ffdnet")})
    result, made = tuned(both, tmp_path / "out", start)
    assert result.name == "ffdnet@stem"
    assert list(made) == ["ffdnet@stem"]
    for key, value in drawn("ffdnet").state.items():
        np.testing.assert_allclose(made["ffdnet@stem"].state[key], value, atol=1e-6)
    recipe = made["ffdnet@stem"].metadata["recipe"]
    assert recipe["start"] == {"steps": 3, "model": "ffdnet"}
    assert recipe["data"].endswith("of these class stem: scanned probe, any dose")
    assert recipe["steps"] == 2, "16 frames of 32 are scanned"
    assert f"ffdnet@stem: starts from ffdnet of {start}" in caplog.messages
    # A checkpoint that holds the copy is taken at its word.
    checkpoint.save(start, {"ffdnet": drawn("ffdnet", 4), "ffdnet@stem": drawn("ffdnet", 5)})
    _, again = tuned(both, tmp_path / "again", start)
    assert again["ffdnet@stem"].metadata["recipe"]["start"] == {"steps": 5}


def test_a_copy_needs_something_to_start_from(both, tmp_path):
    with pytest.raises(ModelError, match=r"a copy is fine-tuned from cafcn; .* by --from"):
        FitConfig(data=both, out=tmp_path, models=("cafcn@stem",))
    start = tmp_path / "from.h5"
    checkpoint.save(start, {"unet": drawn("unet")})
    with pytest.raises(ModelError, match="holds no model 'ffdnet'; it holds unet"):
        tuned(both, tmp_path / "out", start)


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_a_copy_is_calibrated_on_frames_of_its_class(kind, tmp_path, monkeypatch):
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
    name = f"cafcn@{kind.name}"
    index = {"models": {name: {"file": "a.onnx", "sha256": "0"}}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    uncertainty.calibrate(tmp_path, (name,), frames=3, size=32)
    assert len(used) == 3
    assert set(modes) == {"stem" if kind.mode == "stem" else "hrtem"}
    assert all(kind.holds(float(one.clean.mean())) for one in used)
