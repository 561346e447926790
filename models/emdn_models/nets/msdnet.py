"""Mixed-scale dense network."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import conv3x3, crop_to, initialise, pad_to_multiple


class MSDNet(nn.Module):
    """Every layer sees the input and all earlier maps, each at its own dilation.

    Pelt, Sethian, PNAS 115(2), 2018, eqs. 3 and 5. The paper reflects at the edges;
    here they are padded with zeros, in training as in the exported graph.

    Parameters
    ----------
    depth
        Number of 3 x 3 layers.
    width
        Maps that each layer adds.
    dilations
        Layer i has dilation 1 + (i mod dilations).
    shuffle
        Work at 1 / shuffle of the resolution behind a pixel-unshuffle; 1 in the
        paper.
    inputs
        Channels of the input; 1 in the paper.
    """

    def __init__(
        self,
        depth: int = 100,
        width: int = 1,
        dilations: int = 10,
        shuffle: int = 1,
        inputs: int = 1,
    ) -> None:
        super().__init__()
        self.multiple = self.shuffle = shuffle
        packed = shuffle**2
        self.layers = nn.ModuleList(
            conv3x3(inputs * packed + width * number, width, dilation=1 + number % dilations)
            for number in range(depth)
        )
        self.last = nn.Conv2d(inputs * packed + width * depth, packed, 1)
        initialise(self, self.last)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        maps = functional.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.shuffle)
        for layer in self.layers:
            maps = torch.cat([maps, torch.relu(layer(maps))], 1)
        return crop_to(functional.pixel_shuffle(self.last(maps), self.shuffle), x)
