"""Where batches come from: clips of five frames, and recordings that are used again."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from emdn_models.nets import build
from emdn_models.nets.electrons import middle, noise_map, normalise
from emdn_train import source
from emdn_train.batches import Specimens
from emdn_train.data import open_split
from emdn_train.recipes import RECIPES
from emdn_train.source import Clips, Reused, Simulated, chance, moved

CPU = torch.device("cpu")
QUIET = replace(RECIPES["benchmark"], snr=(400.0, 400.0))


@pytest.fixture
def specimens(gratings):
    """Frames 2k and 2k + 1 are two states of one image."""
    with open_split(gratings, "train") as split:
        whole = Specimens.of(split)
        split.table = pl.DataFrame({"structure": np.arange(32) // 2, "image": [0] * 32,
                                    "state": [0, 1] * 16})  # fmt: skip
        yield whole


def test_states_of_one_image_are_found(specimens):
    clips = Clips(specimens, QUIET, 64, CPU)
    assert clips._others.tolist() == [k ^ 1 for k in range(32)]
    specimens.split.table = None
    assert Clips(specimens, QUIET, 64, CPU)._others.tolist() == list(range(32))


def test_clips_change_at_one_frame_and_the_middle_is_the_truth(specimens, monkeypatch):
    for name in ("DRIFT", "JITTER", "TURN", "CUT"):
        monkeypatch.setattr(source, name, 0.0)
    batch = Clips(specimens, QUIET, 64, CPU).batch(torch.arange(32), chance(1))
    assert batch.noisy.shape == (32, 5, 64, 64)
    assert batch.target.shape == (32, 1, 64, 64)
    error = (middle(batch.noisy) - batch.target).std((1, 2, 3)) / batch.target.std((1, 2, 3))
    assert error.max() < 0.02
    # Correlation of each frame with the first: 1 up to the event, another state after it.
    flat = batch.noisy.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    like = torch.nn.functional.cosine_similarity(flat, flat[:, :1], dim=2) > 0.99
    assert (like.int().diff(dim=1) <= 0).all()
    share = (~like.all(1)).float().mean()
    assert 0.15 < share < 0.65  # CHANGE, of 32 clips


def test_drift_moves_frames_by_what_was_drawn(monkeypatch):
    for name in ("JITTER", "TURN", "RESTING"):
        monkeypatch.setattr(source, name, 0.0)
    y, x = np.mgrid[:64, :64]
    blob = torch.tensor(np.exp(-((y - 32) ** 2 + (x - 32) ** 2) / 18), dtype=torch.float32)
    clip = moved(blob.repeat(6, 5, 1, 1), 64, 0.0, chance(2))
    weight = clip / clip.sum((2, 3), keepdim=True)
    path = torch.stack(
        [(weight * torch.tensor(x)).sum((2, 3)), (weight * torch.tensor(y)).sum((2, 3))], 2
    )
    steps = path.diff(dim=1)
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=0.12)  # bicubic
    speed = steps[:, 0].norm(dim=1)
    assert speed.max() <= 3.05
    assert speed.min() >= 0
    assert torch.allclose(path[:, 2], torch.tensor([32.0, 32.0]), atol=0.02)


def test_recordings_are_used_again_with_their_spectra(specimens):
    torch.manual_seed(0)
    net = build("unet").eval()
    plain = Simulated(specimens, RECIPES["benchmark"], 64, CPU)
    reused = Reused(plain, net, times=3, block=8)
    seen = torch.cat([reused.order(7, epoch) for epoch in range(3)])
    assert torch.equal(seen.bincount(), torch.full((32,), 3))
    assert len(seen[:24].unique()) == 8  # one block is done with before the next
    batch = reused.batch(seen[:8], chance(7, 0, 0))
    frame = middle(batch.noisy)
    x, noise = normalise(frame, batch.scale), noise_map(frame, batch.scale)
    with torch.no_grad():
        torch.testing.assert_close(batch.spectra, net.spectra(x, noise), atol=1e-4, rtol=1e-4)
    # What is kept does not matter: an interrupted run draws the same.
    again = Reused(plain, net, times=3, block=8)
    again.order(7, 0)
    fresh = again.batch(seen[8:16], chance(7, 1, 0))
    kept = reused.batch(seen[8:16], chance(7, 1, 0))
    assert torch.equal(fresh.noisy, kept.noisy)
    other = reused.batch(seen[:8], chance(7, 2, 0))
    assert torch.allclose(other.noisy.mean((1, 2, 3)), batch.noisy.mean((1, 2, 3)))
