"""Between electrons and the numbers that a net works on, in training as in the exported graph.

A stack is described by ``scale``, its mean number of electrons per pixel m, (N, 1, 1, 1). A net
sees (e - m) / sqrt(m): the noise of a frame of electrons e has unit variance there at every dose,
and only the amplitude of the signal varies.
"""

import torch
from torch import Tensor
from torch.nn import functional

BLUR = 9
"""Side, in pixels, of the window over which the local dose is averaged."""


def normalise(electrons: Tensor, scale: Tensor) -> Tensor:
    """Turn electrons (N, 1, H, W) into noise units."""
    return (electrons - scale) / torch.sqrt(scale)


def denormalise(x: Tensor, scale: Tensor) -> Tensor:
    """Turn noise units (N, 1, H, W) into electrons."""
    return x * torch.sqrt(scale) + scale


def middle(frames: Tensor) -> Tensor:
    """Return the middle one of an odd number of frames, (N, F, H, W) to (N, 1, H, W)."""
    return frames.narrow(1, frames.shape[1] // 2, 1)


def noise_map(electrons: Tensor, scale: Tensor) -> Tensor:
    """Estimate the standard deviation of Poisson noise, in noise units, of counts (N, 1, H, W).

    sigma**2 = blur(e) / m, since the variance of a count is its expectation. A box of ``BLUR``
    pixels estimates the expectation, at the frame's edges over the pixels that there are; one
    electron per box is the least that is assumed.
    """
    local = functional.avg_pool2d(
        electrons, BLUR, stride=1, padding=BLUR // 2, count_include_pad=False
    )
    return torch.sqrt(torch.clamp(local, min=1 / BLUR**2) / scale)
