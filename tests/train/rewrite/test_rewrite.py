"""Whole nets before and after every rewrite."""

import pytest
import torch

from emdn_models import MODELS
from emdn_models.nets import build
from emdn_train.rewrite import REWRITES, rewritten

# 42 million parameters.
LARGE = ("mcnn", "paper")
CASES = [
    pytest.param(name, preset, marks=pytest.mark.slow if (name, preset) == LARGE else ())
    for name, spec in MODELS.items()
    for preset in spec.presets
]


@pytest.mark.parametrize(("name", "preset"), CASES)
@pytest.mark.parametrize(("height", "width"), [(37, 64), (3, 1)])
def test_whole_nets(name, preset, height, width):
    torch.manual_seed(0)
    net = build(name, preset).double().eval()
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    x = torch.randn(2, 1, height, width, dtype=torch.double)
    noise = torch.rand_like(x) + 0.5
    before = {key: value.clone() for key, value in net.state_dict().items()}
    faster = rewritten(net)
    with torch.no_grad():
        torch.testing.assert_close(faster(x, noise), net(x, noise))
    assert not any(type(module) in REWRITES for module in faster.modules())
    assert not any(module.training for module in faster.modules())
    # The net itself stays as it was.
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
