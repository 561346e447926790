"""Output files: what each format can store, where its frames lie, and what lies beside them.

A format is one module with ``lay_out(target, frames, provenance, storage) -> Layout`` and
``finish(path, late)`` for what is known at the end only, and one line in `WRITERS`. HDF5 to
HDF5 is special: the input is mirrored.
"""

import contextlib
import importlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
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
# Formats that hold some types only, that compress, and that hold standard deviations themselves.
DTYPES: dict[str, tuple[str, ...]] = {"mrc": ("float32", "int8", "int16", "uint16")}
COMPRESS = ("hdf5", "mirror", "tiff")
INSIDE = ("hdf5", "mirror")

SIGMA = "_sigma"
"""What follows the name of a dataset, or the stem of a file, of frames in that of their sigma."""

Provenance = Mapping[str, str | int | float]
"""How an output came about, by name."""

GROUP = "emdn"
"""The group of an HDF5 file that says how it came about; ``emdn_2`` is of a second run."""


def plain_text(text: str) -> str:
    """Return text that any file can hold: names of files need not be UTF-8."""
    return text.encode("utf-8", "replace").decode()


def partial_of(target: Path) -> Path:
    """Name a file while it is incomplete."""
    return target.with_name(target.name + ".partial")


@dataclass(frozen=True)
class Storage:
    """How the pixels of an output are stored.

    ``sigma``: whether standard deviations are stored as well, always as float32. ``parts``: files
    that hold the pixels instead, for HDF5: numbers of the first frame and of that after the last
    one, path as seen from the output's folder, and dataset in it, of each.
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
    """Where the frames of an output lie.

    A writer makes the whole file first, headers and all, and says at which byte
    each frame belongs. Filling it in then needs no library: it cannot corrupt the
    structure, and a file cut short can be continued.

    Attributes
    ----------
    offsets
        (N,) int64, byte of the first pixel of each frame; of compressed frames, (N + 1,)
        where each begins and the last ends, one after the other, as far as they are made.
    dtype
        Of a stored pixel, with its endianness.
    transposed
        Whether a frame is stored as (x, y).
    encode, fill
        Of frames that are compressed, and whose places depend on the sizes of all: what turns
        the stored pixels of one into bytes, and what puts all, so encoded, into the file.
    sigma
        Where the frames' standard deviations lie, in the same file or in one of their own;
        None where there are none.
    inside
        The file that the offsets are of, where the output is a folder.
    """

    offsets: NDArray[np.int64]
    dtype: str = "<f4"
    transposed: bool = False
    encode: Callable[[NDArray[Any]], bytes] | None = None
    fill: Callable[[Iterator[bytes]], None] | None = None
    sigma: "Layout | None" = None
    inside: str = ""

    @classmethod
    def contiguous(cls, start: int, frames: Frames, storage: Storage, dtype: str) -> "Layout":
        """Place frames one after the other, from byte ``start`` on."""
        numbers = np.arange(frames.shape[0], dtype=np.int64)
        return cls(start + numbers * storage.size(frames.shape[1:]), dtype)


def storable(frames: NDArray[np.float32], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
    """Return frames as ``dtype``, and how many pixels an integer type cannot hold.

    Integers are rounded to the nearest (halves to even); what lies outside of the type's range gets
    its smallest or largest number and is counted. Raises OutputError if a pixel to be rounded is
    NaN.
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


def module_for(target: Path, *, mirror: bool) -> str:
    """Return the writer's module for the suffix of an output.

    ``mirror``: whether the input is HDF5 and all of its frames are wanted. Raises OutputError if no
    writer has this suffix.
    """
    for module, suffixes in WRITERS.items():
        if target.suffix.lower() in suffixes:
            return "mirror" if mirror and module == "hdf5" else module
    known = " ".join(suffix for suffixes in WRITERS.values() for suffix in suffixes)
    raise OutputError(f"{target}: unknown kind of file {target.suffix!r}; emdn writes {known}")


