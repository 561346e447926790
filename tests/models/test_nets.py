"""The seven nets against the figures of their papers, which spec.py lists."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from emdn_models import MODELS, ModelError
from emdn_models.nets import NETS, build
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


def test_the_seven_are_listed_once():
    assert list(MODELS) == list(NETS)
    assert all(name == spec.name for name, spec in MODELS.items())
    assert all({"paper", "shipped"} <= set(spec.presets) for spec in MODELS.values())


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_parameter_count(name, preset):
    net = build(name, preset)
    assert sum(p.numel() for p in net.parameters()) == MODELS[name].presets[preset].parameters


@pytest.mark.parametrize("name", PAPER_GFLOP)
def test_paper_gflop(name):
    net = build(name, "paper").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 256, 256))
    assert counter.get_total_flops() / 1e9 == pytest.approx(PAPER_GFLOP[name], rel=0.006)


def _positive(net: nn.Module) -> nn.Module:
    """Make every path through the net contribute with one sign: none can cancel."""
    for p in net.parameters():
        p.data = 0.5 + torch.rand_like(p) / 2
        if p.dim() > 1:
            p.data /= p[0].numel()
    return net.double().eval()


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_receptive_field(name, preset, monkeypatch):
    # Which pixel of a window is the largest is chance: averaging sees them all.
    monkeypatch.setattr(functional, "max_pool2d", functional.avg_pool2d)
    expected = MODELS[name].presets[preset]
    options = dict(expected.options)
    if "features" in options:
        # Width does not change the field; what passes through needs some, though.
        options["features"] = 1 if name == "mcnn" else 16 * int(options.get("shuffle", 1))
    net = _positive(NETS[name](**options))
    step = expected.multiple
    width = (2 * expected.receptive_field[1] // step + 2) * step
    x = torch.rand(1, 1, max(step, 4), width, dtype=torch.double, requires_grad=True)
    row = net(x)[0, 0, step // 2]
    seen = set()
    # A net beside spectra sees whole windows: the ends of its cells are enough.
    for position in range(min(step, 32)) if not expected.windows else (0, 1, 31, 32, 62, 63):
        centre = width // 2 // step * step + position
        (gradient,) = torch.autograd.grad(row[centre], x, retain_graph=True)
        columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
        first, last = int(columns[0]), int(columns[-1])
        if expected.windows:
            # Both windows that hold it, and the two on either side that theirs are judged with.
            hop = max(expected.windows) // 2
            first, last = (first // hop - 3) * hop, (last // hop + 4) * hop - 1
        seen.add(last - first + 1)
    assert (min(seen), max(seen)) == expected.receptive_field


class Chance(nn.Module):
    """Factors that have nothing to do with the powers."""

    def forward(self, power):
        return torch.rand_like(power)


@pytest.mark.parametrize(("gain", "reach"), [(Chance(), 0), (FittedGain(64), 64)])
def test_a_spectrum_sees_the_windows_that_hold_a_pixel_and_those_beside(gain, reach):
    for weight in gain.parameters():
        nn.init.normal_(weight, std=0.1)
    x = torch.rand(1, 1, 64, 1024, dtype=torch.double, requires_grad=True)
    row = SpectralShrinkage(64, gain).double()(x)[0, 0, 20]
    for pixel in (512, 526, 543):
        (gradient,) = torch.autograd.grad(row[pixel], x, retain_graph=True)
        columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
        assert (int(columns[0]), int(columns[-1])) == (480 - reach, 575 + reach)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 16), (33, 70), (64, 64)])
def test_any_size_comes_back(name, size):
    x = torch.randn(2, 1, *size)
    net = build(name).eval()
    assert net.multiple == MODELS[name].presets["shipped"].multiple
    with torch.no_grad():
        y = net(x, torch.ones_like(x))
    assert y.shape == x.shape
    assert y.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_padding_mirrors_the_edges(name):
    torch.manual_seed(1)
    net = NETS[name](**MODELS[name].presets["shipped"].options).eval()
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    step = net.multiple
    x = torch.randn(1, 1, step + 1, 2 * step + 1)
    padding = [(0, 0), (0, 0), (0, step - 1), (0, step - 1)]
    padded = torch.from_numpy(np.pad(x.numpy(), padding, mode="symmetric"))
    with torch.no_grad():
        torch.testing.assert_close(net(x), net(padded)[..., : step + 1, : 2 * step + 1])


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_new_nets_start_at_the_mean_or_at_the_shrunk_frame(name, preset):
    # In noise units the mean is zero; the benchmark's U-Net keeps torch's own start.
    frames = MODELS[name].presets[preset].frames
    net, x = build(name, preset).eval(), torch.randn(1, frames, 32, 32)
    with torch.no_grad():
        y = net(x)
        expected = net.joined(x, None)[:, :1] if isinstance(net, WithSpectrum) else 0 * x
    assert y.shape == (1, 1, 32, 32)
    if (name, preset) != ("unet", "paper"):
        torch.testing.assert_close(y, expected, atol=1e-3, rtol=0)


def test_mcnn_is_judged_at_every_scale_by_what_forward_gives():
    net = NETS["mcnn"](features=16, levels=5, widest=4).eval()
    for head in net.heads:
        nn.init.normal_(head.conv.weight)
    x, judged = torch.randn(1, 1, 64, 32), []

    def error(prediction, truth):
        judged.append((prediction, truth))
        return torch.tensor(1.0)

    with torch.no_grad():
        assert net.loss(x, x, x, error) == 1 + 1 / 4 + 1 / 16 + 1 / 64
        torch.testing.assert_close(judged[0][0], net(x))
        torch.testing.assert_close(judged[1][1], nn.functional.avg_pool2d(x, 2))
        for prediction, truth in judged:
            assert prediction.shape == truth.shape
        assert [one.shape[-1] for one, _ in judged] == [32, 16, 8, 4]
        assert net.loss(x[..., :31], x[..., :31], x, error) == 1  # no multiple: the finest alone


def test_unknown_names_are_told():
    with pytest.raises(ModelError, match="cafcn, dncnn"):
        build("resnet")
    with pytest.raises(ModelError, match="paper, shipped"):
        build("unet", "huge")
