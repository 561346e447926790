"""Fresh noise for training: its statistics, and what it follows from."""

import pytest
import torch

from emdn_train.batches import Specimens, crops, log_uniform, record
from emdn_train.data import open_split
from emdn_train.noise import DETECTORS
from emdn_train.validate import validation

CPU = torch.device("cpu")


@pytest.fixture
def specimens(gratings):
    with open_split(gratings, "train") as split:
        yield Specimens.of(split)


def test_specimens_know_their_contrast(specimens):
    assert specimens.cached is not None
    assert specimens.cached.shape == (32, 64, 64)
    torch.testing.assert_close(specimens.mean, torch.ones(32), atol=1e-5, rtol=0)
    # A grating of amplitude 0.3 has a standard deviation of 0.3 / sqrt(2).
    torch.testing.assert_close(specimens.contrast, torch.full((32,), 0.212), atol=0.01, rtol=0)
    assert not specimens.scanned.any()


def test_a_large_split_is_read_as_needed(gratings, specimens, monkeypatch):
    monkeypatch.setattr("emdn_train.batches.CACHE_BYTES", 1000)
    with open_split(gratings, "train") as split:
        streamed = Specimens.of(split)
        assert streamed.cached is None
        chosen = torch.tensor([5, 0, 31])
        torch.testing.assert_close(streamed.relative(chosen), specimens.relative(chosen))
        torch.testing.assert_close(streamed.contrast, specimens.contrast)


def test_crops_are_parts_of_their_frames_in_eight_orientations():
    frames = torch.arange(64.0 * 50).reshape(1, 50, 64).repeat(400, 1, 1)
    patches = crops(frames, 8, torch.Generator().manual_seed(0))
    assert patches.shape == (400, 1, 8, 8)
    steps = {(float(p[0, 0, 1] - p[0, 0, 0]), float(p[0, 1, 0] - p[0, 0, 0])) for p in patches}
    assert steps == {(a, b) for s in (1, -1) for t in (64, -64) for a, b in ((s, t), (t, s))}
    corners = patches.amin((1, 2, 3))
    assert len(corners.unique()) > 300
    assert crops(frames, 100, torch.Generator()).shape[-2:] == (50, 50)


def test_record_has_the_dose_asked_for_and_poisson_noise(specimens):
    indices = torch.arange(32)
    clean = specimens.relative(indices)[:, None]
    snr = torch.full((32,), 2.0)
    batch = record(specimens, indices, clean, snr, torch.Generator().manual_seed(1), CPU)
    dqe = DETECTORS["counting"].dqe0
    expected = (2.0 / specimens.contrast) ** 2 * dqe
    torch.testing.assert_close(batch.scale[:, 0, 0, 0], expected)
    assert float(batch.noisy.mean() / batch.target.mean()) == pytest.approx(1, abs=0.01)
    chi = (batch.noisy - batch.target).square() / batch.target.clamp_min(1e-6)
    assert float(chi.mean()) == pytest.approx(1, abs=0.03)


def test_noise_is_fresh_at_every_step_and_the_same_for_one_seed(specimens):
    indices = torch.arange(4)
    clean, snr = specimens.relative(indices)[:, None], torch.ones(4)
    chance = torch.Generator().manual_seed(3)
    first = record(specimens, indices, clean, snr, chance, CPU)
    second = record(specimens, indices, clean, snr, chance, CPU)
    again = record(specimens, indices, clean, snr, torch.Generator().manual_seed(3), CPU)
    assert not torch.equal(first.noisy, second.noisy)
    assert torch.equal(first.noisy, again.noisy)


def test_validation_is_the_same_for_every_model(specimens):
    first = validation(specimens, (0.1, 1.0), 6, 48, seed=2)
    second = validation(specimens, (0.1, 1.0), 6, 48, seed=2)
    assert [batch.noisy.shape for batch in first] == [(6, 1, 48, 48)] * 2
    assert all(torch.equal(a.noisy, b.noisy) for a, b in zip(first, second, strict=True))
    assert first[1].scale.mean() == pytest.approx(100 * float(first[0].scale.mean()), rel=1e-4)


def test_log_uniform_covers_its_range_evenly():
    drawn = log_uniform((0.05, 3.0), 20_000, torch.Generator().manual_seed(0))
    assert 0.05 <= float(drawn.min()) < 0.051
    assert 2.95 < float(drawn.max()) <= 3.0
    assert float(drawn.median()) == pytest.approx((0.05 * 3.0) ** 0.5, rel=0.05)
