"""The blocked mixed-scale dense net against the net."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from emdn_models.nets.msdnet import MSDNet
from emdn_train.rewrite.msdnet import BlockedMSDNet, Scatter


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_scatter_is_the_convolution(kernel, dilation, bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 2, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=bias)
    layer.double()
    x = torch.randn(2, 5, 9, 7, dtype=torch.double)
    scatter = Scatter(layer.weight, layer.bias, dilation)
    torch.testing.assert_close(scatter(x), layer(x))


# Depths: less than a block, whole blocks, one layer more than whole blocks, one layer.
@pytest.mark.parametrize("depth", [5, 12, 13, 1])
@pytest.mark.parametrize(("width", "shuffle"), [(1, 1), (2, 2), (3, 1)])
def test_blocked_net(depth, width, shuffle):
    torch.manual_seed(0)
    net = MSDNet(depth, width, dilations=3, shuffle=shuffle).double().eval()
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    x = torch.randn(2, 1, 21, 30, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(BlockedMSDNet(net)(x), net(x))


def test_no_convolution_has_few_outputs(monkeypatch):
    """What onnxruntime would pad to its block is gone."""
    net = BlockedMSDNet(MSDNet(depth=8, dilations=2).eval())
    monkeypatch.delattr(functional, "conv2d")
    assert not any(isinstance(module, nn.Conv2d) for module in net.modules())
    assert net(torch.randn(1, 1, 16, 16)).shape == (1, 1, 16, 16)
