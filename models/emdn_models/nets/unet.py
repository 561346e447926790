"""U-Net."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import conv3x3, crop_to, initialise, pad_to_multiple


class UNet(nn.Module):
    """Two convolutions a level, max-pooling down, upsampling and skips up.

    Ronneberger, Fischer, Brox, MICCAI 2015, arXiv:1505.04597, fig. 1.

    Parameters
    ----------
    features
        Channels of the first level; they double at each further one.
    levels
        Number of resolutions.
    shuffle
        Work at 1 / shuffle of the resolution behind a pixel-unshuffle; 1 in the
        paper.
    benchmark
        Be the net of SciML-Bench em_denoise (https://github.com/stfc-sciml/
        sciml-bench): batch norm after each ReLU, bilinear upsampling with aligned
        corners. That variant cannot be tiled exactly. Otherwise there is no batch
        norm, upsampling repeats the nearest pixel, and what comes from below counts
        for nothing at first, lest it be learned away before it is of use.
    inputs
        Channels of the input; 1 in the paper.
    """

    def __init__(
        self,
        features: int = 8,
        levels: int = 4,
        shuffle: int = 1,
        benchmark: bool = True,
        inputs: int = 1,
    ) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.benchmark = benchmark
        self.multiple = shuffle * 2 ** (levels - 1)
        widths = [features * 2**level for level in range(levels)]
        packed = inputs * shuffle**2
        self.down = nn.ModuleList(
            self._block(wide, deep) for wide, deep in pairwise([packed, *widths])
        )
        self.up = nn.ModuleList(
            self._block(deep + wide, wide) for wide, deep in reversed(list(pairwise(widths)))
        )
        self.last = conv3x3(features, shuffle**2)
        initialise(self, None if benchmark else self.last)
        for deep, block in zip(reversed(widths[1:]), self.up, strict=True):
            if not benchmark:
                nn.init.zeros_(block[0].weight[:, :deep])  # type: ignore[index]

    def _block(self, inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [conv3x3(channels, outputs), nn.ReLU()]
            if self.benchmark:
                layers.append(nn.BatchNorm2d(outputs))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        flow = functional.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.shuffle)
        skips: list[Tensor] = []
        for block in self.down:
            flow = block(functional.max_pool2d(flow, 2) if skips else flow)
            skips.append(flow)
        skips.pop()
        for block in self.up:
            flow = block(torch.cat([self.upsample(flow), skips.pop()], 1))
        return crop_to(functional.pixel_shuffle(self.last(flow), self.shuffle), x)

    def upsample(self, flow: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2 H, 2 W)."""
        if self.benchmark:
            return functional.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
        return functional.interpolate(flow, scale_factor=2, mode="nearest")
