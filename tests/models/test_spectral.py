"""Shrunk spectra: against a direct transform, and what they do to lattices, noise and defects."""

import itertools
import math

import pytest
import torch
from torch import nn

from emdn_models.nets.blocks import pad_to_multiple
from emdn_models.nets.spectral import FittedGain, SpectralShrinkage, WithSpectrum


def lattice(height, width, amplitude):
    y, x = torch.arange(height)[:, None] / 3.1, torch.arange(width)[None] / 2.7
    return (amplitude * torch.cos(x + 0.4 * y) * torch.cos(y))[None, None]


def direct(x, noise, window):
    """Shrink window by window with torch's own transform, in double precision."""
    hop = window // 2
    padded, variance = (
        pad_to_multiple(part.double(), hop, hop)[:, 0] for part in (x, noise.square())
    )
    sine = torch.sin(math.pi * (torch.arange(window, dtype=torch.double) + 0.5) / window)
    weight = torch.outer(sine, sine)
    threshold = 0.75 * math.log(window**2 / 2)
    out = torch.zeros_like(padded)
    for top in range(0, padded.shape[1] - window + 1, hop):
        for left in range(0, padded.shape[2] - window + 1, hop):
            part = (..., slice(top, top + window), slice(left, left + window))
            spectrum = torch.fft.rfft2(padded[part] * weight)
            expected = (variance[part] * weight**2).sum((1, 2), keepdim=True)
            power = spectrum.abs() ** 2 / expected
            gain = torch.where(power > threshold, 1 - (threshold / power) ** 4, 0)
            out[part] += torch.fft.irfft2(spectrum * gain, s=(window, window)) * weight
    return out[:, None, hop : hop + x.shape[2], hop : hop + x.shape[3]]


@pytest.mark.parametrize("size", [(96, 80), (37, 70), (5, 3), (1, 1)])
@pytest.mark.parametrize("window", [16, 32])
def test_it_is_the_transform_of_every_window(size, window):
    torch.manual_seed(0)
    noise = 0.5 + torch.rand(2, 1, *size)
    x = lattice(*size, 2.0) + noise * torch.randn(2, 1, *size)
    found = SpectralShrinkage(window)(x, noise)
    torch.testing.assert_close(found.double(), direct(x, noise, window), atol=2e-5, rtol=0)


def mean(power, at, reach):
    """Average (I, w, J, L) over neighbours up to ``reach`` away on each axis, if there."""
    ranges = (
        range(max(0, one - step), min(size, one + step + 1))
        for one, step, size in zip(at, reach, power.shape, strict=True)
    )
    values = [float(power[place]) for place in itertools.product(*ranges)]
    return sum(values) / len(values)


def test_a_coefficient_is_judged_by_its_neighbours():
    """Against a sum over every neighbour, for windows in the corner, at an edge and inside."""
    torch.manual_seed(5)
    window, gain = 8, FittedGain(8, 3)
    power = torch.rand(1, 4, window, 5, window // 2 + 1) * 4
    for layer in gain.parameters():
        nn.init.normal_(layer)
    found = gain(power)
    for at in itertools.product((0, 1, 3), (0, 4, 7), (0, 2), (0, 2, 4)):
        (i, k, j, column), one = at, power[0]
        reaches = [(0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1), (1, 1, 1, 1), (2, 0, 2, 0)]
        seen = [math.log(mean(one, at, reach) + 0.05) for reach in reaches]
        seen.append(math.log(float(one[i, :, j].mean()) + 0.05))
        seen.append(math.hypot(k - 4, column) / 2 - 1)
        hidden = gain.second(gain.first(torch.tensor(seen)).relu()).relu()
        expected = gain.last(hidden).sigmoid()
        torch.testing.assert_close(found[(0, *at)], expected.squeeze(), atol=1e-5, rtol=1e-4)


class Nothing(nn.Module):
    """A net that corrects nothing."""

    multiple = 1

    def __init__(self, adds):
        super().__init__()
        self.adds_to_input = adds

    def forward(self, x, noise=None):
        return x[:, :1] * float(self.adds_to_input)


@pytest.mark.parametrize("adds", [True, False])
def test_a_net_corrects_the_largest_window(adds):
    torch.manual_seed(3)
    x, noise = torch.randn(1, 1, 64, 96) + lattice(64, 96, 1.0), torch.full((1, 1, 64, 96), 0.9)
    net = WithSpectrum(Nothing(adds), (64, 32))
    largest, other = net.shrinkages
    torch.testing.assert_close(net(x, noise), largest(x, noise))
    joined = net.joined(x, noise)
    torch.testing.assert_close(joined[:, 1:2], x)
    torch.testing.assert_close(joined[:, 2:], other(x, noise))
    assert net.multiple == 32
