"""What the metrics accept: equally shaped frames of finite pixels, and masks of good ones.

All raise EmdnError with the name of the argument, what was found and what was expected.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_models.errors import EmdnError

Floats = NDArray[np.float64]


def frames(**named: ArrayLike) -> list[Floats]:
    """Return arrays (H, W) or (N, H, W), all of one shape and finite, as float64."""
    arrays: list[Floats] = []
    for name, given in named.items():
        array = np.asarray(given, dtype=np.float64)
        if array.ndim not in (2, 3) or array.size == 0:
            raise EmdnError(
                f"{name}: found shape {array.shape}, expected frames (H, W) or (N, H, W)"
            )
        if arrays and array.shape != arrays[0].shape:
            raise EmdnError(
                f"{name}: found shape {array.shape}, expected {arrays[0].shape} "
                f"as of {next(iter(named))}"
            )
        if not np.isfinite(array).all():
            raise EmdnError(
                f"{name}: found pixels that are not finite, expected numbers; fill them, or "
                "leave them out with valid after filling"
            )
        arrays.append(array)
    return arrays


def mask(valid: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the good pixels (H, W) or ``shape``, all for None, broadcast to ``shape``.

    Every frame must have one.
    """
    good = np.asarray(True if valid is None else valid, dtype=np.bool_)
    if valid is not None and good.shape not in (shape, shape[-2:]):
        raise EmdnError(f"valid: found shape {good.shape}, expected {shape[-2:]} or {shape}")
    good = np.broadcast_to(good, shape)
    if not good.any(axis=(-2, -1)).all():
        raise EmdnError("valid: found a frame without a good pixel, expected at least one")
    return good


def positive(name: str, value: ArrayLike, count: tuple[int, ...]) -> Floats:
    """Return numbers above zero, one for each of ``count`` frames, (N,) or ()."""
    numbers = np.asarray(value, dtype=np.float64)
    if numbers.shape not in ((), count):
        raise EmdnError(f"{name}: found shape {numbers.shape}, expected one number or {count}")
    if not (np.isfinite(numbers).all() and (numbers > 0).all()):
        raise EmdnError(f"{name}: found {value!r}, expected finite numbers above 0")
    return np.broadcast_to(numbers, count)
