"""The mixed-scale dense net as matrix products, a block of layers at a time."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import crop_to, pad_to_multiple
from emdn_models.nets.msdnet import MSDNet


class BlockedMSDNet(nn.Module):
    """MSDNet with every convolution as a product and a scatter, in blocks of layers.

    Layer j computes relu(b_j + sum over i < j of W_ji x_i): dilated 3 x 3 kernels W_ji
    on all maps x_i before it. Cut the layers into blocks. For a layer of the block that
    starts at s, the sum falls into two,

        sum over i < s of W_ji x_i   +   sum over s <= i < j of W_ji x_i.

    All layers of the block with one dilation share the first as a single convolution
    of the maps before the block; only the second has to wait for the layers before j.
    So the long stack of maps is copied once a block and not once a layer, and read once
    for several layers. The last layer, 1 x 1, falls apart in the same way.

    A layer has one or two output maps, and onnxruntime computes convolutions in whole
    groups of 8 or 16: most of its products are thrown away. Hence `Scatter`.

    A block holds every dilation twice: longer ones copy more within a block, shorter
    ones read the long stack more often.
    """

    def __init__(self, net: MSDNet) -> None:
        super().__init__()
        self.shuffle = net.shuffle
        layers = [layer for layer in net.layers if isinstance(layer, nn.Conv2d)]
        size = 2 * len({layer.dilation for layer in layers})
        self.blocks = nn.ModuleList(
            Block(layers[start : start + size]) for start in range(0, len(layers), size)
        )
        # The last block's maps are not joined to the others: the 1 x 1 layer adds up.
        fresh = sum(layer.out_channels for layer in layers[(len(self.blocks) - 1) * size :])
        weight = net.last.weight.data
        self.last_before = Scatter(weight[:, :-fresh], net.last.bias)
        self.last_fresh = Scatter(weight[:, -fresh:])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, 1, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        maps = functional.pixel_unshuffle(pad_to_multiple(x, self.shuffle), self.shuffle)
        *blocks, final = self.blocks
        for block in blocks:
            maps = torch.cat([maps, block(maps)], 1)
        y = self.last_before(maps) + self.last_fresh(final(maps))
        return crop_to(functional.pixel_shuffle(y, self.shuffle), x)


class Block(nn.Module):
    """Consecutive layers of an MSDNet: from all maps before them to their own."""

    def __init__(self, layers: list[nn.Conv2d]) -> None:
        super().__init__()
        before, self.width = layers[0].in_channels, layers[0].out_channels
        together: dict[int, list[int]] = {}
        for number, layer in enumerate(layers):
            together.setdefault(layer.dilation[0], []).append(number)
        self.members = list(together.values())
        self.before = nn.ModuleList(
            Scatter(
                torch.cat([layers[number].weight.data[:, :before] for number in numbers]),
                torch.cat([_bias(layers[number]) for number in numbers]),
                dilation,
            )
            for dilation, numbers in together.items()
        )
        self.within = nn.ModuleList(
            Scatter(layer.weight.data[:, before:], None, layer.dilation[0]) for layer in layers[1:]
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, before, H, W) to (N, width x layers, H, W)."""
        sums: dict[int, Tensor] = {}
        for numbers, scatter in zip(self.members, self.before, strict=True):
            parts = scatter(maps).split(self.width, 1)
            sums.update(zip(numbers, parts, strict=True))
        fresh = [torch.relu(sums[0])]
        for number, scatter in enumerate(self.within, 1):
            fresh.append(torch.relu(sums[number] + scatter(torch.cat(fresh, 1))))
        return torch.cat(fresh, 1)


class Scatter(nn.Module):
    """A zero-padded convolution with few outputs, written as its transposed form.

    y[p] = sum over q of w[q] x[p + d q], q from -1 to 1 on each axis, is also
    "each pixel r of x adds w[q] x[r] to y[r - d q]", a transposed convolution by the
    kernel turned by 180 degrees. onnxruntime runs that as one matrix product, of the
    (9 outputs, inputs) weights with the (inputs, pixels) maps, and a scatter of its
    9 rows per output. The pixels fill the vector lanes, however few the outputs are.

    Parameters
    ----------
    weight
        (outputs, inputs, 3, 3) or (outputs, inputs, 1, 1), as of a convolution.
    bias
        (outputs,).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.data.flip(-1, -2).transpose(0, 1).contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.data)
        self.dilation, self.padding = dilation, dilation * (weight.shape[-1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W)."""
        return functional.conv_transpose2d(
            x, self.weight, self.bias, padding=self.padding, dilation=self.dilation
        )


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # every layer of an MSDNet has one
    return layer.bias.data
