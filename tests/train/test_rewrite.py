"""Each rewrite against the layer that it replaces."""

import pytest
import torch
from torch import nn

from emdn_models import MODELS
from emdn_models.nets import build
from emdn_models.nets.mcnn import Up
from emdn_train.rewrite import ShuffledUp, rewritten, transposed_as_conv


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


@pytest.mark.parametrize("name", MODELS)
def test_whole_nets(name):
    torch.manual_seed(0)
    net = build(name).double().eval()
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    x = torch.randn(1, 1, 37, 64, dtype=torch.double)
    faster = rewritten(net)
    with torch.no_grad():
        torch.testing.assert_close(faster(x), net(x))
    assert not any(isinstance(m, nn.ConvTranspose2d | Up) for m in faster.modules())
