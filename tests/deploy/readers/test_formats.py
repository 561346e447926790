"""Every other format: the same frames, calibration and errors from each."""

import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy import job, targets
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import Choice, arrays, open_frames, vendors
from emdn_deploy.readers.folder import natural, split_pattern
from emdn_deploy.readers.frames import Axis
from emdn_models.errors import FormatError, MissingExtraError

STACK = np.arange(5 * 16 * 24, dtype=np.uint16).reshape(5, 16, 24)


def expect(path: Path, frames: np.ndarray[Any, Any], choice: Choice = Choice()) -> Any:  # noqa: B008
    """Open, compare all frames and a single one, and return the x axis."""
    with open_frames(path, choice) as opened:
        assert opened.shape == frames.shape
        count = len(frames)
        np.testing.assert_array_equal(opened.read(0, count), frames.astype(np.float32))
        np.testing.assert_array_equal(opened.read(count - 1, count), frames[-1:])
        assert opened.why
        return opened.axis("x")


@pytest.mark.parametrize("suffix", [".dm3", ".dm4"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32"])
def test_dm(tmp_path: Path, dm_file: Callable[..., Path], suffix: str, dtype: str) -> None:
    frames = STACK.astype(dtype)
    axis = expect(dm_file(tmp_path / f"movie{suffix}", frames), frames)
    # As other readers have it: the file's float32, not a rounded decimal.
    assert (axis.units, axis.step) == ("nm", float(np.float32(0.02)))
    expect(dm_file(tmp_path / f"one{suffix}", frames[0]), frames[:1])


def test_dm_spectra_are_refused(tmp_path: Path, dm_file: Callable[..., Path]) -> None:
    path = dm_file(tmp_path / "si.dm4", STACK, kind="Spectrum image")
    with pytest.raises(FormatError, match="holds spectrum images"):
        open_frames(path)
    with pytest.raises(FormatError, match="no image '3'; it has 0 to 0"):
        open_frames(dm_file(tmp_path / "a.dm4", STACK), Choice(dataset="3"))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_ser(tmp_path: Path, ser_file: Callable[..., Path], dtype: str) -> None:
    frames = STACK.astype(dtype)
    axis = expect(ser_file(tmp_path / "movie_1.ser", frames), frames)
    assert (axis.units, axis.step) == ("m", 2e-11)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float32", "float16"])
def test_mrc(tmp_path: Path, dtype: str) -> None:
    frames = (STACK % 100).astype(dtype)
    path = tmp_path / "movie.mrc"
    with mrcfile.new(path, frames) as file:
        file.set_image_stack()
        file.voxel_size = 0.2
    axis = expect(path, frames)
    assert axis.units == "Å"
    assert axis.step == pytest.approx(0.2)


@pytest.mark.parametrize(("stamp", "flags"), [(1146047817, 0), (0, 0)])
def test_mrc_bytes_are_read_as_they_were_meant(tmp_path: Path, stamp: int, flags: int) -> None:
    frames = (STACK % 256).astype(np.uint8)
    path = tmp_path / "old.mrc"
    with mrcfile.new(path, frames.view(np.int8)):
        pass
    content = bytearray(path.read_bytes())
    content[152:160] = struct.pack("<ii", stamp, flags)
    if not stamp:
        content[76:84] = struct.pack("<ff", 0.0, 255.0)  # dmin, dmax
    path.write_bytes(content)
    expect(path, frames)
    content[152:160] = struct.pack("<ii", 1146047817, 1)
    path.write_bytes(content)
    expect(path, frames.view(np.int8))


def test_mrc_transforms_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fft.mrc"
    with mrcfile.new(path, np.zeros((16, 16), np.complex64)):
        pass
    with pytest.raises(FormatError, match="complex"):
        open_frames(path)
    with mrcfile.new(tmp_path / "cut.mrc", STACK):
        pass
    content = (tmp_path / "cut.mrc").read_bytes()
    (tmp_path / "cut.mrc").write_bytes(content[:2000])
    with (
        open_frames(tmp_path / "cut.mrc") as frames,
        pytest.raises(FormatError, match=r"is cut short: 1 of 5 frames are there.*--frames 0:1"),
    ):
        frames.read(0, 5)
    (tmp_path / "short.mrc").write_bytes(content[:100])
    with pytest.raises(FormatError, match="MRC"):
        open_frames(tmp_path / "short.mrc")


@pytest.mark.parametrize("options", [
    {}, {"bigtiff": True}, {"imagej": True}, {"compression": "zlib"}, {"byteorder": ">"},
    {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}, {"ome": True},
])  # fmt: skip
@pytest.mark.parametrize("count", [1, 5])
def test_tiff(tmp_path: Path, options: dict[str, Any], count: int) -> None:
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, STACK[:count], photometric="minisblack", **options)
    expect(path, STACK[:count])


def test_tiff_calibrations(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "ij.tif", STACK, imagej=True, resolution=(50, 50), metadata={"unit": "nm"}
    )
    axis = expect(tmp_path / "ij.tif", STACK)
    assert (axis.units, axis.step) == ("nm", pytest.approx(0.02))
    tifffile.imwrite(
        tmp_path / "o.ome.tif", STACK, ome=True, photometric="minisblack",
        metadata={"axes": "TYX", "PhysicalSizeX": 0.3, "PhysicalSizeXUnit": "nm"},
    )  # fmt: skip
    axis = expect(tmp_path / "o.ome.tif", STACK)
    assert (axis.units, axis.step) == ("nm", pytest.approx(0.3))
    tifffile.imwrite(
        tmp_path / "vendors.tif", STACK, photometric="minisblack",
        extratags=[(65003, "s", 0, "nm", True), (65009, "d", 1, 0.25, True)],
    )  # fmt: skip
    axis = expect(tmp_path / "vendors.tif", STACK)
    assert (axis.units, axis.step) == ("nm", 0.25)
    tifffile.imwrite(tmp_path / "print.tif", STACK, photometric="minisblack", resolution=(72, 72))
    assert expect(tmp_path / "print.tif", STACK).step is None


def test_tiff_colours_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    with pytest.raises(FormatError, match="colour"):
        open_frames(tmp_path / "rgb.tif")


def test_tiff_series_are_listed(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(STACK[0], photometric="minisblack", metadata=None)
        file.write(STACK[0, :, :20], photometric="minisblack", metadata=None)
    with pytest.raises(FormatError, match=r"2 series: .*--dataset NUMBER"):
        open_frames(tmp_path / "two.tif")
    expect(tmp_path / "two.tif", STACK[:1, :, :20], Choice(dataset="1"))


def test_a_tiff_that_needs_imagecodecs_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, photometric="minisblack", compression="zlib")

    def missing(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", missing)
    with (
        open_frames(path) as frames,
        pytest.raises(MissingExtraError, match=r"pip install \"\.\[filters\]\""),
    ):
        frames.read(0, 1)


def test_damaged_tiffs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, photometric="minisblack")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(FormatError, match=r"a\.tif"), open_frames(path) as frames:
        frames.read(0, 5)
    path.write_bytes(b"II*\0 nothing else")
    with pytest.raises(FormatError, match=r"a\.tif"):
        open_frames(path)
    path.write_bytes(b"plain text, no TIFF")
    with pytest.raises(FormatError, match="cannot be read as TIFF"):
        open_frames(path)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", ">f4", "f2", "?", "i8"])
def test_npy(tmp_path: Path, dtype: str) -> None:
    frames = (STACK % 2).astype(dtype)
    np.save(tmp_path / "movie.npy", frames)
    expect(tmp_path / "movie.npy", frames)
    np.save(tmp_path / "one.npy", frames[0])
    expect(tmp_path / "one.npy", frames[:1])


def test_a_block_of_a_mapped_file_may_be_corrected_in_place(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 4, 4), np.float32))
    with open_frames(tmp_path / "a.npy") as frames:
        frames.read(0, 2)[:, 1, 1] = 0
        assert (frames.read(0, 2) == 1).all()


