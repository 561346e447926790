"""A stack before and after, side by side, as an animated GIF."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emdn_models.errors import OutputError

MAX_FRAMES = 100
MAX_SIDE = 512
FRAME_MS = 80
_GAP = 4

Reader = Callable[[int, int], NDArray[np.float32]]


def write(path: Path, before: Reader, after: Reader, count: int) -> None:
    """Write at most `MAX_FRAMES` frames, spread over the stack.

    Parameters
    ----------
    before, after
        ``read(start, stop)`` gives (k, H, W), both in the same units; all frames are
        shown at the limits of the middle one.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    middle = before(count // 2, count // 2 + 1)[0]
    low, high = np.quantile(middle, (0.005, 0.995))
    numbers = np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES)).round().astype(int))

    def picture(number: int) -> Image.Image:
        pair = [read(number, number + 1)[0] for read in (before, after)]
        return Image.fromarray(side_by_side(pair, float(low), float(high)))

    try:
        picture(int(numbers[0])).save(
            path, format="GIF", save_all=True, duration=FRAME_MS, loop=0,
            append_images=(picture(int(number)) for number in numbers[1:]),
        )  # fmt: skip
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def side_by_side(frames: list[NDArray[np.float32]], low: float, high: float) -> NDArray[np.uint8]:
    """Join frames (H, W) into one grey picture, binned to at most `MAX_SIDE` pixels each."""
    size = max(frames[0].shape)
    step = -(-size // MAX_SIDE)
    grey = []
    for frame in frames:
        height, width = (max(1, length // step) for length in frame.shape)
        cut = frame[: height * step, : width * step]
        rows, columns = min(step, cut.shape[0]), min(step, cut.shape[1])
        binned = cut.reshape(height, rows, width, columns).mean(axis=(1, 3))
        grey.append(np.clip((binned - low) / max(high - low, 1e-30), 0, 1) * 255)
    gap = np.full((grey[0].shape[0], _GAP), 255.0)
    return np.concatenate([grey[0], gap, grey[1]], axis=1).round().astype(np.uint8)
