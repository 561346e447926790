"""Whether the shipped default model denoises the same frames with a smaller error.

The error is that against neighbouring frames (`emdn_models.metrics.umse_difference`), of both
results on the same frames, so that most of the noise cancels.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.checking.camera import Camera
from emdn_deploy.checking.result import Comparison
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.intensity import Intensity
from emdn_models import pretrained
from emdn_models.metrics import umse_difference, umse_unequal

FRAMES = 24  # neighbours, from the middle of the stack
SIDE = 512  # pixels, of the middle of a frame
CLEAR = 3.0  # standard errors
_FEWEST = 3  # frames
# Times the default's error: 0.4 dB more is not worth a word, and 6 dB more is not fit for use.
_SLIGHT, _GROSS = 1.1, 4.0
_EVEN = 0.02  # of the noise's variance by which still frames seem to differ

Frame = NDArray[np.float32]


@dataclass
class Sample:
    """Collects at most `FRAMES` neighbouring frames of a stack (N, H, W) as they pass."""

    shape: tuple[int, int, int]
    good: NDArray[np.bool_]
    _raw: list[Frame] = field(default_factory=list)
    _made: list[Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._frames, *self._at = (
            slice((length - part) // 2, (length + part) // 2)
            for length, most in zip(self.shape, (FRAMES, SIDE, SIDE), strict=True)
            for part in (min(length, most),)
        )

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Take in the next frame."""
        if self._frames.start <= number < self._frames.stop:
            y, x = self._at
            self._raw.append(raw[y, x].copy())
            self._made.append(denoised[y, x].copy())

    def compare(
        self, denoiser: Denoiser, scale: Intensity, camera: Camera, *, here: bool
    ) -> Comparison:
        """Denoise the frames by the default model as well, and compare.

        Parameters
        ----------
        denoiser, scale
            What the honest denoisings are made by.
        here
            Whether it made these frames too, so that the default is not compared with itself.
        """
        name, session = pretrained.default_model(), denoiser.session
        default = session.info.sha256 == pretrained.index()["models"][name]["sha256"]
        if here and default:
            return Comparison(name, "same")
        if len(self._raw) < _FEWEST:
            return Comparison(name, "too few frames")
        raw, made = np.stack(self._raw), np.stack(self._made)
        if not default:
            denoiser = Denoiser(name, session.device, session.threads)
        other, good = denoiser.run(raw, scale), self.good[self._at[0], self._at[1]]
        worse = umse_difference(raw, made, other, valid=good)
        own = umse_unequal(raw, other, valid=good)
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
