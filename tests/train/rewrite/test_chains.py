"""Chains with strided edges against the nets as they are."""

import copy

import pytest
import torch

from emdn_models.nets.dncnn import DnCNN
from emdn_models.nets.ffdnet import FFDNet
from emdn_models.nets.rednet import REDNet
from emdn_train.rewrite.chains import EdgedDnCNN, EdgedFFDNet, EdgedREDNet

CASES = {
    "dncnn": (EdgedDnCNN, lambda shuffle: DnCNN(33, 4, shuffle)),
    "ffdnet": (EdgedFFDNet, lambda shuffle: FFDNet(6, 4, shuffle)),
    "rednet": (EdgedREDNet, lambda shuffle: REDNet(33, 10, shuffle)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shuffle", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 24), (7, 5), (1, 3)])
def test_the_net_with_strided_edges(name, shuffle, size):
    torch.manual_seed(0)
    edged, build = CASES[name]
    net = build(shuffle).double()
    for p in net.parameters():
        p.data = 0.2 * torch.randn_like(p)
    for key, buffer in net.named_buffers():
        if "running" in key:
            buffer.uniform_(0.5, 2)
    net.eval()
    x, noise = torch.randn(2, 1, *size).double(), torch.rand(2, 1, *size).double()
    found = edged(copy.deepcopy(net)).eval()
    with torch.no_grad():
        torch.testing.assert_close(found(x, noise), net(x, noise))
        torch.testing.assert_close(found(x), net(x))