def check(target: Path, module: str, storage: Storage) -> None:
    """Refuse what a format cannot store, with an OutputError that names the formats that can."""
    known = DTYPES.get(module, (storage.dtype,))
    if storage.dtype not in known:
        raise OutputError(
            f"{target}: {module} files hold {', '.join(known)}, not {storage.dtype}; "
            "choose one of these with --dtype, or another kind of file with --to"
        )
    if storage.compress and module not in COMPRESS:
        raise OutputError(
            f"{target}: {module} files are not compressed; leave out --compress, "
            "or choose --to h5, hspy or tif"
        )


def compressed(module: str, frames: Frames, asked: bool | None) -> bool:
    """Say whether to compress an output: as asked, or as the input is, where that can be."""
    return asked if asked is not None else frames.compressed and module in COMPRESS


def check_room(target: Path, shape: tuple[int, ...], storage: Storage) -> str:
    """Say in words how large an output will be.

    Raises OutputError if its disk has less room.
    """
    size = storage.total(shape)
    words = f"{human(size)} of {storage.dtype}" + (" and sigma" if storage.sigma else "")
    if storage.compress:
        return f"{words} before compression"
    partial = partial_of(target)
    # What an interrupted run has written is there already.
    files = [partial, *partial.rglob("*")] if partial.exists() else []
    had = sum(getattr(file.stat(), "st_blocks", 0) * 512 for file in files)
    free = shutil.disk_usage(target.parent).free
    if size - had > free:
        raise OutputError(
            f"{target}: needs {words}, and its disk has {human(free)} free; make room, choose "
            "another one with --out-dir, or --compress or --dtype (both make it smaller)"
        )
    return words


def sigma_file(target: Path, module: str) -> Path | None:
    """Name the file of an output's standard deviations, None where they lie in the output."""
    return None if module in INSIDE else target.with_name(f"{target.stem}{SIGMA}{target.suffix}")


def files_of(target: Path, module: str, *, sigma: bool) -> list[Path]:
    """List the files of an output, that of the frames last."""
    beside = sigma_file(target, module) if sigma else None
    files = [target] if beside is None else [beside, target]
    sidecar = getattr(_writer(module), "sidecar", None)
    return [*([sidecar(file) for file in files] if sidecar else []), *files]


def sigma_place(target: Path, module: str, frames: Frames) -> str:
    """Say where an output's standard deviations lie: the path of a dataset, or of a file."""
    if beside := sigma_file(target, module):
        return str(beside)
    return f"{_writer(module).dataset_of(frames)}{SIGMA}"


def check_sigma(module: str, frames: Frames) -> None:
    """Refuse an input whose mirror has no place for standard deviations (OutputError)."""
    if module == "mirror":
        _writer(module).check_sigma(frames)


def lay_out(
    module: str,
    partial: Path,
    frames: Frames,
    provenance: Provenance,
    storage: Storage,
    beside: Path | None = None,
) -> Layout:
    """Write the whole file but its pixels, with a writer chosen by `module_for`.

    ``beside``: where the file of the standard deviations is laid out, if they have their own.
    """
    layout: Layout = _writer(module).lay_out(partial, frames, provenance, storage)
    if beside is None:
        return layout
    what = f"standard deviation of {partial.name.removesuffix('.partial')}"
    plain = Storage(compress=storage.compress)
    own = _writer(module).lay_out(beside, frames, {**provenance, "content": what}, plain)
    return replace(layout, sigma=own)


def finish(module: str, path: Path, late: Provenance) -> None:
    """Add to a file that is filled what is known at the end only."""
    _writer(module).finish(path, late)


def _writer(module: str) -> ModuleType:
    return importlib.import_module(f"emdn_deploy.writers.{module}")


