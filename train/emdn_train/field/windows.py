"""Operators that look at a neighbourhood: which pixels their outputs depend on.

All work on (1, C, H, W), of which only one axis is looked at, ``along``. What lies outside
the frame on that axis is an edge (`LEFT`, `RIGHT`). On the other the frame is taken to be
repeated: what a graph does repeats with its size multiple, so that a few rows stand for all.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from emdn_train.field.values import LEFT, RIGHT, NotLocalError, Pixels, Seen

Attributes = dict[str, Any]
Mask = NDArray[np.bool_]


def conv(seen: Seen, weight: NDArray[Any], given: Attributes, along: int) -> Seen:
    """Return what a convolution depends on: the taps that are not zero, and no others."""
    kernel = weight.shape[2:]
    steps = given.get("dilations", [1, 1])
    padded = pad(seen, given.get("pads", [0] * 4), along)
    return taps(padded, weight != 0, given.get("strides", [1, 1]), steps, kernel, given)


def conv_transpose(seen: Seen, weight: NDArray[Any], given: Attributes, along: int) -> Seen:
    """Return what a transposed convolution depends on.

    y[j s + q d - p] += w[q] x[j]: a convolution, by the kernel reversed, of x with s - 1
    zeros behind every pixel, which has d (k - 1) - p more in front and as many behind,
    but for the s - 1 that are there already.
    """
    strides, steps = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    pads, more = given.get("pads", [0] * 4), given.get("output_padding", [0, 0])
    kernel = weight.shape[2:]
    reach = [step * (size - 1) for step, size in zip(steps, kernel, strict=True)]
    front = [reach[axis] - pads[axis] for axis in (0, 1)]
    behind = [reach[axis] - pads[2 + axis] + more[axis] - (strides[axis] - 1) for axis in (0, 1)]
    padded = pad(_spread(seen, strides), front + behind, along)
    groups = given.get("group", 1)
    parts = np.split(weight[:, :, ::-1, ::-1], groups)
    mask = np.concatenate([part.swapaxes(0, 1) for part in parts]) != 0
    return taps(padded, mask, [1, 1], steps, kernel, given)


def pool(seen: Seen, given: Attributes, along: int, node: onnx.NodeProto) -> Seen:
    """Return what the largest or the mean of a window depends on: all of the window.

    What is padded depends on nothing, but where it begins is an edge of the frame on every
    axis along which different pixels are seen, and in images of constants on the one that is
    looked at. On others, as frequencies are, it is not.
    """
    if given.get("ceil_mode", 0):
        raise NotLocalError(node, "has ceil_mode, which is not followed")
    kernel = given["kernel_shape"]
    pads = given.get("pads", [0] * (2 * len(kernel)))
    steps = given.get("dilations", [1] * len(kernel))
    strides = given.get("strides", [1] * len(kernel))
    first, last = seen.first, seen.last
    blind = bool((first > last).any())
    for number, (side, step, stride) in enumerate(zip(kernel, steps, strides, strict=True)):
        axis = 2 + number
        ends = any(np.ptp(one, axis).any() for one in (first, last)) or (blind and axis == along)
        width, edges = [(0, 0)] * first.ndim, [(0, 0)] * first.ndim
        width[axis] = pads[number], pads[len(kernel) + number]
        edges[axis] = (LEFT, RIGHT) if ends else (RIGHT, RIGHT)
        first = np.pad(first, width, constant_values=edges)
        edges[axis] = (LEFT, RIGHT) if ends else (LEFT, LEFT)
        last = np.pad(last, width, constant_values=edges)
        count = (first.shape[axis] - step * (side - 1) - 1) // stride + 1
        places = stride * np.arange(count)[:, None] + step * np.arange(side)
        first = first.take(places, axis).min(axis + 1)
        last = last.take(places, axis).max(axis + 1)
    return Seen(first, last)


def resize(
    seen: Seen, size: tuple[int, ...], given: Attributes, along: int, node: onnx.NodeProto
) -> Seen:
    """Return what an image of another size depends on, by nearest pixels or linearly.

    Output pixel i lies at i / f of the input (asymmetric) or at (i + 1/2) / f - 1/2
    (half_pixel), f being the factor: the same for a tile. With aligned corners it lies at
    i (in - 1) / (out - 1), which a tile changes.
    """
    where = given.get("coordinate_transformation_mode", b"half_pixel").decode()
    mode, rounding = given.get("mode", b"nearest").decode(), given.get("nearest_mode", b"")
    if where not in ("asymmetric", "half_pixel", "pytorch_half_pixel"):
        raise NotLocalError(node, f"places pixels by the frame's size ({where})")
    if mode not in ("nearest", "linear") or given.get("antialias", 0):
        raise NotLocalError(node, f"of mode {mode} is not followed")
    for axis in (2, 3):
        old, new = seen.first.shape[axis], size[axis]
        half = 0.0 if where == "asymmetric" else 0.5
        place = (np.arange(new) + half) * old / new - half
        below = np.floor(place).astype(int)
        # The second neighbour of a pixel that lies on the first has no weight.
        exact = (mode == "nearest" and rounding == b"floor") or place == below
        above = np.where(exact, below, below + 1)
        before, after = max(0, -below.min()), max(0, above.max() - old + 1)
        pads = [0, 0, 0, 0]
        pads[axis - 2], pads[axis] = before, after
        padded = pad(seen, pads, along)
        one, other = (
            Seen(padded.first.take(at + before, axis), padded.last.take(at + before, axis))
            for at in (below, above)
        )
        seen = Seen(np.minimum(one.first, other.first), np.maximum(one.last, other.last))
    return seen


def taps(
    padded: Seen,
    mask: Mask,
    strides: list[int],
    dilations: list[int],
    kernel: tuple[int, ...],
    given: Attributes,
) -> Seen:
    """Return what the sums over a kernel depend on.

    Parameters
    ----------
    mask
        (outputs, inputs / groups, rows, columns), true where a tap is not zero. Outputs
        with the same taps are computed once.
    """
    groups = given.get("group", 1)
    size = [
        (padded.first.shape[2 + axis] - dilations[axis] * (kernel[axis] - 1) - 1)
        // strides[axis] + 1
        for axis in (0, 1)
    ]  # fmt: skip
    first: list[Pixels] = []
    last: list[Pixels] = []
    for group, part in enumerate(np.split(mask, groups)):
        inputs = slice(group * mask.shape[1], (group + 1) * mask.shape[1])
        channels = Seen(padded.first[:, inputs], padded.last[:, inputs])
        patterns, which = np.unique(part.reshape(len(part), -1), axis=0, return_inverse=True)
        made = [
            _one(channels, pattern.reshape(part.shape[1:]), strides, dilations, size)
            for pattern in patterns
        ]
        first += [made[index].first for index in which.reshape(-1)]
        last += [made[index].last for index in which.reshape(-1)]
    return Seen(np.stack(first, 1), np.stack(last, 1))


def _one(
    channels: Seen, mask: Mask, strides: list[int], dilations: list[int], size: list[int]
) -> Seen:
    """Return what one output channel depends on, (1, H, W)."""
    first = np.full((1, *size), RIGHT, np.int32)
    last = np.full((1, *size), LEFT, np.int32)
    joined: dict[bytes, Seen] = {}
    for row, column in np.argwhere(mask.any(0)):
        chosen = mask[:, row, column]
        if chosen.tobytes() not in joined:
            joined[chosen.tobytes()] = Seen(
                channels.first[:, chosen].min(1), channels.last[:, chosen].max(1)
            )
        one = joined[chosen.tobytes()]
        y, x = (
            slice(tap * step, tap * step + (count - 1) * stride + 1, stride)
            for tap, step, count, stride in zip(
                (row, column), dilations, size, strides, strict=True
            )
        )
        np.minimum(first, one.first[:, y, x], out=first)
        np.maximum(last, one.last[:, y, x], out=last)
    return Seen(first, last)


def pad(seen: Seen, pads: list[int], along: int) -> Seen:
    """Add rows and columns around (top, left, bottom, right), or cut them off if negative."""
    first, last = seen.first, seen.last
    for axis in (2, 3):
        before, after = pads[axis - 2], pads[axis]
        length = first.shape[axis]
        kept = (slice(None),) * axis + (slice(max(0, -before), length + min(0, after)),)
        first, last = first[kept], last[kept]
        width = [(0, 0)] * 4
        width[axis] = max(0, before), max(0, after)
        if axis == along:
            edges = [(0, 0)] * 4
            edges[axis] = LEFT, RIGHT
            # The union with what is left of the frame has no first pixel but LEFT.
            first = np.pad(first, width, constant_values=edges)
            last = np.pad(last, width, constant_values=edges)
        else:
            first, last = np.pad(first, width, "wrap"), np.pad(last, width, "wrap")
    return Seen(first, last)


def _spread(seen: Seen, strides: list[int]) -> Seen:
    """Put stride - 1 numbers that depend on nothing behind every pixel."""
    if strides == [1, 1]:
        return seen
    count, channels, height, width = seen.first.shape
    shape = count, channels, height * strides[0], width * strides[1]
    first, last = np.full(shape, RIGHT, np.int32), np.full(shape, LEFT, np.int32)
    first[..., :: strides[0], :: strides[1]] = seen.first
    last[..., :: strides[0], :: strides[1]] = seen.last
    return Seen(first, last)
