"""Each rewrite against the layer that it replaces."""

import pytest
import torch
from torch import nn

from emdn_models.nets.mcnn import Up
from emdn_train.rewrite.layers import ShuffledUp, transposed_as_conv


@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolution(bias):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(5, 3, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 5, 9, 7, dtype=torch.double)
    torch.testing.assert_close(transposed_as_conv(layer)(x), layer(x))


@pytest.mark.parametrize("outputs", [1, 6])
def test_up(outputs):
    torch.manual_seed(0)
    layer = Up(5, outputs).double()
    x = torch.randn(2, 5, 9, 7, dtype=torch.double)
    torch.testing.assert_close(ShuffledUp(layer)(x), layer(x))
