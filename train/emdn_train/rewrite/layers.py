"""Layers that onnxruntime runs slowly, as equal ones that it runs fast."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.mcnn import Up


def transposed_as_conv(layer: nn.ConvTranspose2d) -> nn.Conv2d:
    """Write a stride-1 transposed convolution as a convolution.

    y[p] = sum over q of w[in, out, q] x[p + padding - q]: reversing q turns it into
    a convolution whose kernel is flipped and whose channel axes are swapped, padded
    by kernel - 1 - padding. onnxruntime would run the original as a matrix product
    and a scatter.
    """
    kernel, padding = layer.kernel_size[0], int(layer.padding[0])
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        kernel,
        padding=kernel - 1 - padding,
        bias=layer.bias is not None,
    )
    conv.weight.data = layer.weight.data.flip(-1, -2).transpose(0, 1).contiguous()
    if layer.bias is not None and conv.bias is not None:
        conv.bias.data = layer.bias.data
    return conv


class ShuffledUp(nn.Module):
    """Repeat 2 x 2 and convolve 4 x 4, as one 3 x 3 convolution and a pixel-shuffle.

    Output pixel 2 i + a reads the repeated pixels 2 i + a - 1 ... 2 i + a + 2, which
    are copies of the pixels i - 1, i, i, i + 1 for a = 0 and i, i, i + 1, i + 1 for
    a = 1. Adding up the taps that read the same pixel leaves, for each of the four
    output phases, a 3 x 3 kernel on the small image: 36 products a pixel instead of
    64.
    """

    taps = (
        ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
        ((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0)),
    )

    def __init__(self, up: Up) -> None:
        super().__init__()
        outputs, inputs = up.conv.weight.shape[:2]
        # (phase, tap of 3, tap of 4) on each axis.
        sums = torch.tensor(self.taps, dtype=up.conv.weight.dtype)
        kernels = torch.einsum("ayk,bxl,oikl->oabiyx", sums, sums, up.conv.weight.data)
        self.conv = nn.Conv2d(inputs, 4 * outputs, 3, padding=1)
        self.conv.weight.data = kernels.reshape(4 * outputs, inputs, 3, 3).contiguous()
        if up.conv.bias is not None and self.conv.bias is not None:
            self.conv.bias.data = up.conv.bias.data.repeat_interleave(4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, 2 H, 2 W)."""
        return functional.pixel_shuffle(self.conv(x), 2)
