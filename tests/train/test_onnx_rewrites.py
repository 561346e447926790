"""Each rewrite against the net, or the layer, that it replaces."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from emdn_models import MODELS
from emdn_models.nets import build
from emdn_models.nets.cafcn import CAFCN
from emdn_models.nets.mcnn import MCNN, Up
from emdn_models.nets.msdnet import MSDNet
from emdn_models.nets.rednet import REDNet
from emdn_models.nets.unet import UNet
from emdn_train.onnx_rewrites import (
    REWRITES,
    Scatter,
    ShuffledUp,
    convolution,
    packing,
    rewritten,
    transposed_as_conv,
)

NETS = {
    "cafcn": lambda: CAFCN(12, 5, 2),
    "cafcn, paper": lambda: CAFCN(8, 4),
    "cafcn, beside spectra": lambda: CAFCN(20, 4, 4, inputs=3),
    "unet": lambda: UNet(5, 3, shuffle=2, benchmark=False),
    "unet, benchmark": lambda: UNet(5, 3),
    "rednet": lambda: REDNet(8, 8, 2),
    "mcnn": lambda: MCNN(4, 4, widest=2),
    "msdnet": lambda: MSDNet(23, width=2, dilations=3, shuffle=2),
    "msdnet, one block": lambda: MSDNet(6, dilations=3),
}


def drawn(net: nn.Module) -> nn.Module:
    net = net.double().eval()
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    return net


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(32, 48), (21, 5), (1, 3)])
def test_nets(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = drawn(NETS[name]())
    x = torch.randn(2, 3 if "spectra" in name else 1, *size).double()
    with torch.no_grad():
        torch.testing.assert_close(rewritten(net)(x), net(x))


@pytest.mark.parametrize("name", MODELS)
def test_the_net_itself_stays_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, "shipped").double().eval()
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(1, 1, 37, 64).double()
    faster = rewritten(net)
    with torch.no_grad():
        torch.testing.assert_close(faster(x), net(x))
    assert not any(type(module) in REWRITES for module in faster.modules())
    assert not any(module.training for module in faster.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(5, 3, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 5, 9, 7).double()
    torch.testing.assert_close(transposed_as_conv(layer)(x), layer(x))


def test_up() -> None:
    torch.manual_seed(0)
    layer = Up(5, 6).double()
    x = torch.randn(2, 5, 9, 7).double()
    torch.testing.assert_close(ShuffledUp(layer)(x), layer(x))


@pytest.mark.parametrize("shuffle", [1, 2, 4])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3)])
def test_packing(shuffle: int, kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 2 * shuffle**2, *kernel), torch.randn(5)
    layer = convolution(weight, bias, padding=(kernel[0] // 2, kernel[1] // 2))
    x = torch.randn(2, 2, 3 * shuffle, 7 * shuffle)
    expected = layer(functional.pixel_unshuffle(x, shuffle))
    torch.testing.assert_close(packing(layer, shuffle)(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 4), (1, 1)])
def test_scatter(kernel: int, dilation: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(2, 5, kernel, kernel).double(), torch.randn(2).double()
    x = torch.randn(2, 5, 9, 7).double()
    expected = functional.conv2d(x, weight, bias, 1, dilation * (kernel // 2), dilation)
    torch.testing.assert_close(Scatter(weight, bias, dilation)(x), expected)
