"""Patches of neighbouring frames of one stack, each the other's target.

The noise of two frames is independent, so the mean squared distance of a denoised frame
from its raw neighbour is that from the truth and a constant, the variance of the noise: a
net is fitted without clean frames. Lehtinen et al., ICML 2018, arXiv:1803.04189.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emdn_deploy.config import DenoiseOptions
from emdn_deploy.dose import Intensity
from emdn_deploy.preprocess import prepare
from emdn_deploy.readers import Frames
from emdn_models.errors import FormatError
from emdn_train.dataset import CACHE_BYTES
from emdn_train.patches import Batch, Source, crops

_BLOCK = 16


@dataclass(frozen=True)
class Movie:
    """A stack as a deployment sees it: corrected, and in electrons."""

    path: Path
    shape: tuple[int, int, int]  # (N, H, W)
    scale: Intensity  # how its units became electrons
    valid: NDArray[np.bool_]  # (H, W), the pixels that were not filled from others
    read: Callable[[Tensor], Tensor]  # numbers of frames (n,) to electrons (n, H, W)
    digest: str  # of its shape and sixteen of its frames in electrons

    @classmethod
    def of(cls, frames: Frames, options: DenoiseOptions) -> "Movie":
        """Correct an open stack as ``emdn-deploy denoise`` does, in memory if it fits.

        Raises
        ------
        FormatError
            If it cannot be corrected, or has no noise to learn from.
        """
        prepared = prepare(frames, options)
        scale, count = prepared.scale, frames.shape[0]
        if not scale.sigma:
            raise FormatError(
                f"{frames.path}: {scale.note}; expected raw frames, whose noise differs from "
                "frame to frame"
            )

        def electrons(start: int, stop: int) -> Tensor:
            return torch.from_numpy((prepared.read(start, stop) - scale.offset) / scale.gain)

        cached: Tensor | None = None
        if np.prod(frames.shape) * 4 <= CACHE_BYTES:
            starts = range(0, count, _BLOCK)
            cached = torch.cat([electrons(start, min(count, start + _BLOCK)) for start in starts])

        def read(indices: Tensor) -> Tensor:
            if cached is not None:
                return cached[indices]
            return torch.cat([electrons(index, index + 1) for index in indices.tolist()])

        digest = hashlib.blake2b(repr(frames.shape).encode(), digest_size=6)
        for number in np.linspace(0, count - 1, min(16, count)).astype(int).tolist():
            digest.update(read(torch.tensor([number])).numpy().tobytes())
        valid = ~prepared.recipe.bad
        return cls(frames.path, frames.shape, scale, valid, read, digest.hexdigest())


@dataclass(frozen=True)
class Neighbours(Source):
    """Pairs of neighbours, of the first ``frames`` of a movie; no later one is read.

    Nothing but the place and the eight orientations is drawn: what else changes a patch
    would change its noise, or part it from its target.
    """

    movie: Movie
    frames: int
    patch: int  # side in pixels
    device: torch.device

    def __len__(self) -> int:
        """Return the number of frames that are trained on."""
        return self.frames

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Cut a patch of each frame, and of the frame before or after at the same place."""
        step = 2 * torch.randint(2, indices.shape, generator=generator) - 1
        other = indices + step
        other = torch.where((other < 0) | (other >= self.frames), indices - step, other)
        twin = torch.Generator()
        twin.set_state(generator.get_state())
        noisy = crops(self.movie.read(indices)[:, None], self.patch, generator)
        target = crops(self.movie.read(other)[:, None], self.patch, twin)
        scale = torch.full((len(indices), 1, 1, 1), self.movie.scale.scale)
        return Batch(noisy.to(self.device), target.to(self.device), scale.to(self.device))
