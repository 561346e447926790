"""em_denoise_model.h5: what goes in comes out, and what is no checkpoint is refused."""

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
