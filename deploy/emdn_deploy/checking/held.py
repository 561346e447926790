"""What neighbouring frames say of a denoised stack: its squared error, and FRC; on a sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.checking.result import Correlations, HeldOutFacts
from emdn_models.errors import EmdnError
from emdn_models.metrics import (
    Estimate,
    HeldOut,
    Linearity,
    RingCorrelation,
    linearity,
    ring_correlation,
    umse,
)
from emdn_models.metrics.accept import Floats

RUN = 9  # neighbouring frames of a sample
RUNS = 25  # samples spread over a stack: 200 pairs
PIXELS = 2**20  # of a frame that are compared, the middle of a larger one
_BLOCKS = 8192  # of the frames, for the linearity

Frame = NDArray[np.float32]
Correlate = Callable[[Frame, Frame], RingCorrelation]


def correlation(first: Frame, second: Frame) -> RingCorrelation:
    """Correlate two frames (H, W) ring by ring, faded out towards their edges."""
    return ring_correlation(first, second, window="hann")


@dataclass
class Held:
    """Collects runs of frames of a stack as they pass, and what they say.

    Parameters
    ----------
    shape
        (N, H, W).
    good
        (H, W), the pixels that count.
    correlate
        `correlation`, or what remembers its answers.
    """

    shape: tuple[int, int, int]
    good: NDArray[np.bool_]
    correlate: Correlate = correlation
    _pending: list[tuple[Frame, Frame]] = field(default_factory=list)
    _errors: list[HeldOut] = field(default_factory=list)
    _rings: list[tuple[Floats, Floats]] = field(default_factory=list)
    _lines: list[tuple[Frame, Frame]] = field(default_factory=list)
    _frequency: Floats = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        count, height, width = self.shape
        run = min(RUN, count)
        runs = max(1, min(RUNS, count // run))
        self._starts = [int(one) for one in np.linspace(0, count - run, runs).round()]
        self._length = run
        shrink = min(1.0, (PIXELS / (height * width)) ** 0.5)
        sides = [int(length * shrink) for length in (height, width)]
        low = [(length - side) // 2 for length, side in zip((height, width), sides, strict=True)]
        self._middle = tuple(slice(a, a + b) for a, b in zip(low, sides, strict=True))
        self._every = max(1, count * (height // 16) * (width // 16) // _BLOCKS)

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Take in the next frame."""
        if number % self._every == 0:
            self._lines.append((coarse(denoised), coarse(raw)))
        if not self._starts or number < self._starts[0]:
            return
        y, x = self._middle
        self._pending.append((raw[y, x], denoised[y, x]))
        if len(self._pending) == self._length:
            self._compare()
            self._pending.clear()
            self._starts.pop(0)

    def _compare(self) -> None:
        if self._length < 2:
            return
        raw, denoised = (np.stack(part) for part in zip(*self._pending, strict=True))
        self._errors.append(umse(raw, denoised, valid=self.good[self._middle]))
        for at in range(len(raw) - 1):
            if min(raw.shape[1:]) < 16:
                break
            curves = [self.correlate(part, raw[at + 1]) for part in (raw[at], denoised[at])]
            self._frequency = curves[0].frequency
            self._rings.append((curves[0].correlation, curves[1].correlation))

    def error(self, honest: float) -> HeldOutFacts | None:
        """Return the squared error; None for a single frame."""
        if not self._errors:
            return None
        value = _mean([one.error for one in self._errors])
        noise = float(np.mean([one.noise for one in self._errors]))
        drifts = [one.drift for one in self._errors if one.drift is not None]
        drift = _mean(drifts) if drifts else None
        moves = drift is not None and drift.value > 3 * drift.se
        pairs = sum(one.comparisons for one in self._errors)
        gain = Estimate(float("nan"), float("nan"))
        if value.value > 0 and noise > 0:
            scale = 10 / np.log(10)
            gain = Estimate(
                float(scale * np.log(noise / value.value)), scale * value.se / value.value
            )
        return HeldOutFacts(value, gain, honest, drift, moves, pairs)

    def correlations(self) -> Correlations | None:
        """Return the curves; None for a single frame."""
        if not self._rings:
            return None
        # A frame without power on a ring agrees with nothing there.
        both = np.nan_to_num(np.array(self._rings))
        mean, count = both.mean(axis=0), len(both)
        spread = both.std(axis=0, ddof=1) if count > 1 else np.full_like(mean, np.nan)
        error = spread / np.sqrt(count)
        return Correlations(self._frequency, mean[0], error[0], mean[1], error[1], count)

    def line(self) -> Linearity | None:
        """Return local means out against those in; None where there are too few."""
        return line(self._lines)


def line(pairs: Sequence[tuple[Frame, Frame]]) -> Linearity | None:
    """Compare local means, `coarse`, out and in; None where there are too few."""
    if not pairs:
        return None
    denoised, raw = (np.stack(part) for part in zip(*pairs, strict=True))
    try:
        return linearity(denoised, raw, block=1)
    except EmdnError:
        return None


def coarse(frame: Frame) -> Frame:
    """Average (H, W) over blocks of 16 x 16: (H // 16, W // 16)."""
    height, width = (max(1, length // 16) for length in frame.shape)
    side = tuple(min(16, length) for length in frame.shape)
    cut = frame[: height * side[0], : width * side[1]]
    return np.asarray(cut.reshape(height, side[0], width, side[1]).mean(axis=(1, 3)))


def _mean(estimates: list[Estimate]) -> Estimate:
    """Average estimates of runs that share no frame."""
    errors = np.array([one.se for one in estimates])
    return Estimate(
        float(np.mean([one.value for one in estimates])),
        float(np.sqrt(np.square(errors).sum()) / len(errors)),
    )
