"""What is known of a number inside a graph: itself, or which pixels it depends on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

LEFT, RIGHT = -(2**30), 2**30
"""Beyond the first and the last pixel: what a number "sees" that an edge has touched."""

Pixels = NDArray[np.int32]


class NotLocalError(Exception):
    """A node for which tiles are not exact, or not known to be."""

    def __init__(self, node: onnx.NodeProto, why: str) -> None:
        super().__init__(f"{node.op_type} ({node.name or node.output[0]}) {why}")


@dataclass(frozen=True)
class Seen:
    """Numbers that depend on the frame.

    Each depends on no other pixels, along the axis that is looked at, than those from
    ``first`` to ``last``; `LEFT` and `RIGHT` say that it depends on where the frame ends.
    A number that depends on no pixel has the empty interval from `RIGHT` to `LEFT`, which
    leaves any other unchanged in a union.

    Attributes
    ----------
    first, last
        Of the shape of the tensor.
    """

    first: Pixels
    last: Pixels


@dataclass(frozen=True)
class Known:
    """Numbers that do not depend on the frame's pixels: weights, shapes, indices.

    Attributes
    ----------
    sized
        Whether they may depend on the frame's height and width.
    """

    array: NDArray[Any]
    sized: bool = False


Value = Seen | Known


def nothing(shape: tuple[int, ...]) -> Seen:
    """Return numbers that depend on no pixel."""
    return Seen(np.full(shape, RIGHT, np.int32), np.full(shape, LEFT, np.int32))


def as_seen(value: Value, node: onnx.NodeProto) -> Seen:
    """Take what is known as numbers that no pixel decides.

    Raises
    ------
    NotLocalError
        If they depend on the frame's size: a tile has another.
    """
    if isinstance(value, Seen):
        return value
    if value.sized:
        raise NotLocalError(node, "computes with the frame's size")
    return nothing(value.array.shape)


def union(values: list[Seen]) -> Seen:
    """Return what elementwise results depend on: all that their operands do, broadcast."""
    first, last = values[0].first, values[0].last
    for value in values[1:]:
        first, last = np.minimum(first, value.first), np.maximum(last, value.last)
    return Seen(first, last)
