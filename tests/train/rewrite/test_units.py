"""Intensities around a net, folded, against `emdn_train.onnx_graph.Graph`."""

import pytest
import torch
from torch.nn import functional

from emdn_models.nets.electrons import BLUR
from emdn_models.nets.ffdnet import FFDNet
from emdn_models.nets.rednet import REDNet
from emdn_models.nets.unet import UNet
from emdn_train.onnx_graph import Graph
from emdn_train.rewrite import rewritten
from emdn_train.rewrite.units import FoldedGraph, separable_blur


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (30, 17)])
def test_the_blur_is_separable(size):
    x = torch.randn(2, 1, *size, dtype=torch.double)
    expected = functional.avg_pool2d(x, BLUR, 1, BLUR // 2, count_include_pad=False)
    torch.testing.assert_close(separable_blur(x), expected)


# One that adds to its input, one that reads the noise, one that does neither.
@pytest.mark.parametrize("build", [lambda: REDNet(8, 10, 2), lambda: FFDNet(6, 4), UNet])
def test_folded_units(build):
    torch.manual_seed(0)
    net = build()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    graph = Graph(net.double().eval())
    # The dose falls to nothing on one side, where the noise map has its lower limit.
    scale, offset, gain = (
        torch.tensor(pair, dtype=torch.double).reshape(2, 1, 1, 1)
        for pair in ((4.0, 0.3), (120.0, -7.0), (28.0, 0.5))
    )
    electrons = torch.poisson(scale * torch.linspace(2, 0, 40).expand(2, 1, 33, 40))
    frames = electrons * gain + offset
    folded = rewritten(graph)
    assert isinstance(folded, FoldedGraph)
    with torch.no_grad():
        expected = graph(frames, scale, offset, gain)
        torch.testing.assert_close(folded(frames, scale, offset, gain), expected)
