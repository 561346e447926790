"""Deep encoder-decoder with skip connections."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import conv3x3, crop_to, initialise, pad_to_multiple, pass_through


class REDNet(nn.Module):
    """As many transposed convolutions as convolutions, a skip every second layer.

    Mao, Shen, Yang, NIPS 2016, arXiv:1603.09056, fig. 1 (RED30: depth 30). The
    paper ends in a ReLU; here there is none, since the net's numbers have a sign.

    Parameters
    ----------
    features
        Channels of each layer.
    depth
        Number of 3 x 3 layers, half of them transposed.
    shuffle
        Work at 1 / shuffle of the resolution behind a pixel-unshuffle; 1 in the
        paper.
    inputs
        Channels of the input, 1 in the paper; the outermost skip is the first.
    """

    adds_to_input = True

    def __init__(
        self, features: int = 64, depth: int = 30, shuffle: int = 1, inputs: int = 1
    ) -> None:
        super().__init__()
        self.multiple = self.shuffle = shuffle
        half = depth // 2
        self.encoder = nn.ModuleList(
            conv3x3(features if number else inputs * shuffle**2, features) for number in range(half)
        )
        last = nn.ConvTranspose2d(features, shuffle**2, 3, padding=1)
        self.decoder = nn.ModuleList(
            [*(nn.ConvTranspose2d(features, features, 3, padding=1) for _ in range(half - 1)), last]
        )
        initialise(self, None if inputs == 1 else last)
        # Every skip adds the input's features once more.
        added = 1 + len(range(2, half, 2))
        if inputs == 1:
            pass_through([*self.encoder, *self.decoder], shuffle**2, -1 / added)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        flow = functional.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.shuffle)
        skips = [flow[:, : self.shuffle**2]]
        for layer in self.encoder:
            flow = torch.relu(layer(flow))
            skips.append(flow)
        for level, layer in zip(range(len(self.decoder) - 1, -1, -1), self.decoder, strict=True):
            flow = layer(flow)
            if level % 2 == 0:
                flow = flow + skips[level]
            if level > 0:
                flow = torch.relu(flow)
        return crop_to(functional.pixel_shuffle(flow, self.shuffle), x)
