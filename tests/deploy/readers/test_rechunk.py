"""Chunks that span many frames: the same frames, each chunk decoded once, in bounded memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from emdn_deploy.readers import Choice, open_frames, rechunk

FRAMES = np.random.default_rng(0).poisson(20, (30, 21, 26)).astype(">u2")


def write(path: Path, order: str, chunks: Any, frames: np.ndarray = FRAMES, **options: Any) -> Path:
    """Write frames (t, y, x), or (t, u, y, x), in any axis order."""
    stored = frames.transpose(["tyx".index(letter) for letter in order])
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("a", data=stored, chunks=chunks, **options)
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let eight frames be too much."""
    monkeypatch.setattr(rechunk, "LIMIT", 2000)


@pytest.mark.parametrize("order", ["tyx", "ytx", "xyt"])
@pytest.mark.parametrize("chunk", [(30, 8, 8), (7, 8, 8), (30, 21, 26), (16, 16, 16), None])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True}])
@pytest.mark.usefixtures("small")
def test_frames_are_the_same_whatever_the_chunks(tmp_path, order, chunk, options):
    if chunk is None and options:
        return
    sizes = dict(zip("tyx", chunk or (), strict=False))
    chunks = tuple(sizes[letter] for letter in order) if chunk else None
    path = write(tmp_path / "a.h5", order, chunks, **options)
    with open_frames(path, Choice(axes=order)) as frames:
        # Frames that follow each other are read where they are if nothing is to be decoded.
        apart = bool(options) or order != "tyx"
        assert bool(frames.notes) == (apart and (chunk is None or chunk[0] > 8))
        for start, stop in [(0, 30), (3, 11), (29, 30), (5, 6), (7, 25)]:
            np.testing.assert_array_equal(frames.read(start, stop), FRAMES[start:stop])
        assert frames.stored_shape == tuple(FRAMES.shape["tyx".index(i)] for i in order)


@pytest.mark.parametrize("axes", ["u1yx", "utyx", "1tyx"])
@pytest.mark.parametrize("limit", [2000, 2**29])
def test_one_index_of_an_axis(tmp_path, axes, limit, monkeypatch):
    monkeypatch.setattr(rechunk, "LIMIT", limit)
    stored = np.stack([FRAMES, FRAMES + 1], 1)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=stored, chunks=(30, 2, 8, 8), compression="gzip")
    expected = {"u1yx": stored[:, 1], "utyx": stored.reshape(-1, 21, 26), "1tyx": stored[1]}[axes]
    with open_frames(tmp_path / "a.h5", Choice(axes=axes)) as frames:
        np.testing.assert_array_equal(frames.read(0, len(expected)), expected)


@pytest.mark.parametrize(("chunk", "reads"), [((30, 8, 8), 1), ((7, 8, 8), 5), ((1, 21, 26), 30)])
def test_each_chunk_is_decoded_once(tmp_path, monkeypatch, chunk, reads):
    path = write(tmp_path / "a.h5", "tyx", chunk, compression="lzf")
    read, seen = h5py.Dataset.__getitem__, []

    def noting(self: h5py.Dataset, where: Any) -> Any:
        seen.append(where)
        return read(self, where)

    with open_frames(path) as frames:
        assert not frames.notes
        monkeypatch.setattr(h5py.Dataset, "__getitem__", noting)
        for start in range(30):
            frames.read(start, start + 1)
    assert len(seen) == reads


_MEASURED = """
import sys
from emdn_deploy.readers import Choice, open_frames, rechunk
rechunk.LIMIT = 2**24
with open_frames(sys.argv[1]) as frames:
    frames.read(0, 1)
    for start in range(0, frames.shape[0], 8):
        frames.read(start, start + 8)
print(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts it")
def test_memory_does_not_grow_with_the_stack(tmp_path):
    peaks = []
    for count in (8, 160):
        path = tmp_path / f"{count}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset(
                "images", data=np.tile(np.arange(512, dtype=np.uint16), (count, 512, 1)),
                chunks=(count, 32, 32), compression="gzip", compression_opts=1, shuffle=True,
            )  # fmt: skip
        made = subprocess.run(
            [sys.executable, "-c", _MEASURED, path], capture_output=True, text=True, check=True
        )
        peaks.append(int(made.stdout) / 1024)
    # The stack is 84 MB; of the scratch file, what is mapped counts.
    assert peaks[1] - peaks[0] < 60
