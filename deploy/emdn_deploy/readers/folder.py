"""A folder or a pattern of single-frame files: one stack, in natural order.

In-situ cameras write trees such as ``Hour_00/Minute_03/Second_07/..._Frame_0012.dm4``.
"""

import glob
import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.calibration import INSTRUMENT
from emdn_deploy.readers.frames import WHITE, Axis, Choice, Frames
from emdn_models.errors import FormatError

_ZARR = (".zarray", ".zgroup", "zarr.json")
# What names of outputs hold by default, and what those of their standard deviations end in.
_DENOISED, _SIGMA = "_denoised", "_sigma"
# What `emdn_deploy.output` calls its files during a run.
_PARTIAL = re.compile(r".*\.partial(\.new|\.frames|\.sigma|\.map|\.map\.new|\.lock)?")

_log = logging.getLogger(__name__)


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort numbers inside names by value: ``frame_9`` before ``frame_10``."""
    parts = re.split(r"(\d+)", str(path))
    # Superscripts are digits to str.isdigit, but no decimal numbers.
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def split_pattern(source: Path) -> tuple[Path, str]:
    """Split a pattern into the folder it searches and the rest.

    What exists is meant as it is written: ``MIB[FAIL] run/*.npy``.
    """
    folder, parts = Path(), list(source.parts)
    while parts and (not glob.has_magic(parts[0]) or (folder / parts[0]).is_dir()):
        folder /= parts.pop(0)
    return folder, "/".join(parts)


def find(source: Path, suffixes: dict[str, str]) -> list[Path]:
    """List the frames of a folder (searched to any depth) or a pattern, in natural order.

    Denoised files are left out, and said, where there are others and the name of folder or pattern
    does not ask for them; so are standard deviations beside their frames. ``suffixes``: those that
    count as frames in a folder, each with its kind. Raises FormatError if there are none, or files
    of several kinds.
    """
    if source.is_dir():
        paths = [path for path in source.rglob("*") if path.suffix.lower() in suffixes]
    else:
        folder, pattern = split_pattern(source)
        # Brackets that match nothing as a set are part of the name.
        for one in (pattern, pattern.replace("[", "[[]")):
            names = glob.glob(one, root_dir=folder, recursive=True)
            if paths := [folder / name for name in names]:
                break
    found = {
        path
        for path in paths
        if path.is_file() and not path.name.startswith(".") and not _PARTIAL.fullmatch(path.name)
    }
    sigmas = {path.with_name(f"{path.stem}{_SIGMA}{path.suffix}") for path in found}
    paths = sorted(found - sigmas, key=natural)
    if _DENOISED not in source.resolve().name:
        paths = [path for path in paths if _DENOISED not in path.stem] or paths
    if left := len(found) - len(paths):
        _log.info("%s: %d files by emdn are left out (%s...)", source, left, _DENOISED)
    if not paths and any((source / name).exists() for name in _ZARR):
        raise FormatError(f"{source}: is a Zarr store, which emdn does not read; save it as HDF5")
    if not paths:
        raise FormatError(f"{source}: holds no files of frames that emdn reads")
    kinds = Counter(path.suffix.lower() for path in paths)
    if len({suffixes.get(suffix, suffix) for suffix in kinds}) > 1:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise FormatError(
            f"{source}: holds files of several kinds ({listed}); "
            f"choose one with a pattern in quotes, such as '{source}/*{kinds.most_common()[0][0]}'"
        )
    return paths


def open_list(
    source: Path, paths: list[Path], choice: Choice, opener: Callable[[Path, Choice], Frames]
) -> Frames:
    """Open files as one stack, in the order given; ``source`` is what they are called.

    Raises FormatError if one does not fit the first: here, or when it is read.
    """
    with opener(paths[0], choice) as first:
        shape, dtype, axes = first.shape, first.dtype, (first.axis("y"), first.axis("x"))
        name, dataset, order, notes = first.format, first.dataset, first.order, first.notes
        # What is known of the first file is taken to hold for all.
        keys = (WHITE, "photometric", "orientation")
        known = {
            key: value
            for key, value in first.metadata.items()
            if key in keys or key.startswith(INSTRUMENT)
        }
    counts = [shape[0]] * len(paths)
    if shape[0] > 1:
        for number, path in enumerate(paths):
            with opener(path, choice) as frames:
                counts[number] = frames.shape[0]
    ends = np.cumsum(counts)

    def read(start: int, stop: int) -> NDArray[Any]:
        parts = []
        while start < stop:
            index = int(np.searchsorted(ends, start, side="right"))
            begin = int(ends[index]) - counts[index]
            end = min(stop, int(ends[index]))
            with opener(paths[index], choice) as frames:
                if frames.shape != (counts[index], *shape[1:]):
                    raise FormatError(
                        f"{paths[index]}: has shape {frames.shape}, {paths[0].name} has {shape}; "
                        "a stack needs frames of one size"
                    )
                parts.append(np.array(frames.read_block(start - begin, end - begin)))
            start = end
        return np.concatenate(parts)

    return Frames(
        path=source,
        format=f"{len(paths)} files, {name}",
        shape=(int(ends[-1]), *shape[1:]),
        dtype=dtype,
        order="tyx",
        stored_shape=(int(ends[-1]), *shape[1:]),
        axes=(Axis("frame"), *axes),
        read_block=read,
        release=lambda: None,
        why=f"in natural order, {paths[0].name} to {paths[-1].name}",
        metadata=known | ({"in each": f"{dataset} {order}"} if dataset else {}),
        notes=notes,
        files=tuple(paths),
    )
