"""What neighbouring frames say of a denoised stack: its squared error, and FRC; on a sample.

Also whether the shipped default model denoises the same frames with a smaller error.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.check.residual import Camera, Floats, Frame
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.dose import Intensity
from emdn_models import pretrained
from emdn_models.metrics import (
    Estimate,
    HeldOut,
    ring_correlation,
    umse,
    umse_difference,
)

RUN = 9  # neighbouring frames of a sample
RUNS = 25  # samples spread over a stack: 200 pairs
PIXELS = 2**20  # of a frame that are compared, the middle of a larger one
FRAMES = 24  # neighbours, from the middle of the stack, that the default model denoises too
SIDE = 512  # pixels, of the middle of a frame
CLEAR = 3.0  # standard errors
# Times the default's error: 0.4 dB more is not worth a word, and 6 dB more is not fit for use.
_SLIGHT, _GROSS = 1.1, 4.0
_EVEN = 0.02  # of the noise's variance by which still frames seem to differ


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


@dataclass(frozen=True)
class Comparison:
    """The squared error of the stack beside that of the shipped default model.

    The verdict is ``no worse``, ``worse`` (by 0.4 dB or more, beyond chance), ``far worse`` (6 dB);
    or why it cannot be told: ``same`` (the frames are the default's own), ``too few frames``,
    ``moves`` (frames differ by more than noise).
    """

    name: str  # of the default model
    verdict: str
    worse: Estimate | None = None  # the stack's error less the default's, intensity units squared
    error: Estimate | None = None  # the default's
    frames: int = 0  # neighbouring frames that were compared

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


class Neighbours:
    """Collects frames of a stack (N, H, W) as they pass, and what they say of each other.

    Parameters
    ----------
    good
        (H, W), the pixels that count.
    apart
        How far apart the frames are that are compared: more than the model sees to either side.
    """

    def __init__(self, shape: tuple[int, int, int], good: NDArray[np.bool_], apart: int) -> None:
        self._good, self._apart = good, apart
        count, height, width = shape
        self._length = min(RUN + apart - 1, count)
        runs = max(1, min(RUNS, count // self._length))
        self._starts = [int(one) for one in np.linspace(0, count - self._length, runs).round()]
        shrink = min(1.0, (PIXELS / (height * width)) ** 0.5)
        self._middle = _middle((height, width), (int(shrink * height), int(shrink * width)))
        self._frames, *at = _middle(shape, (FRAMES, SIDE, SIDE))
        self._part = tuple(at)
        self._run: list[tuple[Frame, Frame]] = []
        self._sample: list[tuple[Frame, Frame]] = []
        self._errors: list[HeldOut] = []
        self._rings: list[tuple[Floats, Floats]] = []
        self._frequency: Floats = np.zeros(0)

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Take in the next frame."""
        if self._frames.start <= number < self._frames.stop:
            self._sample.append((raw[self._part].copy(), denoised[self._part].copy()))
        if self._starts and number >= self._starts[0]:
            self._run.append((raw[self._middle], denoised[self._middle]))
            if len(self._run) == self._length:
                self._compare()
                self._run.clear()
                self._starts.pop(0)

    def _compare(self) -> None:
        if self._length <= self._apart:
            return
        raw, denoised = (np.stack(part) for part in zip(*self._run, strict=True))
        good = self._good[self._middle]
        self._errors.append(umse(raw, denoised, valid=good, apart=self._apart))
        for one, two, after in zip(raw, denoised, raw[self._apart :], strict=False):
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
        moves = drift is not None and drift.value > CLEAR * drift.se
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

    def compare(
        self, denoiser: Denoiser, scale: Intensity, camera: Camera, *, here: bool
    ) -> Comparison:
        """Denoise some of the frames by the default model as well, and compare.

        ``denoiser`` and ``scale`` make the replicates; ``here`` if they made these frames too, so
        that the default is not compared with itself. Errors are those against neighbouring frames,
        of both results on the same frames, so that most of the noise cancels.
        """
        name, session = pretrained.default_model(), denoiser.session
        default = session.info.sha256 == pretrained.index()["models"][name]["sha256"]
        if here and default:
            return Comparison(name, "same")
        if len(self._sample) < 1 + 2 * self._apart:
            return Comparison(name, "too few frames")
        raw, made = (np.stack(part) for part in zip(*self._sample, strict=True))
        if not default:
            denoiser = Denoiser(name, session.device, session.threads)
        other, good = denoiser.run(raw, scale), self._good[self._part]
        worse = umse_difference(raw, made, other, valid=good, apart=self._apart)
        own = umse(raw, other, valid=good, apart=self._apart)
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


def _mean(estimates: list[Estimate]) -> Estimate:
    """Average estimates of runs that share no frame."""
    error = np.array([one.se for one in estimates])
    value = float(np.mean([one.value for one in estimates]))
    return Estimate(value, float(np.sqrt(np.square(error).sum()) / len(error)))


def _middle(shape: tuple[int, ...], most: tuple[int, ...]) -> tuple[slice, ...]:
    lengths = [(length, min(length, part)) for length, part in zip(shape, most, strict=True)]
    return tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in lengths)
