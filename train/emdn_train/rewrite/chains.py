"""Nets that are one chain of convolutions at one resolution: dncnn, ffdnet, rednet.

Each keeps its inner layers and gets the edges of `emdn_train.rewrite.edges`. Those that
add something to their input give that alone too, as ``residual``, so that the graph
around them can leave the input in its own units (`emdn_train.rewrite.units`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import crop_to, pad_to_multiple
from emdn_models.nets.dncnn import DnCNN
from emdn_models.nets.ffdnet import FFDNet
from emdn_models.nets.rednet import REDNet
from emdn_train.rewrite.edges import Unpacking, packing, part, scaled
from emdn_train.rewrite.layers import transposed_as_conv


class Residual(nn.Module):
    """A net whose output is its input's first channel plus something."""

    def residual(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to what is to be added to the first."""
        raise NotImplementedError

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, 1, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        return x[:, :1] + self.residual(x)


class EdgedDnCNN(Residual):
    """DnCNN with strided edges; the sign of the noise is in the last kernels."""

    def __init__(self, net: DnCNN) -> None:
        super().__init__()
        self.multiple = net.multiple
        self.layers, self.last = _edged(net, last_factor=-1.0)

    def residual(self, x: Tensor) -> Tensor:
        """Map (N, 1, H, W) to the negative of its noise."""
        return crop_to(self.last(self.layers(pad_to_multiple(x, self.multiple))), x)


class EdgedFFDNet(nn.Module):
    """FFDNet with strided edges: the level map is convolved by itself and added."""

    uses_noise = True

    def __init__(self, net: FFDNet) -> None:
        super().__init__()
        self.shuffle = net.shuffle
        first = net.layers[0]
        assert isinstance(first, nn.Conv2d)
        self.level = part(first, inputs=slice(-1, None), bias=False)
        net.layers[0] = part(first, inputs=slice(0, -1))
        layers, self.last = _edged(net)
        self.frame, self.layers = layers[0], layers[1:]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, 1, H, W) noisy and its noise to (N, 1, H, W) clean."""
        flow = pad_to_multiple(x, self.shuffle)
        noise = (
            torch.ones_like(flow[:, :1]) if noise is None else pad_to_multiple(noise, self.shuffle)
        )
        level = functional.avg_pool2d(noise, self.shuffle)
        return crop_to(self.last(self.layers(self.frame(flow) + self.level(level))), x)


class EdgedREDNet(Residual):
    """RED-Net with strided edges, and the skip of the frame added to the frame itself."""

    def __init__(self, net: REDNet) -> None:
        super().__init__()
        self.multiple = net.multiple
        first, *encoder = (layer for layer in net.encoder if isinstance(layer, nn.Conv2d))
        *decoder, last = (
            transposed_as_conv(layer)
            for layer in net.decoder
            if isinstance(layer, nn.ConvTranspose2d)
        )
        self.encoder = nn.ModuleList([packing(first, net.shuffle), *encoder])
        self.decoder = nn.ModuleList(decoder)
        self.last = Unpacking(last, net.shuffle)

    def residual(self, x: Tensor) -> Tensor:
        """Map (N, 1, H, W) to the sum of all but the outermost skip."""
        flow = pad_to_multiple(x, self.multiple)
        skips = []
        for layer in self.encoder:
            flow = torch.relu(layer(flow))
            skips.append(flow)
        for level, layer in zip(range(len(self.decoder), 0, -1), self.decoder, strict=True):
            flow = layer(flow)
            if level % 2 == 0:
                flow = flow + skips[level - 1]
            flow = torch.relu(flow)
        return crop_to(self.last(flow), x)


def _edged(net: DnCNN | FFDNet, last_factor: float = 1.0) -> tuple[nn.Sequential, Unpacking]:
    """Return the chain of a net from the frame on, and its last layer up to the frame."""
    first, last = net.layers[0], net.layers[-1]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    layers = nn.Sequential(packing(first, net.shuffle), *list(net.layers)[1:-1])
    return layers, Unpacking(scaled(last, last_factor), net.shuffle)
