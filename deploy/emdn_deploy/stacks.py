"""Arrays of frames: what is taken for one, and that each keeps its mean.

The mean of a frame of H x W pixels is known far better from the frame itself, to
1 / sqrt(electrons), than any net makes of it. So what the net lost or added, on average
over the frame, is given back to every pixel alike. A factor instead of a shift would scale
the error of a bright place over the whole frame.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_models.errors import FormatError

Stack = NDArray[np.float32]

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
        Naming the remedy, if the rank or the dtype is wrong, or an axis looks like channels.
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
    height, width = array.shape[-2:]
    plain = array.astype(np.float32) if lazy else np.ascontiguousarray(array, dtype=np.float32)
    stack: Stack = plain.reshape(-1, height, width)
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
