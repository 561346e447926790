"""From what a file holds to frames that can be denoised: references and bad pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import defects, intensity
from emdn_deploy.intensity import Intensity
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_models.errors import EmdnError, FormatError

Stack = NDArray[np.float32]


@dataclass(frozen=True)
class Prepared:
    """A stack that reads corrected, with its scale.

    Attributes
    ----------
    read
        ``read(start, stop)`` gives (k, H, W), finite, corrected.
    bad_pixels
        How many pixels are filled in, in every frame.
    lost
        Of the blocks read so far, by their first frame: how many pixels were not
        finite in some frames only, and were filled in as well.
    """

    read: Callable[[int, int], Stack]
    scale: Intensity
    bad_pixels: int
    lost: dict[int, int]


def prepare(frames: Frames, options: DenoiseOptions) -> Prepared:
    """Find the bad pixels and the scale of a stack.

    Raises
    ------
    FormatError
        If a reference does not fit, or frames cannot be made finite.
    """
    count, size = frames.shape[0], frames.shape[1:]
    dark, gain_map = (_reference(path, size) for path in (options.dark, options.gain_map))
    lost: dict[int, int] = {}
    mask = defects.unusable(frames.read, count, size, frames.dtype)
    if options.defects is not None:
        mask |= _reference(options.defects, size) != 0

    def reader(fill: defects.Fill) -> Callable[[int, int], Stack]:
        def read(start: int, stop: int) -> Stack:
            block = frames.read(start, stop)
            if dark is not None:
                block -= dark
            if gain_map is not None:
                block *= gain_map
            fill.apply(block)
            if filled := _fill_rest(frames.path, block, start, mask):
                lost[start] = filled
            return block

        return read

    fill = _plan(frames.path, mask)
    scale = _measure(frames, reader(fill), options, mask)
    if not options.keep_bad_pixels and scale.sigma:
        found = defects.outliers(reader(fill), count, size, scale.gain, scale.offset)
        if found.any():
            mask |= found
            fill = _plan(frames.path, mask)
            scale = _measure(frames, reader(fill), options, mask)
    return Prepared(reader(fill), scale, int(mask.sum()), lost)


def _plan(path: Path, mask: defects.Mask) -> defects.Fill:
    try:
        return defects.plan(mask)
    except ValueError as error:
        raise FormatError(f"{path}: {error} in any frame that was looked at") from error


def _measure(
    frames: Frames,
    read: Callable[[int, int], Stack],
    options: DenoiseOptions,
    bad: defects.Mask,
) -> Intensity:
    count, height, width = frames.shape
    try:
        return intensity.estimate(read, count, (height, width), options.gain, options.offset, bad)
    except FormatError:
        raise
    except EmdnError as error:
        raise FormatError(f"{frames.path}: {error}") from error


def _reference(path: Path | None, size: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Read a reference and average its frames."""
    if path is None:
        return None
    with open_frames(path, Choice()) as stack:
        if stack.shape[1:] != size:
            raise FormatError(
                f"{path}: is {stack.shape[1]} x {stack.shape[2]}, the frames are "
                f"{size[0]} x {size[1]}; a reference must have their size"
            )
        count = stack.shape[0]
        total = sum(stack.read(i, i + 1)[0].astype(np.float64) for i in range(count))
    reference = np.asarray(total / count, dtype=np.float32)
    if not np.isfinite(reference).all():
        raise FormatError(f"{path}: has pixels that are not finite")
    return reference


def _fill_rest(path: Path, block: Stack, start: int, mask: defects.Mask) -> int:
    """Fill, in place, what is not finite in some frames only; return how many pixels."""
    filled = 0
    for index in np.flatnonzero(~np.isfinite(block).all(axis=(1, 2))):
        frame = block[index : index + 1]
        lost = ~np.isfinite(frame[0])
        filled += int(lost.sum())
        try:
            defects.plan(mask | lost).apply(frame)
        except ValueError as error:
            raise FormatError(
                f"{path}: frame {start + index} has no finite pixels; leave it out with --frames"
            ) from error
    return filled
