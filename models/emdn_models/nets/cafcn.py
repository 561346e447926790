"""Class-aware fully convolutional network."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import conv3x3, crop_to, initialise, pad_to_multiple, pass_through


class CAFCN(nn.Module):
    """Every layer adds its own estimate of the noise.

    Remez, Litany, Giryes, Bronstein, IEEE TIP 2018, arXiv:1808.06562, fig. 2.
    Of each layer's features the first one (``shuffle**2`` of them) is a noise
    estimate, taken before any activation; the others go on through ReLU, but for
    the last but one layer, which has none. Class-aware means that the net is fine-tuned
    for each class of images.

    Parameters
    ----------
    features
        Channels of each layer, the estimate included.
    depth
        Number of 3 x 3 convolutions.
    shuffle
        Work at 1 / shuffle of the resolution behind a pixel-unshuffle: the same
        layers see ``shuffle`` times as far at 1 / shuffle**2 of the cost. 1 in the
        paper.
    inputs
        Channels of the input, 1 in the paper; the noise is that of the first.
    """

    adds_to_input = True

    def __init__(
        self, features: int = 64, depth: int = 20, shuffle: int = 1, inputs: int = 1
    ) -> None:
        super().__init__()
        self.multiple = self.shuffle = shuffle
        self.estimates = shuffle**2
        onwards = features - self.estimates
        self.layers = nn.ModuleList(
            [
                conv3x3(inputs * self.estimates, features),
                *(conv3x3(onwards, features) for _ in range(depth - 2)),
                conv3x3(onwards, self.estimates),
            ]
        )
        initialise(self)
        for layer in self.layers:
            nn.init.zeros_(layer.weight[: self.estimates])  # type: ignore[index]
        if inputs == 1:
            pass_through(list(self.layers), self.estimates, -10.0, first_output=self.estimates)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        flow = functional.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.shuffle)
        total = torch.zeros_like(flow[:, : self.estimates])
        for number, layer in enumerate(self.layers):
            features = layer(flow)
            total = total + features[:, : self.estimates]
            flow = features[:, self.estimates :]
            if number != len(self.layers) - 2:
                flow = torch.relu(flow)
        return x[:, :1] + crop_to(functional.pixel_shuffle(total, self.shuffle), x) / 10
