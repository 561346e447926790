"""FFDNet."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import conv3x3, crop_to, initialise, pad_to_multiple


class FFDNet(nn.Module):
    """Four half-size sub-images and a map of the noise level in, the clean ones out.

    Zhang, Zuo, Zhang, IEEE TIP 27(9), 2018, arXiv:1710.04026, fig. 1. For Poisson
    noise the map varies over the frame (`emdn_models.nets.electrons.noise_map`).

    Parameters
    ----------
    features
        Channels of each layer.
    depth
        Number of 3 x 3 convolutions.
    """

    multiple = 2
    uses_noise = True

    def __init__(self, features: int = 64, depth: int = 15) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv3x3(5, features), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [conv3x3(features, features), nn.ReLU()]
        last = conv3x3(features, 4)
        self.layers = nn.Sequential(*layers, last)
        initialise(self, last)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, 1, H, W) noisy to (N, 1, H, W) clean.

        ``noise`` is the standard deviation of the noise, (N, 1, H, W) in the units
        of ``x``; without it, 1 everywhere.
        """
        packed = functional.pixel_unshuffle(pad_to_multiple(x, 2), 2)
        if noise is None:
            level = torch.ones_like(packed[:, :1])
        else:
            level = functional.avg_pool2d(pad_to_multiple(noise, 2), 2)
        return crop_to(functional.pixel_shuffle(self.layers(torch.cat([packed, level], 1)), 2), x)
