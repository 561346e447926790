"""CAFCN in parts against CAFCN."""

import pytest
import torch

from emdn_models.nets.cafcn import CAFCN
from emdn_train.rewrite.cafcn import SplitCAFCN, rows_as_outputs, sum_of_shifted
from emdn_train.rewrite.edges import convolution


def test_rows_of_kernels_add_up():
    torch.manual_seed(0)
    bias = torch.randn(4).double()
    layer = convolution(torch.randn(4, 5, 3, 3).double(), bias, padding=(1, 1))
    x = torch.randn(2, 5, 6, 7).double()
    found = sum_of_shifted(bias)(rows_as_outputs(layer)(x))
    torch.testing.assert_close(found, layer(x))


@pytest.mark.parametrize("shuffle", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 24), (7, 5), (1, 3)])
def test_the_net_in_parts(shuffle, size):
    torch.manual_seed(0)
    net = CAFCN(features=1 + 3 * shuffle**2, depth=5, shuffle=shuffle).double()
    for p in net.parameters():
        p.data = 0.2 * torch.randn_like(p)
    x = torch.randn(2, 1, *size).double()
    with torch.no_grad():
        torch.testing.assert_close(SplitCAFCN(net)(x), net(x))
