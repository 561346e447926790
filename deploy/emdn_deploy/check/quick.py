"""The quick check of every run of ``denoise``: four numbers a frame, nothing denoised again.

Limits do not come from the stack's own replicates here but from simulated movies, wide enough for
every shipped model, and from the other frames of the stack. What passes can still fail ``check``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from emdn_deploy.check import smallest_defect
from emdn_deploy.check.camera import Camera
from emdn_deploy.check.smallest_defect import Smallest

SHARE = 0.01  # sound stacks that may fail, for each reason
BOX = 16  # pixels, the side of the boxes whose mean residual is looked at
_OUTLIER = 6.0  # robust standard deviations
_FAR = 2.0  # times as far out as that a single frame fails the stack
_RATE = 0.01  # of sound frames that may stand out
_LEAST = 8  # frames that tell an outlier
_DARK = 0.01  # lowest variance, relative to the mean's

Frames = NDArray[np.float32]


class Bounds(NamedTuple):
    """What a number keeps to in sound results, between 0.1 and 1.5 in signal to noise per pixel.

    Attributes
    ----------
    tolerance
        Deviation from the median frame that does not count, whatever the others' scatter.
    chance
        Standard errors by which small frames may go beyond, in units of 1 / sqrt(pixels).
    """

    low: float
    high: float
    tolerance: float
    chance: float
    words: str


BOUNDS = {
    "ratio": Bounds(0.97, 1.03, 0.005, 0.0, "the model's mean out / mean in"),
    "std": Bounds(0.94, 1.05, 0.01, 4 / 2**0.5, "residual / expected noise"),
    "lag": Bounds(
        -0.15, 0.08, 0.02, 4 / 2**0.5, "correlation of neighbouring pixels of the residual"
    ),
    "box": Bounds(
        0.0, 5.0, 1.5, 0.0,
        f"largest mean residual of a {BOX} x {BOX} box, in standard deviations",
    ),
}  # fmt: skip


def allowed(count: int, rate: float) -> int:
    """Return what of ``count`` stand out at most, but for a share of chances (binomial)."""
    return int(np.argmax(special.bdtrc(np.arange(count + 1), count, rate) < SHARE))


@dataclass(frozen=True)
class QuickResult:
    """What the four numbers say.

    Attributes
    ----------
    numbers
        By name, (N,) each, of the frames in ``frames``.
    failing
        Numbers of the frames that stand out.
    passed
        Whether no frame is far out, nor more stand out than in sound stacks.
    line
        One line for people.
    find
        Finds the smallest defect that is seen, which takes as long as a frame.
    """

    frames: tuple[int, ...]
    numbers: dict[str, NDArray[np.float64]]
    failing: tuple[int, ...]
    passed: bool
    line: str
    find: Callable[[], Smallest | None]

    @cached_property
    def smallest(self) -> Smallest | None:
        """Return the smallest defect that is seen; None where nothing was taken in."""
        return self.find()


@dataclass
class Quick:
    """Takes in a stack block by block.

    Parameters
    ----------
    gain, offset
        Variance of a pixel over its mean, and intensity of a pixel without electrons.
    read
        Standard deviation of the read noise, intensity units.
    bad
        (H, W), pixels that were filled in; None for none.
    """

    gain: float
    offset: float
    read: float = 0.0
    bad: NDArray[np.bool_] | None = None
    _rows: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)
    _pixels: int = 1
    _sample: tuple[int, Frames, float, float] | None = None
    _lock: Lock = field(default_factory=Lock)

    def add(
        self,
        start: int,
        raw: Frames,
        denoised: Frames,
        shifts: NDArray[np.float64] | None = None,
    ) -> None:
        """Measure frames (k, H, W), the first of which is number ``start``.

        Parameters
        ----------
        shifts
            (k,) what was added to each for the sake of its mean: the ratio is that without.
        """
        self._pixels = raw[0].size
        with self._lock:  # blocks come from several threads
            if self._sample is None or start < self._sample[0]:
                self._sample = start, *self._sampled(raw[0], denoised[0])
        added = np.zeros(len(raw)) if shifts is None else shifts
        for number, (before, after, shift) in enumerate(
            zip(raw, denoised, added, strict=True), start
        ):
            self._rows[number] = self._measure(before, after, float(shift))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what is known of the frames, for `restore`."""
        rows = [(number, *row) for number, row in list(self._rows.items())]
        known: dict[str, NDArray[Any]] = {
            "quick": np.array(rows, np.float64).reshape(-1, 1 + len(BOUNDS))
        }
        if self._sample is not None:
            number, part, noise, spread = self._sample
            known |= {"sample": part, "sample_facts": np.array([number, noise, spread])}
        return known

    def restore(self, state: Mapping[str, NDArray[Any]], size: int) -> None:
        """Take up frames of ``size`` pixels that an earlier run has measured."""
        self._pixels = size
        rows = state["quick"].tolist()
        self._rows |= {int(number): (a, b, c, d) for number, a, b, c, d in rows}
        if "sample" in state:
            number, noise, spread = state["sample_facts"].tolist()
            self._sample = int(number), state["sample"], noise, spread

    def _sampled(self, raw: Frames, denoised: Frames) -> tuple[Frames, float, float]:
        """Return the middle of a frame, the noise of its pixels and the scatter of its boxes."""
        rows, columns = smallest_defect.middle(denoised.shape)
        part = denoised[rows, columns].copy()
        mean, bright = float(part.mean()), float(np.quantile(part, smallest_defect.POWER))
        usual, noise = (
            max(self.gain * (level - self.offset) + self.read**2, 1e-6 * self.gain**2) ** 0.5
            for level in (mean, bright)
        )
        boxes = _boxes((raw[rows, columns] - part) / np.float32(usual)) / BOX
        return part, noise, float(boxes.std()) if boxes.size > 1 else 1.0

    def _measure(
        self, raw: Frames, denoised: Frames, shift: float
    ) -> tuple[float, float, float, float]:
        unit = np.float32(self.gain)  # in electrons: float32 does not hold every unit's square
        after, read = (denoised - np.float32(self.offset)) / unit, self.read / self.gain
        level = float(after.mean())
        given = float(raw.mean(dtype=np.float64) - self.offset) / self.gain
        least = max(_DARK * (level + read**2), 1e-30)
        variance = np.maximum(after + np.float32(read**2), np.float32(least))
        scaled = (raw - denoised) / unit / np.sqrt(variance)
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
        order = sorted(self._rows)
        table = np.array([self._rows[number] for number in order]).reshape(-1, len(BOUNDS))
        numbers = dict(zip(BOUNDS, table.T, strict=True))
        outside = {name: self._outside(name, one) for name, one in numbers.items()}
        bad = np.any(list(outside.values()), axis=0)
        far = np.any([self._outside(name, one, _FAR) for name, one in numbers.items()])
        failing = tuple(number for number, fails in zip(order, bad, strict=True) if fails)
        most = allowed(len(order), _RATE)
        passed = not far and len(failing) <= most
        line = _line(order, numbers, outside, failing, passed, most)
        return QuickResult(tuple(order), numbers, failing, passed, line, self._smallest)

    def _smallest(self) -> Smallest | None:
        if self._sample is None:
            return None
        _, part, noise, spread = self._sample
        camera = Camera(self.gain, self.offset, self.read, 0.0, False)
        return smallest_defect.of_boxes(part, camera, noise, BOUNDS["box"].high, spread, BOX)

    def _outside(
        self, name: str, values: NDArray[np.float64], times: float = 1.0
    ) -> NDArray[np.bool_]:
        """Say which frames are ``times`` as far out as they may be."""
        own = BOUNDS[name]
        size = name == "box"  # from 0
        middle, half = (
            (0.0, own.high) if size else ((own.high + own.low) / 2, (own.high - own.low) / 2)
        )
        bad = ~(np.abs(values - middle) <= times * (half + own.chance / self._pixels**0.5))
        if len(values) >= _LEAST:
            away = values - np.median(values)
            spread = 1.4826 * float(np.median(np.abs(away)))
            far = times * (_OUTLIER * spread + own.tolerance)
            bad |= (away if size else np.abs(away)) > far
        return np.asarray(bad)


