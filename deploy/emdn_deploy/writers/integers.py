"""Denoised frames as the numbers that a file holds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_models.errors import OutputError


def storable(frames: NDArray[np.float32], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
    """Return frames as ``dtype``, and how many pixels an integer type cannot hold.

    Integers are rounded to the nearest (halves to even); what lies outside of the
    type's range gets its smallest or largest number and is counted.

    Raises
    ------
    OutputError
        If a pixel to be rounded is NaN.
    """
    if dtype.kind == "f":
        return frames, 0
    limits = np.iinfo(dtype)
    # float64: float32 does not hold the largest 32-bit integers.
    rounded = np.rint(frames, dtype=np.float64)
    if np.isnan(rounded).any():
        raise OutputError(f"NaN cannot be stored as {dtype.name}; leave out --dtype")
    outside = int(np.count_nonzero((rounded < limits.min) | (rounded > limits.max)))
    return rounded.clip(limits.min, limits.max).astype(dtype), outside
