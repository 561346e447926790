"""Arrays of frames: what is taken for one, and that each keeps its mean.

The mean of a frame of H x W pixels is known far better from the frame itself, to
1 / sqrt(electrons), than any net makes of it. So what the net lost or added, on average
over the frame, is given back to every pixel alike. A factor instead of a shift would scale
the error of a bright place over the whole frame.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_models.errors import FormatError

Stack = NDArray[np.float32]


def as_stack(frames: ArrayLike) -> Stack:
    """Check an array and return it as (N, H, W) float32.

    Raises
    ------
    FormatError
        Naming the remedy, if the rank or the dtype is wrong.
    """
    array: NDArray[Any] = np.asarray(frames)
    if array.ndim != 3:
        hint = {
            2: "pass frames[None] for a single frame",
            4: "drop the channel axis, frames[..., 0]",
        }
        raise FormatError(
            f"frames has shape {array.shape}, expected (N, H, W); "
            + hint.get(array.ndim, "stack the frames along the first axis")
        )
    if array.dtype.kind not in "buif":
        raise FormatError(f"frames has dtype {array.dtype}, expected real numbers")
    if 0 in array.shape:
        raise FormatError(f"frames is empty (shape {array.shape})")
    return np.ascontiguousarray(array, dtype=np.float32)


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
