"""Damage small valid files at random and read them: a result or an EmdnError, nothing else.

    python benchmarks/fuzz.py                   # 200 damaged files of each format, a few minutes
    python benchmarks/fuzz.py --cases 5000 --only hdf5 tiff --seed 1
    python benchmarks/fuzz.py --keep FOLDER     # saves each file that was read wrongly

Every file is read in a child process with 3 GB of address space, which is ended after a
minute. The table counts errors of one line, results, and what must not be: tracebacks (any
other exception), crashes of the process, and hangs.
"""

import argparse
import importlib
import json
import os
import select
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import tifffile

ADDRESS_SPACE = 3 * 2**30
OUTCOMES = ("error", "result", "traceback", "crash", "hang")
_SECONDS = 60
_EXTREME = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def frames() -> np.ndarray[Any, Any]:
    """Return what all files hold: (6, 24, 32) uint16."""
    return np.random.default_rng(0).poisson(50, (6, 24, 32)).astype(np.uint16)


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("entry/data/images", data=frames(), chunks=(1, 24, 32))
        file["entry/data"].attrs.update(NX_class="NXdata", signal="images", axes=["t", "y", "x"])
        data.attrs["units"] = "é"
        file["entry/data/x"] = np.arange(32) * 0.1


def _gzip(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset(
            "images", data=frames(), chunks=(2, 24, 32), compression="gzip", shuffle=True
        )


def _tiff(path: Path) -> None:
    tifffile.imwrite(path, frames(), imagej=True, metadata={"unit": "nm"}, resolution=(5, 5))


def _deflate(path: Path) -> None:
    tifffile.imwrite(path, frames(), photometric="minisblack", compression="zlib", ome=True)


def _mrc(path: Path) -> None:
    with mrcfile.new(path, frames()) as file:
        file.set_extended_header(np.frombuffer(bytes(768), "V1"))


def _npy(path: Path) -> None:
    np.save(path, frames())


def _checkpoint(path: Path) -> None:
    from emdn_models import checkpoint

    state = {f"layer{i}.weight": np.full((4, 3), i, np.float32) for i in range(3)}
    one = checkpoint.Weights("shipped", state, {"recipe": {"lr": 0.1}})
    checkpoint.save(path, {"unet": one, "dncnn": one})


def _index(path: Path) -> None:
    entry = {"file": "unet.onnx", "sha256": "0" * 64, "variants": {"int8": {"file": "a.onnx"}}}
    path.write_text(json.dumps({"default": "unet", "models": {"unet": entry}}))


def _onnx(path: Path) -> None:
    from emdn_models import pretrained

    path.write_bytes(pretrained.onnx_path("msdnet").read_bytes())


def _dm(path: Path) -> None:
    _writers()["write_dm"](path, frames())


def _ser(path: Path) -> None:
    _writers()["write_ser"](path, frames())


def _writers() -> dict[str, Any]:
    """Return the writers of DM and SER files that the tests have; no library writes these."""
    import runpy

    place = Path(__file__).parents[1] / "tests" / "deploy" / "readers" / "conftest.py"
    return runpy.run_path(str(place))


def read_frames(path: Path) -> None:
    """Open a file as the commands do, read its ends, and lay out its output."""
    from emdn_deploy.readers import open_frames
    from emdn_deploy.writers import Storage, lay_out

    with open_frames(path) as opened:
        count = opened.shape[0]
        opened.read(0, 1)
        opened.read(count - 1, count)
        if opened.format.startswith(("HDF5", "plain HDF5")):
            lay_out("mirror", path.with_name("mirrored.h5"), opened, {}, Storage())


def read_checkpoint(path: Path) -> None:
    """Load all weights."""
    from emdn_models import checkpoint

    checkpoint.load(path)


def read_index(path: Path) -> None:
    """Read an index of models."""
    from emdn_models import pretrained

    pretrained.read_index(path)


def read_model(path: Path) -> None:
    """Open a model and run it once."""
    from emdn_deploy import Denoiser

    Denoiser(path, threads=1).denoise(frames()[:1], gain=1.0, offset=0.0)


Make = Callable[[Path], None]
FORMATS: dict[str, tuple[str, Make, Callable[[Path], None]]] = {
    "hdf5": ("a.nxs", _hdf5, read_frames),
    "hdf5 gzip": ("a.h5", _gzip, read_frames),
    "tiff": ("a.tif", _tiff, read_frames),
    "tiff deflate": ("a.tif", _deflate, read_frames),
    "mrc": ("a.mrc", _mrc, read_frames),
    "npy": ("a.npy", _npy, read_frames),
    "dm3": ("a.dm3", _dm, read_frames),
    "dm4": ("a.dm4", _dm, read_frames),
    "ser": ("a.ser", _ser, read_frames),
    "checkpoint": ("a.h5", _checkpoint, read_checkpoint),
    "index": ("index.json", _index, read_index),
    "onnx": ("a.onnx", _onnx, read_model),
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
        if seed % 4 == 1:
            data[place] ^= 1 << int(chance.integers(0, 8))
        elif seed % 4 == 2:
            data[place : place + 8] = chance.bytes(min(8, len(data) - place))
        else:
            number = struct.pack("<I", int(chance.choice(_EXTREME)))
            width = int(chance.choice((1, 2, 4)))
            data[place : place + width] = number[:width][: len(data) - place]
    return bytes(data)


def child(cases: list[tuple[str, int]]) -> None:
    """Read damaged files, and print a line before and after each."""
    import resource

    from emdn_models.errors import EmdnError

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # onnxruntime prints, too
    for name in ("emdn_deploy", "emdn_deploy.readers.vendors", "emdn_deploy.session"):
        importlib.import_module(name)  # not in the first file's time
    with tempfile.TemporaryDirectory() as folder:
        for name, seed in cases:
            file, make, read = FORMATS[name]
            sound, path = Path(folder, "sound " + name, file), Path(folder, file)
            if not sound.exists():
                sound.parent.mkdir()
                make(sound)
            # A new file: libhdf5 may keep one open that it fails on, and mix it with what follows.
            path.unlink(missing_ok=True)
            path.write_bytes(damage(sound.read_bytes(), seed))
            print(json.dumps(None), file=said, flush=True)
            try:
                read(path)
                outcome, words = "result", ""
            except EmdnError as error:
                words = str(error)
                outcome = "error" if str(path) in words or name == "onnx" else "traceback"
            except BaseException as error:
                outcome, words = "traceback", f"{type(error).__name__}: {error}"
            print(json.dumps([name, seed, outcome, words]), file=said, flush=True)


def run(names: list[str], first: int, count: int) -> Iterator[tuple[str, int, str, str]]:
    """Yield format, seed, outcome and words of damaged files, in children that may die."""
    cases = [(name, seed) for name in names for seed in range(first, first + count)]
    while cases:
        process = subprocess.Popen(
            [sys.executable, __file__, "--child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(cases).encode())
            process.stdin.close()
            wait, line = 60 + _SECONDS, b"null"
            while line and cases:
                hangs = not select.select([process.stdout], [], [], wait)[0]
                line = b"" if hangs else process.stdout.readline()
                wait = _SECONDS
                if line and (said := json.loads(line)):
                    cases.pop(0)
                    yield tuple(said)
            if cases:
                outcome = "hang" if hangs else "crash"
                yield (*cases.pop(0), outcome, f"exit {process.poll()}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def table(counts: dict[str, Counter[str]]) -> str:
    """Lay out the counts as Markdown."""
    rows = [("format", "cases", *OUTCOMES)]
    rows += [
        (name, str(one.total()), *(str(one[outcome]) for outcome in OUTCOMES))
        for name, one in counts.items()
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--keep", type=Path, help="folder for files that were read wrongly")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.load(sys.stdin))
        return
    counts = {}
    for name in options.only:
        counts[name] = Counter[str]()
        for _, seed, outcome, words in run([name], options.seed, options.cases):
            counts[name][outcome] += 1
            if outcome in ("error", "result"):
                continue
            print(f"{name} {seed}: {outcome}: {words}", flush=True)
            if options.keep:
                options.keep.mkdir(exist_ok=True)
                file, make, _ = FORMATS[name]
                make(options.keep / file)
                content = (options.keep / file).read_bytes()
                (options.keep / f"{seed}_{file}").write_bytes(damage(content, seed))
        print(table({name: counts[name]}).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(counts))


if __name__ == "__main__":
    main()
