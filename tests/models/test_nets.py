"""The seven nets against the figures of their papers, which spec.py lists; padding and scaling."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from emdn_models import MODELS, ModelError
from emdn_models.nets import NETS, build
from emdn_models.nets.blocks import pad_to_multiple
from emdn_models.nets.scaling import BLUR, denormalise, noise_map, normalise
from emdn_models.nets.spectral import WithSpectrum

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
    assert list(MODELS) == list(NETS) == list(PAPER_GFLOP)
    assert all(name == spec.name for name, spec in MODELS.items())
    assert all({"paper", "shipped"} <= set(spec.presets) for spec in MODELS.values())


@pytest.mark.parametrize("name", PAPER_GFLOP)
def test_paper_gflop(name):
    net = build(name, "paper").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 256, 256))
    assert counter.get_total_flops() / 1e9 == pytest.approx(PAPER_GFLOP[name], rel=0.006)


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_size_and_start(name, preset):
    """New nets start at the mean, zero in noise units, or at the spectral estimate."""
    chosen = MODELS[name].presets[preset]
    net, x = build(name, preset).eval(), torch.randn(1, chosen.frames, 32, 32)
    assert sum(p.numel() for p in net.parameters()) == chosen.parameters
    with torch.no_grad():
        y = net(x)
        expected = net.joined(x)[:, :1] if isinstance(net, WithSpectrum) else 0 * x
    assert y.shape == (1, 1, 32, 32)
    if (name, preset) != ("unet", "paper"):  # the benchmark's has torch's own start
        torch.testing.assert_close(y, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_any_size_comes_back(name):
    net = build(name).eval()
    assert net.multiple == MODELS[name].presets["shipped"].multiple
    for size in (1, 1), (3, 5), (17, 16), (33, 70), (64, 64):
        x = torch.randn(2, 1, *size)
        with torch.no_grad():
            y = net(x, torch.ones_like(x))
        assert y.shape == x.shape
        assert y.isfinite().all()


@pytest.mark.parametrize("margin", [0, 7, 32])
@pytest.mark.parametrize("multiple", [1, 4, 32])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (8, 31), (64, 32)])
def test_padding_is_numpys_mirror_however_short_the_side(size, multiple, margin):
    x = torch.randn(2, 3, *size)
    ends = [(margin, -length % multiple + margin) for length in size]
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), *ends], mode="symmetric")
    assert np.array_equal(pad_to_multiple(x, multiple, margin).numpy(), expected)


def test_mcnn_is_judged_at_every_scale_by_what_it_gives():
    net, x, judged = build("mcnn"), torch.randn(1, 1, 64, 128), []
    torch.nn.init.normal_(net.net.heads[0].conv.weight, std=0.1)

    def error(*pair):
        judged.append(pair)
        return torch.tensor(1.0)

    with torch.no_grad():
        joined = net.joined(x)
        assert net.loss(joined, x, x, error) == 1 + 1 / 4 + 1 / 16 + 1 / 64
        torch.testing.assert_close(judged[0][0], net(x))
        for scale, (prediction, truth) in enumerate(judged):
            torch.testing.assert_close(truth, torch.nn.functional.avg_pool2d(x, 2**scale))
            if scale:  # new heads correct nothing
                estimate = torch.nn.functional.avg_pool2d(joined[:, :1], 2**scale)
                torch.testing.assert_close(prediction, estimate)
        odd = joined[..., :31], x[..., :31]
        assert net.loss(*odd, x, error) == 1  # no multiple: the finest alone


def test_unknown_names_are_told():
    with pytest.raises(ModelError, match="cafcn, dncnn"):
        build("resnet")
    with pytest.raises(ModelError, match="paper, shipped"):
        build("unet", "huge")


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