def human(size: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size = size / 1000
    return f"{size:.3g} TB"


def target_of(source: Path, options: DenoiseOptions) -> tuple[Path, str]:
    """Return the output's path and its writer's module.

    Raises OutputError if ``--to`` and the output's suffix contradict each other, no writer has that
    suffix, or it cannot store what is asked for.
    """
    if options.output is not None and options.output.is_dir() and not is_zarr(options.output):
        raise OutputError(f"{options.output}: is a folder; give it by --out-dir, or a file's name")
    some = options.frames is not None or any(letter.isdigit() for letter in options.axes or "")
    whole = not some and is_hdf5(source)
    target = options.output or _default(source, options, whole=whole)
    module = module_for(target, mirror=whole)
    if options.to is not None:
        if module_for(Path(f"a.{options.to}"), mirror=whole) != module:
            raise OutputError(f"{target}: is no name for --to {options.to}; leave one of them out")
        if options.to == "hspy" and source.suffix.lower() != ".hspy":
            module = "hdf5"
    check(target, module, Storage(options.dtype, bool(options.compress)))
    return target, module


def _default(source: Path, options: DenoiseOptions, *, whole: bool) -> Path:
    """Return ``<stem>_denoised.<kind>`` in the output folder or beside the input."""
    own, suffix = source.suffix, source.suffix.lower()
    stack = is_pattern(source) or (source.is_dir() and not is_zarr(source))
    if is_pattern(source):  # the folder that it searches gives the name
        source = split_pattern(source)[0]
        source = source if source.name else Path("frames")
    # Of .ome.tif both go.
    stem = source.resolve().name if stack else source.stem
    stem = Path(stem).stem if stem.lower().endswith(".ome") and not stack else stem
    if options.to is not None:
        kind = f".{options.to}"
    elif whole:
        kind = own if suffix in WRITERS["hdf5"] else ".h5"
    else:
        modules = [name for name in ("tiff", "mrc", "npy", "zarr") if suffix in READERS[name]]
        known = WRITERS[modules[0]] if modules and not stack else (".hspy",)
        kind = own if suffix in known else known[0]
    folder = options.out_dir if options.out_dir is not None else source.parent
    return folder / f"{stem}{options.suffix}{kind}"


def targets_of(sources: list[Path], options: DenoiseOptions) -> list[tuple[Path, DenoiseOptions]]:
    """Pair every input with its options; OutputError if two share an output."""
    pairs, taken = [], dict[Path, Path]()
    for source in sources:
        target, module = target_of(source, options)
        for written in files_of(target, module, sigma=options.sigma):
            other = taken.setdefault(written.resolve(), source)
            if other != source:
                raise OutputError(
                    f"{source} and {other} would both be written to {written}; "
                    "denoise them in two runs with different --out-dir or --suffix"
                )
        if target.exists() and any(one.exists() and target.samefile(one) for one in sources):
            raise OutputError(f"{target}: is the input itself; emdn never overwrites it, use -o")
        pairs.append((source, replace(options, output=target)))
    return pairs


def recorded(path: Path) -> dict[str, Any]:
    """Return the record of the run that made an output, empty where there is none.

    Of an MRC file, the name of a shipped model is all that is known. What is wrong with a file
    that cannot be read is for readers to say.
    """
    suffix, beside = path.suffix.lower(), path.with_name(path.name + ".json")
    with contextlib.suppress(KeyError, OSError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.is_file() and is_hdf5(path):
            import h5py

            with h5py.File(path) as file:
                # A frame that was denoised twice has two records; the last is of these pixels.
                groups = [name for name in file if re.fullmatch(rf"{GROUP}(_\d+)?", name)]
                last = max(groups, key=lambda name: int(name[len(GROUP) + 1 :] or 1), default="/")
                facts = {key: getattr(one, "item", lambda one=one: one)() for key, one in
                         file[last].attrs.items()}  # fmt: skip
        elif suffix in WRITERS["mrc"]:
            import mrcfile

            with mrcfile.open(path, permissive=True, header_only=True) as file:
                found = re.search(r"emdn \S+: denoised by (\S+)", " ".join(file.get_labels()))
            name = found[1] if found else ""
            if entry := pretrained.index()["models"].get(name):
                return {"model": name, "model_frames": frames_of(name, entry["preset"])}
            return {}
        elif suffix in WRITERS["tiff"]:
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                described = tiff.imagej_metadata or next(iter(tiff.shaped_metadata or ()), {})
                facts = json.loads(str(described.get("Info", "{}")))
        elif suffix == ".npy":
            facts = json.loads(beside.read_text(encoding="utf-8"))["emdn"]
        else:
            known = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
            facts = known["attributes"]["emdn"]
        return facts if "model_sha256" in facts else {}
    return {}
