"""What all formats share: the same frames and axes, folders and patterns, and errors."""

import importlib.util
import sys

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import Choice, frames, open_frames, split_pattern
from emdn_deploy.writers import target_of
from emdn_models.errors import FormatError, MissingExtraError

STACK = np.arange(5 * 16 * 24, dtype=np.uint16).reshape(5, 16, 24)
INTEGERS = ["uint8", "int16", "uint16", "int32"]


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        *((suffix, dtype) for suffix in (".dm3", ".dm4") for dtype in [*INTEGERS, "float32"]),
        *((".ser", dtype) for dtype in [*INTEGERS, "float32"]), (".dm3", "uint32"),
        *((".mrc", dtype) for dtype in ["int8", "int16", "uint16", "float32", "float16"]),
        *((".npy", dtype) for dtype in ["<u2", ">u2", ">f4", "f2", "?", "i8"]),
        *((".tif", dtype) for dtype in [*INTEGERS, ">f4"]),
    ],
)  # fmt: skip
def test_any_type_of_number(tmp_path, reads, dm_file, ser_file, suffix, dtype):
    frames = (STACK % 100).astype(dtype)
    path = tmp_path / f"movie{suffix}"
    # As other readers have it: DM's float32 is no rounded decimal.
    step, units = {
        ".dm3": (float(np.float32(0.02)), "nm"), ".dm4": (float(np.float32(0.02)), "nm"),
        ".ser": (2e-11, "m"), ".mrc": (pytest.approx(0.2), "Å"), ".tif": (0.25, "nm"),
    }.get(suffix, (None, ""))  # fmt: skip
    for one in (frames[:1], frames):
        if suffix.startswith(".dm"):
            dm_file(path, one if len(one) > 1 else one[0])
        elif suffix == ".ser":
            ser_file(path, one)
        elif suffix == ".npy":
            np.save(path, one if len(one) > 1 else one[0])
        elif suffix == ".tif":
            tags = [(65003, "s", 0, "nm", True), (65009, "d", 1, 0.25, True)]
            tifffile.imwrite(path, one, photometric="minisblack", extratags=tags)
        else:
            with mrcfile.new(path, one, overwrite=True) as file:
                file.set_image_stack()
                file.voxel_size = 0.2
        axis = reads(path, one).axis("x")
        assert (axis.step, axis.units) == (step, units)


def test_npy_objects_are_never_unpickled(tmp_path, refuses):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\x01")
    for name in ("a.npy", "b.npy"):
        refuses(tmp_path / name, name.replace(".", r"\."))
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, STACK)
        np.save(file, STACK)
    with open_frames(tmp_path / "a.npy") as frames:
        assert "bytes after the first array, perhaps more arrays, are not read" in frames.notes[0]


def test_a_folder_is_a_stack_in_natural_order(tmp_path, reads, dm_file):
    """The files of an in-situ camera, out of order."""
    folder = tmp_path / "run"
    for number in (11, 2, 10, 1, 3):
        place = folder / "Hour_00" / "Minute_00" / f"Second_{number // 5:02}"
        place.mkdir(parents=True, exist_ok=True)
        dm_file(place / f"run_Hour_00_Frame_{number}.dm4", STACK[0] + number)
    (folder / "notes.txt").write_text("ignored")
    (folder / ".hidden.dm4").write_text("ignored")
    axis = reads(folder, np.stack([STACK[0] + number for number in (1, 2, 3, 10, 11)])).axis("x")
    assert (axis.units, axis.step) == ("nm", pytest.approx(0.02))


def test_a_pattern_is_a_stack(tmp_path, reads):
    for number, name in ((9, "f9"), (10, "f10.partial"), (100, "f100")):  # one of the user's own
        np.save(tmp_path / f"{name}.npy", STACK[:2] + number)
    (tmp_path / "f1.npy.partial.map").write_text("not taken")
    expected = np.concatenate([STACK[:2] + number for number in (9, 10, 100)])
    reads(tmp_path / "f*", expected)
    with open_frames(tmp_path / "*.npy") as frames:
        np.testing.assert_array_equal(frames.read(1, 5), expected[1:5])


