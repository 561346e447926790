"""U-Net and the multiscale CNN without joins against the nets as they are."""

import copy

import pytest
import torch
from torch.nn import functional

from emdn_models.nets.mcnn import MCNN
from emdn_models.nets.unet import UNet
from emdn_train.rewrite.edges import Unpacking, convolution
from emdn_train.rewrite.pyramids import JoinlessMCNN, JoinlessUNet, reading_packed

CASES = {
    "unet": (JoinlessUNet, lambda: UNet(5, 3, shuffle=2, benchmark=False)),
    "unet, whole blocks": (JoinlessUNet, lambda: UNet(8, 3, benchmark=False)),
    "unet, benchmark": (JoinlessUNet, lambda: UNet(5, 3)),
    "mcnn": (JoinlessMCNN, lambda: MCNN(4, 4, widest=2)),
    "mcnn, two levels": (JoinlessMCNN, lambda: MCNN(4, 2)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(32, 48), (21, 5), (1, 3)])
def test_the_net_without_joins(name, size):
    torch.manual_seed(0)
    joinless, build = CASES[name]
    net = build().double()
    for p in net.parameters():
        p.data = 0.2 * torch.randn_like(p)
    for key, buffer in net.named_buffers():
        if "running" in key:
            buffer.uniform_(0.5, 2)
    net.eval()
    x = torch.randn(2, 1, *size).double()
    with torch.no_grad():
        torch.testing.assert_close(joinless(copy.deepcopy(net)).eval()(x), net(x))


@pytest.mark.parametrize("size", [(4, 6), (8, 2)])
def test_reading_packed(size):
    torch.manual_seed(0)
    layer = Unpacking(
        convolution(torch.randn(4, 5, 3, 3).double(), torch.randn(4).double(), padding=(1, 1)), 2
    )
    x = torch.randn(2, 5, *size).double()
    found = reading_packed(layer)(functional.pixel_unshuffle(x, 2))
    torch.testing.assert_close(found, layer.packed(x))
