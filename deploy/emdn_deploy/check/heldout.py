"""What neighbouring frames say of a denoised stack: its squared error, and FRC; on a sample.

Also whether the shipped default model denoises the same frames with a smaller error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.check.camera import Camera
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.dose import Intensity
from emdn_models import pretrained
from emdn_models.errors import EmdnError
from emdn_models.metrics import (
    Estimate,
    HeldOut,
    Linearity,
    linearity,
    ring_correlation,
    umse,
    umse_difference,
    umse_unequal,
)

RUN = 9  # neighbouring frames of a sample
RUNS = 25  # samples spread over a stack: 200 pairs
PIXELS = 2**20  # of a frame that are compared, the middle of a larger one
_BLOCKS = 8192  # of the frames, for the linearity

FRAMES = 24  # neighbours, from the middle of the stack, that the default model denoises too
SIDE = 512  # pixels, of the middle of a frame
CLEAR = 3.0  # standard errors
# Times the default's error: 0.4 dB more is not worth a word, and 6 dB more is not fit for use.
_SLIGHT, _GROSS = 1.1, 4.0
_EVEN = 0.02  # of the noise's variance by which still frames seem to differ

Frame = NDArray[np.float32]
Floats = NDArray[np.float64]


class Correlations(NamedTuple):
    """Fourier ring correlation with the neighbouring raw frame, averaged over pairs.

    Never between two denoised frames: these agree on what a denoiser invents.
    """

    frequency: Floats  # (R,) cycles/pixel
    raw: Floats  # (R,) of raw frames with their raw neighbour
    raw_se: Floats  # its standard error
    denoised: Floats  # (R,) of denoised frames with the raw neighbour
    denoised_se: Floats
    pairs: int


class HeldOutError(NamedTuple):
    """The squared error of the stack from neighbouring frames, without the truth."""

    error: Estimate  # uMSE, intensity units squared
    gain_db: Estimate  # improvement over the raw frames
    expected: float  # mean squared error of the bootstrap's replicates
    drift: Estimate | None  # what motion adds to differences; None for fewer than 3 frames
    moves: bool  # whether the drift is beyond chance: the error then holds motion too
    pairs: int


@dataclass
class Neighbours:
    """Collects runs of frames of a stack (N, H, W) as they pass, and what they say.

    Parameters
    ----------
    good
        (H, W), the pixels that count.
    apart
        How far apart the frames are that are compared: more than the model sees to either side.
    """

    shape: tuple[int, int, int]
    good: NDArray[np.bool_]
    apart: int = 1
    _pending: list[tuple[Frame, Frame]] = field(default_factory=list)
    _errors: list[HeldOut] = field(default_factory=list)
    _rings: list[tuple[Floats, Floats]] = field(default_factory=list)
    _lines: list[tuple[Frame, Frame]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count, height, width = self.shape
        self._length = min(RUN + self.apart - 1, count)
        runs = max(1, min(RUNS, count // self._length))
        self._starts = [int(one) for one in np.linspace(0, count - self._length, runs).round()]
        shrink = min(1.0, (PIXELS / (height * width)) ** 0.5)
        self._middle = _middle((height, width), (int(shrink * height), int(shrink * width)))
        self._every = max(1, count * (height // 16) * (width // 16) // _BLOCKS)
        self._frequency: Floats = np.zeros(0)

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Take in the next frame."""
        if number % self._every == 0:
            self._lines.append((coarse(denoised), coarse(raw)))
        if not self._starts or number < self._starts[0]:
            return
        self._pending.append((raw[self._middle], denoised[self._middle]))
        if len(self._pending) == self._length:
            self._compare()
            self._pending.clear()
            self._starts.pop(0)

    def _compare(self) -> None:
        if self._length <= self.apart:
            return
        raw, denoised = (np.stack(part) for part in zip(*self._pending, strict=True))
        good = self.good[self._middle]
        self._errors.append(umse(raw, denoised, valid=good, apart=self.apart))
        for one, two, after in zip(raw, denoised, raw[self.apart :], strict=False):
            if min(after.shape) >= 16:
                self._frequency, before = ring_correlation(one, after)
                self._rings.append((before, ring_correlation(two, after)[1]))

    def error(self, expected: float) -> HeldOutError | None:
        """Return the squared error; None for a single frame."""
        if not self._errors:
            return None
        value = _mean([one.error for one in self._errors])
        noise = float(np.mean([one.noise for one in self._errors]))
        drifts = [one.drift for one in self._errors if one.drift is not None]
        drift = _mean(drifts) if drifts else None
        moves = drift is not None and drift.value > 3 * drift.se
        pairs = sum(one.comparisons for one in self._errors)
        return HeldOutError(value, value.below(noise), expected, drift, moves, pairs)

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
    value, error = (
        np.array(part) for part in zip(*[(e.value, e.se) for e in estimates], strict=True)
    )
    return Estimate(float(value.mean()), float(np.sqrt(np.square(error).sum()) / len(error)))


