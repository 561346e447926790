"""Where the training loop takes its batches from, and the chance they are drawn with."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from emdn_train.batches import Batch, Specimens, crops, log_uniform, record, stretch
from emdn_train.data import Split
from emdn_train.recipes import Recipe


class Source(Protocol):
    """All that the loop asks of its data."""

    def __len__(self) -> int:
        """Return the number of frames; an epoch takes one patch of each."""

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Draw a patch of each frame, on the device of the training.

        Parameters
        ----------
        indices
            (n,) numbers of frames.
        generator
            The only source of chance, on the CPU: the same state gives the same batch.
        """


@dataclass(frozen=True)
class Simulated:
    """Clean frames, recorded anew at every step.

    Attributes
    ----------
    specimens
        The frames.
    recipe
        Range of signal to noise, augmentation and detectors.
    patch
        Side of a patch in pixels.
    device
        Where the noise is drawn.
    """

    specimens: Specimens
    recipe: Recipe
    patch: int
    device: torch.device

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.specimens.split.frames

    def batch(
        self,
        indices: Tensor,
        generator: torch.Generator,
        limits: tuple[Tensor, Tensor] | None = None,
    ) -> Batch:
        """Cut a patch of each frame and record it at a dose of its own; see `Source`.

        ``limits`` is a range of signal to noise for each frame, (n,) twice; None for the
        recipe's.
        """
        recipe = self.recipe
        frames = self.specimens.relative(indices)
        clean = crops(frames, self.patch, generator, recipe.augmented)
        snr = log_uniform(limits or recipe.snr, len(indices), generator)
        if recipe.augmented:
            clean, contrast = stretch(clean, recipe.augmented, generator)
            snr = snr / contrast
        seed = int(torch.randint(2**62, (), generator=generator))
        noise = torch.Generator(self.device).manual_seed(seed)
        return record(self.specimens, indices, clean, snr, noise, self.device, recipe.ccd)


def chance(seed: int, *place: int) -> torch.Generator:
    """Return a generator that follows from the seed and a place in the run alone.

    No generator then needs to be kept to continue a run, and what a patch looks like
    does not depend on the process that draws it.
    """
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def shuffled(frames: int, seed: int, epoch: int) -> Tensor:
    """Return the numbers of all frames in the order of one epoch, (frames,)."""
    return torch.randperm(frames, generator=chance(seed, epoch))


def fingerprint(split: Split) -> str:
    """Return a short digest of a split: its shape and sixteen of its clean frames."""
    height, width = split.shape
    sample = np.linspace(0, split.frames - 1, min(16, split.frames)).astype(np.int64)
    digest = hashlib.blake2b(repr((split.frames, height, width)).encode(), digest_size=6)
    digest.update(split.clean(sample).tobytes())
    return digest.hexdigest()
