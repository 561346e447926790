"""Everything that RosettaSciIO reads and emdn does not: MIB, TVIPS, BLO, EMPAD and others.

RosettaSciIO is GPL-3, so it is never required: the extra ``rsciio`` is the user's choice.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.arrays import array_frames
from emdn_deploy.readers.frames import Axis, Choice, Frames, default_order
from emdn_deploy.readers.offers import Offer, SeveralStacks
from emdn_models.errors import FormatError, MissingExtraError, install


class _Lazy:
    """A dask array, indexed like a numpy array."""

    def __init__(self, array: Any) -> None:
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self._array = array

    def __getitem__(self, where: Any) -> NDArray[Any]:
        return np.asarray(self._array[where])


def open_frames(path: Path, choice: Choice) -> Frames:
    """Open a file; ``choice.dataset`` is the number of a signal where there are several.

    Raises
    ------
    MissingExtraError
        If RosettaSciIO is not installed.
    FormatError
        If it cannot read the file either, or finds no single stack of frames.
    """
    try:
        from rsciio import IO_PLUGINS
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: emdn itself does not read {path.suffix or 'such'} files; "
            f"RosettaSciIO may: {install('rsciio')}"
        ) from error
    suffix = path.suffix[1:].lower()
    plugins = [one for one in IO_PLUGINS if suffix in map(str.lower, one["file_extensions"])]
    if not plugins:
        raise FormatError(f"{path}: unknown kind of file {path.suffix!r}")
    failed = []
    for plugin in plugins:
        try:
            reader = importlib.import_module(plugin["api"]).file_reader
            signals = reader(str(path), lazy=True)
        except Exception as error:  # its readers raise what they stumble over
            failed.append(f"{plugin['name']}: {error}")
            continue
        return _choose(path, plugin["name"], signals, choice)
    raise FormatError(f"{path}: RosettaSciIO cannot read it ({'; '.join(failed)})")


def _choose(path: Path, name: str, signals: list[dict[str, Any]], choice: Choice) -> Frames:
    found = [one for one in signals if sum(not axis["navigate"] for axis in one["axes"]) == 2]
    if choice.dataset is not None:
        if not choice.dataset.isdigit() or int(choice.dataset) >= len(found):
            raise FormatError(
                f"{path}: has no stack {choice.dataset!r}; it has 0 to {len(found) - 1}"
            )
        found = [found[int(choice.dataset)]]
    if not found:
        raise FormatError(f"{path}: holds no frames that RosettaSciIO reads ({name})")
    if len(found) > 1:
        offers = [Offer.of(str(i), one["data"]) for i, one in enumerate(found)]
        raise SeveralStacks(path, f"stacks of frames ({name})", offers)
    notes = sorted(found[0]["axes"], key=lambda axis: int(axis["index_in_array"]))
    lead = iter(default_order((2,) * len(notes)))
    signal = iter("yx")
    order = "".join(next(lead) if axis["navigate"] else next(signal) for axis in notes)
    axes = tuple(
        Axis(_text(axis.get("name")), _text(axis.get("units")), axis.get("scale"),
             float(axis.get("offset") or 0.0))
        for axis in notes
    )  # fmt: skip
    return array_frames(
        path, f"{name} (RosettaSciIO)", _Lazy(found[0]["data"]), choice, order=order, axes=axes,
    )  # fmt: skip


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
