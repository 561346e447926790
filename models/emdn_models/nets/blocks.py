"""Layers, initial weights and padding that several nets share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, *, bias: bool = True, dilation: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution, zero-padded to the input's own size."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


def initialise(net: nn.Module, last: nn.Module | None = None) -> None:
    """Draw weights for ReLU layers (He, Zhang, Ren, Sun, ICCV 2015, eq. 10), 0 for ``last``.

    With a last layer of zeros, a net that predicts the frame starts at its mean.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if last is not None:
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]


def pass_through(
    layers: Sequence[nn.Module], channels: int, gain: float, first_output: int = 0
) -> None:
    """Let a chain of 3 x 3 ReLU layers start as its input times ``gain``.

    The input's ``channels`` and their negatives travel through 2 x ``channels`` features that each
    layer hands on unchanged; the first ``first_output`` outputs of each layer are not seen by the
    next, and all other features keep their weights. A net that adds the chain's output to its
    input then starts at the mean frame and need not first learn to cancel the noise.
    """
    for number, layer in enumerate(layers):
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        weight = layer.weight.data
        if isinstance(layer, nn.ConvTranspose2d):
            weight = weight.transpose(0, 1)  # (outputs, inputs, 3, 3) as in a convolution
        for channel in range(channels):
            positive, negative = channel, channels + channel
            if number == len(layers) - 1:
                weight[channel] = 0
                weight[channel, positive, 1, 1] = gain
                weight[channel, negative, 1, 1] = -gain
                continue
            weight[first_output + positive] = weight[first_output + negative] = 0
            weight[first_output + positive, positive, 1, 1] = 1
            source, sign = (positive, -1) if number == 0 else (negative, 1)
            weight[first_output + negative, source, 1, 1] = sign


def pad_to_multiple(x: Tensor, multiple: int, margin: int = 0) -> Tensor:
    """Mirror (N, C, H, W) at its right and bottom until both sides are a multiple.

    ``margin`` pixels are added in the same way at all four edges, beyond the multiple. The edge
    pixel is repeated (``a b c d | d c b a``) and the mirrored indices are gathered, so that a side
    may be shorter than its padding: a plain reflection pad fails there.
    """
    if multiple == 1 and not margin:
        return x
    for axis in (-2, -1):
        size = x.shape[axis]
        end = (size + multiple - 1) // multiple * multiple + margin
        pieces = [x, _mirrored(x, axis, torch.arange(size, end, device=x.device))]
        if margin:
            # Pixel -1 - i is pixel i.
            before = torch.arange(margin, device=x.device).flip(0)
            pieces.insert(0, _mirrored(x, axis, before))
        x = torch.cat(pieces, axis)
    return x


def _mirrored(x: Tensor, axis: int, indices: Tensor) -> Tensor:
    """Take pixels, 0 and above, of a frame that is mirrored again and again."""
    size = x.shape[axis]
    # A tensor and not a number: the exporter has no remainder by a symbolic size.
    period = torch.full_like(indices, 2 * size)
    phase = indices % period
    return x.index_select(axis, torch.minimum(phase, period - 1 - phase))


def crop_to(y: Tensor, x: Tensor) -> Tensor:
    """Cut ``y`` back to the height and width of ``x``."""
    return y[..., : x.shape[-2], : x.shape[-1]]
