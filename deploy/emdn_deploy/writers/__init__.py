"""Output files: their names, what each format can store, and the record of a run in them.

A format is two functions, listed under its name in ``FORMATS`` of a file of this folder, and its
suffixes in `WRITERS`. ``lay_out(target, frames, provenance, storage) -> Layout`` makes the file but
for its pixels; ``finish(path, late)`` adds to the record what is known at the end only.
"""

import contextlib
import importlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import READERS, Frames, is_hdf5, is_pattern, is_zarr, split_pattern
from emdn_models import pretrained
from emdn_models.errors import OutputError
from emdn_models.spec import frames_of

WRITERS: dict[str, tuple[str, ...]] = {
    "hdf5": READERS["hdf5"],
    "mrc": (".mrc", ".mrcs"),
    "tiff": (".tif", ".tiff"),
    "npy": (".npy",),
    "zarr": (".zarr",),
}
_FORMATS = {suffix: name for name, suffixes in WRITERS.items() for suffix in suffixes}
# The files of this folder that formats are in, where these have another name. HDF5 to HDF5 is
# special: the input's tree is written again.
_FILES = {"mirror": "hdf5", **dict.fromkeys(("mrc", "npy", "zarr"), "mrc_npy_zarr")}
# Formats that compress, and that hold standard deviations beside the frames.
COMPRESS = ("hdf5", "mirror", "tiff")
INSIDE = ("hdf5", "mirror")
_MRC_DTYPES = ("float32", "int8", "int16", "uint16")

SIGMA = "_sigma"
"""What follows the name of a dataset, or the stem of a file, of frames in that of their sigma."""

Provenance = Mapping[str, str | int | float]
"""How an output came about, by name."""

Pixels = Callable[[int], NDArray[Any]]
"""Reads the next so many pixels of a stack, frame after frame."""


def plain_text(text: str) -> str:
    """Return text that any file can hold: names of files need not be UTF-8."""
    return text.encode("utf-8", "replace").decode()


def partial_of(target: Path) -> Path:
    """Name a file while it is incomplete."""
    return target.with_name(target.name + ".partial")


