"""DnCNN."""

from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.blocks import conv3x3, crop_to, initialise, pad_to_multiple, pass_through


class DnCNN(nn.Module):
    """A plain chain of convolutions that predicts the noise.

    Zhang, Zuo, Chen, Meng, Zhang, IEEE TIP 26(7), 2017, arXiv:1608.03981, fig. 1.

    Parameters
    ----------
    features
        Channels of each layer.
    depth
        Number of 3 x 3 convolutions.
    shuffle
        Work at 1 / shuffle of the resolution behind a pixel-unshuffle; 1 in the
        paper.
    batch_norm
        Normalise the inner layers, as in the paper. The shipped preset does not:
        over a range of doses the batch statistics are no good description of one
        frame.
    inputs
        Channels of the input, 1 in the paper; the noise is that of the first.
    """

    adds_to_input = True

    def __init__(
        self,
        features: int = 64,
        depth: int = 17,
        shuffle: int = 1,
        batch_norm: bool = True,
        inputs: int = 1,
    ) -> None:
        super().__init__()
        self.multiple = self.shuffle = shuffle
        layers: list[nn.Module] = [conv3x3(inputs * shuffle**2, features), nn.ReLU()]
        for _ in range(depth - 2):
            layers.append(conv3x3(features, features, bias=not batch_norm))
            if batch_norm:
                # 0.05 in torch's convention is the 0.95 of the authors' framework.
                layers.append(nn.BatchNorm2d(features, momentum=0.05))
            layers.append(nn.ReLU())
        last = conv3x3(features, shuffle**2)
        self.layers = nn.Sequential(*layers, last)
        initialise(self, None if inputs == 1 else last)
        if inputs == 1:
            pass_through([m for m in layers if isinstance(m, nn.Conv2d)] + [last], shuffle**2, 1.0)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        packed = functional.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.shuffle)
        return x[:, :1] - crop_to(functional.pixel_shuffle(self.layers(packed), self.shuffle), x)