def test_npy_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(FormatError, match=r"a\.npy"):
        open_frames(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(FormatError, match=r"b\.npy"):
        open_frames(tmp_path / "b.npy")


def tree(folder: Path, dm_file: Callable[..., Path]) -> None:
    """Make the files of an in-situ camera, out of order."""
    for number in (11, 2, 10, 1, 3):
        place = folder / "Hour_00" / "Minute_00" / f"Second_{number // 5:02}"
        place.mkdir(parents=True, exist_ok=True)
        dm_file(place / f"run_Hour_00_Frame_{number}.dm4", STACK[0] + number)


def test_a_folder_is_a_stack_in_natural_order(tmp_path: Path, dm_file) -> None:
    folder = tmp_path / "run"
    tree(folder, dm_file)
    (folder / "notes.txt").write_text("ignored")
    (folder / ".hidden.dm4").write_text("ignored")
    expected = np.stack([STACK[0] + number for number in (1, 2, 3, 10, 11)])
    axis = expect(folder, expected)
    assert (axis.units, axis.step) == ("nm", pytest.approx(0.02))


def test_a_pattern_is_a_stack(tmp_path: Path) -> None:
    for number, name in ((9, "f9"), (10, "f10.partial"), (100, "f100")):  # one of the user's own
        np.save(tmp_path / f"{name}.npy", STACK[:2] + number)
    (tmp_path / "f1.npy.partial.map").write_text("not taken")
    expected = np.concatenate([STACK[:2] + number for number in (9, 10, 100)])
    expect(tmp_path / "f*", expected)
    with open_frames(tmp_path / "*.npy") as frames:
        np.testing.assert_array_equal(frames.read(1, 5), expected[1:5])


def test_folders_that_are_no_stack_are_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no files of frames"):
        open_frames(tmp_path)
    with pytest.raises(FormatError, match="no files of frames"):
        open_frames(tmp_path / "*.dm4")
    np.save(tmp_path / "a.npy", STACK[0])
    tifffile.imwrite(tmp_path / "b.tif", STACK[0])
    with pytest.raises(FormatError, match=r"several kinds \(1 .npy, 1 .tif\)"):
        open_frames(tmp_path)
    (tmp_path / "b.tif").unlink()
    np.save(tmp_path / "b.npy", STACK[0, :, :20])
    with (
        open_frames(tmp_path) as frames,
        pytest.raises(FormatError, match="a stack needs frames of one size"),
    ):
        frames.read(0, 2)


def ripple(path: Path, count: int = 1) -> Path:
    """Write a format that only RosettaSciIO reads, time in the middle of nowhere."""
    writer = pytest.importorskip("rsciio.ripple").file_writer
    axes = [
        {"name": name, "scale": scale, "offset": 0.0, "size": size, "units": units,
         "navigate": name == "t", "index_in_array": i}
        for i, (name, scale, size, units) in enumerate(
            [("t", 0.5, 5, "s"), ("y", 0.02, 16, "nm"), ("x", 0.02, 24, "nm")]
        )
    ]  # fmt: skip
    general = {"General": {"title": ""}, "Signal": {"signal_type": ""}}
    writer(path, {"data": STACK, "axes": axes, "metadata": general, "original_metadata": {}})
    return path


@pytest.mark.filterwarnings("ignore")
def test_rosettasciio_reads_the_rest(tmp_path: Path) -> None:
    axis = expect(ripple(tmp_path / "movie.rpl"), STACK)
    assert (axis.units, axis.step) == ("nm", pytest.approx(0.02))
    (tmp_path / "bad.mib").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"bad\.mib: RosettaSciIO cannot read it"):
        open_frames(tmp_path / "bad.mib")


