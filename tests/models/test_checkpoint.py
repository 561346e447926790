"""em_denoise_model.h5: what goes in comes out, and what is no checkpoint is refused."""

import contextlib
import os

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
    assert unet.preset == "shipped"
    assert unet.metadata == {"recipe": {"lr": 0.01}}
    np.testing.assert_array_equal(unet.state["a.weight"], np.arange(12).reshape(3, 4))
    assert unet.state["a.weight"].dtype == np.float32
    assert unet.state["count"].shape == ()
    assert not list(saved.parent.glob("*.partial"))
    with h5py.File(saved) as file:
        assert file.attrs["format"] == "emdn-checkpoint"
        assert file["unet/a.weight"].shape == (3, 4)
        assert file["unet"].attrs["preset"] == "shipped"


def test_a_failed_save_leaves_the_old_file(saved):
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save(saved, {"unet": Weights("shipped", {"a": np.array(object())})})
    assert saved.read_bytes() == before


def test_pick_names_what_there_is(saved):
    with pytest.raises(ModelError, match="holds no model 'mcnn'; it holds dncnn, unet"):
        checkpoint.pick(saved, checkpoint.load(saved), "mcnn")


def test_files_that_are_no_checkpoint(tmp_path, saved):
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path, tmp_path / "pipe.h5", tmp_path / "missing.h5"):
        with pytest.raises(CheckpointError, match="no such file; expected a checkpoint"):
            checkpoint.load(path)
    (tmp_path / "text.h5").write_text("weights, perhaps")
    with pytest.raises(CheckpointError, match=r"text\.h5: is no checkpoint, or a damaged one"):
        checkpoint.load(tmp_path / "text.h5")
    for start in (b"PK\x03\x04", b"\x80\x02"):
        (tmp_path / "torch.h5").write_bytes(start + bytes(99))
        with pytest.raises(CheckpointError, match=r"torch\.h5: is a torch pickle, not HDF5"):
            checkpoint.load(tmp_path / "torch.h5")
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(CheckpointError, match="format is None, expected 'emdn-checkpoint'"):
        checkpoint.load(tmp_path / "frames.h5")
    with h5py.File(saved, "a") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(CheckpointError, match="update emdn"):
        checkpoint.load(saved)


def virtual(file):
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource(".", "unet/b", (3, 4))
    file.create_virtual_dataset("unet/b", layout)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.attrs.__delitem__("format_version"),
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
        lambda file: file["unet"].create_dataset("huge", (10**5, 10**5), "f4", chunks=(100, 100)),
        lambda file: file["unet"].__setitem__("away", h5py.ExternalLink("other.h5", "/x")),
        virtual,
    ],
)
def test_damage_is_a_checkpoint_error(saved, damage):
    with h5py.File(saved, "r+") as file:
        damage(file)
    with pytest.raises(CheckpointError, match=r"em_denoise_model\.h5: is no checkpoint, or a dam"):
        checkpoint.load(saved)


@pytest.mark.parametrize("seed", range(20))
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


def test_big_endian_tensors_are_turned(saved):
    with h5py.File(saved, "a") as file:
        file["unet"].create_dataset("b", data=np.arange(3, dtype=">f4"))
    tensor = checkpoint.load(saved)["unet"].state["b"]
    assert tensor.dtype.isnative
    np.testing.assert_array_equal(tensor, [0, 1, 2])
