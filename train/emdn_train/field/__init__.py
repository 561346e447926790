"""What one output pixel of an exported graph sees of the frame, read from the graph itself.

Halo tiles are exact where every pixel sees a bounded square of the frame, the same one
around every pixel (or around every cell of ``multiple`` pixels), and nothing that depends
on where the frame ends. Whether that is so, and how large the square is, follows from the
graph that is shipped and not from what is said of it: `emdn_train.field.graph` carries the
first and the last pixel that each number depends on through every node.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
import onnx

from emdn_models import ModelError
from emdn_train.field.graph import seen_by_output
from emdn_train.field.values import LEFT, RIGHT, NotLocalError, Seen

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Field:
    """What an output pixel sees of the frame.

    Attributes
    ----------
    smallest, largest
        Side of the square, in pixels, over the positions.
    halo
        Whole cells of ``multiple`` pixels, in pixels, beyond a pixel's own cell that hold all of
        it, and reach any edge of the frame that touches the pixel.
    repeats
        Whether it is the same for every cell of ``multiple`` pixels.
    """

    smallest: int
    largest: int
    halo: int
    repeats: bool


def described(
    program: onnx.ModelProto, name: str, multiple: int, declared: tuple[int, int]
) -> dict[str, str]:
    """Return the metadata by which deploying cuts tiles for a graph, or refuses to.

    A graph with a node that is not local is as good as any for frames that fit: it is
    exported with ``tiling_exact`` false, and with the node as ``whole_frame``, which
    deploying names. A graph that sees more than is declared of it is not exported: one
    number in ``spec.py`` is wrong, and the message has the right one.

    Parameters
    ----------
    declared
        Smallest and largest side of the square that a pixel is said to see.

    Raises
    ------
    ModelError
        If the field is larger than declared, or does not repeat with the multiple.
    """
    try:
        field = receptive_field(program, multiple, declared[1])
    except NotLocalError as error:
        log.warning("%s: not for tiles: %s", name, error)
        side = str(declared[1])
        return {"receptive_field": side, "tiling_exact": "false", "whole_frame": str(error)}
    if not field.repeats:
        raise ModelError(
            f"{name}: what an output pixel of the graph sees does not repeat every {multiple} "
            "pixels, the multiple that its Preset declares in spec.py; declare the product of "
            "all its strides"
        )
    if field.largest > declared[1]:
        raise ModelError(
            f"{name}: an output pixel of the graph sees up to {field.largest} pixels, and "
            f"{declared[1]} are declared; give its Preset in spec.py a receptive_field of "
            f"({field.smallest}, {field.largest})"
        )
    return {
        "receptive_field": str(field.largest), "halo": str(field.halo), "tiling_exact": "true"
    }  # fmt: skip


def receptive_field(program: onnx.ModelProto, multiple: int, expected: int) -> Field:
    """Return what the output pixels of a graph see, over both axes.

    The frame is so long that its middle is touched by neither edge, and as short across as
    the graph repeats. A pixel of the middle sees the same in any larger frame, and in any
    tile that begins on a multiple and has a halo (`emdn_deploy.tiling.halo`) around it: it
    is then the same sum of the same products.

    Parameters
    ----------
    multiple
        Pixels after which the graph repeats itself.
    expected
        About how large the field is, for a frame of a length that suffices.

    Raises
    ------
    NotLocalError
        If a node is not local, or no frame of up to some times ``expected`` has a middle.
    """
    cell = math.lcm(multiple, 16)  # convolutions of several steps of the multiple at once
    length = -(-(2 * expected + 8 * multiple) // cell) * cell
    for _ in range(4):
        rows = seen_by_output(program, (length, cell), 2)
        columns = seen_by_output(program, (cell, length), 3)
        fields = [_measured(one, multiple, axis) for one, axis in ((rows, 2), (columns, 3))]
        found = [field for field in fields if field is not None]
        if len(found) == 2:
            return Field(
                min(field.smallest for field in found),
                max(field.largest for field in found),
                max(field.halo for field in found),
                all(field.repeats for field in found),
            )
        length *= 2
    last = program.graph.node[-1]
    raise NotLocalError(last, f"gives pixels that see more than {length // 4} others on an axis")


def _measured(seen: Seen, multiple: int, along: int) -> Field | None:
    """Measure the output pixels that no edge touches, None if there are too few of them.

    A tile keeps whole cells: what counts is how far beyond its cell a pixel sees. The edge of
    a tile must not touch what is kept, any more than that of the frame does in the middle.
    """
    across = 5 - along
    first, last = seen.first.min((0, 1, across)), seen.last.max((0, 1, across))
    places, blind = np.arange(len(first)), first > last  # a last layer of zeros sees nothing
    first, last = np.where(blind, places, first), np.where(blind, places, last)
    free = np.flatnonzero((first > LEFT) & (last < RIGHT))
    if len(free) < 2 * multiple or free[-1] - free[0] + 1 != len(free):
        return None
    before, after = free - first[free], last[free] - free
    sides = before + after + 1
    own = free // multiple * multiple
    touched = max(int(free[0]), len(first) - 1 - int(free[-1]))
    beyond = max(
        int((own - first[free]).max()), int((last[free] - own - multiple + 1).max()), touched
    )
    repeats = all(np.array_equal(one[multiple:], one[:-multiple]) for one in (before, after))
    halo = max(0, -(-beyond // multiple) * multiple)
    return Field(int(sides.min()), int(sides.max()), halo, repeats)
