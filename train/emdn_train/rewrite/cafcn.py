"""CAFCN without cutting channels."""

import torch
from torch import Tensor, nn

from emdn_models.nets.blocks import crop_to, pad_to_multiple
from emdn_models.nets.cafcn import CAFCN
from emdn_train.rewrite.chains import Residual
from emdn_train.rewrite.edges import Unpacking, convolution, packing, part, scaled


class SplitCAFCN(Residual):
    """CAFCN as a chain of convolutions, and others beside it that sum the estimates.

    Layer i maps flow_i to [estimate_i, onwards_i]. Convolving flow_i once with the
    estimates' kernels and once with the others' gives both without cutting channels.
    An addition is fused into the convolution before it, and the 1 / 10 of the sum is
    in the estimates' kernels.

    A convolution to few channels is slow. So the estimates' kernels are taken apart by
    rows: with E_i, y the 1 x 3 kernel in row y of E_i, and D, y the shift by a row,

        sum over i of E_i * flow_i = sum over y of D_y * (sum over i of E_i, y * flow_i),

    which is three times the channels at a third of the products each, and one shift of
    the finished sum, a 3 x 1 convolution with ones and zeros.
    """

    def __init__(self, net: CAFCN) -> None:
        super().__init__()
        self.multiple = net.multiple
        first, *others = (layer for layer in net.layers if isinstance(layer, nn.Conv2d))
        onwards = slice(net.estimates, None)
        self.trunk = nn.ModuleList(
            [
                packing(part(first, outputs=onwards), net.shuffle),
                *(part(layer, outputs=onwards) for layer in others[:-1]),
            ]
        )
        estimates = [
            scaled(part(layer, outputs=slice(0, net.estimates)), 0.1) for layer in (first, *others)
        ]
        by_rows = [rows_as_outputs(layer) for layer in estimates]
        self.estimates = nn.ModuleList([packing(by_rows[0], net.shuffle), *by_rows[1:]])
        biases = [layer.bias.data for layer in estimates if layer.bias is not None]
        self.shift = Unpacking(sum_of_shifted(torch.stack(biases).sum(0)), net.shuffle)

    def residual(self, x: Tensor) -> Tensor:
        """Map (N, 1, H, W) to a tenth of the sum of all estimates."""
        flow = pad_to_multiple(x, self.multiple)
        total = self.estimates[0](flow)
        for number, layer in enumerate(self.trunk, 1):
            flow = layer(flow)
            if number != len(self.trunk):
                flow = torch.relu(flow)
            total = total + self.estimates[number](flow)
        return crop_to(self.shift(total), x)


def rows_as_outputs(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the rows of a 3 x 3 kernel as kernels of their own, without the bias.

    Output 3 o + y is what row y of output o's kernel gives at the same pixel.
    """
    weight = conv.weight.data.transpose(1, 2).flatten(0, 1)[:, :, None]
    return convolution(weight, None, padding=(0, 1))


def sum_of_shifted(bias: Tensor) -> nn.Conv2d:
    """Return what makes outputs of `rows_as_outputs` those of the 3 x 3 convolution.

    A pixel's row y of the kernel reads the image y - 1 rows below; beyond the edges
    there is nothing, in both.
    """
    outputs = len(bias)
    weight = bias.new_zeros(outputs, outputs, 3, 3)
    weight[range(outputs), range(outputs)] = torch.eye(3, dtype=bias.dtype)
    return convolution(weight.flatten(1, 2)[..., None], bias, padding=(1, 0))
