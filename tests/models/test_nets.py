"""The seven nets against the figures of their papers, which spec.py lists; and their spectra."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from emdn_models import MODELS
from emdn_models.nets import NETS, build
from emdn_models.nets.architectures import MCNN, MSDNet, REDNet
from emdn_models.nets.scaling import (
    BLUR,
    denormalise,
    middle,
    noise_map,
    normalise,
    pad_to_multiple,
)
from emdn_models.nets.spectral import FittedGain, SpectralShrinkage, WithSpectrum

CASES = [(name, preset) for name, spec in MODELS.items() for preset in spec.presets]

# GFLOP of the convolutions for 1 x 1 x 256 x 256, from the papers' layer lists.
PAPER_GFLOP = {
    "cafcn": 85.8,
    "dncnn": 72.6,
    "ffdnet": 15.9,
    "unet": 1.34,
    "rednet": 135.4,
    "mcnn": 35.5,
    "msdnet": 5.97,
}


@pytest.mark.parametrize("name", PAPER_GFLOP)
def test_paper_gflop(name):
    assert list(MODELS) == list(NETS) == list(PAPER_GFLOP)
    net = build(name, "paper").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 256, 256))
    assert counter.get_total_flops() / 1e9 == pytest.approx(PAPER_GFLOP[name], rel=0.006)


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_size_and_start(name, preset):
    """New nets start at the mean, zero in noise units, or at what they correct."""
    chosen = MODELS[name].presets[preset]
    net, x = build(name, preset).eval(), torch.randn(1, chosen.frames, 64, 64)
    assert sum(p.numel() for p in net.parameters()) == chosen.parameters
    assert net.multiple == chosen.multiple
    with torch.no_grad():
        y = net(x)
        adds = isinstance(net, WithSpectrum) or net.adds_to_input
        expected = x * adds
        if isinstance(net, WithSpectrum):
            frame, joined = middle(x), net.joined(x)
            largest, other = (one(frame) for one in net.shrinkages)
            torch.testing.assert_close(joined[:, :3], torch.cat([largest, frame, other], 1))
            expected = largest
    assert y.shape == (1, 1, 64, 64)
    if (name, preset) != ("unet", "paper"):  # the benchmark's has torch's own start
        torch.testing.assert_close(y, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_any_size_comes_back(name):
    net = build(name).eval()
    for size in (1, 1), (3, 5), (17, 16), (33, 70), (64, 64):
        x = torch.randn(2, 1, *size)
        with torch.no_grad():
            y = net(x, torch.ones_like(x))
        assert y.shape == x.shape
        assert y.isfinite().all()


def plain(net, x):
    """Compute RED-Net and MSDNet layer by layer, as their papers write them; others as they do."""
    flow = net.pack(x)
    if isinstance(net, MSDNet):
        for layer in net.layers:
            flow = torch.cat([flow, layer(flow).relu()], 1)
        flow = net.last(flow)
    elif isinstance(net, REDNet):
        skips = [flow[:, : net.shuffle**2]]
        for layer in net.encoder:
            flow = layer(flow).relu()
            skips.append(flow)
        for level, layer in zip(range(len(net.decoder))[::-1], net.decoder, strict=True):
            flow = layer(flow) + (0 if level % 2 else skips[level])
            flow = flow.relu() if level else flow
    else:
        return net(x)
    return net.unpack(flow, x)


@pytest.mark.parametrize(
    "net",
    [REDNet(8, 8, 2), MCNN(4, 4, widest=2), MSDNet(23, 2, 2, 3), MSDNet(6, 1, 1, 3)],
    ids=["rednet", "mcnn", "msdnet", "msdnet, one block"],
)
@pytest.mark.parametrize("size", [(32, 48), (21, 5), (1, 3)])
def test_faster_forms_compute_the_same(net, size, monkeypatch):
    """In blocks, by turned kernels; and transposed, or by pixel-shuffle, in exported graphs."""
    torch.manual_seed(0)
    for parameter in net.double().parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, 1, *size).double()
    with torch.no_grad():
        expected = plain(net, x)
        torch.testing.assert_close(net(x), expected)
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("margin", [0, 7, 32])
@pytest.mark.parametrize("multiple", [1, 4, 32])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (8, 31), (64, 32)])
def test_padding_is_numpys_mirror_however_short_the_side(size, multiple, margin):
    x = torch.randn(2, 3, *size)
    ends = [(margin, -length % multiple + margin) for length in size]
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), *ends], mode="symmetric")
    assert np.array_equal(pad_to_multiple(x, multiple, margin).numpy(), expected)


@pytest.mark.parametrize("dose", [0.5, 8.0, 900.0])
def test_noise_has_unit_variance_at_every_dose(dose):
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((4, 1, 128, 128), dose))
    scale = torch.full((4, 1, 1, 1), dose)
    x = normalise(counts, scale)
    assert float(x.mean()) == pytest.approx(0, abs=0.02)
    assert float(x.std()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(denormalise(x, scale), counts, atol=1e-4 * dose, rtol=0)
    assert float(noise_map(counts, scale).mean()) == pytest.approx(1, abs=0.03)


def test_noise_map_follows_the_local_dose_up_to_the_edges_and_down_to_no_electrons():
    torch.manual_seed(0)
    beam = torch.linspace(10, 1000, 256).expand(1, 1, 256, 256)
    found = noise_map(torch.poisson(beam), torch.full((1, 1, 1, 1), 505.0))
    inner = (..., slice(BLUR, -BLUR))  # at an edge the window is one-sided
    expected = (beam / 505).sqrt().mean(-2)
    torch.testing.assert_close(found.mean(-2)[inner], expected[inner], atol=0.03, rtol=0.03)
    for electrons, expected in ((4.0, 2.0), (-1.0, 1 / BLUR)):
        even = torch.full((1, 1, 12, 7), electrons)
        found = noise_map(even, torch.ones(1, 1, 1, 1))
        torch.testing.assert_close(found, torch.full_like(even, expected))


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
    ends = zip(at, reach, strict=True)
    return float(power[tuple(slice(max(0, one - far), one + far + 1) for one, far in ends)].mean())


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
