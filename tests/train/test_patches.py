"""Where batches come from: patches and clips with fresh noise, and recordings used again."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from emdn_models.nets import build
from emdn_models.nets.scaling import middle, noise_map, normalise
from emdn_train import patches
from emdn_train.config import RECIPES
from emdn_train.dataset import CleanFrames, Split
from emdn_train.noise import DETECTORS
from emdn_train.patches import Clips, Reused, Simulated, chance, crops, moved, record

CPU = torch.device("cpu")
QUIET = replace(RECIPES["benchmark"], snr=(400.0, 400.0))


@pytest.fixture
def frames(gratings):
    """Frames 2k and 2k + 1 are two states of one image."""
    with Split(gratings, "train") as split:
        found = CleanFrames.of(split)
        split.table = pl.DataFrame({"structure": np.arange(32) // 2, "image": [0] * 32,
                                    "state": [0, 1] * 16})  # fmt: skip
        yield found


def test_crops_are_parts_of_their_frames_in_eight_orientations():
    frames = torch.arange(64.0 * 50).reshape(1, 1, 50, 64).repeat(400, 1, 1, 1)
    found = crops(frames, 8, chance(0))
    assert found.shape == (400, 1, 8, 8)
    steps = {(float(p[0, 0, 1] - p[0, 0, 0]), float(p[0, 1, 0] - p[0, 0, 0])) for p in found}
    assert steps == {(a, b) for s in (1, -1) for t in (64, -64) for a, b in ((s, t), (t, s))}
    assert len(found.amin((1, 2, 3)).unique()) > 300
    assert crops(frames, 100, chance(0)).shape[-2:] == (50, 50)


def test_recordings_have_the_dose_asked_for_and_fresh_poisson_noise(frames):
    indices, generator = torch.arange(32), chance(1)
    arguments = frames, indices, frames.relative(indices)[:, None], torch.full((32,), 2.0)
    batch, later, again = (record(*arguments, one) for one in (generator, generator, chance(1)))
    assert not torch.equal(batch.noisy, later.noisy)
    assert torch.equal(batch.noisy, again.noisy)
    expected = (2.0 / frames.contrast) ** 2 * DETECTORS["counting"].dqe0
    torch.testing.assert_close(batch.scale[:, 0, 0, 0], expected)
    assert float(batch.noisy.mean() / batch.target.mean()) == pytest.approx(1, abs=0.01)
    chi = (batch.noisy - batch.target).square() / batch.target.clamp_min(1e-6)
    assert float(chi.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", [Simulated, Clips, Reused])
def test_defects_go_with_their_patches(frames, kind, monkeypatch):
    """A bright spot is put at the defect of each frame, and is found where its weight is."""
    # A turned contrast would leave nothing of the spot.
    monkeypatch.setattr(patches, "stretch", lambda clean, *_: (clean, torch.ones(len(clean))))
    frames.split.table = frames.split.table.with_columns(pixel_size_nm=pl.lit(0.06))
    places = [np.float32([[8 + number, 50 - number]]) for number in range(32)]
    marked = replace(frames, defects=places)
    near = marked.near_defects(torch.arange(32))
    assert [int(one.argmax()) for one in near] == [64 * int(y) + int(x) for ((x, y),) in places]
    assert near[0, 50, 8] == 1
    assert float(near[0, 50, 10]) == pytest.approx(np.exp(-0.5), abs=1e-5)  # 0.12 nm away
    marked = replace(marked, cached=1 + 50 * near)
    recipe = replace(QUIET, defects=3.0, augmented=0.5)
    if kind is Reused:
        source = Reused(Simulated(marked, recipe, 48, CPU), build("unet").eval(), times=2, block=16)
        source.order(0, 0)
    else:
        source = kind(marked, recipe, 48, CPU)
    batch = source.batch(torch.arange(16), chance(3))
    assert batch.defects.shape == (16, 1, 48, 48)
    centred = [one - one.mean((2, 3), keepdim=True) for one in (batch.target, batch.defects)]
    like = torch.nn.functional.cosine_similarity(*(one.flatten(1) for one in centred))
    seen = batch.defects.amax((1, 2, 3)) > 0.5
    assert seen.sum() > 5
    assert (like[seen] > 0.8).all()


def test_clips_change_at_one_frame_and_the_middle_is_the_truth(frames, monkeypatch):
    for name in ("DRIFT", "JITTER", "TURN", "CUT"):
        monkeypatch.setattr(patches, name, 0.0)
    batch = Clips(frames, QUIET, 64, CPU).batch(torch.arange(32), chance(1))
    assert batch.noisy.shape == (32, 5, 64, 64)
    assert batch.target.shape == (32, 1, 64, 64)
    error = (middle(batch.noisy) - batch.target).std((1, 2, 3)) / batch.target.std((1, 2, 3))
    assert error.max() < 0.02
    # Correlation of each frame with the first: 1 up to the event, another state after it.
    flat = batch.noisy.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    like = torch.nn.functional.cosine_similarity(flat, flat[:, :1], dim=2) > 0.99
    assert (like.int().diff(dim=1) <= 0).all()
    assert 0.15 < (~like.all(1)).float().mean() < 0.65  # CHANGE, of 32 clips
    frames.split.table = None  # no other states, no change
    batch = Clips(frames, QUIET, 64, CPU).batch(torch.arange(32), chance(1))
    flat = batch.noisy.flatten(2)
    assert (flat - flat[:, :1]).abs().max() < 0.1 * flat.mean()


def test_drift_moves_frames_by_what_was_drawn(monkeypatch):
    for name in ("JITTER", "TURN", "RESTING"):
        monkeypatch.setattr(patches, name, 0.0)
    y, x = np.mgrid[:64, :64]
    blob = torch.tensor(np.exp(-((y - 32) ** 2 + (x - 32) ** 2) / 18), dtype=torch.float32)
    clip = moved(blob.repeat(6, 5, 1, 1), 64, 0.0, chance(2))
    weight = clip / clip.sum((2, 3), keepdim=True)
    path = torch.stack([(weight * torch.tensor(one)).sum((2, 3)) for one in (x, y)], 2)
    steps = path.diff(dim=1)
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=0.12)  # bicubic
    assert steps[:, 0].norm(dim=1).max() <= 3.05
    assert torch.allclose(path[:, 2], torch.tensor([32.0, 32.0]), atol=0.02)


def test_recordings_are_used_again_with_their_spectra(frames):
    torch.manual_seed(0)
    net = build("unet").eval()
    plain = Simulated(frames, RECIPES["benchmark"], 64, CPU)
    reused = Reused(plain, net, times=3, block=8)
    seen = torch.cat([reused.order(7, epoch) for epoch in range(3)])
    assert torch.equal(seen.bincount(), torch.full((32,), 3))
    assert len(seen[:24].unique()) == 8  # one block is done with before the next
    batch = reused.batch(seen[:8], chance(7, 0, 0))
    frame = middle(batch.noisy)
    x, noise = normalise(frame, batch.scale), noise_map(frame, batch.scale)
    with torch.no_grad():
        torch.testing.assert_close(batch.spectra, net.spectra(x, noise), atol=1e-4, rtol=1e-4)
    # What is in memory does not matter: an interrupted run draws the same.
    fresh = Reused(plain, net, times=3, block=8)
    fresh.order(7, 0)
    first, second = (one.batch(seen[8:16], chance(7, 1, 0)) for one in (fresh, reused))
    assert torch.equal(first.noisy, second.noisy)
    other = reused.batch(seen[:8], chance(7, 2, 0))
    assert torch.allclose(other.noisy.mean((1, 2, 3)), batch.noisy.mean((1, 2, 3)))
