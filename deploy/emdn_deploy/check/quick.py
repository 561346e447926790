"""The quick check of every run of ``denoise``: four numbers a frame, nothing denoised again.

Limits do not come from the stack's own replicates here but from simulated movies, wide enough for
every shipped model, and from the other frames of the stack. What passes can still fail ``check``.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
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
    "ratio": Bounds(0.97, 1.03, 0.005, 0.0, "the model's mean out / mean in"),
    "std": Bounds(0.94, 1.05, 0.01, 4 / 2**0.5, "residual / expected noise"),
    "lag": Bounds(
        -0.15, 0.08, 0.02, 4 / 2**0.5, "correlation of neighbouring pixels of the residual"
    ),
    "box": Bounds(
        -5.0, 5.0, 1.5, 0.0,
        f"largest mean residual of a {BOX} x {BOX} box, in standard deviations",
    ),
}  # fmt: skip


def allowed(count: int, rate: float) -> int:
    """Return what of ``count`` stand out at most, but for a share of chances (binomial)."""
    return int(np.argmax(special.bdtrc(np.arange(count + 1), count, rate) < SHARE))


class QuickResult(NamedTuple):
    """What the four numbers say."""

    frames: tuple[int, ...]
    numbers: dict[str, NDArray[np.float64]]  # by name, (N,) each
    failing: tuple[int, ...]  # frames that stand out
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

    def add(
        self,
        start: int,
        raw: Frames,
        denoised: Frames,
        shifts: NDArray[np.float64] | None = None,
    ) -> None:
        """Measure frames (k, H, W), the first of which is number ``start``.

        ``shifts`` (k,) is what was added to each for the sake of its mean: the ratio is that
        without.
        """
        self._pixels = raw[0].size
        added = np.zeros(len(raw)) if shifts is None else shifts
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
        unit = np.float32(self.gain)  # in electrons: float32 does not hold every unit's square
        after = (denoised - np.float32(self.offset)) / unit
        level = float(after.mean())
        given = float(raw.mean(dtype=np.float64) - self.offset) / self.gain
        least = np.float32(max(_DARK * level, 1e-30))
        scaled = (raw - denoised) / unit / np.sqrt(np.maximum(after, least))
        share = 1.0
        if self.bad is not None and self.bad.any():
            scaled[self.bad] = 0
            share = 1 - float(self.bad.mean())
        size, mean = scaled.size * share, float(scaled.sum()) / (scaled.size * share)
        flat = scaled.ravel()
        # Not by @, whose threads would take the cores from the computation.
        square = float(np.einsum("i,i->", flat, flat)) / size - mean**2
        across = [
            float(np.einsum("ij,ij->", one, two)) / (one.size * share) - mean**2
            for one, two in ((scaled[:, 1:], scaled[:, :-1]), (scaled[1:], scaled[:-1]))
            if one.size
        ]
        lag = float(np.mean(across)) / square if across and square > 0 else 0.0
        ratio = (level - shift / self.gain) / given if given else np.nan
        box = float(np.abs(_boxes(scaled) / BOX - mean * BOX).max(initial=0.0))
        return ratio, max(0.0, square) ** 0.5, lag, box

    def result(self) -> QuickResult:
        """Judge all frames that were taken in, in the order of their numbers."""
        order = tuple(sorted(self._rows))
        table = np.array([self._rows[number] for number in order]).reshape(-1, len(BOUNDS))
        numbers = dict(zip(BOUNDS, table.T, strict=True))
        if not order:
            return QuickResult((), numbers, (), "no frames")
        outside = {name: self._outside(name, one) for name, one in numbers.items()}
        bad = np.any(list(outside.values()), axis=0)
        far = any(self._outside(name, one, _FAR).any() for name, one in numbers.items())
        failing = tuple(number for number, fails in zip(order, bad, strict=True) if fails)
        most = allowed(len(order), _RATE)
        word = "FAIL" if far or len(failing) > most else "PASS"
        line = f"{word}: {len(failing)} of {len(order)} frames flagged "
        if not failing:
            low, high = numbers["std"].min(), numbers["std"].max()
            return QuickResult(
                order,
                numbers,
                (),
                f"{line}(residual {low:.3f} to {high:.3f} of the expected noise)",
            )
        causes = []
        for name in (name for name in BOUNDS if outside[name].any()):
            values = numbers[name]
            at = int(np.argmax(np.where(outside[name], np.abs(values - np.median(values)), -1)))
            causes.append(f"{BOUNDS[name].words} {values[at]:.4g} in frame {order[at]}")
        line += f"({', '.join(spans(failing))}), up to {most} expected by chance: "
        return QuickResult(order, numbers, failing, line + "; ".join(causes))

    def _outside(
        self, name: str, values: NDArray[np.float64], times: float = 1.0
    ) -> NDArray[np.bool_]:
        """Say which frames are ``times`` as far out as they may be."""
        own = BOUNDS[name]
        centre, half = (own.high + own.low) / 2, (own.high - own.low) / 2
        bad = ~(np.abs(values - centre) <= times * (half + own.chance / self._pixels**0.5))
        if len(values) >= _LEAST:
            away = values - np.median(values)
            spread = 1.4826 * float(np.median(np.abs(away)))
            # A box's residual cannot be too small.
            size = away if name == "box" else np.abs(away)
            bad |= size > times * (_OUTLIER * spread + own.tolerance)
        return np.asarray(bad)


def _boxes(scaled: Frames) -> Frames:
    """Sum (H, W) over boxes."""
    height, width = (length // BOX for length in scaled.shape)
    cut = scaled[: height * BOX, : width * BOX]
    # Rows first: adding whole rows is what a processor does fastest.
    rows = cut.reshape(height, BOX, width * BOX).sum(axis=1)
    return np.asarray(rows.reshape(height, width, BOX).sum(axis=2))


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
