"""Whether a net has become better on frames that it was not fitted to, without their truth."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emdn_models.metrics import Estimate, HeldOut, umse
from emdn_models.metrics.heldout import estimate, partition
from emdn_models.nets.electrons import denormalise, noise_map, normalise
from emdn_train.neighbours import Movie

SIDE = 512
"""Frames are compared in their middle, up to this many pixels a side."""

_ROUNDING = 1e-5  # of an error in float32
_BLOCK = 32

Stack = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """Two nets on the same frames, in electrons squared per pixel.

    Attributes
    ----------
    before, after
        uMSE of either (`emdn_models.metrics.umse`).
    fell
        uMSE before less uMSE after, frame by frame: the noise of the frames, in which the
        two agree, drops out, and what is left is known far better than either.
    mean_ratio
        Mean of the denoised frames over that of the raw ones, after.
    """

    before: HeldOut
    after: HeldOut
    fell: Estimate
    mean_ratio: float

    @property
    def better(self) -> bool:
        """Whether the error has fallen by more than the standard error of that, and rounding."""
        return self.fell.value > max(self.fell.se, _ROUNDING * self.before.error.value)


def compare(movie: Movie, frames: range, before: nn.Module, after: nn.Module) -> Verdict:
    """Measure two nets on frames of a movie that neither was fitted to."""
    raw = middle(movie.read(torch.arange(frames.start, frames.stop)))
    valid = middle(torch.from_numpy(movie.valid)).numpy()
    first, second = (denoised(net, raw, movie.scale.scale) for net in (before, after))
    noisy = raw.double().numpy()
    return Verdict(
        umse(noisy, first, _BLOCK, valid),
        umse(noisy, second, _BLOCK, valid),
        fall(noisy, first, second, valid),
        float(second[:, valid].mean() / noisy[:, valid].mean()),
    )


def fall(raw: Stack, before: Stack, after: Stack, valid: NDArray[np.bool_]) -> Estimate:
    """Estimate by how much the squared error is less after than before.

    The uMSE of both has the same term of noise, which cancels in each pair of neighbours.

    Parameters
    ----------
    raw, before, after
        (N, H, W).
    valid
        (H, W), the pixels that count.
    """
    blocks = partition(valid.astype(np.float64), _BLOCK)
    triples = pairwise(zip(raw, before, after, strict=True))
    sums = [
        blocks.sums(
            np.square(f_a - b) + np.square(f_b - a) - np.square(g_a - b) - np.square(g_b - a)
        )
        / 2
        for (a, f_a, g_a), (b, f_b, g_b) in triples
    ]
    return estimate(np.stack(sums), blocks, 1)


def denoised(net: nn.Module, frames: Tensor, scale: float) -> Stack:
    """Denoise frames (N, H, W) in electrons, of mean ``scale``, as the exported graph does."""
    net.eval()
    device = next(net.parameters()).device
    level = torch.full((1, 1, 1, 1), scale, device=device)
    done = []
    with torch.inference_mode():
        for part in frames[:, None].split(2):
            noisy = part.to(device)
            output = net(normalise(noisy, level), noise_map(noisy, level))
            done.append(denormalise(output, level)[:, 0].double().cpu().numpy())
    return np.concatenate(done)


def motion(movie: Movie, frames: range) -> Estimate | None:
    """Measure how much more frames two apart differ than neighbours, in electrons squared.

    None for fewer than three frames; see ``drift`` of `emdn_models.metrics.HeldOut`.
    """
    raw = middle(movie.read(torch.arange(frames.start, frames.stop))).double().numpy()
    return umse(raw, raw, _BLOCK, middle(torch.from_numpy(movie.valid)).numpy()).drift


def middle(frames: Tensor) -> Tensor:
    """Cut the middle, up to ``SIDE`` pixels a side, of (..., H, W)."""
    for axis in (-2, -1):
        length = frames.shape[axis]
        side = min(length, SIDE)
        frames = frames.narrow(axis, (length - side) // 2, side)
    return frames
