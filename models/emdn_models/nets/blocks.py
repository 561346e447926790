"""The few layers that several nets share."""

import torch
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, *, bias: bool = True, dilation: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution, zero-padded to the input's own size."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


def initialise(net: nn.Module, last: nn.Conv2d | nn.ConvTranspose2d | None = None) -> None:
    """Draw the weights for ReLU layers and set the last layer to zero.

    He, Zhang, Ren, Sun, ICCV 2015, eq. 10. With a last layer of zeros, a net
    that predicts a correction starts as the identity, one that predicts the
    frame starts at its mean.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if last is not None:
        nn.init.zeros_(last.weight)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Mirror the right and bottom edges until both sides are a multiple.

    The edge pixel is repeated (``a b c d | d c b a``) and the mirrored indices
    are gathered, so that a side may be shorter than its padding: a plain
    reflection pad fails there.

    Parameters
    ----------
    x
        (N, C, H, W).
    """
    if multiple == 1:
        return x
    for axis in (-2, -1):
        size = x.shape[axis]
        padded = (size + multiple - 1) // multiple * multiple
        indices = torch.arange(padded, device=x.device)
        # A tensor and not a number: the exporter has no remainder by a symbolic size.
        period = torch.full_like(indices, 2 * size)
        phase = indices % period
        x = x.index_select(axis, torch.minimum(phase, period - 1 - phase))
    return x


def crop_to(y: Tensor, x: Tensor) -> Tensor:
    """Cut ``y`` back to the height and width of ``x``."""
    return y[..., : x.shape[-2], : x.shape[-1]]
