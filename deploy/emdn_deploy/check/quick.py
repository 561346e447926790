"""The quick check of every run of ``denoise``: four numbers a frame, nothing denoised again.

Limits come from simulated movies, wide enough for every shipped model, and from the other frames of
the stack. What passes can still fail ``check``.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

SHARE = 0.01  # of sound stacks that may fail, for each reason
BOX = 16  # pixels, the side of the boxes whose mean residual is looked at
_OUTLIER = 6.0  # robust standard deviations
_FAR = 2.0  # times as far out as that a single frame fails the stack
_RATE = 0.01  # of sound frames that may stand out
_LEAST = 8  # frames that tell an outlier
_DARK = 0.01  # lowest variance, relative to the mean's

Frames = NDArray[np.float32]


class Bounds(NamedTuple):
    """What a number keeps to in sound results, between 0.1 and 1.5 in signal to noise per pixel."""

    low: float
    high: float
    tolerance: float  # deviation from the median frame that never counts
    chance: float  # by how much small frames may go beyond, in units of 1 / sqrt(pixels)
    words: str


BOUNDS = {
    "ratio": Bounds(0.97, 1.03, 0.005, 0, "the model's mean out / mean in"),
    "std": Bounds(0.94, 1.05, 0.01, 4 / 2**0.5, "residual / expected noise"),
    "lag": Bounds(
        -0.15, 0.08, 0.02, 4 / 2**0.5, "correlation of neighbouring pixels of the residual"
    ),
    "box": Bounds(
        -5, 5, 1.5, 0, f"largest mean residual of a {BOX} x {BOX} box, in standard deviations"
    ),
}


def in_sigma(raw: Frames, denoised: Frames, gain: float, offset: float) -> Frames:
    """Divide raw - denoised (H, W) by the counting noise that is expected there."""
    unit = np.float32(gain)  # in electrons: float32 does not hold every unit's square
    electrons = (denoised - np.float32(offset)) / unit
    least = np.float32(max(_DARK * float(electrons.mean()), 1e-30))
    return np.asarray((raw - denoised) / unit / np.sqrt(np.maximum(electrons, least)))


def allowed(count: int, rate: float) -> int:
    """Return what of ``count`` stand out at most, but for a share of chances (binomial)."""
    return int(np.argmax(special.bdtrc(np.arange(count + 1), count, rate) < SHARE))


class QuickResult(NamedTuple):
    """What the four numbers say."""

    numbers: dict[int, tuple[float, ...]]  # by frame, in the order of `BOUNDS`
    flagged: dict[int, str]  # frames that stand out, and their numbers in words
    line: str  # for people: PASS, or FAIL if a frame is far out or more stand out than by chance


class Quick:
    """Takes in a stack block by block, from several threads.

    ``gain``: variance of a pixel over its mean; ``offset``: intensity of a pixel without electrons;
    ``bad``: (H, W), pixels that were filled in, None for none.
    """

    def __init__(self, gain: float, offset: float, bad: NDArray[np.bool_] | None = None) -> None:
        self.gain, self.offset, self.bad = gain, offset, bad
        self._rows: dict[int, tuple[float, ...]] = {}
        self._pixels = 1

    def add(self, start: int, raw: Frames, denoised: Frames, shifts: ArrayLike = 0.0) -> None:
        """Measure frames (k, H, W), the first of which is number ``start``.

        ``shifts`` (k,) is what was added to each for the sake of its mean: the ratio is that
        without.
        """
        self._pixels = raw[0].size
        added = np.broadcast_to(shifts, len(raw))
        for number, one in enumerate(zip(raw, denoised, added, strict=True), start):
            self._rows[number] = self._measure(*one)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what is known of the frames, for `restore`."""
        rows = [(number, *row) for number, row in list(self._rows.items())]
        return {"quick": np.array(rows, np.float64).reshape(-1, 1 + len(BOUNDS))}

    def restore(self, state: Mapping[str, NDArray[Any]], size: int) -> None:
        """Take up frames of ``size`` pixels that an earlier run has measured."""
        self._pixels = size
        self._rows |= {int(number): tuple(row) for number, *row in state["quick"].tolist()}

    def _measure(self, raw: Frames, denoised: Frames, shift: float) -> tuple[float, ...]:
        scaled, share = in_sigma(raw, denoised, self.gain, self.offset), 1.0
        if self.bad is not None:
            scaled[self.bad] = 0
            share = 1 - float(self.bad.mean())
        mean = float(scaled.mean()) / share

        def product(one: Frames, two: Frames) -> float:
            # Not by @, whose threads would take the cores from the computation.
            return float(np.einsum("ij,ij->", one, two)) / (one.size * share) - mean**2

        square = product(scaled, scaled)
        pairs = (scaled[:, 1:], scaled[:, :-1]), (scaled[1:], scaled[:-1])
        across = [product(*pair) for pair in pairs if pair[0].size]
        lag = float(np.mean(across)) / square if across and square > 0 else 0.0
        out, given = (float(one.mean(dtype=np.float64)) - self.offset for one in (denoised, raw))
        ratio = (out - shift) / given if given else np.nan
        height, width = (length // BOX for length in scaled.shape)
        cut = scaled[: height * BOX, : width * BOX].reshape(height, BOX, width * BOX)
        # Rows first: adding whole rows is what a processor does fastest.
        boxes = cut.sum(axis=1).reshape(height, width, BOX).sum(axis=2)
        box = float(np.abs(boxes / BOX - mean * BOX).max(initial=0.0))
        return ratio, max(0.0, square) ** 0.5, lag, box

    def result(self) -> QuickResult:
        """Judge all frames that were taken in, in the order of their numbers."""
        rows = dict(sorted(self._rows.items()))
        if not rows:
            return QuickResult(rows, {}, "no frames")
        numbers, table, kinds = list(rows), np.array(list(rows.values())).T, BOUNDS.values()
        away = np.array([self._away(*pair) for pair in zip(kinds, table, strict=True)])
        outside, flagged = ~(away <= 1), dict[int, str]()
        for at in np.flatnonzero(outside.any(axis=0)):
            words = [f"{own.words} {one:.4g}" for own, one in zip(kinds, table[:, at], strict=True)]
            flagged[numbers[at]] = "; ".join(words)
        most = allowed(len(rows), _RATE)
        word = "PASS" if (away <= _FAR).all() and len(flagged) <= most else "FAIL"
        line = f"{word}: {len(flagged)} of {len(rows)} frames flagged "
        if not flagged:
            std = table[1]
            line += f"(residual {std.min():.3f} to {std.max():.3f} of the expected noise)"
            return QuickResult(rows, flagged, line)
        causes = []
        for own, values, far in zip(kinds, table, np.nan_to_num(away, nan=np.inf), strict=True):
            if far.max() > 1:
                worst = int(far.argmax())
                causes.append(f"{own.words} {values[worst]:.4g} in frame {numbers[worst]}")
        line += f"({', '.join(spans(flagged))}), up to {most} expected by chance: "
        return QuickResult(rows, flagged, line + "; ".join(causes))

    def _away(self, own: Bounds, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Say how far out each frame is: up to 1 is as it may be."""
        centre, half = (own.high + own.low) / 2, (own.high - own.low) / 2
        away = np.abs(values - centre) / (half + own.chance / self._pixels**0.5)
        if len(values) >= _LEAST:
            apart = values - np.median(values)
            spread = 1.4826 * float(np.median(np.abs(apart)))
            # A box's residual cannot be too small.
            size = apart if own is BOUNDS["box"] else np.abs(apart)
            away = np.fmax(away, size / (_OUTLIER * spread + own.tolerance))
        return np.asarray(away)


def spans(failing: Iterable[int], most: int = 5) -> list[str]:
    """Write 3, 4, 5, 9 as 3-5 and 9, and at most so many of them."""
    found: list[list[int]] = []
    for number in failing:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = [f"{a}" if a == b else f"{a}-{b}" for a, b in found[:most]]
    return [*shown, "..."] if len(found) > most else shown
