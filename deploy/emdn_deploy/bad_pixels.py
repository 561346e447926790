"""Bad pixels: gaps, flags, saturated areas, dead and hot pixels, and how they are filled in.

In the medians of neighbouring frames, a pixel is bad when it stands out from its eight neighbours
by far more than counting noise and than they differ among each other. A small bright spot of the
image, which has a rim, is none.

A flag is what is never finite, a negative number among counts, or the largest 32-bit number; areas
of them are gaps, as are areas of one value amid brighter pixels. Saturated are connected pixels at
the largest value of a type of 8 or 16 bits, or at a largest value that a large area of a frame
shares: this is what a flag of 65535 counts as. Both keep their value in the output.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

from emdn_models.errors import EmdnError

_AREA = 5  # connected pixels that are an area; fewer are single faults of a camera
_FLAGS = 4  # negative numbers, of which so many are no flags
_SILENT = 3, 6  # side of a square without a count, in many frames and in few
_PLATEAU = 4  # frames that are many
_VACUUM = 0.3  # of a frame, of which more without a count is the specimen's surroundings
_AMID = 0.75  # of the pixels around a gap that are brighter, at least
_LEVELS, _FAR = 16, 8.0  # values that tell the largest from a count; times the one before it
_SAME = 0.9  # of the pixels, above which that some are constant says nothing

# Standing out: by this many standard deviations of the noise, plus a few electrons
# for sparse counts, and by this many times the spread of the neighbours.
_SIGMAS, _ELECTRONS, _SPREADS = 8.0, 20.0, 4.0
_RIM = 0.04  # a rim of this part of its height makes a bright pixel the middle of a spot
_DEAD = 0.15  # less than this part of its neighbours' electrons is no image
_MOST = 0.01  # more outliers are the specimen (or sparse events), not the camera
_FEW = 3  # frames, below which a pixel that was bright once may not be so always

Mask = NDArray[np.bool_]
Stack = NDArray[np.float32]
_TOUCHING = np.ones((3, 3), int)
_AROUND = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)


class Fill(NamedTuple):
    """How to replace the bad pixels of a frame, by flat positions.

    ``bad``: (B,); ``sources``: (B, 8), the neighbours of each, or the good pixels nearest to them;
    ``counted``: (B, 8), the good neighbours, or all where none is good.
    """

    bad: NDArray[np.intp]
    sources: NDArray[np.intp]
    counted: Mask

    def apply(self, frames: Stack) -> None:
        """Replace, in place, each bad pixel of (k, H, W) by the mean of its sources."""
        for frame in frames.reshape(len(frames), -1):
            near = np.where(self.counted, frame[self.sources], np.float32(0))
            frame[self.bad] = near.sum(axis=1) / self.counted.sum(axis=1)


def plan(mask: Mask) -> Fill:
    """Find what stands in for the bad pixels of (H, W); EmdnError if no pixel is good."""
    if mask.all():
        raise EmdnError("no pixel has a value in any frame that was looked at")
    around = np.argwhere(mask)[:, None] + np.argwhere(_AROUND) - 1  # (B, 8, 2)
    inside = around.clip(0, np.array(mask.shape) - 1)
    places = inside[..., 0], inside[..., 1]
    good = (inside == around).all(axis=2) & ~mask[places]
    flat = np.arange(mask.size).reshape(mask.shape)
    if not (alone := ~good.any(axis=1, keepdims=True)).any():  # none lies inside an area
        return Fill(np.flatnonzero(mask), flat[places], good)
    nearest = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    return Fill(np.flatnonzero(mask), flat[tuple(nearest)][places], good | alone)


def each(work: Callable[[Mask], Mask], masks: Mask) -> Mask:
    """Apply ``work`` to those of (k, H, W) that are not all False."""
    return np.stack([work(one) if one.any() else one for one in masks])


def areas(mask: Mask) -> Mask:
    """Return the pixels of (H, W) that touch others, corners included, `_AREA` or more together."""
    labels, _ = ndimage.label(mask, _TOUCHING)
    return np.asarray(mask & (np.bincount(labels.ravel()) >= _AREA)[labels])


def thick(mask: Mask, side: int = 2) -> Mask:
    """Return the connected pixels of (H, W) among which a square of ``side`` pixels is full."""
    seeds = ndimage.binary_erosion(mask, np.ones((side, side)))
    return np.asarray(ndimage.binary_propagation(seeds, _TOUCHING, mask=mask))


def widened(mask: Mask, pixels: int) -> Mask:
    """Return (H, W) with so many pixels more on all sides."""
    return np.asarray(ndimage.binary_dilation(mask, _TOUCHING, iterations=pixels))


class Flagged(NamedTuple):
    """Pixels (H, W) whose value is no measurement."""

    masked: Mask  # areas whose value says nothing of those around: the network does not see them
    single: Mask  # single pixels that are never finite or that the detector flags
    saturated: Mask  # saturated in one of the frames looked at, or more
    limit: float | None = None  # the value that saturated pixels have, at least; None for none

    def saturated_in(self, frames: Stack) -> Mask:
        """Return where (k, H, W), as the file holds them, are saturated."""
        if self.limit is None:
            return np.zeros(frames.shape, bool)
        return each(thick, frames >= self.limit) & ~self.masked


def find_flagged(runs: Sequence[Stack], dtype: np.dtype[Any]) -> Flagged:
    """Look through sampled frames (k, H, W), as a file of type ``dtype`` holds them."""
    seen = sum(map(len, runs))
    low = np.min([run.min(0, initial=np.inf, where=np.isfinite(run)) for run in runs], 0)
    high = np.max([run.max(0, initial=-np.inf, where=np.isfinite(run)) for run in runs], 0)
    same = low == high
    certain = seen > 1 and float(same.mean()) < _SAME  # that those are no chance
    largest = float(np.iinfo(dtype).max) if dtype.kind in "iu" else np.inf
    marks = low > high  # never finite
    if dtype.itemsize >= 4:
        marks |= same & (low >= np.float32(largest))
    below = same & (low < 0)
    if certain and below.any() and not (low[~below] < 0).any():
        marks |= below & (np.unique(low[below]).size < _FLAGS)
    masked = areas(marks)
    if certain or seen == 1:
        masked |= _silent(runs[0][0], same & ~marks, _SILENT[seen < _PLATEAU])
    single = marks & ~masked
    limit = _limit(runs, ~(masked | single), largest if dtype.itemsize <= 2 else np.inf)
    found = Flagged(masked, single, np.zeros(same.shape, bool), limit)
    for run in runs:
        found.saturated[found.saturated_in(run).any(axis=0)] = True
    return found


def _silent(value: Stack, still: Mask, side: int) -> Mask:
    """Find areas of one value amid brighter ones: beam stops, modules that are off, and gaps."""
    most, least = (one(value, 3) for one in (ndimage.maximum_filter, ndimage.minimum_filter))
    full = ndimage.minimum_filter(still, 3) & (most == least)
    cores, count = ndimage.label(thick(widened(full, 1), side), _TOUCHING)
    if not count:
        return np.zeros_like(full)
    near, far = (ndimage.grey_dilation(cores, (size, size)) for size in (5, 9))
    level = np.append(-np.inf, ndimage.median(value, cores, range(1, count + 1)))
    around = np.where(near > 0, 0, far)
    # Where an area ends by chance, as in the dark, its value is frequent a little farther on.
    found = still & (near > 0) & (value == level[near])
    size, brighter, ring = (
        np.bincount(labels, minlength=count + 1)
        for labels in (near[found], around[value > level[around]], around.ravel())
    )
    chosen = (brighter >= _AMID * ring) & (ring > 0) & (size <= _VACUUM * still.size)
    return np.asarray(found & chosen[near])


def _limit(runs: Sequence[Stack], rest: Mask, top: float) -> float | None:
    """Return the value at which the stack saturates, None for none; ``top``: that of the type."""
    frames = [np.where(rest & np.isfinite(frame), frame, -np.inf) for run in runs for frame in run]
    most = max(float(frame.max()) for frame in frames)
    flat = [frame >= np.float32(most) for frame in frames]
    # A square of 3 x 3 at one largest value is no chance; of the type's, one of 2 x 2.
    side = 2 if most >= top else 3
    inner = [int(np.count_nonzero(thick(one, side))) if one.any() else 0 for one in flat]
    if 2 * sum(inner) <= sum(map(np.count_nonzero, flat)):
        return None
    levels = np.unique(frames[int(np.argmax(inner))])
    far = len(levels) > 1 and most > _FAR * levels[-2] > 0
    return most if far or len(levels) >= _LEVELS else None


def outliers(runs: Sequence[Stack], gain: float, offset: float) -> Mask:
    """Return the pixels of (H, W) that stand out from their neighbours in all sampled frames.

    The ``runs``, (k, H, W) each, are corrected. All False where so many stand out that they
    cannot be the camera's, and for frames of fewer than 7 pixels a side.
    """
    size, number = runs[0].shape[1:], sum(map(len, runs))
    if min(size) < 7:
        return np.zeros(size, bool)
    # What flares up in one frame of a run is not in its median.
    total = np.sum([len(run) * np.median(run, axis=0) for run in runs], axis=0, dtype=np.float64)
    electrons = np.asarray((total - offset * number) / gain, dtype=np.float32)
    if number < _FEW:
        electrons /= 4  # ask for twice the distance
    # Five of eight neighbours, since a pixel of a dead square of four has three that are dead too.
    low, high = (
        ndimage.rank_filter(electrons, rank, footprint=_AROUND, mode="mirror") for rank in (3, 4)
    )
    mask = np.asarray((electrons > high + _noise(high)) | (electrons < low - _noise(low)))
    if mask.mean() > 5 * _MOST:
        mask[:] = False
    # At the frame's edge the window moves inwards: mirrored neighbours would be too alike.
    corners = (np.argwhere(mask) - 2).clip(0, np.array(size) - 5)
    near = sliding_window_view(electrons, (5, 5))[tuple(corners.T)]
    mask[mask] = _confirmed(electrons[mask], near)
    for axis in (0, 1):  # whole columns or rows, by the three on either side
        profile = np.median(electrons, axis=axis)
        around = np.delete(sliding_window_view(np.pad(profile, 3, mode="reflect"), 7), 3, axis=1)
        mask |= np.expand_dims(_stands_out(profile, np.sort(around), (1, 4)), axis)
    return mask if mask.mean() <= _MOST else np.zeros(size, bool)


def _noise(electrons: Stack) -> Stack:
    return np.asarray(_SIGMAS * np.sqrt(np.maximum(electrons, 0)) + _ELECTRONS)


def _confirmed(values: Stack, near: Stack) -> Mask:
    """Compare suspects (n,) with the pixels around them, (n, 5, 5).

    Crests of a lattice are single pixels wide too, but fall off further out, while
    the surroundings of a bad pixel, or of a dead column, are level. The pixel itself
    is among the 25: one of them does not move the inner half.
    """
    rim = np.median(near[:, np.pad(_AROUND, 1)], axis=1)
    beyond = np.median(near[:, ~np.pad(np.ones((3, 3), bool), 1)], axis=1)
    spot = rim - beyond > np.maximum(_RIM * (values - beyond), 2 * np.sqrt(beyond.clip(0)) + 3)
    around = np.sort(near.reshape(-1, 25))
    # No image is dark in one pixel and bright in all but four of those around it.
    least = around[:, 4]
    dead = (values < _DEAD * least) & (least - values > _noise(least))
    return np.asarray(dead | (_stands_out(values, around, (6, 18)) & ~spot))


def _stands_out(values: Stack, around: Stack, half: tuple[int, int]) -> Mask:
    """Compare electrons (n,) with sorted neighbours (n, m), whose inner half is from ``half``."""
    middle, distance = np.median(around, axis=1), around[:, half[1]] - around[:, half[0]]
    away = np.abs(values - middle)
    return np.asarray((away > _noise(middle)) & (away > _SPREADS * distance))
