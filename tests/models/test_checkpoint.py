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


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02"], ids=["zip", "pickle"])
def test_the_first_bytes_tell_a_torch_file(tmp_path, start):
    (tmp_path / "model.h5").write_bytes(start + bytes(99))
    with pytest.raises(CheckpointError, match=r"model\.h5: is a torch pickle, not HDF5"):
        checkpoint.load(tmp_path / "model.h5")


def attribute(place, name, value):
    def damage(file):
        if value is None:
            del file[place].attrs[name]
        else:
            file[place].attrs[name] = value

    return damage


def dataset(value, dtype=None):
    return lambda file: file["unet"].create_dataset("strange", data=value, dtype=dtype)


def claims(shape, **options):
    return lambda file: file["unet"].create_dataset("huge", shape, "f4", **options)


def item(place, value):
    return lambda file: file.__setitem__(place, value)


def a_virtual_tensor(file):
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource(".", "unet/b", (3, 4))
    file.create_virtual_dataset("unet/b", layout)


@pytest.mark.parametrize(
    "damage",
    [
        attribute("/", "format_version", None), attribute("/", "format_version", "one"),
        attribute("unet", "preset", None), attribute("unet", "preset", np.arange(3)),
        *(attribute("unet", "metadata", text) for text in (
            '{"recipe": ', "[1, 2]", "3", "[" * 60_000, '{"a": ' + "9" * 5000 + "}", np.arange(4))),
        item("stray", np.zeros(3)), lambda file: file["unet"].create_group("nested"),
        lambda file: h5py.h5g.create(file.id, b"caf\xe9"),
        lambda file: h5py.h5g.create(file["unet"].id, b"caf\xe9"),
        a_virtual_tensor,
        *(dataset(value) for value in (
            np.zeros(3, [("a", "f4"), ("b", "S3")]), "text", h5py.Empty("f4"), np.zeros(2, "c8"),
            np.void(b"123"), [b"a", b"b"])),
        dataset(np.zeros(4, "f4"), np.longdouble),
        claims((10**6, 10**6)), claims((10**5, 10**5), chunks=(100, 100)),
        claims((8, 8), chunks=(8, 8), compression="gzip"), claims((2**40,)),
        claims((9,), external=[("elsewhere.bin", 0, 36)]),
        item("unet/a.weight2", h5py.SoftLink("/unet/a.weight")),
        item("unet/a.weight2", h5py.ExternalLink("other.h5", "/x")),
    ],
)  # fmt: skip
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


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path, tmp_path / "pipe.h5"):
        with pytest.raises(CheckpointError, match="is no file; expected a checkpoint"):
            checkpoint.load(path)


def test_damage_that_libhdf5_does_not_survive(saved):
    content = bytearray(saved.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 24] = 255  # the length of the first text: what follows it is no object
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the heap at byte \d+ has an object of no size"):
        checkpoint.load(saved)


def test_big_endian_tensors_are_turned(saved):
    with h5py.File(saved, "a") as file:
        file["unet"].create_dataset("b", data=np.arange(3, dtype=">f4"))
    tensor = checkpoint.load(saved)["unet"].state["b"]
    assert tensor.dtype.isnative
    np.testing.assert_array_equal(tensor, [0, 1, 2])
