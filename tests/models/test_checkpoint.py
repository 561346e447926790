"""em_denoise_model.h5: what goes in comes out, and what is no checkpoint is refused."""

import contextlib

import h5py
import numpy as np
import pytest

from emdn_models import CheckpointError, ModelError, checkpoint
from emdn_models.checkpoint import Weights


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "new folder" / checkpoint.FILE_NAME
    state = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "count": np.array(7)}
    unet = Weights("shipped", state, {"recipe": {"lr": 0.01}})
    checkpoint.save(path, {"unet": unet, "dncnn": Weights("paper", {})})
    return path


def test_round_trip(saved):
    models = checkpoint.load(saved)
    assert list(models) == ["dncnn", "unet"]
    unet = models["unet"]
    assert (unet.preset, unet.metadata) == ("shipped", {"recipe": {"lr": 0.01}})
    np.testing.assert_array_equal(unet.state["a.weight"], np.arange(12).reshape(3, 4))
    assert unet.state["a.weight"].dtype == np.float32
    assert unet.state["count"].shape == ()
    with pytest.raises(ModelError, match="holds no model 'mcnn'; it holds dncnn, unet"):
        checkpoint.pick(saved, models, "mcnn")
    before = saved.read_bytes()
    with pytest.raises(TypeError):  # leaves the old file
        checkpoint.save(saved, {"unet": Weights("shipped", {"a": np.array(object())})})
    assert saved.read_bytes() == before
    assert not list(saved.parent.glob("*.partial"))


def test_files_that_are_no_checkpoint(tmp_path, saved):
    with pytest.raises(CheckpointError, match="no such file; expected a checkpoint"):
        checkpoint.load(tmp_path)
    for name, start in (("text", b"weights, perhaps"), ("torch", b"PK\x03\x04" + bytes(99))):
        (tmp_path / name).write_bytes(start)
        with pytest.raises(CheckpointError, match=f"{name}: is no checkpoint, or a damaged one"):
            checkpoint.load(tmp_path / name)
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["images"] = np.zeros(3)
    with h5py.File(saved, "a") as file:
        file.attrs["format_version"] = 99
    for path, found in ((tmp_path / "frames.h5", "None"), (saved, "emdn-checkpoint of version 99")):
        with pytest.raises(CheckpointError, match=f"is {found}.*, expected emdn-checkpoint of"):
            checkpoint.load(path)


def virtual(file):
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource(".", "unet/b", (3, 4))
    file.create_virtual_dataset("unet/b", layout)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file["unet"].attrs.__delitem__("preset"),
        *(
            lambda file, text=text: file["unet"].attrs.__setitem__("metadata", text)
            for text in ('{"recipe": ', "[1, 2]", "[" * 60_000, np.arange(4))
        ),
        lambda file: file.__setitem__("stray", np.zeros(3)),
        lambda file: file["unet"].create_group("nested"),
        lambda file: file["unet"].__setitem__("words", "text"),
        lambda file: file["unet"].__setitem__("none", h5py.Empty("f4")),
        lambda file: file["unet"].create_dataset("huge", (2**40,), "f4"),
        lambda file: file["unet"].__setitem__("away", h5py.ExternalLink("other.h5", "/x")),
        virtual,
    ],
)
def test_damage_is_a_checkpoint_error(saved, damage):
    with h5py.File(saved, "r+") as file:
        damage(file)
    with pytest.raises(CheckpointError, match=r"em_denoise_model\.h5: is no checkpoint, or a dam"):
        checkpoint.load(saved)


@pytest.mark.parametrize("seed", range(12))
def test_cut_or_scrambled_bytes_raise_nothing_else(saved, seed):
    rng, content = np.random.default_rng(seed), bytearray(saved.read_bytes())
    start = int(rng.integers(0, len(content) - 64))
    content[start : start + 64] = rng.bytes(64)
    saved.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        checkpoint.load(saved)
    saved.write_bytes(content[:start])
    with pytest.raises(CheckpointError):
        checkpoint.load(saved)
