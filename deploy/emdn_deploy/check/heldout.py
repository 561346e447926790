"""What neighbouring frames say of a denoised stack, on a sample: its squared error.

Also whether the shipped default model denoises the same frames with a smaller error.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.check.residual import Camera, Frame
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.dose import Intensity
from emdn_models import pretrained
from emdn_models.metrics import Estimate, HeldOut, umse, umse_difference

RUN = 9  # neighbouring frames of a sample
RUNS = 25  # samples spread over a stack: 200 pairs
PIXELS = 2**20  # of a frame that are compared, the middle of a larger one
FRAMES = 24  # neighbours, from the middle of the stack, that the default model denoises too
SIDE = 512  # pixels, of the middle of a frame
CLEAR = 3.0  # standard errors
# Times the default's error: 0.4 dB more is not worth a word, and 6 dB more is not fit for use.
_SLIGHT, _GROSS = 1.1, 4.0
_EVEN = 0.02  # of the noise's variance by which still frames seem to differ


class HeldOutError(NamedTuple):
    """The squared error of the stack from neighbouring frames, without the truth."""

    error: Estimate  # uMSE, intensity units squared
    gain_db: Estimate  # improvement over the raw frames
    drift: Estimate | None  # what motion adds to differences; None for fewer than 3 frames
    pairs: int

    @property
    def moves(self) -> bool:
        """Whether the drift is beyond chance: the error then holds motion too."""
        return self.drift is not None and self.drift.value > CLEAR * self.drift.se


class Comparison(NamedTuple):
    """The squared error of the stack beside that of the shipped default model.

    The verdict is ``no worse``, ``worse`` (by 0.4 dB or more, beyond chance), ``far worse`` (6 dB),
    or ``unknown``.
    """

    verdict: str
    words: str
    worse: Estimate | None = None  # the stack's error less the default's, intensity units squared


class Neighbours:
    """Collects frames of a stack (N, H, W) as they pass, and what they say of each other.

    ``good``: (H, W), the pixels that count; ``apart``: how far apart the frames are that are
    compared, more than the model sees to either side.
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

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Take in the next frame."""
        if self._frames.start <= number < self._frames.stop:
            self._sample.append((raw[self._part].copy(), denoised[self._part].copy()))
        if self._starts and number >= self._starts[0]:
            self._run.append((raw[self._middle], denoised[self._middle]))
            if len(self._run) == self._length:
                if self._length > self._apart:
                    before, after = (np.stack(part) for part in zip(*self._run, strict=True))
                    good = self._good[self._middle]
                    self._errors.append(umse(before, after, valid=good, apart=self._apart))
                self._run.clear()
                self._starts.pop(0)

    def error(self) -> HeldOutError | None:
        """Return the squared error; None for a single frame."""
        if not self._errors:
            return None
        value = _mean([one.error for one in self._errors])
        noise = float(np.mean([one.noise for one in self._errors]))
        drifts = [one.drift for one in self._errors if one.drift is not None]
        pairs = sum(one.comparisons for one in self._errors)
        return HeldOutError(value, value.below(noise), _mean(drifts) if drifts else None, pairs)

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
            return Comparison("unknown", f"made by {name}, the default: nothing to compare with")
        if len(self._sample) < 1 + 2 * self._apart:
            return Comparison("unknown", f"too few frames to compare with {name}, the default")
        raw, made = (np.stack(part) for part in zip(*self._sample, strict=True))
        if not default:
            denoiser = Denoiser(name, session.device, session.threads)
        other, good = denoiser.run(raw, scale), self._good[self._part]
        worse = umse_difference(raw, made, other, valid=good, apart=self._apart)
        own = umse(raw, other, valid=good, apart=self._apart)
        noise = float(np.square(camera.noise(other)).mean(where=good))
        drift = own.drift or Estimate(0.0, 0.0)
        motion = max(own.noise - noise, drift.value, 0.0)
        moves = own.noise - noise > noise * (_EVEN + 6 * camera.uncertainty)
        moves |= drift.value > CLEAR * drift.se
        words = (
            f"squared error {abs(worse.value):.3g} ± {worse.se:.2g} "
            f"{'above' if worse.value > 0 else 'below'} that of {name} (the default) on {len(raw)} "
            "frames"
        )
        spare = worse.value - CLEAR * worse.se - motion * moves
        # The default's own error may lie above its estimate.
        error = max(own.error.value + 2 * own.error.se, 0.0)
        if spare > (_SLIGHT - 1) * error:
            decibel = 10 * np.log10(1 + worse.value / max(own.error.value, own.error.se, 1e-30))
            verdict = "far worse" if spare > (_GROSS - 1) * error else "worse"
            return Comparison(verdict, f"{words}: {decibel:.2g} dB worse", worse)
        if moves:
            return Comparison("unknown", f"{words}, which cannot be told from motion", worse)
        return Comparison("no worse", f"{words}: no worse", worse)


def _mean(estimates: list[Estimate]) -> Estimate:
    """Average estimates of runs that share no frame."""
    error = np.array([one.se for one in estimates])
    value = float(np.mean([one.value for one in estimates]))
    return Estimate(value, float(np.sqrt(np.square(error).sum()) / len(error)))


def _middle(shape: tuple[int, ...], most: tuple[int, ...]) -> tuple[slice, ...]:
    lengths = [(length, min(length, part)) for length, part in zip(shape, most, strict=True)]
    return tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in lengths)
