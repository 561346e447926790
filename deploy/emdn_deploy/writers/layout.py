"""What every writer returns: a complete file whose frames are still to be filled in."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Provenance = Mapping[str, str | int | float]
"""How an output came about, by name."""


def plain_text(text: str) -> str:
    """Return text that any file can hold: names of files need not be UTF-8."""
    return text.encode("utf-8", "replace").decode()


SIGMA = "_sigma"
"""What follows the name of a dataset, or the stem of a file, of frames in that of their sigma."""


def partial_of(target: Path) -> Path:
    """Name a file while it is incomplete."""
    return target.with_name(target.name + ".partial")


@dataclass(frozen=True)
class Storage:
    """How the pixels of an output are stored.

    Attributes
    ----------
    dtype
        NumPy's name of it, without endianness.
    compress
        Whether frames are compressed, losslessly.
    sigma
        Whether standard deviations are stored as well, always as float32.
    """

    dtype: str = "float32"
    compress: bool = False
    sigma: bool = False

    @property
    def kind(self) -> np.dtype[Any]:
        """Return the data type in little-endian order."""
        return np.dtype(self.dtype).newbyteorder("<")

    def size(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of an array of this shape."""
        return self.kind.itemsize * int(np.prod(shape))


@dataclass(frozen=True)
class Packing:
    """How compressed frames get into a file, which needs the sizes of all of them.

    Attributes
    ----------
    encode
        Turns the pixels of a frame, as they are stored, into compressed bytes.
    fill
        Puts all frames, so encoded and in order, into the file that was laid out.
    """

    encode: Callable[[NDArray[Any]], bytes]
    fill: Callable[[Iterator[bytes]], None]


@dataclass(frozen=True)
class Layout:
    """Where the frames of an output lie.

    A writer makes the whole file first, headers and all, and says at which byte
    each frame belongs. Filling it in then needs no library: it cannot corrupt the
    structure, and a file cut short can be continued. The writer's module offers
    ``finish(path, late)`` for what is known at the end only.

    Attributes
    ----------
    offsets
        (N,) int64, byte of the first pixel of each frame; of compressed frames, (N + 1,)
        where each begins and the last ends, one after the other, as far as they are made.
    dtype
        Of a stored pixel, with its endianness.
    transposed
        Whether a frame is stored as (x, y).
    packing
        None for frames that are not compressed.
    sigma
        Where the frames' standard deviations lie, in the same file or in one of their own;
        None where there are none.
    """

    offsets: NDArray[np.int64]
    dtype: str = "<f4"
    transposed: bool = False
    packing: Packing | None = None
    sigma: "Layout | None" = None
