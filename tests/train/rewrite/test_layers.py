"""Each rewrite against the layer that it replaces."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from emdn_models.nets.mcnn import Up
from emdn_models.nets.spectral import FittedGain
from emdn_train.rewrite.layers import (
    ConvolvedGain,
    PhasedUp,
    ShuffledUp,
    side_by_side,
    transposed_as_conv,
)


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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(9, 7), (1, 1)])
def test_repeated_pixels_and_three_taps(bias, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 5, *size, dtype=torch.double)
    expected = conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(PhasedUp(conv)(x), expected)


@pytest.mark.parametrize("inner", [1, 3, 6])
def test_phases_side_by_side(inner):
    phases = torch.arange(2 * 24 * 5 * 7).reshape(2, 24, 5, 7)
    # A pixel-shuffle has the phases innermost.
    order = torch.arange(24).reshape(-1, 4, inner).transpose(1, 2).flatten()
    expected = functional.pixel_shuffle(phases[:, order], 2)
    assert torch.equal(side_by_side(phases, inner), expected)


def test_gain_by_convolutions():
    torch.manual_seed(0)
    gain = FittedGain(8).double()
    for parameter in gain.parameters():
        torch.nn.init.normal_(parameter)
    power = 5 * torch.rand(2, 3, 8, 4, 5, dtype=torch.double)
    expected = gain(power)
    assert expected.std() > 0.01
    torch.testing.assert_close(ConvolvedGain(gain)(power), expected)
