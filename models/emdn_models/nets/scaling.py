"""What every net does with its frames: units of the noise, the noise's map, padding.

A stack is described by ``scale``, its mean number of electrons per pixel m, (N, 1, 1, 1). A net
sees (e - m) / sqrt(m): the noise of a frame of electrons e has unit variance there at every dose,
and only the amplitude of the signal varies.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Error = Callable[[Tensor, Tensor], Tensor]
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


def pad_to_multiple(x: Tensor, multiple: int, margin: int = 0) -> Tensor:
    """Mirror (N, C, H, W) at its right and bottom until both sides are a multiple.

    ``margin`` pixels are added in the same way at all four edges, beyond the multiple. The edge
    pixel is repeated (``a b c d | d c b a``), as often as a short side needs it.
    """
    if multiple == 1 and not margin:
        return x
    for axis in (-2, -1):
        size = x.shape[axis]
        end = (size + multiple - 1) // multiple * multiple + margin
        places = torch.arange(-margin, end, device=x.device)
        # A tensor and not a number: the exporter has no remainder by a symbolic size.
        period = torch.full_like(places, 2 * size)
        phase = places % period
        x = x.index_select(axis, torch.minimum(phase, period - 1 - phase))
    return x


def crop_to(y: Tensor, x: Tensor) -> Tensor:
    """Cut ``y`` back to the height and width of ``x``."""
    return y[..., : x.shape[-2], : x.shape[-1]]
