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
    assert unet.preset == "shipped"
    assert unet.metadata == {"recipe": {"lr": 0.01}}
    np.testing.assert_array_equal(unet.state["a.weight"], np.arange(12).reshape(3, 4))
    assert unet.state["a.weight"].dtype == np.float32
    assert unet.state["count"].shape == ()
    assert not list(saved.parent.glob("*.partial"))


def test_it_is_plain_hdf5(saved):
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
    with pytest.raises(CheckpointError, match="cannot be read as HDF5"):
        checkpoint.load(tmp_path / "missing.h5")
    text = tmp_path / "text.h5"
    text.write_text("a torch pickle, perhaps")
    with pytest.raises(CheckpointError, match=r"text\.h5: cannot be read as HDF5"):
        checkpoint.load(text)
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(CheckpointError, match="format is None, expected 'emdn-checkpoint'"):
        checkpoint.load(tmp_path / "frames.h5")
    with h5py.File(saved, "a") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(CheckpointError, match="update emdn"):
        checkpoint.load(saved)


def test_a_torch_file_of_that_name_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    for name, new in [("zip.h5", True), ("pickle.h5", False)]:
        torch.save({"w": torch.zeros(3)}, tmp_path / name, _use_new_zipfile_serialization=new)
        assert (tmp_path / name).read_bytes().startswith(b"PK" if new else b"\x80")
        with pytest.raises(CheckpointError, match=rf"{name}: is a torch pickle, not HDF5; "):
            checkpoint.load(tmp_path / name)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02"])
def test_the_first_bytes_tell_a_torch_file(tmp_path, start):
    (tmp_path / "model.h5").write_bytes(start + bytes(99))
    with pytest.raises(CheckpointError, match=r"model\.h5: is a torch pickle, not HDF5"):
        checkpoint.load(tmp_path / "model.h5")


def no_version(file):
    del file.attrs["format_version"]


def odd_version(file):
    file.attrs["format_version"] = "one"


def no_preset(file):
    del file["unet"].attrs["preset"]


def cut_metadata(file):
    file["unet"].attrs["metadata"] = '{"recipe": '


def a_tensor_too_many(file):
    file["stray"] = np.zeros(3)


def a_group_in_a_model(file):
    file["unet"].create_group("nested")


@pytest.mark.parametrize(
    "damage",
    [no_version, odd_version, no_preset, cut_metadata, a_tensor_too_many, a_group_in_a_model],
)
def test_damage_is_a_checkpoint_error(saved, damage):
    with h5py.File(saved, "r+") as file:
        damage(file)
    with pytest.raises(CheckpointError, match=r"em_denoise_model\.h5: is a damaged checkpoint"):
        checkpoint.load(saved)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_cut_file_is_a_checkpoint_error(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"em_denoise_model\.h5"):
        checkpoint.load(saved)


@pytest.mark.parametrize("seed", range(40))
def test_scrambled_bytes_never_raise_anything_else(saved, seed):
    rng = np.random.default_rng(seed)
    content = np.frombuffer(saved.read_bytes(), np.uint8).copy()
    start = int(rng.integers(0, len(content) - 64))
    content[start : start + 64] = rng.integers(0, 256, 64)
    saved.write_bytes(content.tobytes())
    with contextlib.suppress(CheckpointError):
        checkpoint.load(saved)
