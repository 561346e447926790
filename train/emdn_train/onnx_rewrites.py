"""Exact rewrites of nets before export: other layers, the same numbers, faster in onnxruntime.

onnxruntime keeps channels in blocks of 8 or 16 and runs plain 3 x 3 convolutions on them near the
machine's peak; what costs time is the rest of a graph. Each rewrite is algebra, not approximation,
and is compared with what it replaces by a test and by the export itself. What brings less than
5 % of a frame's time is not here.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import crop_to, pad_to_multiple
from emdn_models.nets.cafcn import CAFCN
from emdn_models.nets.mcnn import Up
from emdn_models.nets.msdnet import MSDNet
from emdn_models.nets.unet import UNet


def rewritten(module: nn.Module) -> nn.Module:
    """Return a copy of a net, or of the graph around one, with every rewrite applied."""
    return _replaced(copy.deepcopy(module).eval())


def _replaced(module: nn.Module) -> nn.Module:
    rewrite = REWRITES.get(type(module))
    if rewrite is not None:
        module = rewrite(module).eval()
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return module


def convolution(
    weight: Tensor, bias: Tensor | None, *, stride: int = 1, padding: tuple[int, int]
) -> nn.Conv2d:
    """Return a convolution with a given kernel, (outputs, inputs, rows, columns)."""
    outputs, inputs, rows, columns = weight.shape
    conv = nn.Conv2d(
        inputs, outputs, (rows, columns), stride=stride, padding=padding, bias=bias is not None
    )
    conv.weight.data = weight.contiguous()
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def part(
    conv: nn.Conv2d,
    *,
    inputs: slice = slice(None),
    outputs: slice = slice(None),
    bias: bool = True,
) -> nn.Conv2d:
    """Return what a 3 x 3 convolution does to some of its inputs, for some of its outputs.

    A convolution of joined channels is the sum of the convolutions of the parts, with the bias in
    one of them, and its outputs do not know of each other. onnxruntime adds as it convolves, where
    joining and slicing copies channels.
    """
    kept = conv.bias[outputs] if bias and conv.bias is not None else None
    return convolution(conv.weight.data[outputs, inputs], kept, padding=(1, 1))


def packing(conv: nn.Conv2d, shuffle: int) -> nn.Conv2d:
    """Write a pixel-unshuffle and a convolution as one convolution of larger strides.

    Packed channel c s**2 + a s + b at (i, j) is pixel (s i + a, s j + b) of channel c, so that tap
    (y, x) reads the pixels s (i + y - padding) + a: the taps of all s**2 packed channels together
    are one kernel of s k x s k pixels, moved in steps of s.
    """
    outputs, packed, rows, columns = conv.weight.shape
    weight = conv.weight.data.reshape(outputs, -1, shuffle, shuffle, rows, columns)
    weight = weight.permute(0, 1, 4, 2, 5, 3)
    weight = weight.reshape(outputs, packed // shuffle**2, rows * shuffle, columns * shuffle)
    padding = int(conv.padding[0]) * shuffle, int(conv.padding[1]) * shuffle
    return convolution(weight, conv.bias, stride=shuffle, padding=padding)


def transposed_as_conv(layer: nn.ConvTranspose2d) -> nn.Conv2d:
    """Write a transposed convolution of stride 1 as a convolution.

    y[p] = sum over q of w[in, out, q] x[p + padding - q]: reversing q turns it into a convolution
    whose kernel is flipped and whose channel axes are swapped, padded by kernel - 1 - padding.
    """
    weight = layer.weight.data.flip(-1, -2).transpose(0, 1)
    pads = layer.kernel_size[0] - 1 - int(layer.padding[0])
    return convolution(weight, layer.bias, padding=(pads, pads))


class ShuffledUp(nn.Module):
    """Repeat 2 x 2 and convolve 4 x 4, as one 3 x 3 convolution and a pixel-shuffle.

    Output pixel 2 i + a reads the repeated pixels 2 i + a - 1 ... 2 i + a + 2, which are copies of
    the pixels i - 1, i, i, i + 1 for a = 0 and i, i, i + 1, i + 1 for a = 1. Adding up the taps
    that read the same pixel leaves a 3 x 3 kernel on the small image for each of the four phases:
    36 products a pixel instead of 64.
    """

    taps = (
        ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
        ((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0)),
    )

    def __init__(self, up: Up) -> None:
        super().__init__()
        # (phase, tap of 3, tap of 4) on each axis.
        sums = torch.tensor(self.taps, dtype=up.conv.weight.dtype)
        kernels = torch.einsum("ayk,bxl,oikl->oabiyx", sums, sums, up.conv.weight.data)
        assert up.conv.bias is not None
        self.conv = convolution(
            kernels.flatten(0, 2), up.conv.bias.repeat_interleave(4), padding=(1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, 2 H, 2 W)."""
        return functional.pixel_shuffle(self.conv(x), 2)


