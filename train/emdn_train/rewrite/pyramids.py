"""Nets that change the resolution: U-Net and the multiscale CNN, with sums for joins."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import crop_to, pad_to_multiple
from emdn_models.nets.mcnn import MCNN, Up
from emdn_models.nets.unet import UNet
from emdn_train.rewrite.edges import Unpacking, convolution, packing, part
from emdn_train.rewrite.layers import PhasedUp, ShuffledUp, side_by_side

BLOCK = 16
"""Channels that onnxruntime computes at once with AVX-512; half as many with AVX2."""


class JoinlessUNet(nn.Module):
    """U-Net with strided edges, without joining the skips.

    The first convolution of each block upwards reads what comes from below joined with
    a skip. It is the sum of its two parts, which onnxruntime adds as it convolves;
    joining would copy both, and with widths that do not fill blocks of channels out
    of the blocked layout and back. Where it repeats pixels, the part from below is
    convolved before they are repeated (`emdn_train.rewrite.layers.PhasedUp`).
    """

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.multiple = net.multiple
        self.down = net.down
        top = net.down[0]
        assert isinstance(top, nn.Sequential)
        assert isinstance(top[0], nn.Conv2d)
        top[0] = packing(top[0], net.shuffle)
        self.below, self.skip, self.rest = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for block in net.up:
            assert isinstance(block, nn.Sequential)
            joined, *rest = block
            assert isinstance(joined, nn.Conv2d)
            deep = joined.in_channels - joined.out_channels
            below = part(joined, inputs=slice(0, deep), bias=False)
            # Phases that fill whole blocks are put side by side in the blocked layout.
            whole = below.out_channels % BLOCK == 0 and not net.benchmark
            self.below.append(PhasedUp(below) if whole else Upsampled(net, below))
            self.skip.append(part(joined, inputs=slice(deep, None)))
            self.rest.append(nn.Sequential(*rest))
        self.last = Unpacking(net.last, net.shuffle)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, 1, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        flow = pad_to_multiple(x, self.multiple)
        skips: list[Tensor] = []
        for block in self.down:
            flow = block(functional.max_pool2d(flow, 2) if skips else flow)
            skips.append(flow)
        skips.pop()
        for below, skip, rest in zip(self.below, self.skip, self.rest, strict=True):
            flow = rest(below(flow) + skip(skips.pop()))
        return crop_to(self.last(flow), x)


class Upsampled(nn.Module):
    """A convolution behind a U-Net's own upsampling."""

    def __init__(self, net: UNet, conv: nn.Conv2d) -> None:
        super().__init__()
        self.upsample, self.conv = net.upsample, conv

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, 2 H, 2 W)."""
        y: Tensor = self.conv(self.upsample(x))
        return y


class JoinlessMCNN(nn.Module):
    """The multiscale CNN without joining the skips, and with one shuffle less.

    Each step upwards is a convolution whose outputs are the four phases of the finer
    image (`emdn_train.rewrite.layers.ShuffledUp`), and the sum of what it does to the
    two parts of its input. The ReLU is the same before the pixel-shuffle and after it.
    The last step but one is not shuffled at all: the head reads the phases
    (`reading_packed`), at a quarter of the frame's resolution, and gives 4 x 4 pixels.
    """

    def __init__(self, net: MCNN) -> None:
        super().__init__()
        self.multiple = net.multiple
        self.encoder = net.encoder
        deepest, *others = (ShuffledUp(up).conv for up in net.decoder if isinstance(up, Up))
        head = net.heads[0]
        assert isinstance(head, Up)
        last = ShuffledUp(head).conv
        self.deepest = deepest
        self.below, self.skip = nn.ModuleList(), nn.ModuleList()
        # From below come as many channels as from the encoder.
        for joined in others:
            below, skip = _halves(joined)
            self.below.append(below)
            self.skip.append(skip)
        below, skip = _halves(last)
        self.head_below = reading_packed(Unpacking(below, 2))
        self.head_skip = Unpacking(skip, 2)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, 1, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        flow = pad_to_multiple(x, self.multiple)
        skips = []
        for layer in self.encoder:
            flow = torch.relu(layer(flow))
            skips.append(flow)
        skips.pop()
        flow = torch.relu(self.deepest(flow))
        for below, skip in zip(self.below, self.skip, strict=True):
            flow = torch.relu(below(side_by_side(flow, 1)) + skip(skips.pop()))
        blocks = self.head_below(flow) + self.head_skip.packed(skips.pop())
        return crop_to(functional.pixel_shuffle(blocks, self.head_skip.shuffle), x)


def reading_packed(layer: Unpacking) -> nn.Conv2d:
    """Return a strided convolution that reads its input behind a pixel-unshuffle.

    The inverse of `emdn_train.rewrite.edges.packing`. A kernel that begins ``before``
    pixels above its block is filled up with zeros to whole blocks of s x s pixels on
    either side; block (Y, X) of it then is tap (Y, X) of the packed channels.
    """
    conv, before, s = layer.conv, layer.padding[0], layer.conv.stride[0]
    outputs, inputs, rows, columns = conv.weight.shape
    above = -(-before // s)
    blocks = above + -(-(rows - before) // s)
    top = above * s - before
    bottom = blocks * s - top - rows
    assert rows == columns
    assert blocks == 2 * above + 1
    weight = functional.pad(conv.weight.data, (top, bottom, top, bottom))
    weight = weight.reshape(outputs, inputs, blocks, s, blocks, s).permute(0, 1, 3, 5, 2, 4)
    return convolution(weight.flatten(1, 3), conv.bias, padding=(above, above))


def _halves(joined: nn.Conv2d) -> tuple[nn.Conv2d, nn.Conv2d]:
    half = joined.in_channels // 2
    first, second = slice(0, half), slice(half, None)
    return part(joined, inputs=first, bias=False), part(joined, inputs=second)
