"""What the tests of training share: a net that is fitted in no time, and one set of options."""

import pytest
import torch
from torch import nn

from emdn_models import MODELS
from emdn_models.nets import NETS
from emdn_models.spec import ModelSpec, Preset
from emdn_train.config import FitConfig


class Tiny(nn.Module):
    """Map (N, 1, H, W) to the same by two convolutions, which begin as averages of 3 x 3."""

    multiple = 1

    def __init__(self, batch_norm):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(4, 1, 3, padding=1),
        )
        signs = torch.tensor([1.0, -1.0, 0.1, -0.1]) / 9  # of what is positive, and negative
        with torch.no_grad():
            self.layers[0].weight.copy_(signs.view(4, 1, 1, 1).expand(4, 1, 3, 3))
            self.layers[3].weight.copy_(signs.view(1, 4, 1, 1).expand(1, 4, 3, 3))
            self.layers[0].bias.zero_()
            self.layers[3].bias.zero_()

    def forward(self, x, noise=None):
        return self.layers(x)


@pytest.fixture
def _tiny_net(monkeypatch):
    """Add the models ``tiny`` and ``small``, with batch norm in ``paper``."""
    for name in ("tiny", "small"):
        presets = {
            preset: Preset({"batch_norm": norm}, 77, (5, 5), 1)
            for preset, norm in (("shipped", False), ("paper", True))
        }
        spec = ModelSpec(name, "these tests", presets)
        monkeypatch.setitem(MODELS, name, spec)
        monkeypatch.setitem(NETS, name, Tiny)


@pytest.fixture
def config(gratings, tmp_path, _tiny_net):
    """Give a short fit of ``tiny`` to the gratings: two epochs of two steps."""

    def changed(out=tmp_path, **changes) -> FitConfig:
        defaults = {
            "data": gratings, "out": out, "models": ("tiny",), "batch_size": 16, "patch": 32,
            "epochs": 2, "device": "cpu", "lr": 1e-3,
        }  # fmt: skip
        return FitConfig(**(defaults | changes))

    return changed
