"""A stack before and after, side by side, as an animated GIF with time and scale bar."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from emdn_deploy.preview import bar_length, contrast, readable
from emdn_deploy.readers.frames import Axis
from emdn_models.errors import OutputError

MAX_FRAMES = 100
MAX_SIDE = 512
MIN_SIDE = 256
FRAME_MS = 80
STRIP = 24
"""Height in pixels of the line of text below the frames."""
_GAP = 4
_INK = 220

Reader = Callable[[int, int], NDArray[np.float32]]


def write(
    path: Path,
    before: Reader,
    after: Reader,
    count: int,
    time: Axis | None = None,
    length: Axis | None = None,
) -> None:
    """Write at most `MAX_FRAMES` frames, spread over the stack.

    Parameters
    ----------
    before, after
        ``read(start, stop)`` gives (k, H, W), both in the same units; each side is shown in the
        contrast of its middle frame.
    time, length
        Calibration of the frames and of their x axis, where known.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    middle = [read(count // 2, count // 2 + 1)[0] for read in (before, after)]
    limits = [contrast(frame) for frame in middle]
    numbers = np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES)).round().astype(int))

    def picture(number: int) -> Image.Image:
        pair = [read(number, number + 1)[0] for read in (before, after)]
        drawn = side_by_side(pair, limits)
        when = f"frame {number}"
        if time is not None and time.step and time.units:
            when = f"{number * time.step:.4g} {time.units}"
        return captioned(drawn, when, length, pair[0].shape[1])

    try:
        picture(int(numbers[0])).save(
            path, format="GIF", save_all=True, duration=FRAME_MS, loop=0,
            append_images=(picture(int(number)) for number in numbers[1:]),
        )  # fmt: skip
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def side_by_side(
    frames: list[NDArray[np.float32]], limits: list[tuple[float, float]]
) -> NDArray[np.uint8]:
    """Join frames (H, W) into one grey picture.

    Each becomes at most `MAX_SIDE` pixels long, by binning, or at least `MIN_SIDE`, by repeating.
    """
    size = max(frames[0].shape)
    step, times = -(-size // MAX_SIDE), max(1, MIN_SIDE // size)
    grey = []
    for frame, (low, high) in zip(frames, limits, strict=True):
        height, width = (max(1, length // step) for length in frame.shape)
        cut = frame[: height * step, : width * step]
        rows, columns = min(step, cut.shape[0]), min(step, cut.shape[1])
        binned = cut.reshape(height, rows, width, columns).mean(axis=(1, 3))
        shade = np.clip((binned - low) / max(high - low, 1e-30), 0, 1) * 255
        grey.append(shade.repeat(times, axis=0).repeat(times, axis=1))
    gap = np.full((grey[0].shape[0], _GAP), 255.0)
    return np.concatenate([grey[0], gap, grey[1]], axis=1).round().astype(np.uint8)


def captioned(drawn: NDArray[np.uint8], when: str, length: Axis | None, pixels: int) -> Image.Image:
    """Add a line below the two frames: which is which, the time, and a scale bar.

    Parameters
    ----------
    pixels
        How many of the frame's lie side by side in a half of the picture.
    """
    height, width = drawn.shape
    half = (width - _GAP) // 2
    page = Image.new("L", (width, height + STRIP))
    page.paste(Image.fromarray(drawn))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    line = height + STRIP // 2
    pen.text((4, line), f"before  {when}", _INK, font, anchor="lm")
    pen.text((half + _GAP + 4, line), "after", _INK, font, anchor="lm")
    if length is not None and length.step and length.step > 0 and length.units:
        step, units = readable(length.step, length.units, pixels)
        bar = bar_length(pixels * step)
        long = round(bar / step * half / pixels)
        pen.text((width - 8 - long - 4, line), f"{bar:g} {units}", _INK, font, anchor="rm")
        pen.rectangle((width - 8 - long, line - 2, width - 8, line + 2), _INK)
    return page