def test_folders_that_are_no_stack_are_named(tmp_path, refuses, ser_file, dm_file):
    for source in (tmp_path, tmp_path / "*.dm4"):
        refuses(source, "no files of frames")
    ser_file(tmp_path / "a.ser", STACK)
    dm_file(tmp_path / "a.dm4", STACK)
    refuses(tmp_path, r"several kinds \(1 .*, 1 .*\)")
    for number, frame in enumerate((STACK[0], STACK[0, :, :20])):
        np.save(tmp_path / f"{number}.npy", frame)
    with (
        open_frames(tmp_path / "*.npy") as opened,
        pytest.raises(FormatError, match="a stack needs frames of one size"),
    ):
        opened.read(0, 2)


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("MIB[FAIL] run", "f_[0-4].npy"), ("a[0-9]/b [1]", "f_?.npy"), ("what? Δ 10²½", "*.npy"),
    ],
)  # fmt: skip
def test_any_name_of_a_folder_is_taken_as_it_is(tmp_path, reads, folder, pattern):
    place = tmp_path / folder
    place.mkdir(parents=True)
    for number in range(5):
        np.save(place / f"f_{number}.npy", STACK[0] + number)
    expected = np.stack([STACK[0] + number for number in range(5)])
    for source in (place / pattern, place, tmp_path / "**" / "f_*.npy"):
        reads(source, expected)
    assert split_pattern(place / pattern) == (place, pattern)
    target, _ = target_of(place / pattern, DenoiseOptions())
    assert target.parent == place.parent
    assert target.stem == f"{place.name}_denoised"


def test_what_emdn_does_not_read_is_named(tmp_path, refuses, monkeypatch):
    np.savez(tmp_path / "a.npz", STACK)
    for name in ("empty.h5", "empty.mrc", "a.xyz", "movie.mib"):
        (tmp_path / name).touch()
    for name, said in (
        ("a.npz", "is packed"), ("none.h5", "no such file"), ("a.xyz", "unknown kind"),
        ("empty.h5", "no H5 file"), ("empty.mrc", "no MRC file"),
    ):  # fmt: skip
        if name != "a.xyz" or importlib.util.find_spec("rsciio"):
            refuses(tmp_path / name, f"{name}: .*{said}")
    monkeypatch.setitem(sys.modules, "rsciio", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"\.\[rsciio\]\""):
        open_frames(tmp_path / "movie.mib")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((96, 96, 20), "20 frames of 96 x 96"), ((24, 24, 60), "60 frames of 24 x 24"),
        ((120, 160, 20), "20 frames of 120 x 160"), ((64, 48, 3), "3 channels .* --axes yx0"),
    ],
)  # fmt: skip
def test_frames_or_channels_last_are_not_taken_for_pixels(tmp_path, reads, refuses, shape, said):
    stored = np.arange(np.prod(shape)).reshape(shape)
    np.save(tmp_path / "a.npy", stored)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = stored
    for path in (tmp_path / "a.npy", tmp_path / "a.h5"):
        refuses(path, said)
        reads(path, np.moveaxis(stored, 2, 0), Choice(axes="yxt"))
        reads(path, stored, Choice(axes="tyx"))


def test_a_digit_takes_one_index_of_an_axis_and_one_channel_is_none(tmp_path, reads, refuses):
    path, stored = tmp_path / "a.npy", np.arange(4 * 2 * 9 * 12).reshape(4, 2, 9, 12)
    np.save(path, stored)
    for axes, expected in (("t1yx", stored[:, 1]), ("3tyx", stored[3]), ("31yx", stored[3:, 1])):
        reads(path, expected, Choice(axes=axes))
    refuses(path, "axes 't2yx' do not fit shape", Choice(axes="t2yx"))
    refuses(path, r"has 2 channels .*--axes t0yx or t1yx", Choice(axes="tcyx"))
    for shape in ((16, 24, 1), (5, 16, 24, 1), (2, 5, 16, 24, 1), (1, 16, 24)):
        np.save(path, np.arange(np.prod(shape)).reshape(shape))
        reads(path, np.arange(np.prod(shape)).reshape(-1, 16, 24))


def test_arrays_of_fortran(tmp_path, reads, monkeypatch):
    array = np.asfortranarray(np.arange(20 * 16 * 24).reshape(20, 16, 24).astype(">f4"))
    np.save(tmp_path / "a.npy", array)
    for limit in (frames.LIMIT, 2000):
        monkeypatch.setattr(frames, "LIMIT", limit)
        reads(tmp_path / "a.npy", array)
        reads(tmp_path / "a.npy", array[..., 3][..., None].transpose(2, 0, 1), Choice(axes="yx3"))
