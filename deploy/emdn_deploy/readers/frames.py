"""What every reader returns: an open stack of frames, read a block at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from emdn_models.errors import EmdnError, FormatError


@dataclass(frozen=True)
class Choice:
    """What the user said about which frames to take.

    Attributes
    ----------
    dataset
        Path inside the file, for formats that hold more than one dataset.
    axes
        One letter per stored axis: ``y`` and ``x`` for the frame, ``c`` for a
        channel axis of length one, any other letter for time or scan axes.
    """

    dataset: str | None = None
    axes: str | None = None


@dataclass(frozen=True)
class Axis:
    """One stored axis.

    Attributes
    ----------
    name
        Letter or word that the file uses, ``""`` when it gives none.
    step
        Distance of two neighbours in ``units``; None when uncalibrated.
    origin
        Coordinate of the first element in ``units``.
    """

    name: str = ""
    units: str = ""
    step: float | None = None
    origin: float = 0.0


@dataclass(frozen=True)
class Frames:
    """An open stack of N frames of H x W pixels.

    Attributes
    ----------
    shape
        (N, H, W).
    dtype
        Data type in the file.
    order
        One letter per stored axis, as in `Choice.axes`.
    stored_shape
        Shape in the file, one length per letter of ``order``.
    axes
        Calibration, one per letter of ``order``.
    read_block
        ``read_block(start, stop)`` gives (stop - start, H, W) in the file's dtype.
    dataset
        Path inside the file, ``""`` for formats with one stack per file.
    why
        Why this dataset was taken, in words.
    metadata
        Facts of the file worth showing or carrying over, as text.
    parts
        Paths of the datasets that together are the stack, the first of which is
        ``dataset``; empty where it is one.
    files
        Every file that pixels come from; empty where that is ``path`` alone.
    """

    path: Path
    format: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    order: str
    stored_shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    read_block: Callable[[int, int], NDArray[Any]]
    release: Callable[[], None]
    dataset: str = ""
    why: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return frames ``start`` to ``stop`` as writable float32 (k, H, W), in the file's units.

        Raises
        ------
        FormatError
            If the file ends early or a block cannot be decoded.
        """
        try:
            block = self.read_block(start, stop)
        except EmdnError:
            raise
        except Exception as error:  # decoders stumble over damage in ways of their own
            raise FormatError(
                f"{self.path}: frames {start} to {stop - 1} cannot be read "
                f"({type(error).__name__}: {error}); the file is damaged or still being written"
            ) from error
        return np.require(block, np.float32, ["C", "W"])  # a mapped file is read-only

    def axis(self, letter: str) -> Axis:
        """Return the calibration of the ``y`` or ``x`` axis."""
        return self.axes[self.order.index(letter)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def check_dtype(where: str, dtype: np.dtype[Any]) -> None:
    """Refuse what is not one real number per pixel.

    Raises
    ------
    FormatError
        For complex, compound (RGB), text and object data.
    """
    if dtype.kind == "c":
        raise FormatError(
            f"{where}: holds complex numbers ({dtype}); emdn denoises real frames: "
            "store the modulus or a real image"
        )
    if dtype.names:
        raise FormatError(
            f"{where}: holds compound values ({', '.join(dtype.names)}), such as RGB or FFT data; "
            "emdn denoises one real number per pixel: choose another dataset"
        )
    if dtype.kind not in "buif":
        raise FormatError(f"{where}: holds {dtype} values, expected numbers")


def default_order(shape: tuple[int, ...]) -> str:
    """Name the axes of an array that says nothing itself: frames last, then (y, x)."""
    lead = len(shape) - 2
    if len(shape) == 4 and shape[-1] == 1:
        return "tyxc"
    return "tuvwabdefghijk"[:lead][::-1] + "yx" if lead > 1 else "t" * lead + "yx"


def check_order(where: str, shape: tuple[int, ...], order: str, *, said: bool) -> None:
    """Compare an axis order with a shape.

    Parameters
    ----------
    said
        Whether the user gave the order; if not, a last axis of 3 or 4 is taken
        for colours and refused.

    Raises
    ------
    FormatError
        If they do not fit, or the frames are colour pictures.
    """
    fits = len(order) == len(shape) and order.count("y") == 1 and order.count("x") == 1
    if not fits or len(set(order)) != len(order):
        raise FormatError(
            f"{where}: axes {order!r} do not fit shape {shape}; "
            "give one different letter per axis, with y and x among them, such as --axes tyx"
        )
    if "c" in order and shape[order.index("c")] != 1:
        raise FormatError(
            f"{where}: the channel axis of shape {shape} has {shape[order.index('c')]} channels, "
            "expected 1; convert colour pictures to grey values first"
        )
    if not said and len(shape) >= 3 and shape[-1] in (3, 4) and min(shape[-3:-1]) > 8:
        raise FormatError(
            f"{where}: shape {shape} looks like colour pictures; convert them to grey values, "
            "or name the axes (--axes) if the last one is not colour"
        )
    if 0 in shape:
        raise FormatError(f"{where}: is empty (shape {shape})")


def stack_shape(shape: tuple[int, ...], order: str) -> tuple[int, int, int]:
    """Return (N, H, W) of a stored shape, with all other axes counted as frames."""
    height, width = shape[order.index("y")], shape[order.index("x")]
    count = 1
    for length, letter in zip(shape, order, strict=True):
        count *= 1 if letter in "yx" else length
    return count, height, width
