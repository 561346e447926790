"""Neighbouring frames: which ones a model sees beside each, and whether they show one scene."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.preprocess import Part

Stack = NDArray[np.float32]

LEAST = 5
"""Frames of a stack from which on it is looked at as a movie."""
DRIFT = 4
"""Largest shift between neighbours, in pixels, at which they are looked for."""
_ALIKE = 0.5
_PAIRS, _SIDE = 6, 512


class Scene(NamedTuple):
    """How alike neighbouring frames of a stack are, medians of several pairs.

    ``likeness``: the share of one frame's structure that the next one shows, shifted by up to
    `DRIFT` pixels, 1 for the same scene and 0 for another; ``error``: its standard deviation by
    counting noise; ``drift``: the shift in pixels.
    """

    likeness: float
    error: float
    drift: float

    @property
    def movie(self) -> bool:
        """Say whether neighbours help: unless they clearly show something else."""
        return self.likeness + 2 * self.error > _ALIKE

    def __str__(self) -> str:
        share = f"{100 * self.likeness:.0f} ± {100 * self.error:.1f} % alike"
        if self.movie:
            return f"neighbouring frames are {share}, drift {self.drift:.1f} pixels a frame"
        return f"neighbouring frames are only {share}, within {DRIFT} pixels"


def beside(
    first: int, stop: int, count: int, frames: int, usable: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Number the ``frames`` that a model sees for each of the frames ``first`` to ``stop``.

    Where there is no neighbour, at the ends of the stack of ``count`` frames, or it is not
    ``usable`` (count,), the one on the other side stands in for it, or else the nearest usable one
    that the model would see, or else the frame itself. So what other blocks of the stack hold
    changes nothing. Returns (stop - first, frames), each frame itself in the middle.
    """
    good = np.ones(count, bool) if usable is None else usable
    half = frames // 2

    def neighbour(frame: int, step: int) -> int:
        for number in (frame + step, frame - step):
            if 0 <= number < count and good[number]:
                return number
        others = np.flatnonzero(good)
        others = others[(others != frame) & (np.abs(others - frame) <= half)]
        return int(others[np.abs(others - frame).argmin()]) if others.size else frame

    return np.array([
        [neighbour(frame, step) if step else frame for step in range(-half, half + 1)]
        for frame in range(first, stop)
    ]).reshape(-1, frames)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A part of a stack, ``around`` frames before and after which only help to denoise it.

    ``frames`` are all of these (k, H, W), and ``usable`` (k,) says which may stand beside others.
    """

    start: int
    part: Part
    frames: Stack
    around: tuple[int, int]
    usable: NDArray[np.bool_]


def reader(
    take: Callable[[int, int], Part], spans: list[tuple[int, int]], half: int, count: int
) -> Callable[[int, int], Block]:
    """Return a reader of ``spans`` of ``count`` frames, each with ``half`` before and after it.

    At the ends of the stack there are fewer. ``take(start, stop)`` gives corrected frames; each is
    read once, as the spans follow each other and a few are remembered.
    """
    first, last = (spans[0][0], spans[-1][1]) if spans else (0, 0)
    beyond = (max(0, first - half), first), (last, min(count, last + half))
    pieces = [span for span in (beyond[0], *spans, beyond[1]) if span[0] < span[1]]
    starts = [a for a, _ in pieces]
    part = lru_cache(maxsize=2 * half + 1)(take)

    def read(start: int, stop: int) -> Block:
        own, low, high = part(start, stop), max(0, start - half), min(count, stop + half)
        if not half:
            return Block(start, own, own.frames, (0, 0), ~own.empty)
        near = pieces[bisect_right(starts, low) - 1 : bisect_left(starts, high)]
        parts, some = [part(*span) for span in near], slice(low - near[0][0], high - near[0][0])
        frames, empty = (
            np.concatenate([getattr(one, name) for one in parts])[some]
            for name in ("frames", "empty")
        )
        return Block(start, own, frames, (start - low, high - stop), ~empty)

    return read


def compare(
    read: Callable[[int], Stack], denoise: Callable[[Stack], Stack], count: int, offset: float
) -> Scene:
    """Compare frames of a stack of two or more with the next ones.

    A denoised frame is the template that is looked for in its noisy neighbour: the correlation is
    an unbiased estimate of what both share, with a known error. ``read`` gives a frame (H, W) by
    its number, ``denoise`` maps (n, H, W) to the same; ``offset``: the reading without electrons.
    """
    found = []
    for number in np.unique(np.linspace(0, count - 2, _PAIRS).astype(int)).tolist():
        pair = np.stack([_middle(read(number + step)) for step in (0, 1)])
        levels = pair.mean((1, 2), dtype=np.float64) - offset
        if not levels.all() or not pair.std((1, 2)).all():
            continue  # an empty frame
        template, after = (
            (frame - frame.mean(dtype=np.float64)) / level
            for frame, level in zip((denoise(pair[:1])[0], pair[1]), levels, strict=True)
        )
        power = float((template**2).sum())
        if not power:
            continue
        spectrum = np.fft.rfft2(after) * np.fft.rfft2(template).conj()
        shared = np.fft.irfft2(spectrum, after.shape) / power
        reach = [min(DRIFT, (side - 1) // 2) for side in shared.shape]
        near = np.roll(shared, reach, (0, 1))[: 2 * reach[0] + 1, : 2 * reach[1] + 1]
        y, x = np.unravel_index(int(near.argmax()), near.shape)
        shift = float(np.hypot(y - reach[0], x - reach[1]))
        found.append((float(near.max()), float(after.std()) / power**0.5, shift))
    if not found:
        return Scene(0.0, np.inf, 0.0)
    likeness, error, drift = np.median(found, axis=0)
    return Scene(float(likeness), float(error) / len(found) ** 0.5, float(drift))


def _middle(frame: Stack) -> Stack:
    starts = [max(0, side - _SIDE) // 2 for side in frame.shape]
    rows, columns = (slice(start, start + _SIDE) for start in starts)
    return np.ascontiguousarray(frame[rows, columns])
