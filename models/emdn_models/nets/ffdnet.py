"""FFDNet."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import conv3x3, crop_to, initialise, pad_to_multiple


class FFDNet(nn.Module):
    """Reduced sub-images and a map of the noise level in, the clean ones out.

    Zhang, Zuo, Zhang, IEEE TIP 27(9), 2018, arXiv:1710.04026, fig. 1. For Poisson
    noise the map varies over the frame (`emdn_models.nets.scaling.noise_map`).

    Parameters
    ----------
    features
        Channels of each layer.
    depth
        Number of 3 x 3 convolutions.
    shuffle
        Side by which the sub-images are smaller than the frame; 2 in the paper.
    inputs
        Channels of the input; 1 in the paper.
    """

    uses_noise = True

    def __init__(
        self, features: int = 64, depth: int = 15, shuffle: int = 2, inputs: int = 1
    ) -> None:
        super().__init__()
        self.multiple = self.shuffle = shuffle
        layers: list[nn.Module] = [conv3x3(inputs * shuffle**2 + 1, features), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [conv3x3(features, features), nn.ReLU()]
        last = conv3x3(features, shuffle**2)
        self.layers = nn.Sequential(*layers, last)
        initialise(self, last)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean.

        ``noise`` is the standard deviation of the noise, (N, 1, H, W) in the units
        of ``x``; without it, 1 everywhere.
        """
        packed = functional.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.shuffle)
        if noise is None:
            level = torch.ones_like(packed[:, :1])
        else:
            level = functional.avg_pool2d(pad_to_multiple(noise, self.multiple), self.shuffle)
        clean = self.layers(torch.cat([packed, level], 1))
        return crop_to(functional.pixel_shuffle(clean, self.shuffle), x)
