"""Pixels that carry no image: found per stack, filled in from their neighbours.

Dead and hot pixels change from one acquisition to the next, so they are looked for in
the frames themselves: in the mean of the sampled frames, a pixel is bad when it stands
out from its eight neighbours by far more than counting noise and than they differ among
each other, and does so in most of these frames. A small bright spot of the image, which has a
rim, is none. Pixels without a measurement are told by `emdn_deploy.flagged`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emdn_deploy.flagged import RIM
from emdn_deploy.sampling import RUN, sample_starts

# Standing out: by this many standard deviations of the noise, plus a few electrons
# for sparse counts, and by this many times the spread of the neighbours.
_SIGMAS, _ELECTRONS, _SPREADS = 8.0, 20.0, 4.0
# Less than this part of its neighbours' electrons is no image.
_DEAD = 0.15
# More outliers than this are the specimen (or sparse events), not the camera.
_MOST = 0.01
_FARTHEST = 32
_STRIP = 512  # rows at a time

Mask = NDArray[np.bool_]
Reader = Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True)
class Fill:
    """How to replace the bad pixels of a frame.

    Attributes
    ----------
    bad
        (B,) flat positions.
    sources
        (S,) flat positions of good neighbours, those of each bad pixel together.
    starts
        (B,) where in ``sources`` each bad pixel's neighbours begin.
    """

    bad: NDArray[np.intp]
    sources: NDArray[np.intp]
    starts: NDArray[np.intp]

    @property
    def counts(self) -> NDArray[np.intp]:
        """Return (B,) how many good neighbours each bad pixel has."""
        return np.diff(np.append(self.starts, self.sources.size))

    def apply(self, frames: NDArray[np.float32]) -> None:
        """Replace, in place, each bad pixel of (k, H, W) by the mean of its neighbours."""
        if not self.bad.size:
            return
        flat = frames.reshape(len(frames), -1)
        sums = np.add.reduceat(flat[:, self.sources], self.starts, axis=1)
        flat[:, self.bad] = sums / self.counts


def plan(mask: Mask) -> Fill:
    """Find, for each bad pixel of (H, W), the nearest good ones.

    Where there is none within `_FARTHEST` pixels, good pixels from all over the
    frame stand in: the middle of a large gap becomes the mean.

    Raises
    ------
    ValueError
        If no pixel is good.
    """
    if mask.all():
        raise ValueError("no pixel has a value")
    height, width = mask.shape
    left = np.argwhere(mask)
    bad, sources, counts = [], [], []
    for radius in range(1, _FARTHEST + 1):
        if not len(left):
            break
        ring = _ring(radius)
        rows = left[:, :1] + ring[:, 0]
        columns = left[:, 1:] + ring[:, 1]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        flat = np.where(inside, rows * width + columns, 0)
        good = inside & ~mask.ravel()[flat]
        found = good.any(axis=1)
        bad.append(left[found, 0] * width + left[found, 1])
        sources.append(flat[found][good[found]])
        counts.append(good[found].sum(axis=1))
        left = left[~found]
    if len(left):
        usable = np.flatnonzero(~mask)
        spread = usable[:: max(1, usable.size // 500)]
        bad.append(left[:, 0] * width + left[:, 1])
        sources.append(np.tile(spread, len(left)))
        counts.append(np.full(len(left), spread.size))
    joined = np.concatenate([*counts, np.zeros(0, np.intp)])
    return Fill(
        np.concatenate([*bad, np.zeros(0, np.intp)]).astype(np.intp),
        np.concatenate([*sources, np.zeros(0, np.intp)]).astype(np.intp),
        (np.cumsum(joined) - joined).astype(np.intp),
    )


def widened(mask: Mask, pixels: int) -> Mask:
    """Return (H, W) with so many pixels more on all sides."""
    return np.asarray(ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=pixels))


def fill_nearest(frame: NDArray[np.float32], mask: Mask, without: Mask) -> None:
    """Replace, in place, the pixels of ``mask`` by the nearest that are not in ``without``."""
    nearest = ndimage.distance_transform_edt(without, return_distances=False, return_indices=True)
    rows, columns = nearest[:, mask]
    frame[mask] = frame[rows, columns]


def _ring(radius: int) -> NDArray[np.intp]:
    """Return the steps (8 * radius, 2) to the pixels of a square around one."""
    steps = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 2, indexing="ij"), axis=-1)
    flat = steps.reshape(-1, 2)
    return np.asarray(flat[np.abs(flat).max(axis=1) == radius], dtype=np.intp)


def outliers(read: Reader, count: int, size: tuple[int, int], gain: float, offset: float) -> Mask:
    """Return the pixels of (H, W) that stand out from their neighbours in all frames.

    Parameters
    ----------
    gain, offset
        Of the stack (see `emdn_deploy.intensity`).

    Returns
    -------
    ndarray
        All False where so many stand out that they cannot be the camera's.
    """
    total, number = np.zeros(size), 0
    for frames in _samples(read, count, size):
        total += frames.sum(axis=0, dtype=np.float64)
        number += len(frames)
    if min(size) < 3:
        return np.zeros(size, bool)
    electrons = ((total - offset * number) / gain).astype(np.float32)
    del total
    electrons /= np.float32(_excess(electrons))
    if number < RUN:
        # A pixel that was bright once need not be so always: ask for twice the distance.
        electrons /= 4
    mask = _suspects(electrons)
    mask = _confirmed(electrons, mask) if mask.mean() <= 5 * _MOST else np.zeros(size, bool)
    if number > 1 and mask.any():
        mask[mask] = _steady(read, count, size, mask, (gain, offset))
    mask |= _lines(electrons)[None, :] | _lines(electrons.T)[:, None]
    return mask if mask.mean() <= _MOST else np.zeros(size, bool)


def _excess(electrons: NDArray[np.float32]) -> float:
    """Say how many times the variance exceeds that of counts, 1 or more.

    Frames that repeat, as some cameras' videos do, average less than they should.
    """
    # Every so many rows and columns are enough to tell a median.
    rows = np.arange(1, electrons.shape[0] - 1, max(1, electrons.shape[0] // 512))
    few = electrons[:, :: max(1, electrons.shape[1] // 512)]
    bend = (few[rows - 1] - 2 * few[rows] + few[rows + 1]) / np.sqrt(6)
    level = float(np.median(few[rows]))
    if level < 1:
        return 1.0
    deviation = 1.4826 * float(np.median(np.abs(bend)))
    return max(1.0, deviation * deviation / level)


def _suspects(electrons: NDArray[np.float32]) -> Mask:
    """Find pixels above, or below, five of their eight neighbours by more than the noise.

    Five, since a pixel of a dead square of four has three neighbours that are dead as well.
    """
    height, width = electrons.shape
    mask = np.zeros((height, width), bool)
    for top in range(0, height, _STRIP):
        bottom = min(top + _STRIP, height)
        rows = np.abs(np.arange(top - 1, bottom + 1))
        rows = np.where(rows < height, rows, 2 * height - 2 - rows)
        wide = np.pad(electrons[rows], ((0, 0), (1, 1)), mode="reflect")
        noise = _SIGMAS * np.sqrt(np.maximum(wide, 0)) + _ELECTRONS
        over, under = wide + noise, wide - noise
        values = electrons[top:bottom]
        above, below = (np.zeros(values.shape, np.uint8) for _ in range(2))
        for y in range(3):
            for x in range(3):
                near = np.s_[y : y + bottom - top, x : x + width]
                above += values > over[near]
                below += values < under[near]
        mask[top:bottom] = np.maximum(above, below) >= 5
    return mask


def _confirmed(electrons: NDArray[np.float32], suspects: Mask) -> Mask:
    """Compare suspects with the 24 pixels around them.

    Crests of a lattice are single pixels wide too, but fall off further out, while
    the surroundings of a bad pixel, or of a dead column, are level. The pixel itself
    is among the 25: one of them does not move the inner half.
    """
    rows, columns = np.nonzero(suspects)
    values = electrons[rows, columns]
    # At the frame's edge the window moves inwards: mirrored neighbours would be too alike.
    height, width = electrons.shape
    inner_rows = np.clip(rows, 2, max(2, height - 3)) - 2
    inner_columns = np.clip(columns, 2, max(2, width - 3)) - 2
    around = np.stack(
        [
            electrons[
                np.minimum(inner_rows + y, height - 1), np.minimum(inner_columns + x, width - 1)
            ]
            for y in range(5)
            for x in range(5)
        ]
    )
    within = [5 * y + x for y in (1, 2, 3) for x in (1, 2, 3) if (y, x) != (2, 2)]
    rim = np.median(around[within], axis=0)
    beyond = np.median(np.delete(around, [*within, 12], axis=0), axis=0)
    spot = rim - beyond > np.maximum(RIM * (values - beyond), 2 * np.sqrt(beyond.clip(0)) + 3)
    around.sort(axis=0)
    mask = np.zeros_like(suspects)
    # No image is dark in one pixel and bright in all but four of those around it.
    least = around[4]
    noise = _SIGMAS * np.sqrt(np.maximum(least, 0)) + _ELECTRONS
    dead = (values < _DEAD * least) & (least - values > noise)
    mask[rows, columns] = dead | (_stands_out(values, around, (6, 18)) & ~spot)
    return mask


def _steady(
    read: Reader, count: int, size: tuple[int, int], mask: Mask, scale: tuple[float, float]
) -> Mask:
    """Say which of the pixels (B,) of ``mask`` stand out in most frames, and not in a few only.

    Of n frames, ((sum of d)^2 / sum of d^2) is how many share the distance d to the good pixels
    around, beyond what counting adds to the squares.
    """
    fill, (gain, offset) = plan(mask), scale
    distance, squares, number = np.zeros(fill.bad.size), np.zeros(fill.bad.size), 0
    for frames in _samples(read, count, size):
        flat = (frames.reshape(len(frames), -1).astype(np.float64) - offset) / gain
        near = np.add.reduceat(flat[:, fill.sources], fill.starts, axis=1) / fill.counts
        away = flat[:, fill.bad] - near
        distance += away.sum(axis=0)
        squares += (away**2 - np.maximum(flat[:, fill.bad], near)).sum(axis=0)
        number += len(frames)
    steady = distance**2 > number / 2 * squares
    return np.asarray(steady[np.argsort(fill.bad)])


def _lines(electrons: NDArray[np.float32]) -> Mask:
    """Find whole columns that stand out from the three on either side."""
    profile = np.median(electrons, axis=0)
    if profile.size < 7:
        return np.zeros(profile.size, bool)
    wide = np.pad(profile, 3, mode="reflect")
    around = np.stack([wide[step : step + profile.size] for step in (0, 1, 2, 4, 5, 6)])
    around.sort(axis=0)
    return _stands_out(profile, around, (1, 4))


def _stands_out(
    values: NDArray[np.float32], around: NDArray[np.float32], half: tuple[int, int]
) -> Mask:
    """Compare electrons with sorted neighbours, whose inner half is from ``half``."""
    middle = (around[(len(around) - 1) // 2] + around[len(around) // 2]) / 2
    spread = around[half[1]] - around[half[0]]
    distance = np.abs(values - middle)
    noise = _SIGMAS * np.sqrt(np.maximum(middle, 0)) + _ELECTRONS
    result: Mask = (distance > noise) & (distance > _SPREADS * spread)
    return result


def _samples(read: Reader, count: int, size: tuple[int, int]) -> Any:
    starts, run = sample_starts(count, size)
    return (read(start, start + run) for start in starts)
