"""What a copy of a model is fitted to: the frames of its class, at the doses of its class.

How many electrons a pixel counts follows from the signal to noise that is drawn for a frame
(`emdn_train.batches.record`), so a class is a set of frames and, for each of them, a range of
signal to noise. Patches whose contrast is changed keep their signal to noise, and their dose
then lies up to 2.8 times outside the band: a frame near its edge may be measured on either side.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from emdn_models.classes import FrameClass
from emdn_models.errors import FormatError
from emdn_train.batches import Batch, Specimens
from emdn_train.noise import DETECTORS
from emdn_train.source import Simulated, Source, shuffled


class Share(NamedTuple):
    """The frames of a split that can be of a class.

    ``frames`` (n,) are their numbers, ``low`` and ``high`` (n,) the signal to noise per pixel
    at which they are of the class.
    """

    frames: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class OfClass:
    """A source of one class only; see `emdn_train.source.Source`.

    Attributes
    ----------
    source
        That of all frames.
    share
        What of it belongs to the class.
    """

    source: Simulated
    share: Share

    def __len__(self) -> int:
        """Return the number of frames that can be of the class."""
        return len(self.share.frames)

    def order(self, seed: int, epoch: int) -> Tensor:
        """Shuffle the frames."""
        return shuffled(len(self), seed, epoch)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Draw a patch of each frame, at a dose of the class."""
        limits = (self.share.low[indices], self.share.high[indices])
        return self.source.batch(self.share.frames[indices], generator, limits)


def source_of(kind: FrameClass | None, source: Simulated) -> Source:
    """Return what a model is fitted to: all frames, or for a copy those of its class.

    Raises
    ------
    FormatError
        If no frame of the data set can be of the class.
    """
    if kind is None:
        return source
    return OfClass(source, share_of(source.specimens, kind, source.recipe.snr))


def share_of(specimens: Specimens, kind: FrameClass, snr: tuple[float, float]) -> Share:
    """Find the frames of a class and the signal to noise at which they belong to it.

    Parameters
    ----------
    snr
        What is drawn at all: the least and the most.

    Raises
    ------
    FormatError
        If there is no such frame.
    """
    at_one = snr_of_one_electron(specimens)
    low = (at_one * kind.electrons[0] ** 0.5).clamp_min(snr[0])
    high = (at_one * kind.electrons[1] ** 0.5).clamp_max(snr[1])
    fits = (specimens.scanned == (kind.mode == "stem")) & (low < high)
    if not fits.any():
        raise FormatError(
            f"{specimens.split.path}: none of its {specimens.split.frames} frames can be of the "
            f"class {kind.name} ({kind.words}); simulate some with emdn-train simulate --kind mixed"
        )
    frames = fits.nonzero()[:, 0]
    return Share(frames, low[frames], high[frames])


def snr_of_one_electron(specimens: Specimens) -> Tensor:
    """Return each frame's signal to noise at one counted electron per pixel, (N,)."""
    # A CCD counts fewer, but few frames are a CCD's, and the gain that is found for them varies.
    dqe = torch.where(specimens.scanned, DETECTORS["stem"].dqe0, DETECTORS["counting"].dqe0)
    return specimens.contrast / (dqe * specimens.mean).sqrt()


def at_level(specimens: Specimens, kind: FrameClass | None, level: float) -> Tensor:
    """Return the numbers of the frames that a model is validated on at a signal to noise.

    All frames, or for a copy those that are of its class there, perhaps none.
    """
    if kind is None:
        return torch.arange(specimens.split.frames)
    frames, low, high = share_of(specimens, kind, (0.0, float("inf")))
    return frames[(low <= level) & (level < high)]


def described(kind: FrameClass | None, data: str) -> str:
    """Say in words what a model was fitted to, of a data set that ``data`` describes."""
    return data if kind is None else f"{data}; of these class {kind.name}: {kind.words}"
