"""The numbers that a denoised frame is judged by, all of its residual raw - denoised."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.checking import local, peaks
from emdn_deploy.checking.camera import Camera
from emdn_deploy.checking.local import Spot
from emdn_deploy.checking.panel import BANDS, panel
from emdn_models.metrics import mean_ratio, normalised, residual_statistics
from emdn_models.metrics.accept import Floats
from emdn_models.metrics.residual import Residual

TILE = 32

Frame = NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """The statistics of one panel.

    Attributes
    ----------
    simple
        Numbers by name; ``..._added`` is 1 where the denoised frame has more of it, or is
        brighter.
    bands
        (BANDS,) mean power of the residual in equal steps of frequency.
    match
        (len(MATCHES),) projection of the residual on the denoised frame in bands: positive
        where the residual holds what the denoised frame holds too little of.
    strength
        (len(MATCHES),) amplitude of the denoised frame in these bands.
    tiles
        (2, T) standard deviation and correlation of neighbouring pixels, of each tile.
    spots
        One a scale.
    fields
        (S, H, W) the smoothed residual, in standard deviations of white noise.
    map
        (H // BLOCK, W // BLOCK) float32, what of it is farthest from 0.
    spectrum
        (R,) power on rings.
    """

    simple: dict[str, float]
    bands: Floats
    match: Floats
    strength: Floats
    tiles: Floats
    spots: tuple[Spot, ...]
    fields: Frame
    map: Frame
    spectrum: Floats


def measure(raw: Frame, denoised: Frame, camera: Camera, good: NDArray[np.bool_]) -> Measured:
    """Measure a panel.

    Parameters
    ----------
    raw, denoised
        (H, W), at least 16 x 16, in the same units.
    good
        (H, W), the pixels that count.

    Raises
    ------
    EmdnError
        If the denoised frame is on average not brighter than the camera's offset.
    """
    shape = panel(*raw.shape)
    numbers = (camera.gain, camera.offset, camera.read)
    every = None if good.all() else good
    residual = residual_statistics(raw, denoised, *numbers, tile=TILE, valid=every)
    scaled = np.where(good, normalised(raw, denoised, *numbers)[0], 0).astype(np.float32)
    unit = np.float32(camera.gain)  # float32 does not hold the square of every unit
    level = np.sqrt(max(float(np.var((raw - denoised) / unit)), 1e-30))
    detail = (denoised - denoised.mean()) / unit / np.float32(level)
    # A change of the mean is judged as such and not as a blob.
    scaled[good] -= scaled.mean(where=good)
    fields = local.smoothed(scaled)
    match, strength, simple = peaks.compare(scaled, detail, shape)
    frame = residual.frame
    simple |= {
        "ratio": float(mean_ratio(denoised - camera.offset, raw - camera.offset, every)),
        "std": float(frame.std),
        "lag": float(frame.lag_x + frame.lag_y) / 2,
        "columns": float(residual.largest_column),
        "rows": float(residual.largest_row),
        "columns_added": _line_added(residual.columns),
        "rows_added": _line_added(residual.rows),
    }
    return Measured(
        simple, _bands(residual), match, strength, _tiles(residual), local.spots(fields),
        fields, local.blocks(fields), residual.power,
    )  # fmt: skip


def _line_added(z: Floats) -> float:
    """Say, as 1 or 0, whether the denoised line farthest from the raw one is the brighter."""
    return float(z[np.abs(z).argmax()] < 0)


def _bands(residual: Residual) -> Floats:
    edges = np.linspace(0, 0.5, BANDS + 1)
    which = np.clip(np.searchsorted(edges, residual.frequency) - 1, 0, BANDS - 1)
    counts = np.bincount(which, residual.frequency, BANDS)
    # Rings are weighted by their frequency, as their pixels are many.
    return np.asarray(
        np.bincount(which, residual.frequency * residual.power, BANDS) / np.maximum(counts, 1e-12)
    )


def _tiles(residual: Residual) -> Floats:
    tile = residual.tile
    found = np.stack([tile.std.ravel(), (tile.lag_x + tile.lag_y).ravel() / 2])
    return np.asarray(found[:, np.isfinite(found).all(axis=0)])
