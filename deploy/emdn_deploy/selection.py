"""Some of the frames of a stack, as a stack."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import stacks
from emdn_deploy.readers import Axis, Frames
from emdn_models.errors import FormatError


def parse(text: str) -> list[slice]:
    """Read a list, by commas, of ``start:stop:step`` or single numbers, counted as Python does.

    Raises FormatError if a part is neither, or its step is not positive.
    """
    return [_part(part, text) for part in text.split(",")]


def _part(part: str, text: str) -> slice:
    parts = part.split(":")
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
            "such as 0:500:2, one number, or a list such as 0:57,58:60"
        )
    return slice(*numbers)


def select(frames: Frames, text: str) -> Frames:
    """Return a stack of the selected frames, reading from the same file.

    Raises FormatError if the selection is empty, is not one, or takes a frame twice.
    """
    ranges = [range(frames.shape[0])[part] for part in parse(text)]
    for name, one in zip(text.split(","), ranges, strict=True):
        if not one:
            raise FormatError(
                f"{frames.path}: --frames {name} takes none of {frames.shape[0]} frames"
            )
    chosen = np.concatenate([np.asarray(one) for one in ranges])
    if len(np.unique(chosen)) < len(chosen):
        raise FormatError(
            f"{frames.path}: --frames {text} takes some frames twice, which would count as frames "
            "without noise between them; name each once"
        )
    steps = np.unique(np.diff(chosen))
    step = 1 if len(ranges) == len(chosen) == 1 else int(steps[0]) if len(steps) == 1 else None

    def read_block(start: int, stop: int) -> NDArray[Any]:
        part = chosen[start:stop]
        runs = np.split(part, np.flatnonzero(np.diff(part) != 1) + 1)
        return np.concatenate([frames.read_block(int(run[0]), int(run[-1]) + 1) for run in runs])

    shape = (len(chosen), *frames.shape[1:])
    lead = [i for i, letter in enumerate(frames.order) if letter not in "yxc"]
    first = Axis("frame")
    if len(lead) == 1:
        axis = frames.axes[lead[0]]
        if axis.step is not None and step is not None:
            first = replace(
                axis, step=axis.step * step, origin=axis.origin + axis.step * int(chosen[0])
            )
    return replace(
        frames,
        shape=shape,
        order="tyx",
        stored_shape=shape,
        axes=(first, frames.axis("y"), frames.axis("x")),
        read_block=read_block,
        why=f"{frames.why}, frames {text}",
        numbers=chosen.tolist(),
    )


def check_one_scale(frames: Frames) -> None:
    """Refuse a stack whose frames are of detectors or channels on scales of their own.

    Raises FormatError, naming the axis and the remedy.
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
