"""Noise: its statistics, its order and its units."""

import math

import pytest
import torch

from emdn_train import noise
from emdn_train.noise import DQE0, KNEE, POWER


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(n: int, side: int = 128, level: float = 1.0) -> torch.Tensor:
    return torch.full((n, 1, side, side), level)


@pytest.mark.parametrize("electrons", [0.3, 5.0, 200.0])
def test_counting_is_poisson_after_dqe(electrons: float) -> None:
    noisy, target = noise.record(flat(8, level=electrons), "counting", generator())
    expected = DQE0["counting"] * electrons
    torch.testing.assert_close(target, torch.full_like(target, expected))
    n = noisy.numel()
    assert torch.equal(noisy, noisy.round())
    # four standard errors of a Poisson mean and variance
    assert abs(noisy.mean() - expected) < 4 * math.sqrt(expected / n)
    assert noisy.var() / expected == pytest.approx(1.0, abs=4 * math.sqrt((2 + 1 / expected) / n))
    power = torch.fft.rfft2(noisy - target).abs().pow(2).mean((0, 1))  # and white
    rings = power[:, :64].reshape(8, 16, 8, 8).mean((1, 3)) / power.mean()
    assert rings.sub(1).abs().max() < 0.25


def test_ccd_noise_has_the_spectrum_of_its_ntf_and_no_bias() -> None:
    """Counted noise goes through the NTF, dark and read-out noise do not."""
    electrons = 400.0
    noisy, target = noise.record(flat(48, level=electrons), "ccd", generator())
    power = torch.fft.rfft2(noisy - target).abs().pow(2).mean((0, 1)) / 128**2
    along = power[0, 1:].double()
    q = torch.arange(1, 65, dtype=torch.float64) / 64

    def counted(q):
        return DQE0["ccd"] * electrons / (1 + (q / KNEE) ** POWER)

    expected = counted(q) + power[64, 64] - counted(math.sqrt(2))
    assert (along / expected).reshape(8, 8).mean(1).sub(1).abs().max() < 0.25
    assert (noisy - target).mean() == pytest.approx(0.0, abs=0.1)


def test_ccd_target_is_blurred_by_the_mtf() -> None:
    """A sine at half of Nyquist keeps MTF(0.5) of its contrast; the mean keeps DQE(0)."""
    wave = 1 + 0.5 * torch.cos(math.pi / 2 * torch.arange(128.0)).expand(1, 1, 128, 128)
    _, target = noise.record(100 * wave, "ccd", generator())
    inner = target[0, 0, 16:-16, 16:-16] / (100 * DQE0["ccd"])
    expected = 0.5 / (1 + (0.5 / KNEE) ** POWER)
    assert inner.mean() == pytest.approx(1.0, abs=0.005)
    assert (inner.max() - inner.min()) / 2 == pytest.approx(expected, rel=0.03)


def test_a_patch_sees_the_beam_of_the_field_it_is_cut_from() -> None:
    beams = noise.draw_profile(4, generator())
    whole = noise.profile_map(beams, (256, 256), 256)
    torch.testing.assert_close(whole.mean((1, 2, 3)), torch.ones(4), rtol=2e-3, atol=0)
    assert (whole > 0).all()
    corner = torch.tensor([[0.0, 0.0], [10.0, 70.0], [192.0, 192.0], [100.0, 3.0]])
    patches = noise.profile_map(beams, (64, 64), 256, corner)
    for index, (row, column) in enumerate(corner.int().tolist()):
        expected = whole[index, :, row : row + 64, column : column + 64]
        torch.testing.assert_close(patches[index], expected)
    _, target = noise.draw(flat(256, 64), torch.full((256,), 1e3), "counting", generator(), 256)
    spread = target.mean((1, 2, 3)) / (1e3 * DQE0["counting"])
    # patches lie in the bright and in the dark parts of their fields
    assert spread.mean() == pytest.approx(1.0, abs=0.15)
    assert spread.std() > 0.1


def test_defects_come_in_their_shares(monkeypatch) -> None:
    bad, _ = noise.draw_defects(3000, (32, 32), generator())
    lines = bad.all(-1).any(-1) | bad.all(-2).any(-1)
    assert lines.float().mean() == pytest.approx(0.02, abs=0.008)
    monkeypatch.setattr(noise, "BAD_LINES", 0.0)
    bad, level = noise.draw_defects(2000, (64, 64), generator())
    dead = (bad & (level == 0)).float().mean().item()
    hot = (bad & (level > 0)).float().mean().item()
    # means of the log-uniform ranges 1e-5 to 1e-3 and 1e-5 to 1e-4
    assert dead == pytest.approx((1e-3 - 1e-5) / math.log(100), rel=0.15)
    assert hot == pytest.approx((1e-4 - 1e-5) / math.log(10), rel=0.25)
    assert (level[~bad] == 0).all()
    noisy = noise.apply_defects(flat(2000, 64, 85.0), bad, level)
    torch.testing.assert_close(noisy[bad], (85 * level[bad]).round())
    assert (noisy[~bad] == 85).all()


def test_scan_lines_jitter_and_flicker_around_a_steady_target() -> None:
    x = torch.arange(256.0)
    clean = (1 + 0.5 * torch.sin(2 * math.pi * x / 16)).expand(64, 1, 256, 256).contiguous()
    noisy, target = noise.draw(clean, torch.full((64,), 1e4), "stem", generator(), 256)
    torch.testing.assert_close(target, 1e4 * clean)
    basis = torch.exp(-2j * math.pi * x / 16)
    phase = torch.angle((noisy[:, 0] * basis).mean(-1) * torch.conj((clean[:, 0] * basis).mean(-1)))
    shift = (phase * 16 / (2 * math.pi)).std(1)
    assert 0.08 < shift.min() < 0.3
    assert 0.6 < shift.max() < 1.2
    # flicker of 0 to 2 %, over 0.06 % of counting noise in a line of 256 pixels
    bright = (noisy.mean((1, 3)) / 1e4).std(1)
    assert bright.min() < 0.004
    assert 0.012 < bright.max() < 0.03
