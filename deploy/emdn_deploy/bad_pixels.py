"""Bad pixels: gaps, flags, saturated areas, dead and hot pixels, and how they are filled in.

Dead and hot pixels change from one acquisition to the next, so they are looked for in the frames
themselves: in the medians of neighbouring frames, a pixel is bad when it stands out from its eight
neighbours by far more than counting noise and than they differ among each other. A small bright
spot of the image, which has a rim, is none.

A flag is a value that an area has in all frames, as the file holds them, and that lies far outside
of the rest or amid pixels that count, what is never finite, a negative whole number among counts,
or the largest 32-bit number. Saturated are connected pixels at the largest value of a type of 8 or
16 bits, or at a largest value that a large area of a frame shares. Both keep their value in the
output.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_AREA = 5  # connected pixels that are an area; fewer are single faults of a camera
_FAR = 8.0  # a value is far outside of the rest by so many times the rest's range
_RANGE = 0.001, 0.999  # quantiles that range over the rest, but for its single faults
_FLAGS = 4  # negative numbers, of which so many are no flags
_SILENT = 3, 6  # side of a square without a count, in many frames and in few, but for bands
_VACUUM = 0.3  # of a frame, of which more without a count is the specimen's surroundings
_DIM = 0.25  # of the pixels around it that hold its value, above which it is no gap
_LEVELS = 16  # values that a stack has, for the largest to be told from a count
_PLATEAU = 4  # frames that tell a constant value from chance
_SAME = 0.9  # of the pixels, above which that some are constant says nothing
_MANY = 2**18  # pixels that tell a quantile

# Standing out: by this many standard deviations of the noise, plus a few electrons
# for sparse counts, and by this many times the spread of the neighbours.
_SIGMAS, _ELECTRONS, _SPREADS = 8.0, 20.0, 4.0
_RIM = 0.04  # a rim of this part of its height makes a bright pixel the middle of a spot
_DEAD = 0.15  # less than this part of its neighbours' electrons is no image
_MOST = 0.01  # more outliers are the specimen (or sparse events), not the camera
_FEW = 3  # frames, below which a pixel that was bright once may not be so always
_FARTHEST = 32

Mask = NDArray[np.bool_]
Stack = NDArray[np.float32]
_TOUCHING = np.ones((3, 3), int)
_AROUND = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)


class Fill(NamedTuple):
    """How to replace the bad pixels of a frame, by flat positions.

    ``bad``: (B,) with good pixels near; ``sources``: (S,) those of each together; ``counts``: (B,)
    how many each has. ``far``: (F,) without; those ``anywhere`` stand in.
    """

    bad: NDArray[np.intp]
    sources: NDArray[np.intp]
    counts: NDArray[np.intp]
    far: NDArray[np.intp]
    anywhere: NDArray[np.intp]

    def apply(self, frames: NDArray[Any]) -> None:
        """Replace, in place, each bad pixel of (k, H, W) by the mean of its neighbours."""
        flat = frames.reshape(len(frames), -1)
        if self.bad.size:
            starts = np.cumsum(self.counts) - self.counts
            around = np.add.reduceat(flat[:, self.sources], starts, axis=1)
            flat[:, self.bad] = around / self.counts
        if self.far.size:
            flat[:, self.far] = flat[:, self.anywhere].mean(axis=1, keepdims=True)


def plan(mask: Mask) -> Fill:
    """Find, for each bad pixel of (H, W), the nearest good ones.

    Where there is none within `_FARTHEST` pixels, good pixels from all over the
    frame stand in: the middle of a large gap becomes the mean. ValueError if no pixel is good.
    """
    if mask.all():
        raise ValueError("no pixel has a value")
    distance = ndimage.distance_transform_cdt(mask, "chessboard")
    bad, sources, counts = ([np.zeros(0, np.intp)] for _ in range(3))
    for radius in range(1, min(_FARTHEST, int(distance.max())) + 1):
        at = np.argwhere(distance == radius)
        square = np.argwhere(np.ones((2 * radius + 1, 2 * radius + 1))) - radius
        ring = at[:, None] + square[np.abs(square).max(axis=1) == radius]
        inside = ((ring >= 0) & (ring < mask.shape)).all(axis=2)
        flat = np.ravel_multi_index(tuple(np.moveaxis(ring, 2, 0)), mask.shape, mode="clip")
        good = inside & ~mask.ravel()[flat]
        bad.append(at[:, 0] * mask.shape[1] + at[:, 1])
        sources.append(flat[good])
        counts.append(good.sum(axis=1))
    usable = np.flatnonzero(~mask)
    near = [np.concatenate(parts) for parts in (bad, sources, counts)]
    far, anywhere = np.flatnonzero(distance > _FARTHEST), usable[:: max(1, usable.size // 500)]
    return Fill(near[0], near[1], near[2], far, anywhere)


def fill_nearest(frame: Stack, mask: Mask, without: Mask) -> None:
    """Replace, in place, the pixels of ``mask`` by the nearest that are not in ``without``."""
    nearest = ndimage.distance_transform_edt(without, return_distances=False, return_indices=True)
    frame[mask] = frame[tuple(nearest[:, mask])]


def areas(mask: Mask, least: int = _AREA) -> Mask:
    """Return the pixels of (H, W) that touch so many others, corners included."""
    labels, _ = ndimage.label(mask, _TOUCHING)
    return np.asarray(mask & (np.bincount(labels.ravel()) >= least)[labels])


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

    @property
    def gaps(self) -> Mask:
        """Return what is masked and not saturated."""
        return self.masked & ~self.saturated

    def saturated_in(self, frames: Stack) -> Mask:
        """Return where (k, H, W), as the file holds them, are saturated."""
        if self.limit is None or not (top := frames >= self.limit).any():
            return np.zeros(frames.shape, bool)
        return np.stack([thick(one) for one in top]) & ~self.masked


def find_flagged(runs: Sequence[Stack], dtype: np.dtype[Any]) -> Flagged:
    """Look through sampled frames (k, H, W), as a file of type ``dtype`` holds them."""
    frames = [frame for run in runs for frame in run]
    size, seen = frames[0].shape, len(frames)
    # Of each pixel its first finite value, NaN where there is none, the lowest and the highest.
    value, low, high = (np.full(size, start, np.float32) for start in (np.nan, np.inf, -np.inf))
    for frame in frames:
        finite = np.isfinite(frame)
        np.minimum(low, frame, out=low, where=finite)
        np.maximum(high, frame, out=high, where=finite)
        value = np.where(np.isnan(value) & finite, frame, value)
    same = low == high
    certain = seen > 1 and float(same.mean()) < _SAME
    marks = np.isnan(value) | _marks(value, same, low, dtype, certain=certain)
    still = same & ~marks
    masked = areas(marks) | _far(value, low, high, still, certain=certain)
    if certain or seen == 1:
        masked |= _silent(value, high, still, seen)
    largest = float(np.iinfo(dtype).max) if dtype.kind in "iu" else np.inf
    limit = None
    if dtype.itemsize <= 2 and (top := masked & (value == largest)).any():
        limit, masked = largest, masked & ~top
    single = marks & ~masked
    if limit is None:
        limit = _limit(frames, ~(masked | single), largest)
    found = Flagged(masked, single, np.zeros(size, bool), limit)
    for run in runs if limit is not None else ():
        found.saturated[found.saturated_in(run).any(axis=0)] = True
    return found


def _marks(value: Stack, same: Mask, low: Stack, dtype: np.dtype[Any], *, certain: bool) -> Mask:
    """Find what a detector flags: the largest 32-bit number, negative whole ones among counts."""
    marks = np.zeros_like(same)
    if dtype.kind in "iu" and dtype.itemsize >= 4:
        marks |= same & (value >= np.float32(np.iinfo(dtype).max))
    below = same & (value < 0)
    if below.any() and not below.all() and not (low[~below & np.isfinite(low)] < 0).any():
        kinds = np.unique(value[below])
        clear = certain or 2 * np.count_nonzero(areas(below, 16)) > np.count_nonzero(below)
        if len(kinds) < _FLAGS and clear and (kinds == np.rint(kinds)).all():
            marks |= below
    return marks


def _of_one_value(value: Stack, still: Mask, side: int) -> Mask:
    """Return the pixels of (H, W) in squares that have one value, in all frames."""
    most, least = (one(value, side) for one in (ndimage.maximum_filter, ndimage.minimum_filter))
    full = ndimage.minimum_filter(still, side) & (most == least)
    return np.asarray(ndimage.maximum_filter(full, side, origin=side % 2 - 1))


def _far(value: Stack, low: Stack, high: Stack, still: Mask, *, certain: bool) -> Mask:
    """Find areas with a value, the same in all frames, far outside of what the others range over.

    Where it is not ``certain`` that this is no chance, as in one frame, only areas of one value.
    """
    alike = still if certain else _of_one_value(value, still, 2)
    rest = np.isfinite(low) & ~alike
    if not rest.any():
        return rest
    every = max(1, np.count_nonzero(rest) // _MANY)
    bottom, top = (
        float(np.quantile(part[rest][::every], share))
        for part, share in zip((low, high), _RANGE, strict=True)
    )
    if bottom == top:  # hardly an electron anywhere
        bottom, top = float(low[rest].min()), float(high[rest].max())
    reach = _FAR * (top - bottom) if top > bottom else np.inf
    far = alike & ((value > top + reach) | (value < bottom - reach))
    return areas(far) & thick(far)


def _silent(value: Stack, high: Stack, still: Mask, seen: int) -> Mask:
    """Find areas of one value amid pixels that count: beam stops, modules that are off and gaps.

    Of one frame only those at its lowest value.
    """
    side = _SILENT[seen < _PLATEAU]
    if seen == 1:
        still = still & (value == np.nanmin(value))
    cores = _of_one_value(value, still, _SILENT[0])
    labels, _ = ndimage.label(cores, _TOUCHING)
    large = np.bincount(labels[thick(cores, side)], minlength=labels.max() + 1)
    found = np.zeros_like(still)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        across = any(one.stop - one.start == n for one, n in zip(box, still.shape, strict=True))
        if not (large[number] or across):
            continue
        part = tuple(slice(max(0, one.start - 4), one.stop + 4) for one in box)
        core, values = labels[part] == number, value[part]
        # Where an area ends by chance, as in the dark, its value is frequent a little farther on.
        near, far = widened(core, 2), widened(core, 4)
        around, level = far & ~near & np.isfinite(values), np.median(values[core])
        one = near & still[part] & (values == level)
        if one.sum() <= _VACUUM * still.size and around.any():
            amid = np.median(high[part][around]) > level
            found[part] |= one & amid & ((values[around] == level).mean() < _DIM)
    return found


def _limit(frames: Sequence[Stack], rest: Mask, top: float) -> float | None:
    """Return the value at which the stack saturates, None for none; ``top``: that of the type."""
    good = [rest & np.isfinite(frame) for frame in frames]
    most = max(
        float(np.max(frame, initial=-np.inf, where=where))
        for frame, where in zip(frames, good, strict=True)
    )
    # A square of 3 x 3 at one largest value is no chance; of the type's, one of 2 x 2.
    side, count, inner = 2 if most >= np.float32(top) else 3, 0, 0
    values: set[float] = set()
    for frame, where in zip(frames, good, strict=True):
        flat = where & (frame >= np.float32(most))
        if flat.any():
            count += int(np.count_nonzero(flat))
            inner += int(np.count_nonzero(thick(flat, side)))
            values.update(np.unique(frame[where])[-_LEVELS:].tolist())
    return most if 2 * inner > count and len(values) >= _LEVELS else None


def outliers(runs: Sequence[Stack], gain: float, offset: float) -> Mask:
    """Return the pixels of (H, W) that stand out from their neighbours in all sampled frames.

    The ``runs``, (k, H, W) each, are corrected. All False where so many stand out that they
    cannot be the camera's.
    """
    size, number = runs[0].shape[1:], sum(len(run) for run in runs)
    if min(size) < 3:
        return np.zeros(size, bool)
    # What flares up in one frame of a run is not in its median.
    sums = [
        len(run) * np.median(run, axis=0) if len(run) > 2 else run.sum(axis=0, dtype=np.float64)
        for run in runs
    ]
    total = np.asarray(np.sum(sums, axis=0, dtype=np.float64))
    electrons = np.asarray((total - offset * number) / gain, dtype=np.float32)
    if number < _FEW:
        electrons /= 4  # ask for twice the distance
    mask = _suspects(electrons)
    mask = _confirmed(electrons, mask) if mask.mean() <= 5 * _MOST else np.zeros(size, bool)
    mask |= _lines(electrons)[None, :] | _lines(electrons.T)[:, None]
    return mask if mask.mean() <= _MOST else np.zeros(size, bool)


def _suspects(electrons: Stack) -> Mask:
    """Find pixels above, or below, five of their eight neighbours by more than the noise.

    Five, since a pixel of a dead square of four has three neighbours that are dead as well.
    """
    wide = np.pad(electrons, 1, mode="reflect")
    over, under = wide + _noise(wide), wide - _noise(wide)
    above, below = np.zeros((2, *electrons.shape), np.uint8)
    for y, x in np.argwhere(_AROUND):
        near = np.s_[y : y + electrons.shape[0], x : x + electrons.shape[1]]
        above += electrons > over[near]
        below += electrons < under[near]
    return np.asarray(np.maximum(above, below) >= 5)


def _noise(electrons: Stack) -> Stack:
    return np.asarray(_SIGMAS * np.sqrt(np.maximum(electrons, 0)) + _ELECTRONS)


def _confirmed(electrons: Stack, suspects: Mask) -> Mask:
    """Compare suspects with the 24 pixels around them.

    Crests of a lattice are single pixels wide too, but fall off further out, while
    the surroundings of a bad pixel, or of a dead column, are level. The pixel itself
    is among the 25: one of them does not move the inner half.
    """
    # At the frame's edge the window moves inwards: mirrored neighbours would be too alike.
    more = [(0, max(0, 5 - length)) for length in electrons.shape]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(electrons, more, "edge"), (5, 5))
    corners = [
        np.clip(at - 2, 0, count - 1)
        for at, count in zip(np.nonzero(suspects), windows.shape[:2], strict=True)
    ]
    values, around = electrons[suspects], windows[tuple(corners)]
    rim = np.median(around[:, np.pad(_AROUND, 1)], axis=1)
    beyond = np.median(around[:, ~np.pad(np.ones((3, 3), bool), 1)], axis=1)
    spot = rim - beyond > np.maximum(_RIM * (values - beyond), 2 * np.sqrt(beyond.clip(0)) + 3)
    around = np.sort(around.reshape(-1, 25).T, axis=0)
    # No image is dark in one pixel and bright in all but four of those around it.
    least = around[4]
    dead = (values < _DEAD * least) & (least - values > _noise(least))
    mask = np.zeros_like(suspects)
    mask[suspects] = dead | (_stands_out(values, around, (6, 18)) & ~spot)
    return mask


def _lines(electrons: Stack) -> Mask:
    """Find whole columns that stand out from the three on either side."""
    profile = np.median(electrons, axis=0)
    if profile.size < 7:
        return np.zeros(profile.size, bool)
    wide = np.pad(profile, 3, mode="reflect")
    around = np.stack([wide[step : step + profile.size] for step in (0, 1, 2, 4, 5, 6)])
    return _stands_out(profile, np.sort(around, axis=0), (1, 4))


def _stands_out(values: Stack, around: Stack, half: tuple[int, int]) -> Mask:
    """Compare electrons with sorted neighbours, whose inner half is from ``half``."""
    middle = (around[(len(around) - 1) // 2] + around[len(around) // 2]) / 2
    spread = around[half[1]] - around[half[0]]
    distance = np.abs(values - middle)
    return np.asarray((distance > _noise(middle)) & (distance > _SPREADS * spread))