@dataclass(frozen=True)
class Storage:
    """How the pixels of an output are stored.

    ``sigma``: whether standard deviations are stored as well, as float32. ``parts``: files that
    hold the pixels of an HDF5 output: first frame, frame after the last, path, and dataset.
    """

    dtype: str = "float32"
    compress: bool = False
    sigma: bool = False
    parts: tuple[tuple[int, int, str, str], ...] = ()

    @property
    def kind(self) -> np.dtype[Any]:
        """Return the data type in little-endian order."""
        return np.dtype(self.dtype).newbyteorder("<")

    def size(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of an array of this shape."""
        return self.kind.itemsize * math.prod(shape)

    def total(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of frames of this shape and of their standard deviations."""
        return self.size(shape) + (4 * math.prod(shape) if self.sigma else 0)


@dataclass(frozen=True)
class Layout:
    """How the pixels come into a file that is made but for them.

    They lie one frame after the other from byte ``start`` on, in the file ``inside`` of an output
    that is a folder. Or ``fill`` puts all of them in at the end, where they are compressed, or
    stored in another order. ``sigma``: of the standard deviations, if any.
    """

    dtype: str
    start: int = 0
    inside: str = ""
    fill: Callable[[Pixels], None] | None = None
    sigma: "Layout | None" = None


def storable(frames: NDArray[np.float32], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
    """Return frames as ``dtype``, and how many pixels an integer type cannot hold.

    Integers are rounded to the nearest (halves to even); what lies outside of the type's range gets
    its smallest or largest number and is counted. OutputError if a pixel to be rounded is NaN.
    """
    if dtype.kind == "f":
        return frames, 0
    limits = np.iinfo(dtype)
    # float64: float32 does not hold the largest 32-bit integers.
    rounded = np.rint(frames, dtype=np.float64)
    if np.isnan(rounded).any():
        raise OutputError(f"NaN cannot be stored as {dtype.name}; leave out --dtype")
    outside = int(np.count_nonzero((rounded < limits.min) | (rounded > limits.max)))
    return rounded.clip(limits.min, limits.max).astype(dtype), outside


def target_of(source: Path, options: DenoiseOptions) -> tuple[Path, str]:
    """Return the output's path and its format.

    OutputError if no format has its suffix, ``--to`` says another, or it cannot store what is
    asked for.
    """
    some = options.frames is not None or any(letter.isdigit() for letter in options.axes or "")
    mirror = not some and is_hdf5(source)
    target = options.output or _default(source, options, mirror=mirror)
    if target.is_dir() and not is_zarr(target):
        raise OutputError(f"{target}: is a folder; give it by --out-dir, or a file's name")
    module = _FORMATS.get(target.suffix.lower(), "")
    if not module or (options.to and _FORMATS[f".{options.to}"] != module):
        other = f"--to {options.to}" if options.to else "an output"
        raise OutputError(f"{target}: is no name for {other}; emdn writes {' '.join(_FORMATS)}")
    fits = options.dtype in _MRC_DTYPES or module != "mrc"
    if not fits or (options.compress and module not in COMPRESS):
        what = "compressed frames" if fits else options.dtype
        raise OutputError(
            f"{target}: {module} files cannot hold {what}; choose another kind of file with --to"
        )
    if module == "hdf5" and mirror and (options.to != "hspy" or source.suffix.lower() == ".hspy"):
        module = "mirror"
    return target, module


def _default(source: Path, options: DenoiseOptions, *, mirror: bool) -> Path:
    """Return ``<stem>_denoised.<kind>`` in the output folder or beside the input."""
    stack = is_pattern(source) or (source.is_dir() and not is_zarr(source))
    if is_pattern(source):  # the folder that it searches gives the name
        source = split_pattern(source)[0]
        source = source if source.name else Path("frames")
    suffix = "" if stack else source.suffix
    stem = source.resolve().name if stack else source.stem
    stem = Path(stem).stem if stem.lower().endswith(".ome") else stem
    own = next((name for name, known in READERS.items() if suffix.lower() in known), "")
    known = WRITERS.get("hdf5" if mirror else own, ()) if mirror or own != "hdf5" else ()
    ending = suffix if suffix.lower() in known else known[0] if known else ".hspy"
    folder = options.out_dir if options.out_dir is not None else source.parent
    return folder / f"{stem}{options.suffix}{f'.{options.to}' if options.to else ending}"


def targets_of(sources: list[Path], options: DenoiseOptions) -> list[tuple[Path, DenoiseOptions]]:
    """Pair every input with its options; OutputError if an output is another's, or an input."""
    targets = [target_of(source, options)[0] for source in sources]
    counts = Counter(path.resolve() for path in (*sources, *targets))
    if twice := [target for target in targets if counts[target.resolve()] > 1]:
        raise OutputError(
            f"{twice[0]}: is the input itself, another input, or the output of two; denoise them "
            "in two runs with different --out-dir or --suffix, or use -o"
        )
    return [
        (source, replace(options, output=target))
        for source, target in zip(sources, targets, strict=True)
    ]


def check_room(target: Path, shape: tuple[int, ...], storage: Storage) -> str:
    """Say in words how large an output will be; OutputError if its disk has less room."""
    size = storage.total(shape)
    words = f"{human(size)} of {storage.dtype}" + (" and sigma" if storage.sigma else "")
    free = shutil.disk_usage(target.parent).free
    if size > free and not partial_of(target).exists():  # an interrupted run has its room
        raise OutputError(
            f"{target}: needs {words}, and its disk has {human(free)} free; make room, choose "
            "another one with --out-dir, or a smaller --dtype"
        )
    return words + (" before compression" if storage.compress else "")


def human(size: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size = size / 1000
    return f"{size:.3g} TB"


def sigma_file(target: Path, module: str) -> Path | None:
    """Name the file of an output's standard deviations, None where they lie in the output."""
    return None if module in INSIDE else target.with_name(f"{target.stem}{SIGMA}{target.suffix}")


def files_of(target: Path, module: str, *, sigma: bool) -> list[Path]:
    """List the files of an output, that of the frames last."""
    beside = sigma_file(target, module) if sigma else None
    files = [target] if beside is None else [beside, target]
    return [*(Path(f"{file}.json") for file in files if module == "npy"), *files]


def sigma_place(target: Path, module: str, frames: Frames) -> str:
    """Say where an output's standard deviations lie: the path of a dataset, or of a file."""
    if beside := sigma_file(target, module):
        return str(beside)
    dataset = frames.dataset if module == "mirror" else _writer("hdf5").dataset_of(frames)
    return f"{dataset}{SIGMA}"


def lay_out(
    module: str,
    partial: Path,
    frames: Frames,
    provenance: Provenance,
    storage: Storage,
    beside: Path | None = None,
) -> Layout:
    """Write the whole file but its pixels.

    ``beside``: where the file of the standard deviations is laid out, if they have their own.
    """
    texts = {name: plain_text(one) for name, one in provenance.items() if isinstance(one, str)}
    make, _ = _writer(module).FORMATS[module]
    layout: Layout = make(partial, frames, {**provenance, **texts}, storage)
    if beside is None:
        return layout
    texts["content"] = f"standard deviation of {partial.name.removesuffix('.partial')}"
    plain = Storage(compress=storage.compress)
    return replace(layout, sigma=make(beside, frames, {**provenance, **texts}, plain))


def finish(module: str, path: Path, late: Provenance) -> None:
    """Add to a file that is filled what is known at the end only."""
    _writer(module).FORMATS[module][1](path, late)


def _writer(module: str) -> Any:
    return importlib.import_module(f"emdn_deploy.writers.{_FILES.get(module, module)}")


def recorded(path: Path) -> dict[str, Any]:
    """Return the record of the run that made an output, empty where there is none.

    Of an MRC file, the name of a shipped model is all that is known.
    """
    suffix = path.suffix.lower()
    with contextlib.suppress(KeyError, OSError, ValueError):
        if path.is_file() and is_hdf5(path):
            facts: dict[str, Any] = _writer("hdf5").recorded(path)
        elif suffix in WRITERS["mrc"]:
            from emdn_deploy.readers.mrc_npy_zarr import opened_header

            with opened_header(path) as file:
                found = re.search(r"emdn \S+: denoised by (\S+)", " ".join(file.get_labels()))
            name = found[1] if found else ""
            preset = pretrained.index()["models"][name]["preset"]
            return {"model": name, "model_frames": frames_of(name, preset)}
        elif suffix in WRITERS["tiff"]:
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                described = tiff.imagej_metadata or next(iter(tiff.shaped_metadata or ()), {})
                facts = json.loads(str(described.get("Info", "{}")))
        elif suffix == ".npy":
            facts = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))["emdn"]
        else:
            known = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
            facts = known["attributes"]["emdn"]
        return facts if "model_sha256" in facts else {}
    return {}
