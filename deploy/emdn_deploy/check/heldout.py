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

FRAMES = 24  # neighbours, from the middle of the stack, that are compared
SIDE = 512  # pixels, of the middle of a frame
CLEAR = 3.0  # standard errors
# Times the default's error: 0.4 dB more is not worth a word, and 6 dB more is not fit for use.
_SLIGHT, _GROSS = 1.1, 4.0
_EVEN = 0.02  # of the noise's variance by which still frames seem to differ


class Comparison(NamedTuple):
    """The squared error of the stack beside that of the shipped default model.

    The verdict is ``no worse``, ``worse`` (by 0.4 dB or more, beyond chance), ``far worse`` (6 dB),
    or ``unknown``.
    """

    verdict: str
    words: str
    worse: Estimate | None = None  # the stack's error less the default's, intensity units squared


class Neighbours:
    """Takes from the middle of a stack (N, H, W) a sample of neighbouring frames, as they pass.

    ``good``: (H, W), the pixels that count; ``apart``: how far apart the frames are that are
    compared, more than the model sees to either side.
    """

    def __init__(self, shape: tuple[int, int, int], good: NDArray[np.bool_], apart: int) -> None:
        lengths = zip(shape, (FRAMES, SIDE, SIDE), strict=True)
        starts = [(max(0, length - most) // 2, most) for length, most in lengths]
        frames, *part = (slice(start, start + most) for start, most in starts)
        self._frames, self._part, self._apart = frames, tuple(part), apart
        self._good = good[self._part]
        self._sample: list[tuple[Frame, Frame]] = []

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Take in the next frame."""
        if self._frames.start <= number < self._frames.stop:
            self._sample.append((raw[self._part].copy(), denoised[self._part].copy()))

    def error(self) -> HeldOut | None:
        """Return the squared error; None for too few frames."""
        if len(self._sample) <= self._apart:
            return None
        raw, made = (np.stack(part) for part in zip(*self._sample, strict=True))
        return umse(raw, made, valid=self._good, apart=self._apart)

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
        other = denoiser.run(raw, scale)
        worse = umse_difference(raw, made, other, valid=self._good, apart=self._apart)
        own = umse(raw, other, valid=self._good, apart=self._apart)
        noise = float(np.square(camera.noise(other)).mean(where=self._good))
        motion = max(own.noise - noise, own.drift.value if own.drift else 0.0, 0.0)
        moving = own.noise - noise > noise * (_EVEN + 6 * camera.uncertainty) or moves(own)
        words = (
            f"squared error {abs(worse.value):.3g} ± {worse.se:.2g} "
            f"{'above' if worse.value > 0 else 'below'} that of {name} (the default) on {len(raw)} "
            "frames"
        )
        spare = worse.value - CLEAR * worse.se - motion * moving
        # The default's own error may lie above its estimate.
        error = max(own.error.value + 2 * own.error.se, 0.0)
        if spare > (_SLIGHT - 1) * error:
            decibel = 10 * np.log10(1 + worse.value / max(own.error.value, own.error.se, 1e-30))
            verdict = "far worse" if spare > (_GROSS - 1) * error else "worse"
            return Comparison(verdict, f"{words}: {decibel:.2g} dB worse", worse)
        if moving:
            return Comparison("unknown", f"{words}, which cannot be told from motion", worse)
        return Comparison("no worse", f"{words}: no worse", worse)


def moves(error: HeldOut) -> bool:
    """Say whether motion is beyond chance: the error then holds it too."""
    return error.drift is not None and error.drift.value > CLEAR * error.drift.se
