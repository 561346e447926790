"""The numbers that a denoised frame is judged by, all of its residual raw - denoised."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.checking import peaks
from emdn_deploy.checking.camera import Camera
from emdn_deploy.checking.panel import BANDS, BLOCK, SCALES, Panel, panel
from emdn_models.metrics import mean_ratio, normalised, residual_statistics
from emdn_models.metrics.accept import Floats
from emdn_models.metrics.residual import Residual

TILE = 32

Frame = NDArray[np.float32]


@dataclass(frozen=True)
class Spot:
    """A place of the smoothed residual.

    Attributes
    ----------
    y, x
        Pixels, in the frame.
    scale
        Standard deviation in pixels of the Gaussian that it was smoothed with.
    z
        The smoothed residual there, in standard deviations; negative where the denoised
        frame is brighter than the raw one.
    added
        Whether the denoised frame has more contrast there than the raw frame.
    """

    y: int
    x: int
    scale: float
    z: float
    added: bool


@dataclass(frozen=True)
class Measured:
    """The statistics of one panel.

    Attributes
    ----------
    simple
        Numbers by name; ``..._added`` is 1 where the denoised frame has more of it.
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
        (S, H, W) the smoothed residual, in standard deviations.
    detail
        (H, W) the denoised frame about its mean, in standard deviations of the noise.
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
    detail: Frame
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
    level = np.sqrt(max(float(np.var(raw - denoised)), 1e-30))
    detail = (denoised - denoised.mean()) / np.float32(level)
    # A change of the mean is judged as such and not as a blob.
    scaled[good] -= scaled.mean(where=good)
    fields = smoothed(np.fft.rfft2(scaled), shape, raw.shape)
    match, strength, simple = peaks.compare(scaled, detail, shape)
    frame = residual.frame
    simple |= {
        "ratio": float(mean_ratio(denoised - camera.offset, raw - camera.offset, every)),
        "std": float(frame.std),
        "lag": float(frame.lag_x + frame.lag_y) / 2,
        "columns": float(residual.largest_column),
        "rows": float(residual.largest_row),
        "columns_added": _line_added(residual.columns, detail.mean(axis=0), raw.shape[0]),
        "rows_added": _line_added(residual.rows, detail.mean(axis=1), raw.shape[1]),
    }
    return Measured(
        simple, _bands(residual), match, strength, _tiles(residual), spots(fields, detail), fields,
        detail, blocks(fields), residual.power,
    )  # fmt: skip


def smoothed(
    transform: NDArray[np.complexfloating[Any, Any]], shape: Panel, size: tuple[int, ...]
) -> Frame:
    """Smooth a residual at every scale: (S, H, W), in standard deviations of white noise."""
    return np.stack([np.fft.irfft2(transform * one, s=size) for one in shape.smooth]).astype(
        np.float32
    )


def spots(fields: Frame, detail: Frame) -> tuple[Spot, ...]:
    """Find what is farthest from 0 at every scale."""
    found = []
    for scale, field in zip(SCALES, fields, strict=True):
        y, x = (int(i) for i in np.unravel_index(np.abs(field).argmax(), field.shape))
        z = float(field[y, x])
        # One standard deviation of the smoothed noise is this much of a raw pixel's.
        there = _contrast(detail, y, x, scale) * 2 * np.sqrt(np.pi) * scale
        found.append(Spot(y, x, scale, z, bool(abs(there) > abs(there + z))))
    return tuple(found)


def _contrast(detail: Frame, y: int, x: int, scale: float) -> float:
    """Mean about a place under a Gaussian, less that under one four times as wide."""
    reach = int(12 * scale)
    rows = slice(max(0, y - reach), y + reach + 1)
    columns = slice(max(0, x - reach), x + reach + 1)
    part = detail[rows, columns]
    down = (np.arange(rows.start, rows.start + part.shape[0]) - y)[:, None]
    square = down**2 + (np.arange(columns.start, columns.start + part.shape[1]) - x) ** 2
    means = []
    for width in (scale, 4 * scale):
        weight = np.exp(-square / (2 * width**2))
        means.append(float((weight * part).sum() / weight.sum()))
    return means[0] - means[1]


def blocks(fields: Frame) -> Frame:
    """Take of each block what is farthest from 0, over scales and pixels."""
    height, width = (max(1, length // BLOCK) for length in fields.shape[1:])
    side = tuple(min(BLOCK, length) for length in fields.shape[1:])
    cut = fields[:, : height * side[0], : width * side[1]]
    parts = cut.reshape(len(fields), height, side[0], width, side[1])
    high, low = parts.max(axis=(0, 2, 4)), parts.min(axis=(0, 2, 4))
    return np.asarray(np.where(high > -low, high, low), dtype=np.float32)


def _line_added(z: Floats, profile: Frame, length: int) -> float:
    """Say, as 1 or 0, whether the line farthest from 0 is in the denoised frame only."""
    at = int(np.abs(z).argmax())
    near = profile[max(0, at - 4) : at + 5]
    there = float(profile[at] - np.median(near)) * np.sqrt(length)
    return float(abs(there) > abs(there + float(z[at])))


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
