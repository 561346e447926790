"""Normalisation and noise map: what they promise of counts of any dose."""

import pytest
import torch

from emdn_models.nets.scaling import BLUR, denormalise, noise_map, normalise


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


def test_noise_map_follows_the_local_dose():
    torch.manual_seed(0)
    beam = torch.linspace(10, 1000, 256).expand(1, 1, 256, 256)
    scale = torch.full((1, 1, 1, 1), 505.0)
    found = noise_map(torch.poisson(beam), scale)
    inner = (..., slice(BLUR, -BLUR))  # at an edge the window is one-sided
    expected = (beam / 505).sqrt().mean(-2)
    torch.testing.assert_close(found.mean(-2)[inner], expected[inner], atol=0.03, rtol=0.03)


def test_noise_map_at_edges_and_without_electrons():
    scale = torch.ones(1, 1, 1, 1)
    even = torch.full((1, 1, 12, 7), 4.0)
    torch.testing.assert_close(noise_map(even, scale), torch.full_like(even, 2.0))
    dark = torch.zeros(1, 1, 20, 20) - 3
    torch.testing.assert_close(noise_map(dark, scale), torch.full_like(dark, 1 / BLUR))
