"""``--frames``, detectors on one scale, and many frames at a time where chunks span many."""

import tracemalloc

import h5py
import numpy as np
import pytest

from emdn_deploy.readers import Choice, frames, open_frames
from emdn_deploy.readers.frames import select
from emdn_models.errors import FormatError

STACK = np.arange(10 * 8 * 9, dtype=np.uint16).reshape(10, 8, 9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:5", STACK[:5]), ("::3", STACK[::3]), ("2:9:2", STACK[2:9:2]), ("-3:", STACK[-3:]),
        ("4", STACK[4:5]), ("-1", STACK[-1:]), (":", STACK), ("5:100", STACK[5:]),
        ("0:3,5:", STACK[[0, 1, 2, 5, 6, 7, 8, 9]]), ("7, 2:4", STACK[[7, 2, 3]]),
        ("0:6:2,6:9:2", STACK[:9:2]), ("3,-1", STACK[[3, 9]]),
    ],
)  # fmt: skip
def test_frames_are_counted_as_python_does(tmp_path, text, expected):
    np.save(tmp_path / "a.npy", STACK)
    with open_frames(tmp_path / "a.npy") as opened:
        taken = select(opened, text)
        assert taken.shape == expected.shape
        np.testing.assert_array_equal(taken.read(0, len(expected)), expected)
        np.testing.assert_array_equal(taken.read(len(expected) - 1, len(expected)), expected[-1:])


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["", "a", "1:b", "0:2,", "1,,2", "0:5:0", "5:0:-1", "1:2:3:4", "1.5"], "is no selection"),
        (["10:20", "0:3,12,5", "-20"], "takes none of 10 frames"),
        (["0,0", "0:3,2:5", "9,-1"], "takes some frames twice"),
    ],
)
def test_nonsense_is_named(tmp_path, texts, said):
    np.save(tmp_path / "a.npy", STACK)
    with open_frames(tmp_path / "a.npy") as opened:
        for text in texts:
            with pytest.raises(FormatError, match=f"--frames .*{said}"):
                select(opened, text)


MOVIE = np.random.default_rng(0).poisson(20, (30, 21, 26)).astype(">u2")


@pytest.mark.parametrize("order", ["tyx", "ytx", "xyt"])
@pytest.mark.parametrize("chunk", [(30, 8, 8), (7, 8, 8), (16, 16, 16), None])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True}])
def test_frames_are_the_same_whatever_the_chunks(tmp_path, monkeypatch, order, chunk, options):
    if chunk is None and options:
        return
    monkeypatch.setattr(frames, "LIMIT", 2000)  # more than eight frames are too much
    places = ["tyx".index(letter) for letter in order]
    chunks = tuple(chunk[place] for place in places) if chunk else None
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        file.create_dataset("a", data=MOVIE.transpose(places), chunks=chunks, **options)
    with open_frames(tmp_path / "a.h5", Choice(axes=order)) as opened:
        apart = chunk[0] > 8 if chunk else order != "tyx"
        assert any("lies all over the file" in note for note in opened.notes) == apart
        for start, stop in [(0, 30), (3, 11), (29, 30), (5, 6), (7, 25)]:
            np.testing.assert_array_equal(opened.read(start, stop), MOVIE[start:stop])
        assert opened.stored_shape == tuple(MOVIE.shape[place] for place in places)


@pytest.mark.parametrize("suffix", [".h5", ".npy"])
def test_memory_does_not_grow_with_the_stack(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(frames, "LIMIT", 2**22)
    path, movie = tmp_path / f"a{suffix}", np.zeros((160, 256, 256), np.uint16)
    if suffix == ".npy":
        np.save(path, movie)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("a", data=movie, chunks=(160, 32, 32), compression="lzf")
    tracemalloc.start()
    with open_frames(path) as opened:
        for start in range(0, 160, 8):
            opened.read(start, start + 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < movie.nbytes / 2
