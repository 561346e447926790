"""Some of the frames of a stack, as a stack."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import stacks
from emdn_deploy.readers import Axis, Frames
from emdn_models.errors import FormatError


def parse(text: str) -> slice:
    """Read ``start:stop:step`` or a single number, counted as Python does.

    Raises
    ------
    FormatError
        If it is neither, or the step is not positive.
    """
    parts = text.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] is not None:
        first = numbers[0]
        return slice(first, first + 1 if first != -1 else None)
    step = numbers[2] if len(numbers) == 3 else None
    if len(numbers) not in (2, 3) or (step is not None and step < 1):
        raise FormatError(
            f"--frames {text!r} is no selection; give start:stop:step with a positive step, "
            "such as 0:500:2, or one number"
        )
    return slice(*numbers)


def select(frames: Frames, text: str) -> Frames:
    """Return a stack of the selected frames, reading from the same file.

    Raises
    ------
    FormatError
        If the selection is empty or is not one.
    """
    chosen = range(frames.shape[0])[parse(text)]
    if not chosen:
        raise FormatError(f"{frames.path}: --frames {text} takes none of {frames.shape[0]} frames")
    step = chosen.step

    def read_block(start: int, stop: int) -> NDArray[Any]:
        part = chosen[start:stop]
        if step == 1:
            return frames.read_block(part.start, part.stop)
        return np.concatenate([frames.read_block(number, number + 1) for number in part])

    shape = (len(chosen), *frames.shape[1:])
    lead = [i for i, letter in enumerate(frames.order) if letter not in "yxc"]
    first = Axis("frame")
    if len(lead) == 1:
        axis = frames.axes[lead[0]]
        if axis.step is not None:
            first = replace(
                axis, step=axis.step * step, origin=axis.origin + axis.step * chosen.start
            )
    return replace(
        frames,
        shape=shape,
        order="tyx",
        stored_shape=shape,
        axes=(first, frames.axis("y"), frames.axis("x")),
        read_block=read_block,
        why=f"{frames.why}, frames {text}",
        numbers=chosen,
    )


def check_one_scale(frames: Frames) -> None:
    """Refuse a stack whose frames are of detectors or channels on scales of their own.

    Raises
    ------
    FormatError
        Naming the axis and the remedy.
    """
    lead = [i for i, letter in enumerate(frames.order) if letter not in "yx"]
    lengths = [frames.stored_shape[i] for i in lead]
    odd = stacks.odd_axis(lambda number: frames.read(number, number + 1)[0], lengths)
    if odd is None:
        return
    axis, order = lead[odd[0]], frames.order
    one, other = (f"{order[:axis]}{i}{order[axis + 1 :]}" for i in (0, 1))
    raise FormatError(
        f"{frames.path}: the {lengths[odd[0]]} along axis {axis} of {frames.stored_shape} look "
        f"like detectors or channels (their noise differs by a factor of {odd[1]:.2g} in scale): "
        f"take one with --axes {one} or {other}, or all at one scale with --axes {order}"
    )
