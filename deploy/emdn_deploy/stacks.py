"""Arrays of frames: what is taken for one, and that each keeps its mean.

The mean of a frame of H x W pixels is known far better from the frame itself, to
1 / sqrt(electrons), than any net makes of it. So what the net lost or added, on average
over the frame, is given back to every pixel alike. A factor instead of a shift would scale
the error of a bright place over the whole frame.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_models.errors import FormatError

Stack = NDArray[np.float32]

# How far the noise of detectors on one scale may differ, as variance over mean.
SCALES = 4.0
_MANY = 8  # a longer axis is a scan or a time, not detectors

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Answer:
    """What becomes of a stack (n, H, W).

    Attributes
    ----------
    frames
        (n, H, W), each with the mean of its input.
    shifts
        (n,) what was added to each so that it is: mean(in) - mean(out of the net).
    sigma
        (n, H, W), standard deviation of the error; None where it was not asked for.
    """

    frames: Stack
    shifts: NDArray[np.float64]
    sigma: Stack | None = None


def as_stack(frames: ArrayLike) -> Stack:
    """Check an array (..., H, W), or (..., H, W, 1), and return it as (N, H, W) float32.

    A dask array stays one.

    Raises
    ------
    FormatError
        Naming the remedy, if the rank or the dtype is wrong, or an axis looks like channels or
        detectors.
    """
    lazy = is_dask(frames)
    array: Any = frames if lazy else np.asarray(frames)
    if array.ndim < 2:
        raise FormatError(f"frames has shape {array.shape}, expected (..., H, W)")
    if array.dtype.kind not in "buif":
        raise FormatError(f"frames has dtype {array.dtype}, expected real numbers")
    if 0 in array.shape:
        raise FormatError(f"frames is empty (shape {array.shape})")
    if lazy and np.isnan(array.shape).any():
        raise FormatError("frames has chunks of unknown size; call its compute_chunk_sizes() first")
    shape = array.shape
    if array.ndim > 2 and shape[-1] == 1 < shape[-2]:
        array = array[..., 0]
    elif channels_last(shape):
        raise FormatError(
            f"frames has shape {shape}, expected (..., H, W), and the last axis looks like "
            "channels: pass one of them, such as frames[..., 0], or "
            "numpy.moveaxis(frames, -1, 0) if it counts frames"
        )
    elif frames_last(shape):
        _log.warning(
            "warning: frames of shape %s are taken as %d of %d x %d; pass "
            "numpy.moveaxis(frames, -1, 0) if they are %d of %d x %d",
            shape, *shape, shape[2], *shape[:2],
        )  # fmt: skip
    *lead, height, width = array.shape
    plain = array.astype(np.float32) if lazy else np.ascontiguousarray(array, dtype=np.float32)
    stack: Stack = plain.reshape(-1, height, width)
    if odd := odd_axis(lambda number: np.asarray(stack[number]), lead):
        raise FormatError(
            f"frames has shape {shape}, and the {lead[odd[0]]} along axis {odd[0]} look like "
            f"detectors or channels (their noise differs by a factor of {odd[1]:.2g} in scale): "
            f"denoise each by itself, or all at one scale by frames.reshape(-1, {height}, {width})"
        )
    return stack


def is_dask(array: object) -> bool:
    """Say whether an array is one of dask's, without importing dask."""
    return type(array).__module__.startswith("dask.")


def check_one_axis(shape: tuple[int, ...], model: str) -> None:
    """Refuse a lone frame, and frames along several axes, for a model that sees neighbours.

    Raises
    ------
    FormatError
        Naming the remedy.
    """
    frame = shape[-3:] if len(shape) > 2 and shape[-1] == 1 < shape[-2] else shape[-2:]
    lead = [length for length in shape[: -len(frame)] if length > 1]
    if len(lead) != 1:
        raise FormatError(
            f"frames has shape {shape}, and {model} sees neighbours in time: pass (T, H, W), one "
            "channel or position at a time, or take another model"
        )


def channels_last(shape: tuple[int, ...]) -> bool:
    """Say whether the last axis looks like colours or channels."""
    return len(shape) >= 3 and 2 <= shape[-1] <= 4 and min(shape[-3:-1]) > 8


def frames_last(shape: tuple[int, ...]) -> bool:
    """Say whether the last of three axes, not the first, is far more likely to count frames."""
    if len(shape) != 3 or min(shape[:2]) < 8 or shape[2] < 5:
        return False
    first, second, last = shape
    return 4 * last <= min(first, second) or first == second != last


def odd_axis(read: Callable[[int], NDArray[Any]], lead: list[int]) -> tuple[int, float] | None:
    """Find a short axis, beside another one, along which frames have scales of their own.

    ``read`` gives a frame (H, W) by its number; ``lead`` are the lengths of all axes but those of
    the frame. Compared is the variance of the noise over the mean. Returned are the axis, and by
    which factor it differs, if by more than `SCALES`: detectors or channels must not be mixed.
    """
    if sum(length > 1 for length in lead) < 2:
        return None
    numbers = np.arange(int(np.prod(lead))).reshape(lead)
    for axis, length in enumerate(lead):
        if 2 <= length <= _MANY:
            found = [_variance_over_mean(read, np.take(numbers, i, axis)) for i in range(length)]
            known = [one for one in found if np.isfinite(one) and one > 0]
            if known and max(known) > SCALES * min(known):
                return axis, max(known) / min(known)
    return None


def _variance_over_mean(read: Callable[[int], NDArray[Any]], numbers: NDArray[np.int64]) -> float:
    """Return that of the noise, as the median of three pairs of neighbouring frames."""
    values = []
    for place in np.linspace(0, numbers.size - 2, 3).round().astype(int):
        pair = [read(int(number)).astype(np.float64) for number in numbers.ravel()[place:][:2]]
        first = pair[0]
        with np.errstate(invalid="ignore"):
            between = (pair[0] - pair[1]) / 2**0.5
            # What changes slowly in a frame is not in its mixed second difference.
            mixed = (first[1:, 1:] - first[1:, :-1] - first[:-1, 1:] + first[:-1, :-1]) / 2
            # Structure is in either, noise in both.
            noise = min((between**2).mean(), (mixed**2).mean() if mixed.size else np.inf)
            level = (pair[0].mean() + pair[1].mean()) / 2
        values.append(noise / level if level > 0 else np.nan)
    return float(np.median(values))


def means(frames: Stack, first: int = 0) -> NDArray[np.float64]:
    """Return the mean of each of (n, H, W), the first of which is number ``first``.

    Raises
    ------
    FormatError
        If a pixel is not finite.
    """
    sums = frames.sum(axis=(1, 2), dtype=np.float64)  # which holds any sum of float32
    if not np.isfinite(sums).all():
        number = first + int(np.argmin(np.isfinite(sums)))
        raise FormatError(
            f"frame {number} has pixels that are not finite (NaN or infinity); "
            "replace them first, for example by numpy.nan_to_num with the mean"
        )
    mean: NDArray[np.float64] = sums / frames[0].size
    return mean


def keep_means(wanted: NDArray[np.float64], denoised: Stack) -> NDArray[np.float64]:
    """Shift each of (n, H, W), in place, so that its mean is as wanted.

    Returns
    -------
    ndarray
        (n,) what was added to every pixel of each.
    """
    shifts: NDArray[np.float64] = wanted - denoised.mean(axis=(1, 2), dtype=np.float64)
    denoised += shifts.astype(np.float32)[:, None, None]
    return shifts
