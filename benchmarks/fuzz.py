"""Damage small valid files at random and read them: a result or an EmdnError, nothing else.

    python benchmarks/fuzz.py                   # 200 damaged files of each format, a few minutes
    python benchmarks/fuzz.py --cases 5000 --only hdf5 tiff --seed 1

Every file is read in a child process with 3 GB of address space, which is ended after two
minutes without an answer. The table counts errors of one line, results, and what must not be:
tracebacks (any other exception), crashes of the process, and hangs.
"""

import argparse
import json
import multiprocessing
import os
import resource
import runpy
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from itertools import product
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import tifffile

from emdn_deploy import Denoiser
from emdn_deploy.readers import open_frames
from emdn_deploy.writers import Storage, lay_out
from emdn_models import checkpoint, pretrained
from emdn_models.errors import EmdnError

OUTCOMES = ("error", "result", "traceback", "crash", "hang")
_SECONDS = 120
_EXTREME = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_FRAMES = np.random.default_rng(0).poisson(50, (6, 24, 32)).astype(np.uint16)


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("entry/data/images", data=_FRAMES, chunks=(1, 24, 32))
        file["entry/data"].attrs.update(NX_class="NXdata", signal="images", axes=["t", "y", "x"])
        data.attrs["units"] = "é"
        file["entry/data/x"] = np.arange(32) * 0.1


def _gzip(path: Path) -> None:
    options = {"chunks": (2, 24, 32), "compression": "gzip", "shuffle": True}
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("images", data=_FRAMES, **options)


def _tiff(**options: object) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, _FRAMES, photometric="minisblack", **options)


def _mrc(path: Path) -> None:
    with mrcfile.new(path, _FRAMES) as file:
        file.set_extended_header(np.frombuffer(bytes(768), "V1"))


def _checkpoint(path: Path) -> None:
    state = {f"layer{i}.weight": np.full((4, 3), i, np.float32) for i in range(3)}
    one = checkpoint.Weights("shipped", state, {"recipe": {"lr": 0.1}})
    checkpoint.save(path, {"unet": one, "dncnn": one})


def _index(path: Path) -> None:
    entry = {"file": "unet.onnx", "sha256": "0" * 64, "variants": {"int8": {"file": "a.onnx"}}}
    path.write_text(json.dumps({"default": "unet", "models": {"unet": entry}}))


def _by_tests(writer: str) -> Callable[[Path], object]:
    """Take a writer of DM or SER files from the tests; no library writes these."""
    place = Path(__file__).parents[1] / "tests" / "deploy" / "readers" / "conftest.py"
    return lambda path: runpy.run_path(str(place))[writer](path, _FRAMES)


def read_frames(path: Path) -> None:
    """Open a file as the commands do, read its ends, and lay out its output."""
    with open_frames(path) as opened:
        count = opened.shape[0]
        opened.read(0, 1)
        opened.read(count - 1, count)
        if opened.format.startswith(("HDF5", "plain HDF5")):
            lay_out("mirror", path.with_name("mirrored.h5"), opened, {}, Storage())


FORMATS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "hdf5": ("a.nxs", _hdf5, read_frames),
    "hdf5 gzip": ("a.h5", _gzip, read_frames),
    "tiff": ("a.tif", _tiff(imagej=True, metadata={"unit": "nm"}, resolution=(5, 5)), read_frames),
    "tiff deflate": ("a.tif", _tiff(compression="zlib", ome=True), read_frames),
    "mrc": ("a.mrc", _mrc, read_frames),
    "npy": ("a.npy", lambda path: np.save(path, _FRAMES), read_frames),
    "dm3": ("a.dm3", _by_tests("write_dm"), read_frames),
    "dm4": ("a.dm4", _by_tests("write_dm"), read_frames),
    "ser": ("a.ser", _by_tests("write_ser"), read_frames),
    "checkpoint": ("a.h5", _checkpoint, checkpoint.load),
    "index": ("index.json", _index, pretrained.read_index),
    "onnx": (
        "a.onnx",
        lambda path: path.write_bytes(pretrained.onnx_path("msdnet").read_bytes()),
        lambda path: Denoiser(path, threads=1).denoise(_FRAMES[:1], gain=1.0, offset=0.0),
    ),
}


def damage(content: bytes, seed: int) -> bytes:
    """Cut a file, flip bits, overwrite bytes or put extreme numbers; near its start more often."""
    chance = np.random.default_rng(seed)
    data = bytearray(content)
    if seed % 4 == 0:
        return bytes(data[: int(chance.integers(1, len(data)))])
    for _ in range(int(chance.integers(1, 5))):
        near = min(len(data), 2048) if chance.random() < 0.7 else len(data)
        place = int(chance.integers(0, near))
        extreme = struct.pack("<I", int(chance.choice(_EXTREME)))[: int(chance.choice((1, 2, 4)))]
        flipped = bytes([data[place] ^ 1 << int(chance.integers(0, 8))])
        new = (flipped, chance.bytes(8), extreme)[seed % 4 - 1][: len(data) - place]
        data[place : place + len(new)] = new
    return bytes(data)


def _restrict() -> None:
    """Give a child 3 GB, and no place to print: onnxruntime does so, too."""
    resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


@cache
def _sound(name: str) -> bytes:
    file, make, _ = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder, file))
        return Path(folder, file).read_bytes()


def attempt(name: str, seed: int) -> tuple[str, str]:
    """Read a damaged file; return the outcome and words."""
    file, _, read = FORMATS[name]
    # A new file: libhdf5 may keep one open that it fails on, and mix it with what follows.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file)
        path.write_bytes(damage(_sound(name), seed))
        try:
            read(path)
        except EmdnError as error:
            return "error" if str(path) in str(error) or name == "onnx" else "traceback", str(error)
        except BaseException as error:
            return "traceback", f"{type(error).__name__}: {error}"
    return "result", ""


def run(names: list[str], first: int, count: int) -> Iterator[tuple[str, int, str, str]]:
    """Yield format, seed, outcome and words of damaged files, read in a child that may die."""
    child = None
    for name, seed in product(names, range(first, first + count)):
        context = multiprocessing.get_context("spawn")
        child = child or ProcessPoolExecutor(1, context, initializer=_restrict)
        try:
            yield name, seed, *child.submit(attempt, name, seed).result(_SECONDS)
            continue
        except BrokenProcessPool as error:
            yield name, seed, "crash", str(error)
        except TimeoutError:
            yield name, seed, "hang", f"no answer for {_SECONDS} s"
        for process in list(child._processes.values()):
            process.kill()
        child = child.shutdown()
    if child:
        child.shutdown()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    print("| format | cases | " + " | ".join(OUTCOMES) + " |\n|" + "---|" * 7)
    for name in options.only:
        counts = Counter[str]()
        for _, seed, outcome, words in run([name], options.seed, options.cases):
            counts[outcome] += 1
            if outcome not in ("error", "result"):
                print(f"{name} {seed}: {outcome}: {words}", file=sys.stderr, flush=True)
        numbers = [options.cases, *(counts[outcome] for outcome in OUTCOMES)]
        print(f"| {name} | " + " | ".join(map(str, numbers)) + " |", flush=True)


if __name__ == "__main__":
    main()