def test_without_rosettasciio_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rsciio", None)
    (tmp_path / "movie.mib").write_bytes(b"data")
    with pytest.raises(MissingExtraError, match=r"pip install \"\.\[rsciio\]\""):
        open_frames(tmp_path / "movie.mib")


@pytest.mark.parametrize("writer", ["DigitalMicrograph", "ImageJ"])
def test_tiff_stacks_keep_the_time_between_frames(tmp_path: Path, writer: str) -> None:
    path, frames = tmp_path / "movie.tif", np.zeros((4, 9, 8), np.uint16)
    if writer == "ImageJ":
        tifffile.imwrite(path, frames, imagej=True, metadata={"axes": "TYX", "finterval": 0.25})
    else:
        tags = [(65003, "s", 0, "nm", True), (65009, "d", 1, 0.5, True),
                (65005, "s", 0, "s", True), (65011, "d", 1, 0.25, True)]  # fmt: skip
        tifffile.imwrite(path, frames, photometric="minisblack", extratags=tags)
    with open_frames(path) as stack:
        assert stack.shape == (4, 9, 8)
        (along,) = (axis for axis in stack.axes if axis.step == 0.25)
        assert along.units == "s"


def test_a_stack_calibrated_along_x_and_y_only_keeps_that() -> None:
    """As DigitalMicrograph's stack builder writes it: a thumbnail, then (3, 2, 16)."""
    file = SimpleNamespace(
        numObjects=2,
        dataShape=[2, 3],
        scale=[1.0, 1.0, 0.06, 0.05],
        scaleUnit=["", "", "µm", "µm"],
        origin=[0.0, 0.0, 2.0, 0.0],
    )
    along, y, x = vendors._dm_axes(file, 1, 3)
    assert along == Axis()
    assert (y.units, y.step, y.origin) == ("µm", 0.05, 0.0)
    assert (x.units, x.step, x.origin) == ("µm", 0.06, -0.12)
    assert vendors._dm_axes(file, 1, 4) == ()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((96, 96, 20), "20 frames of 96 x 96"),
        ((120, 160, 20), "20 frames of 120 x 160"),
        ((24, 24, 60), "60 frames of 24 x 24"),
        ((64, 48, 3), "channels last: take one channel with --axes yx0"),
        ((9, 64, 48, 2), "--axes tyx0, .*--axes tyxu"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "h5"])
