"""Files that claim more than they hold, or lead in circles: one line, from the header."""

import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy.readers import Choice, open_frames
from emdn_models.errors import FormatError

FRAMES = np.arange(4 * 16 * 24, dtype=np.uint16).reshape(4, 16, 24)


@pytest.mark.parametrize("codec", ["gzip", "lzf", "LZ4", "Bitshuffle", "Blosc", "Zstd"])
def test_every_filter(tmp_path, reads, codec):
    options: Any = {"compression": codec, "shuffle": True, "fletcher32": True}
    if codec[0].isupper():
        options = getattr(pytest.importorskip("hdf5plugin"), codec)()
    with h5py.File(tmp_path / "sound.h5", "w") as file:
        file.create_dataset("images", data=FRAMES, chunks=(3, 9, 24), **options)
    assert reads(tmp_path / "sound.h5", FRAMES).compressed


def test_links_in_circles(tmp_path, reads, refuses):
    for own, other in (("a", "b"), ("b", "a")):
        with h5py.File(tmp_path / f"{own}.h5", "w") as file:
            file["images"] = h5py.ExternalLink(f"{other}.h5", "/images")
    refuses(tmp_path / "a.h5", "holds no frames")
    with h5py.File(tmp_path / "c.nxs", "w") as file:
        file["x"], file["y"] = h5py.SoftLink("/y"), h5py.SoftLink("/x")
        file.create_group("entry/data")["frames"] = FRAMES
        file["entry/up"] = file["/"]
        file.attrs["default"] = "entry"
        file["entry"].attrs["default"] = "/entry"
    reads(tmp_path / "c.nxs", FRAMES)


def test_all_files_behind_a_dataset_are_inputs(tmp_path, reads, monkeypatch):
    """So that none is written to, and a change in any is noticed."""
    monkeypatch.chdir(tmp_path)
    FRAMES.tofile("raw.dat")
    with h5py.File("last.h5", "w") as file:
        file.create_dataset("images", FRAMES.shape, "u2", external=[("raw.dat", 0, FRAMES.nbytes)])
    with h5py.File("links.h5", "w") as file:
        file["images"] = h5py.ExternalLink("last.h5", "images")
    layout = h5py.VirtualLayout(FRAMES.shape, "u2")
    layout[:] = h5py.VirtualSource("last.h5", "images", FRAMES.shape)
    with h5py.File("outer.h5", "w") as file:
        file.create_virtual_dataset("images", layout)
    for name, behind in (("links.h5", ["last.h5", "raw.dat"]), ("outer.h5", ["last.h5"])):
        found = reads(tmp_path / name, FRAMES, Choice("images")).files
        assert [path.name for path in found] == [name, *behind]


@pytest.mark.parametrize(("sizes", "extended"), [
    ((2**31 - 1,) * 3, 0), ((-64, 64, 1), 0), ((64, 64, 10**9), 0),
    ((0, 0, 0), 0), ((64, 64, 1), 2**28), ((64, 64, 1), -5),
])  # fmt: skip
def test_mrc_headers(tmp_path, refuses, sizes, extended):
    path = tmp_path / "claims.mrc"
    head = bytearray(1024)
    struct.pack_into("<4i", head, 0, *sizes, 1)
    struct.pack_into("<i", head, 92, extended)
    head[208:214] = b"MAP DD"
    path.write_bytes(bytes(head) + bytes(8192))
    refuses(path, "claims|damaged|empty|cut short")


@pytest.mark.parametrize(("name", "make", "said"), [
    ("pipe.npy", os.mkfifo, "is no regular file"),
    ("device.h5", lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    ("folder.tif", Path.mkdir, "holds no files of frames"),
])  # fmt: skip
def test_what_is_no_file(tmp_path, refuses, name, make, said):
    make(tmp_path / name)
    refuses(tmp_path / name, said)


def _gzip(path: Path, frames: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=frames, chunks=(1, 16, 24), compression="gzip")


def _tiff(path: Path, frames: np.ndarray) -> None:
    tifffile.imwrite(path, frames, photometric="minisblack")


@pytest.mark.parametrize(("suffix", "make"), [
    (".h5", _gzip), (".tif", _tiff), (".npy", np.save), (".mrc", mrcfile.write),
    (".dm4", None), (".ser", None),
])  # fmt: skip
def test_files_damaged_anywhere_are_an_error_or_are_read(tmp_path, dm_file, ser_file, suffix, make):
    """Cut files, and files with other bytes, near their start more often."""
    sound = tmp_path / f"sound{suffix}"
    (make or {".dm4": dm_file, ".ser": ser_file}[suffix])(sound, FRAMES)
    content, chance = sound.read_bytes(), np.random.default_rng(0)
    for number in range(24):
        damaged = bytearray(content)
        place = int(chance.integers(0, len(content) if number % 3 else 512))
        if number % 4:
            damaged[place : place + 4] = chance.bytes(4)
        else:
            del damaged[place:]
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(damaged)
        with suppress(FormatError), open_frames(path) as opened:
            opened.read(0, opened.shape[0])
