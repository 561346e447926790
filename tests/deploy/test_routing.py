"""MODEL@auto takes the copy for the frames; a copy for other frames is warned of."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser, cli, listing, routing
from emdn_models import MODELS, ModelError, pretrained

COPIES = ("cafcn@stem", "cafcn@tem-low")


@pytest.fixture
def shipped(tmp_path: Path, make_model, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven blurs under the models' names, and copies of one for two of three classes."""
    folder = tmp_path / "weights"
    folder.mkdir()
    models = {}
    for name in (*MODELS, *COPIES):
        path = make_model(folder / f"{name}.onnx", model=name)
        models[name] = {
            "file": path.name, "sha256": pretrained.sha256(path), "preset": "test",
            "parameters": 9, "gflop_256": 0.0035, "quality": {"gain_db": {"0.4": 1.0}},
        }  # fmt: skip
    models["cafcn@stem"]["for"] = "scanned probe, any dose"
    index = {"default": "unet", "models": models}
    (folder / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(pretrained, "WEIGHTS", folder)
    pretrained.index.cache_clear()
    yield folder
    pretrained.index.cache_clear()


def frames(path: Path, lattice, dose: float, kind: str) -> Path:
    """Simulated frames, which record their mode by the kind of the simulation."""
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "emdn-simulation"
        file.attrs["settings"] = json.dumps({"kind": kind})
        file["images"] = lattice(dose, (6, 64, 64)).astype(np.uint16)[..., None]
    return path


def record(path: Path) -> dict[str, str]:
    with h5py.File(path) as file:
        return {key: str(value) for key, value in file["emdn"].attrs.items()}


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


# The dose is that of the frames: 0.5 and 30 e/px on either side of the edge at 2.
CASES = [
    ("stem", 30.0, "cafcn@stem", "the file says STEM"),
    ("stem", 0.5, "cafcn@stem", "the file says STEM"),
    ("movie", 0.5, "cafcn@tem-low", "the file says TEM, 0."),
    ("movie", 30.0, "cafcn", "there is no cafcn@tem-high, so cafcn itself"),
    ("mixed", 0.5, "cafcn", "the file does not say STEM or TEM, so cafcn itself"),
]


def test_each_of_several_inputs_gets_the_copy_for_it(
    shipped: Path, tmp_path: Path, lattice, capsys
) -> None:
    sources = [
        frames(tmp_path / f"{number}.h5", lattice, dose, kind)
        for number, (kind, dose, *_) in enumerate(CASES)
    ]
    assert call("denoise", *sources, "--model", "cafcn@auto", "--device", "cpu") == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("model ")]
    for source, line, (_, _, name, why) in zip(sources, printed, CASES, strict=True):
        made = record(source.with_name(f"{source.stem}_denoised.h5"))
        assert made["model"] == name
        assert made["model_route"].startswith("cafcn@auto: ")
        assert why in made["model_route"]
        assert line == f"model      {name} on cpu ({made['model_route']})"


def test_check_takes_the_copy_that_denoise_takes(shipped, tmp_path, lattice, capsys) -> None:
    source = frames(tmp_path / "a.h5", lattice, 30.0, "stem")
    call("check", source, "--model", "cafcn@auto", "--device", "cpu", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "cafcn@stem"
    assert any(note.startswith("cafcn@auto: the file says STEM") for note in found["notes"])


def test_the_wrong_copy_is_warned_of_and_obeyed(
    shipped: Path, tmp_path: Path, lattice, capsys, caplog
) -> None:
    source = frames(tmp_path / "a.h5", lattice, 30.0, "stem")
    assert call("denoise", source, "--model", "cafcn@tem-low", "--device", "cpu") == 0
    (said,) = [text for text in caplog.messages if "cafcn@tem-low" in text]
    assert said.startswith(f"warning: {source}: cafcn@tem-low is for TEM, fewer than 2 e/px, but ")
    assert "the file says STEM and " in said
    assert "e/px measured" in said
    assert said.endswith("use cafcn@auto or cafcn")
    made = record(tmp_path / "a_denoised.h5")
    assert made["model"] == "cafcn@tem-low"
    assert "but the file says STEM" in made["model_route"]


def test_the_right_copy_or_none_needs_no_word(
    shipped: Path, tmp_path: Path, lattice, caplog
) -> None:
    source = frames(tmp_path / "a.h5", lattice, 0.5, "movie")
    for model in ("cafcn@tem-low", "cafcn"):
        assert call("denoise", source, "--model", model, "--device", "cpu", "--overwrite") == 0
        made = record(tmp_path / "a_denoised.h5")
        assert made["model"] == model
        assert "model_route" not in made
    assert not any("cafcn" in text for text in caplog.messages)


@pytest.mark.parametrize(
    ("mode", "electrons", "against"),
    [
        ("tem", 1.5, ""),
        (None, 1.5, ""),
        ("tem", None, ""),
        ("stem", 1.5, "but the file says STEM;"),
        ("tem", 2.5, "but 2.5 e/px measured;"),
    ],
)
def test_only_what_is_known_contradicts(mode, electrons, against) -> None:
    said = routing.contradiction("cafcn@tem-low", mode, electrons)
    assert bool(said) == bool(against)
    assert against in said
    assert not routing.contradiction("cafcn", mode, electrons)
    assert not routing.contradiction("box", mode, electrons)


def test_a_dose_that_cannot_be_measured_decides_nothing() -> None:
    assert routing.choose("cafcn", "tem", None, COPIES)[0] == "cafcn"
    name, why = routing.choose("cafcn", "stem", None, COPIES)
    assert name == "cafcn@stem"
    assert "no dose could be measured" in why


def test_copies_are_opened_by_name_and_arrays_take_the_model(shipped: Path) -> None:
    assert Denoiser("cafcn@stem").session.info.name == "cafcn@stem"
    assert Denoiser("cafcn@auto").session.info.name == "cafcn"
    for name in ("cafcn@tem-high", "cafcn@sem", "resnet@auto"):
        with pytest.raises(ModelError, match=f"no shipped model is called '{name}'"):
            Denoiser(name)


def test_copies_are_listed_below_their_model(shipped: Path) -> None:
    names = listing.table()["name"].to_list()
    assert names[:4] == ["cafcn", "cafcn@stem", "cafcn@tem-low", "dncnn"]
    assert listing.table()["for"].to_list()[:2] == ["all frames", "scanned probe, any dose"]
    assert "cafcn@auto takes the copy" in listing.text()