class JoinlessUNet(nn.Module):
    """U-Net with a strided first convolution, and sums in place of joined skips (`part`)."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.multiple, self.shuffle, self.upsample = net.multiple, net.shuffle, net.upsample
        self.down, self.last = net.down, net.last
        top = net.down[0]
        assert isinstance(top, nn.Sequential)
        assert isinstance(top[0], nn.Conv2d)
        top[0] = packing(top[0], net.shuffle)
        self.below, self.skip, self.rest = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for block in net.up:
            joined, *rest = block.children()
            assert isinstance(joined, nn.Conv2d)
            deep = joined.in_channels - joined.out_channels
            self.below.append(part(joined, inputs=slice(0, deep), bias=False))
            self.skip.append(part(joined, inputs=slice(deep, None)))
            self.rest.append(nn.Sequential(*rest))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        flow = pad_to_multiple(x, self.multiple)
        skips: list[Tensor] = []
        for block in self.down:
            flow = block(functional.max_pool2d(flow, 2) if skips else flow)
            skips.append(flow)
        skips.pop()
        for below, skip, rest in zip(self.below, self.skip, self.rest, strict=True):
            flow = rest(below(self.upsample(flow)) + skip(skips.pop()))
        return crop_to(functional.pixel_shuffle(self.last(flow), self.shuffle), x)


class SplitCAFCN(nn.Module):
    """CAFCN as a chain of convolutions, and others beside it that sum the estimates.

    Layer i maps flow_i to [estimate_i, onwards_i]: two convolutions of flow_i, without cutting
    channels. One to few channels is slow, though. So the estimates' kernels are taken apart by
    rows: with E_i, y the 1 x 3 kernel in row y of E_i, and D_y the shift by a row,

        sum over i of E_i * flow_i = sum over y of D_y * (sum over i of E_i, y * flow_i),

    which is three times the channels at a third of the products each, and one shift of the
    finished sum, a 3 x 1 convolution with ones and zeros.
    """

    def __init__(self, net: CAFCN) -> None:
        super().__init__()
        self.shuffle, count = net.shuffle, net.estimates
        first, *others = (layer for layer in net.layers if isinstance(layer, nn.Conv2d))
        self.trunk = nn.ModuleList(
            part(layer, outputs=slice(count, None)) for layer in (first, *others[:-1])
        )
        self.estimates = nn.ModuleList(
            # Output 3 o + y is what row y of output o's kernel gives at the same pixel.
            convolution(
                layer.weight.data[:count].transpose(1, 2).flatten(0, 1)[:, :, None] / 10,
                None,
                padding=(0, 1),
            )
            for layer in (first, *others)
        )
        for chain in (self.trunk, self.estimates):
            chain[0] = packing(chain[0], net.shuffle)  # type: ignore[arg-type]
        weight = first.weight.new_zeros(count, count, 3, 3)
        weight[range(count), range(count)] = torch.eye(3, dtype=weight.dtype)
        bias = torch.stack([_bias(layer)[:count] for layer in (first, *others)]).sum(0) / 10
        self.shift = convolution(weight.flatten(1, 2)[..., None], bias, padding=(1, 0))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        flow = pad_to_multiple(x, self.shuffle)
        total = self.estimates[0](flow)
        for number, layer in enumerate(self.trunk, 1):
            flow = layer(flow)
            if number != len(self.trunk):
                flow = torch.relu(flow)
            total = total + self.estimates[number](flow)
        return x[:, :1] + crop_to(functional.pixel_shuffle(self.shift(total), self.shuffle), x)


class BlockedMSDNet(nn.Module):
    """MSDNet with every convolution as a product and a scatter, in blocks of layers.

    Layer j computes relu(b_j + sum over i < j of W_ji x_i): dilated 3 x 3 kernels W_ji on all maps
    x_i before it. For a layer of the block of layers that starts at s, the sum falls into two,

        sum over i < s of W_ji x_i   +   sum over s <= i < j of W_ji x_i.

    All layers of the block with one dilation share the first as a single convolution; only the
    second has to wait for the layers before j. So the long stack of maps is copied and read once a
    block and not once a layer. The last layer, 1 x 1, falls apart in the same way. A layer has one
    or two output maps, of which onnxruntime computes 8 or 16: hence `Scatter`. A block holds every
    dilation twice: longer ones copy more within a block, shorter ones read the stack more often.
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
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
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
            sums.update(zip(numbers, scatter(maps).split(self.width, 1), strict=True))
        fresh = [torch.relu(sums[0])]
        for number, scatter in enumerate(self.within, 1):
            fresh.append(torch.relu(sums[number] + scatter(torch.cat(fresh, 1))))
        return torch.cat(fresh, 1)


class Scatter(nn.Module):
    """A zero-padded convolution with few outputs, (outputs, inputs, k, k), in transposed form.

    y[p] = sum over q of w[q] x[p + d q] is also "each pixel r of x adds w[q] x[r] to y[r - d q]",
    a transposed convolution by the kernel turned by 180 degrees. onnxruntime runs that as one
    matrix product, of (k**2 outputs, inputs) with (inputs, pixels), and a scatter of its rows.
    The pixels fill the vector lanes, however few the outputs are.
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
    assert layer.bias is not None  # every layer of these nets has one
    return layer.bias.data


REWRITES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.ConvTranspose2d: transposed_as_conv,
    Up: ShuffledUp,
    UNet: JoinlessUNet,
    CAFCN: SplitCAFCN,
    MSDNet: BlockedMSDNet,
}
"""What replaces a module of each type, and is then searched for more; it may take its tensors."""
