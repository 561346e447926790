"""Thresholds for residuals from residuals of denoisings that are known to be honest.

The caller makes them: take a denoised frame as the truth, draw the camera's noise on it
again and again, denoise each draw with the same model, and take `residual_statistics` of each. What
such residuals show is the denoiser's way with noise; what goes beyond it in the frame at
hand is signal removed, or noise that is not as expected. The truth drawn from is itself
denoised and hence smoother than the scene, so that these thresholds are a little strict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emdn_models.errors import EmdnError
from emdn_models.metrics.accept import Floats
from emdn_models.metrics.residual import Residual

_MOMENTS = ("mean", "std", "lag_x", "lag_y", "peak")


@dataclass(frozen=True)
class Null:
    """Range of each statistic in honest residuals.

    Attributes
    ----------
    low, high
        By name, each shaped as the statistic of one frame.
    level
        Chance that one number of an honest residual lies outside, both sides together.
    draws
        Honest residuals behind the thresholds.
    size
        H, W and side of the tiles.
    """

    low: Mapping[str, Floats]
    high: Mapping[str, Floats]
    level: float
    draws: int
    size: tuple[int, int, int]


def statistics(residual: Residual) -> dict[str, Floats]:
    """Return the numbers of a residual by name, each (N, ...) with N = 1 for a single frame.

    ``mean`` to ``peak`` of the frame, (N,); the same of tiles as ``tile_mean`` and so on,
    (N, H // side, W // side); ``power`` (N, R); ``largest_column`` and ``largest_row`` (N,).
    """
    named = {name: getattr(residual.frame, name) for name in _MOMENTS}
    named |= {
        "power": residual.power,
        "largest_column": residual.largest_column,
        "largest_row": residual.largest_row,
    }
    named |= {f"tile_{name}": getattr(residual.tile, name) for name in _MOMENTS}
    if not np.ndim(residual.frame.mean):
        named = {name: np.asarray(value)[None] for name, value in named.items()}
    return named


def null(honest: Sequence[Residual], level: float = 0.01) -> Null:
    """Find the range that honest residuals keep to.

    The limits are the k-th smallest and k-th largest of m draws, k = level / 2 * (m + 1)
    rounded down: a further honest draw lies outside with at most the chance ``level``, whatever
    its distribution. Of many numbers (tiles, rings) some lie outside by chance: count them.

    Parameters
    ----------
    honest
        Of one stack or of many, all of frames and tiles of one size.
    level
        Chance of a false alarm for one number, between 0 and 1.

    Raises
    ------
    EmdnError
        If there are too few draws for the level, or their shapes differ.
    """
    if not 0 < level < 1:
        raise EmdnError(f"level: found {level}, expected a chance between 0 and 1")
    tables = [statistics(one) for one in honest]
    draws = sum(len(table["mean"]) for table in tables)
    rank = int(level / 2 * (draws + 1) + 1e-9)
    if rank < 1:
        raise EmdnError(
            f"honest: found {draws} denoisings, expected {int(np.ceil(2 / level)) - 1} or more "
            f"for a level of {level:g}; draw more or raise the level"
        )
    for other in honest:
        _same("honest", _size(other), _size(honest[0]))
    low, high = {}, {}
    for name in tables[0]:
        ordered = np.sort(np.concatenate([table[name] for table in tables]), axis=0)
        low[name], high[name] = ordered[rank - 1], ordered[draws - rank]
    return Null(low, high, level, draws, _size(honest[0]))


def outside(residual: Residual, thresholds: Null) -> dict[str, NDArray[np.bool_]]:
    """Tell which numbers of a residual lie outside the range of honest ones.

    Returns
    -------
    dict
        By name as in `statistics`, True where outside; a tile without a number is not.

    Raises
    ------
    EmdnError
        If the residual's frames or tiles have another size than the honest ones.
    """
    _same("residual", _size(residual), thresholds.size)
    return {
        name: (values < thresholds.low[name]) | (values > thresholds.high[name])
        for name, values in statistics(residual).items()
    }


def _size(residual: Residual) -> tuple[int, int, int]:
    return residual.rows.shape[-1], residual.columns.shape[-1], residual.side


def _same(name: str, found: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    if found != expected:
        told, wanted = (
            "{} x {} pixels with tiles of {}".format(*size) for size in (found, expected)
        )
        raise EmdnError(f"{name}: found {told}, expected {wanted} as of the first honest one")