def _middle(shape: tuple[int, ...], most: tuple[int, ...]) -> tuple[slice, ...]:
    lengths = [(length, min(length, part)) for length, part in zip(shape, most, strict=True)]
    return tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in lengths)


@dataclass(frozen=True)
class Comparison:
    """The squared error of the stack beside that of the shipped default model.

    Attributes
    ----------
    name
        Of the default model.
    verdict
        ``no worse``, ``worse`` (by 0.4 dB or more, beyond chance), ``far worse`` (6 dB); or why it
        cannot be told: ``same`` (the frames are the default's own), ``too few frames``, ``moves``
        (frames differ by more than noise).
    worse
        The stack's error less the default's, intensity units squared.
    error
        The default's, likewise.
    frames
        Neighbouring frames that were compared.
    """

    name: str
    verdict: str
    worse: Estimate | None = None
    error: Estimate | None = None
    frames: int = 0

    @property
    def words(self) -> str:
        """Say how the frames' error compares with that of the default model."""
        name = self.name
        if self.worse is None or self.error is None:
            if self.verdict == "same":
                return f"the frames are made by {name}, the default: nothing to compare with"
            return f"cannot be compared with {name}, the default: too few frames"
        value, se = self.worse.value, self.worse.se
        if not value and not se:
            return f"the frames are those that {name}, the default, makes"
        words = (
            f"squared error {abs(value):.3g} ± {se:.2g} {'above' if value > 0 else 'below'} that "
            f"of {name} (the default) on {self.frames} frames"
        )
        if self.verdict == "moves":
            return f"{words}, which cannot be told from motion"
        if self.verdict == "no worse":
            return f"{words}: no worse"
        decibel = 10 * np.log10(1 + value / max(self.error.value, self.error.se, 1e-30))
        return f"{words}: {decibel:.2g} dB worse"


@dataclass
class Sample:
    """Collects at most `FRAMES` neighbouring frames of a stack (N, H, W) as they pass."""

    shape: tuple[int, int, int]
    good: NDArray[np.bool_]
    apart: int = 1
    _raw: list[Frame] = field(default_factory=list)
    _made: list[Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._frames, *at = _middle(self.shape, (FRAMES, SIDE, SIDE))
        self._at = tuple(at)

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Take in the next frame."""
        if self._frames.start <= number < self._frames.stop:
            self._raw.append(raw[self._at].copy())
            self._made.append(denoised[self._at].copy())

    def compare(
        self, denoiser: Denoiser, scale: Intensity, camera: Camera, *, here: bool
    ) -> Comparison:
        """Denoise the frames by the default model as well, and compare.

        The error is that against neighbouring frames, of both results on the same frames, so that
        most of the noise cancels.

        Parameters
        ----------
        denoiser, scale
            What the replicates are made by.
        here
            Whether it made these frames too, so that the default is not compared with itself.
        """
        name, session = pretrained.default_model(), denoiser.session
        default = session.info.sha256 == pretrained.index()["models"][name]["sha256"]
        if here and default:
            return Comparison(name, "same")
        if len(self._raw) < 1 + 2 * self.apart:
            return Comparison(name, "too few frames")
        raw, made = np.stack(self._raw), np.stack(self._made)
        if not default:
            denoiser = Denoiser(name, session.device, session.threads)
        other, good = denoiser.run(raw, scale), self.good[self._at]
        worse = umse_difference(raw, made, other, valid=good, apart=self.apart)
        own = umse_unequal(raw, other, valid=good, apart=self.apart)
        noise = float(np.square(camera.noise(other)).mean(where=good))
        motion = max(own.noise - noise, own.drift.value if own.drift else 0.0, 0.0)
        moves = own.noise - noise > noise * (_EVEN + 6 * camera.uncertainty)
        if own.drift:
            moves |= own.drift.value > CLEAR * own.drift.se
        spare = worse.value - CLEAR * worse.se - motion * moves
        verdict = "moves" if moves else "no worse"
        # The default's own error may lie above its estimate.
        error = max(own.error.value + 2 * own.error.se, 0.0)
        if spare > (_SLIGHT - 1) * error:
            verdict = "far worse" if spare > (_GROSS - 1) * error else "worse"
        return Comparison(name, verdict, worse, own.error, len(raw))
