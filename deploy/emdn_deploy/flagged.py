"""Pixels whose value is no measurement: a detector's flags, its gaps, and saturated areas.

They are found in the sampled frames, as the file holds them. A flag is a value that an area has
in all frames and that lies far outside of the rest, what is never finite, a negative whole
number among counts, or the largest 32-bit number. Saturated are connected pixels at the largest
value of the type, or at a largest value that a whole area of a frame shares. Both keep their
value in the output. What the network sees in place of a flag is filled in from around it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Connected pixels that are an area; fewer are single faults of a camera.
AREA = 5
# A value is far outside of the rest by so many times the rest's range.
_FAR = 8.0
# A rim of this part of its height makes a bright pixel the middle of a spot.
RIM = 0.04
_RANGE = 0.001, 0.999  # quantiles that range over the rest, but for its single faults
_FLAGS = 4  # different flags that are looked for at either end
_BAND = 3  # rows or columns of a gap between two modules; fewer are dead lines
_LEVELS = 16  # values that a stack has, for the largest to be told from a count
_PLATEAU = 4  # frames that tell a constant value from chance
_SAME = 0.9  # of the pixels, above which that some are constant says nothing
_MANY = 2**18  # pixels that tell a quantile

Mask = NDArray[np.bool_]
Frame = NDArray[np.float32]
Blocks = Callable[[], Iterable[Frame]]
_TOUCHING = np.ones((3, 3), int)


@dataclass(frozen=True)
class Flagged:
    """What was found.

    Attributes
    ----------
    masked
        (H, W), areas whose value says nothing of the pixels around: the network does not see them.
    single
        (H, W), single pixels that are never finite or that the detector flags.
    stuck
        (H, W), single pixels with one value in all frames, far outside of the rest.
    saturated
        (H, W), saturated in one of the frames looked at, or more; some of ``masked`` may be.
    level
        The value from which on connected pixels are saturated; None where none are.
    plateau
        (H, W), the constant values of areas that are saturated, but not at one level, as after
        a gain correction; NaN elsewhere. None where there are none.
    """

    masked: Mask
    single: Mask
    stuck: Mask
    saturated: Mask
    level: float | None
    plateau: Frame | None

    @property
    def limit(self) -> float | None:
        """Return the value that saturated pixels have, at least; None where none are."""
        return self.level if self.plateau is None else float(np.nanmin(self.plateau))

    @property
    def gaps(self) -> Mask:
        """Return what is masked and not saturated."""
        return self.masked & ~self.saturated

    def saturated_in(self, frames: Frame) -> Mask | None:
        """Return where (k, H, W), as the file holds them, are saturated; None for nowhere."""
        if self.level is not None and (frames >= self.level).any():
            inside = np.stack([thick(frame >= self.level) for frame in frames])
            return inside & (~self.masked | self.saturated)
        return None if self.plateau is None else frames == self.plateau


def areas(mask: Mask, least: int = AREA) -> Mask:
    """Return the pixels of (H, W) that touch so many others, corners included."""
    labels, count = ndimage.label(mask, _TOUCHING)
    large = np.bincount(labels.ravel(), minlength=count + 1) >= least
    large[0] = False
    return np.asarray(large[labels])


def thick(mask: Mask, side: int = 2) -> Mask:
    """Return the connected pixels of (H, W) among which a square of ``side`` pixels is full."""
    seeds = ndimage.binary_erosion(mask, np.ones((side, side)), border_value=0)
    labels, count = ndimage.label(mask, _TOUCHING)
    wide = np.zeros(count + 1, bool)
    wide[labels[seeds]] = True
    wide[0] = False
    return np.asarray(wide[labels])


def find(blocks: Blocks, size: tuple[int, int], dtype: np.dtype[Any]) -> Flagged:
    """Look through the sampled frames.

    Parameters
    ----------
    blocks
        Gives blocks of (k, H, W), as the file holds them, from the first each time it is called.
    dtype
        Of the file.
    """
    seen, value, low, high = _through(blocks(), size)
    same, never = low == high, np.isnan(value)
    certain = seen > 1 and float(same.mean()) < _SAME
    marks = never | _marks(value, same, low, dtype, certain=certain)
    far = _far_ones(value, low, high, marks, certain=certain) | _bands(value, same)
    masked = areas(marks) | (areas(far) & thick(far))
    single = marks & ~masked
    stuck = _lone(far & ~masked & ~single, value, high)
    top = float(np.iinfo(dtype).max) if dtype.kind in "iu" else np.inf
    saturated, rest = np.zeros(size, bool), ~(masked | single | stuck)
    if masked.any() and dtype.kind in "iu" and dtype.itemsize <= 2:
        most = float(np.nanmax(value))
        saturated = _blobs(masked & (value == np.float32(most)))
        if saturated.any():
            return Flagged(masked, single, stuck, saturated, most, None)
    level = _level(blocks(), rest, top)
    if level is not None:
        found = Flagged(masked, single, stuck, saturated, level, None)
        for block in blocks():
            if (now := found.saturated_in(block)) is not None:
                saturated |= now.any(axis=0)
        return found
    flat = same & rest
    if dtype.kind == "f" and seen >= _PLATEAU and 0 < flat.mean() < 0.5 and not same[rest].all():
        flat = thick(flat & (value > np.median(high[rest & ~same])), 3)
        if flat.any():
            plateau = np.where(flat, value, np.float32(np.nan))
            return Flagged(masked, single, stuck, flat, None, plateau)
    return Flagged(masked, single, stuck, saturated, None, None)


def _through(blocks: Iterable[Frame], size: tuple[int, int]) -> tuple[int, Frame, Frame, Frame]:
    """Return how many frames there are, and of each pixel, (H, W), its values.

    The first finite one, NaN where there is none, the lowest and the highest.
    """
    seen, value = 0, np.full(size, np.nan, np.float32)
    low, high = np.full(size, np.inf, np.float32), np.full(size, -np.inf, np.float32)
    for frame in (frame for block in blocks for frame in block):
        finite = np.isfinite(frame)
        every = True if finite.all() else finite
        np.minimum(low, frame, out=low, where=every)
        np.maximum(high, frame, out=high, where=every)
        if not seen or np.isnan(value).any():
            value = np.where(np.isnan(value) & finite, frame, value)
        seen += 1
    return seen, value, low, high


def _marks(value: Frame, same: Mask, low: Frame, dtype: np.dtype[Any], *, certain: bool) -> Mask:
    """Find what a detector flags: the largest 32-bit number, negative whole ones among counts."""
    marks = np.zeros_like(same)
    if dtype.kind in "iu" and dtype.itemsize >= 4:
        marks |= same & (value >= np.float32(np.iinfo(dtype).max))
    below = same & (value < 0)
    if below.any() and not (low[~below & np.isfinite(low)] < 0).any():
        kinds = np.unique(value[below])
        clear = certain or 2 * np.count_nonzero(areas(below, 16)) > np.count_nonzero(below)
        if len(kinds) < _FLAGS and clear and (kinds == np.rint(kinds)).all():
            marks |= below
    return marks


def _far_ones(value: Frame, low: Frame, high: Frame, marks: Mask, *, certain: bool) -> Mask:
    """Find what has one value in all frames, far outside of the rest.

    Where it is not ``certain`` that this is no chance, as in one frame, only areas of one value.
    """
    same = (low == high) & ~marks
    flags = np.zeros_like(same)
    for sign, bottom, top in ((1, low, high), (-1, -high, -low)):
        for _ in range(_FLAGS):
            left = same & ~flags
            if not left.any():
                break
            most = (sign * value[left]).max()
            one = left & (sign * value == most)
            if not certain:
                one = areas(one)
            others = np.isfinite(low) & ~flags & ~one & ~marks
            if not one.any() or not _far(float(most), bottom[others], top[others]):
                break
            flags |= one
    return np.asarray(flags)


def _far(value: float, low: Frame, high: Frame) -> bool:
    if not low.size:
        return False
    every = max(1, low.size // _MANY)
    bottom = float(np.quantile(low[::every], _RANGE[0]))
    top = float(np.quantile(high[::every], _RANGE[1]))
    if bottom == top:  # hardly an electron anywhere
        bottom, top = float(low.min()), float(high.max())
    return bool(value - top > _FAR * (top - bottom) > 0)


def _bands(value: Frame, same: Mask) -> Mask:
    """Find rows and columns of one value between those that count: gaps between modules."""
    found = np.zeros_like(same)
    for values, still, into in ((value, same, found), (value.T, same.T, found.T)):
        full = still.all(axis=1) & (values == values[:, :1]).all(axis=1)
        labels, count = ndimage.label(full)
        for rows in (np.flatnonzero(labels == one) for one in range(1, count + 1)):
            first, last = int(rows[0]) - 1, int(rows[-1]) + 1
            if len(rows) < _BAND or first < 0 or last == len(full):
                continue
            beside = [still[row] & (values[row] == values[rows[0], 0]) for row in (first, last)]
            into[rows] = max(float(one.mean()) for one in beside) < 0.5
    return found


def _lone(mask: Mask, value: Frame, high: Frame) -> Mask:
    """Return the single pixels of (H, W) that have no rim, as a small bright spot has."""
    labels, count = ndimage.label(mask, _TOUCHING)
    if not count:
        return mask
    numbers = np.arange(1, count + 1)
    ring = np.where(mask, 0, ndimage.grey_dilation(labels, (3, 3)))
    base = float(np.median(high[np.isfinite(high)]))
    rims = np.abs(ndimage.median(high, ring, numbers) - base)
    lone = rims <= RIM * np.abs(ndimage.maximum(value, labels, numbers) - base)
    return np.asarray(np.append(False, lone)[labels])


def _blobs(mask: Mask) -> Mask:
    """Return the areas of (H, W) without the shape of a gap: a rectangle, or from edge to edge."""
    labels, count = ndimage.label(mask, _TOUCHING)
    round_ = np.zeros(count + 1, bool)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[box] == number
        whole = any(length == full for length, full in zip(inside.shape, mask.shape, strict=True))
        round_[number] = not whole and float(inside.mean()) < 0.95
    return np.asarray(round_[labels])


def _level(blocks: Iterable[Frame], rest: Mask, top: float) -> float | None:
    """Return the value at which the stack saturates, None where it does not.

    Parameters
    ----------
    top
        The largest number of the type.
    """
    most, at, inner = -np.inf, 0, 0
    values: set[float] = set()
    for frame in (frame for block in blocks for frame in block):
        good = rest & np.isfinite(frame)
        highest = float(np.max(frame, initial=-np.inf, where=good))
        if highest < most or not np.isfinite(highest):
            continue
        if highest > most:
            most, at, inner = highest, 0, 0
        flat = good & (frame >= np.float32(most))
        # A square of 3 x 3 at one largest value is no chance; of the type's, one of 2 x 2.
        side = 2 if most >= np.float32(top) else 3
        number = int(np.count_nonzero(flat))
        at += number
        inner += int(np.count_nonzero(thick(flat, side))) if number >= side**2 else 0
        if inner and len(values) < _LEVELS:
            values.update(np.unique(frame[good])[-_LEVELS:].tolist())
    return most if 2 * inner > at and len(values) >= _LEVELS else None