def _boxes(scaled: Frames) -> Frames:
    """Sum (H, W) over boxes."""
    height, width = (length // BOX for length in scaled.shape)
    cut = scaled[: height * BOX, : width * BOX]
    # Rows first: adding whole rows is what a processor does fastest.
    rows = cut.reshape(height, BOX, width * BOX).sum(axis=1)
    return np.asarray(rows.reshape(height, width, BOX).sum(axis=2))


def _line(
    order: list[int],
    numbers: dict[str, NDArray[np.float64]],
    outside: dict[str, NDArray[np.bool_]],
    failing: tuple[int, ...],
    passed: bool,
    most: int,
) -> str:
    if not order:
        return "no frames"
    if not failing:
        low, high = numbers["std"].min(), numbers["std"].max()
        return (
            f"PASS: 0 of {len(order)} frames flagged (residual {low:.3f} to {high:.3f} of the "
            "expected noise)"
        )
    causes = []
    for name, bad in outside.items():
        if bad.any():
            values = numbers[name]
            at = int(np.argmax(np.where(bad, np.abs(values - np.median(values)), -1)))
            causes.append(f"{BOUNDS[name].words} {values[at]:.4g} in frame {order[at]}")
    return (
        f"{'PASS' if passed else 'FAIL'}: {len(failing)} of {len(order)} frames flagged "
        f"({', '.join(spans(failing))}), up to {most} expected by chance: {'; '.join(causes)}"
    )


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
