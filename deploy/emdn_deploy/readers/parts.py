"""A stack that an HDF5 file keeps in several datasets, one after the other.

A Dectris master links to ``data_000001``, ``data_000002``..., each in a file of its own.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers.guarded import Guarded
from emdn_models.errors import FormatError


class Parts:
    """Datasets joined along their first axis, indexed like one; nothing is read before."""

    def __init__(self, datasets: list[Guarded]) -> None:
        first = datasets[0]
        self.datasets = datasets
        self.dtype: np.dtype[Any] = first.dtype
        self.chunks: tuple[int, ...] | None = first.chunks
        self._ends = np.cumsum([len(data) for data in datasets])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *first.shape[1:])

    def __getitem__(self, where: tuple[Any, ...]) -> NDArray[Any]:
        first, *rest = where
        if not isinstance(first, slice):
            frame: NDArray[Any] = self[(slice(first, first + 1), *rest)][0]
            return frame
        start, stop, _ = first.indices(self.shape[0])
        pieces = []
        for data, end in zip(self.datasets, self._ends.tolist(), strict=True):
            begin = end - len(data)
            if begin < stop and end > start:
                inside = slice(max(start, begin) - begin, min(stop, end) - begin)
                pieces.append(data[(inside, *rest)])
        return np.concatenate(pieces)


def join(path: Path, file: h5py.File, names: tuple[str, ...], order: str) -> Parts:
    """Join the datasets ``names``.

    Parameters
    ----------
    order
        One letter per stored axis; the first is not of the frame.

    Raises
    ------
    FormatError
        If one is missing, or they do not fit together.
    """
    first = None
    datasets = []
    for name in names:
        data = file.get(name)
        if not isinstance(data, h5py.Dataset):
            link = file.get(name, getlink=True)
            place = getattr(link, "filename", "no dataset")
            raise FormatError(
                f"{path}: {name}, part of the stack, leads to {place}, which is missing or "
                "damaged; put it back, or take a single part with --dataset PATH"
            )
        first = first if first is not None else data
        same = data.ndim == first.ndim and data.shape[1:] == first.shape[1:]
        if not same or data.dtype != first.dtype or order[0] in "yx":
            raise FormatError(
                f"{path}: {name} has shape {data.shape}, {data.dtype}, axes {order}, and "
                f"{names[0]} {first.shape}, {first.dtype}; parts of a stack need frames of one "
                "size and type, the frames first: take a single part with --dataset PATH"
            )
        datasets.append(Guarded(path, data))
    return Parts(datasets)