def test_frames_or_channels_last_are_not_taken_for_pixels(
    tmp_path: Path, shape: tuple[int, ...], said: str, suffix: str
) -> None:
    path, stored = tmp_path / f"a.{suffix}", np.arange(np.prod(shape)).reshape(shape)
    if suffix == "npy":
        np.save(path, stored)
    else:
        with h5py.File(path, "w") as file:
            file["a"] = stored
    with pytest.raises(FormatError, match=said):
        open_frames(path)
    if len(shape) == 3:
        expect(path, np.moveaxis(stored, 2, 0), Choice(axes="yxt"))
        expect(path, stored, Choice(axes="tyx"))
    else:
        expect(path, stored[..., 1], Choice(axes="tyx1"))


def test_frames_that_may_be_last_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((48, 40, 20)))
    with open_frames(tmp_path / "a.npy") as frames:
        assert frames.shape == (48, 40, 20)
        assert "say --axes yxt" in frames.notes[0]
    with open_frames(tmp_path / "a.npy", Choice(axes="tyx")) as frames:
        assert not frames.notes


@pytest.mark.parametrize("shape", [(16, 24, 1), (5, 16, 24, 1), (2, 5, 16, 24, 1), (1, 16, 24)])
def test_a_last_axis_of_one_is_a_channel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    stored = np.arange(np.prod(shape)).reshape(shape)
    np.save(tmp_path / "a.npy", stored)
    expect(tmp_path / "a.npy", stored.reshape(-1, 16, 24))


def test_a_digit_takes_one_index_of_an_axis(tmp_path: Path) -> None:
    stored = np.arange(4 * 2 * 9 * 12).reshape(4, 2, 9, 12)
    np.save(tmp_path / "a.npy", stored)
    expect(tmp_path / "a.npy", stored[:, 1], Choice(axes="t1yx"))
    expect(tmp_path / "a.npy", stored[3], Choice(axes="3tyx"))
    expect(tmp_path / "a.npy", stored[3:, 1], Choice(axes="31yx"))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = stored
    expect(tmp_path / "a.h5", stored[:, 1], Choice(axes="t1yx"))
    with pytest.raises(FormatError, match=r"takes index 2 of an axis of 2 .*counted from 0"):
        open_frames(tmp_path / "a.npy", Choice(axes="t2yx"))
    with pytest.raises(FormatError, match=r"has 2 channels .*--axes t0yx or t1yx, .*--axes tuyx"):
        open_frames(tmp_path / "a.npy", Choice(axes="tcyx"))


