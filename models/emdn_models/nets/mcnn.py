"""Multiscale CNN."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import crop_to, initialise, pad_to_multiple


class Up(nn.Module):
    """Repeat each pixel 2 x 2, then a 4 x 4 convolution to the same size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, 2 H, 2 W)."""
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        y: Tensor = self.conv(functional.pad(x, (1, 2, 1, 2)))
        return y


class MCNN(nn.Module):
    """Strided 4 x 4 encoder, upsampling decoder with skips, an output at each scale.

    Wang et al., arXiv:1810.12183; the benchmark names a "multiscale CNN" without a
    reference, and this one is identified by name and field. The paper's net takes
    four channels and ends in a sigmoid; here it takes one and ends linearly. The
    coarser outputs serve training only.

    Parameters
    ----------
    features
        Channels of the first level; they double at each further one.
    levels
        Number of halvings.
    widest
        Largest multiple of ``features``; 8 in the paper.
    inputs
        Channels of the input.
    """

    def __init__(
        self, features: int = 64, levels: int = 7, widest: int = 8, inputs: int = 1
    ) -> None:
        super().__init__()
        self.multiple = 2**levels
        widths = [features * min(2**level, widest) for level in range(levels)]
        self.encoder = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
            for inputs, outputs in zip([inputs, *widths], widths, strict=False)
        )
        # Level by level upwards: what comes from below, joined with the encoder's.
        joined = [*(2 * width for width in widths[:-1]), widths[-1]]
        self.decoder = nn.ModuleList(
            Up(joined[level], widths[level - 1]) for level in range(levels - 1, 0, -1)
        )
        self.heads = nn.ModuleList(Up(channels, 1) for channels in joined[:-1])
        initialise(self)
        for head in self.heads:
            nn.init.zeros_(head.conv.weight)  # type: ignore[union-attr,arg-type]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        return crop_to(self.heads[0](self._features(x)[0]), x)

    def loss(
        self,
        x: Tensor,
        y: Tensor,
        noise: Tensor,
        error: Callable[[Tensor, Tensor], Tensor],
        added: Tensor | None = None,
    ) -> Tensor:
        """Judge the prediction at every scale, each a quarter as much as the next finer one.

        That is deep supervision: number k, (N, 1, H / 2**k, W / 2**k), is for the clean frame
        averaged over 2**k x 2**k pixels. Where H and W are not multiples of ``multiple``, only
        the finest counts.

        Parameters
        ----------
        x, y
            (N, inputs, H, W) noisy, (N, 1, H, W) clean.
        error
            Maps a prediction and its truth to a number.
        added
            (N, 1, H, W), what the prediction is a correction of.
        """
        if any(side % self.multiple for side in x.shape[2:]):
            prediction = self(x, noise)
            return error(prediction if added is None else prediction + added, y)
        total = y.new_zeros(())
        for scale, (head, flow) in enumerate(zip(self.heads, self._features(x), strict=True)):
            prediction, size = head(flow), 2**scale
            if added is not None:
                prediction = functional.avg_pool2d(added, size) + prediction
            total = total + error(prediction, functional.avg_pool2d(y, size)) / 4**scale
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        flow = pad_to_multiple(x, self.multiple)
        skips = []
        for layer in self.encoder:
            flow = torch.relu(layer(flow))
            skips.append(flow)
        skips.pop()
        found: list[Tensor] = []
        for layer in self.decoder:
            flow = torch.cat([torch.relu(layer(flow)), skips.pop()], 1)
            found.insert(0, flow)
        return found
