"""Layers that onnxruntime runs slowly, as equal ones that it runs fast."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.mcnn import Up
from emdn_models.nets.spectral import FittedGain
from emdn_train.rewrite.edges import convolution


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


class ConvolvedGain(FittedGain):
    """Write the layers that judge spectra as convolutions of rows.

    A product with a matrix is a convolution of width 1. onnxruntime adds the bias and applies
    what follows while the numbers are at hand, which it does not behind a product, so that the
    row of ones goes too. Of planes it would be slow: their features are padded to 16. torch is
    faster with products.
    """

    def __init__(self, gain: FittedGain) -> None:
        nn.Module.__init__(self)
        self.first, self.second, self.last = gain.first, gain.second, gain.last
        self.register_buffer("radius", gain.radius, persistent=False)

    def judge(self, planes: list[Tensor]) -> Tensor:
        """Map features, each (N, I, w, J, L), to as many numbers as one of them has."""
        flow = torch.stack(planes, 2).flatten(0, 1).flatten(2)
        for layer in (self.first, self.second):
            flow = functional.relu(functional.conv1d(flow, layer.weight[:, :, None], layer.bias))
        return functional.conv1d(flow, self.last.weight[:, :, None], self.last.bias)


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
        return side_by_side(self.conv(x), 1)


class PhasedUp(nn.Module):
    """Repeat 2 x 2 and convolve 3 x 3, as four 2 x 2 convolutions of the small image.

    Output pixel 2 i + a reads the repeated pixels 2 i + a - 1 ... 2 i + a + 1, which are
    copies of the pixels i - 1, i, i for a = 0 and i, i, i + 1 for a = 1. Adding up the
    taps that read the same pixel leaves a 2 x 2 kernel for each of the four output
    phases: 16 products a pixel instead of 36, for copying the outputs into their places
    (`side_by_side`).
    """

    taps = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        # (phase, tap of 2, tap of 3) on each axis.
        sums = torch.tensor(self.taps, dtype=conv.weight.dtype)
        kernels = torch.einsum("ayk,bxl,oikl->aboiyx", sums, sums, conv.weight.data)
        self.phases = nn.ModuleList(
            convolution(kernels[a, b], conv.bias, padding=(0, 0)) for a in (0, 1) for b in (0, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, 2 H, 2 W)."""
        places = ((1, 0, 1, 0), (0, 1, 1, 0), (1, 0, 0, 1), (0, 1, 0, 1))
        y = torch.cat(
            [
                phase(functional.pad(x, place))
                for phase, place in zip(self.phases, places, strict=True)
            ],
            1,
        )
        return side_by_side(y, y.shape[1] // 4)


def side_by_side(phases: Tensor, inner: int) -> Tensor:
    """Put the four phases of an image into their places, columns first and rows then.

    A pixel-shuffle by 2 moves element by element in onnxruntime. It is also two
    transpositions that each move one axis, the second of them of whole rows, and
    those onnxruntime does several times as fast.

    Parameters
    ----------
    phases
        (N, outer x 2 x 2 x inner, H, W), the row's phase before the column's.
    inner
        Channels that a phase has in one piece: 1 for the order of a pixel-shuffle.

    Returns
    -------
    Tensor
        (N, outer x inner, 2 H, 2 W).
    """
    count, channels, height, width = phases.shape
    outer = channels // (4 * inner)
    columns = phases.reshape(count * outer * 2, 2, inner * height * width).transpose(1, 2)
    rows = columns.reshape(count * outer, 2, inner * height, 2 * width).transpose(1, 2)
    return rows.reshape(count, outer * inner, 2 * height, 2 * width)