NAMES = [f"f_{number}.npy" for number in range(5)]


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("MIB[FAIL] run", "*.npy"), ("MIB[FAIL] run", "f_[0-4].npy"), ("10²5", "*.npy"),
        ("a[0-9]/b [1]", "*.npy"), ("a[0-9]/b [1]", "f_?.npy"), ("what?", "*.npy"),
        ("Δ run ½", "*.npy"),
    ],
)  # fmt: skip
def test_any_name_of_a_folder_is_taken_as_it_is(tmp_path: Path, folder: str, pattern: str) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        np.save(place / name, STACK[0] + number)
    expected = np.stack([STACK[0] + number for number in range(5)])
    expect(place / pattern, expected)
    expect(place, expected)
    expect(tmp_path / "**" / "f_*.npy", expected)
    assert split_pattern(place / pattern) == (place, pattern)
    target, _ = targets.target_of(place / pattern, DenoiseOptions())
    assert target.parent == place.parent
    assert target.stem == f"{place.name}_denoised"


def test_brackets_in_the_names_of_files_are_taken_as_they_are(tmp_path: Path) -> None:
    for number in range(2):
        np.save(tmp_path / f"run[1]_{number}.npy", STACK[0] + number)
    expect(tmp_path / "run[1]_*.npy", np.stack([STACK[0], STACK[0] + 1]))


def test_numbers_of_any_script_are_sorted_by_value() -> None:
    names = ["10²5", "f٩", "f١٠", "f9", "f10", "f²", "f①", "9"]
    assert [path.name for path in sorted(map(Path, names), key=natural)] == [
        "9", "10²5", "f٩", "f9", "f١٠", "f10", "f²", "f①",
    ]  # fmt: skip


def test_what_follows_the_first_array_is_counted(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, STACK)
        np.save(file, STACK)
    with open_frames(tmp_path / "a.npy") as frames:
        assert "bytes after the first array, perhaps more arrays, are not read" in frames.notes[0]


def test_what_is_no_stack_says_what_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", STACK)
    with pytest.raises(FormatError, match=r"several arrays; save the frames alone by numpy\.save"):
        open_frames(tmp_path / "a.npz")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zarray").write_text("{}")
    with pytest.raises(FormatError, match="is a Zarr store"):
        open_frames(tmp_path / "a.zarr")


def test_suffixes_of_one_format_are_one_kind(tmp_path: Path) -> None:
    for number, suffix in enumerate(["h5", "hdf5"]):
        with h5py.File(tmp_path / f"{number}.{suffix}", "w") as file:
            file["a"] = STACK[number]
    expect(tmp_path, STACK[:2])


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
def test_names_need_not_be_utf_8(tmp_path: Path, box_model: Path) -> None:
    path = tmp_path / os.fsdecode(b"fr\xe9.npy")
    np.save(path, STACK)
    made = job.run(path, DenoiseOptions(model=str(box_model), device="cpu")).output
    with open_frames(made) as frames:
        assert frames.shape == STACK.shape


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<u2", ">f4", "u1"])
def test_a_file_is_read_as_its_memory_map_would_be(
    tmp_path: Path, monkeypatch, order: str, dtype: str
) -> None:
    """Any selection that a stack of any axis order needs; and none of it maps the file."""
    monkeypatch.setattr(arrays.Plain, "_SLAB", 100)
    array = np.arange(4 * 5 * 6 * 2).reshape(4, 5, 6, 2).astype(dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    plain = arrays.unmapped(tmp_path / "a.npy", np.load(tmp_path / "a.npy", mmap_mode="r"))
    assert isinstance(plain, arrays.Plain)
    every = slice(None)
    for where in (
        2, slice(1, 3), (1, 2), (every, every, 3, 1), (every, every, slice(2, 5), 0),
        (3, slice(0, 4, 2), every, 1), (slice(1, 4), 0), (slice(3, None), every, -1, slice(None)),
    ):  # fmt: skip
        np.testing.assert_array_equal(plain[where], array[where])
    plain.close()
