"""Data sets in the original's layout; the patches and clips with fresh noise drawn from them."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import torch

from emdn_models import FormatError
from emdn_models.nets.scaling import middle
from emdn_train import dataset
from emdn_train.config import RECIPES
from emdn_train.dataset import CleanFrames, Source, Split, chance, moved
from emdn_train.noise import DQE0

CPU = torch.device("cpu")
QUIET = replace(RECIPES["benchmark"], snr=(400.0, 400.0))


def write(folder: Path, name: str, images: np.ndarray, key: str = "images") -> None:
    (folder / "train").mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "train" / f"graphene_img_{name}.h5", "w") as file:
        file[key] = images


def original(folder: Path, clean: np.ndarray, noisy: np.ndarray) -> Path:
    write(folder, "clean", clean)
    write(folder, "noise", noisy)
    return folder


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(3, 9, (7, 20, 24, 1)).astype(np.float32)


def test_reads_the_original_layout(tmp_path: Path, images: np.ndarray) -> None:
    with Split(original(tmp_path, images, images + 1), "train") as split:
        assert len(split) == 7
        assert split.shape == (20, 24)
        assert split.table is None
        np.testing.assert_array_equal(split.clean(slice(None)), images[..., 0])
        order = [5, 0, 5, 3]
        np.testing.assert_array_equal(split.noisy(order), images[order, :, :, 0] + 1)
        relative = split.relative([2, 1])
        np.testing.assert_allclose(relative.mean((1, 2)), 1, rtol=1e-5)
        np.testing.assert_allclose(relative[0], images[2, :, :, 0] / images[2].mean(), rtol=1e-5)
        with pytest.raises(IndexError):
            split.clean([7])


def test_what_is_no_data_set_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(FormatError, match="No such file"):
        Split(tmp_path, "test")
    wrong = [(one, one) for one in ((7, 1, 20, 20), (20, 20, 7), (0, 20, 20, 1))]
    for clean, noisy in [((7, 20, 20, 1), (6, 20, 20, 1)), *wrong]:
        folder = original(tmp_path / str(clean), np.zeros(clean, "f4"), np.zeros(noisy, "f4"))
        with pytest.raises(FormatError, match=r"\(N, H, W"):
            Split(folder, "train")
    write(tmp_path, "clean", images, key="frames")
    with pytest.raises(FormatError, match="dataset 'images' has numbers"):
        Split(tmp_path, "train")
    (tmp_path / "train" / "graphene_img_clean.h5").write_bytes(b"no HDF5")
    with pytest.raises(FormatError, match="file signature not found"):
        Split(tmp_path, "train")
    images[3, 2, 1] = np.nan
    split = Split(original(tmp_path, images, images), "train")
    with split, pytest.raises(FormatError, match="frame 3 has pixels that are not finite"):
        split.clean([1, 3])


def test_data_are_known_by_their_frames(gratings: Path, tmp_path: Path) -> None:
    shutil.copytree(gratings / "train", tmp_path / "train")
    with Split(gratings, "train") as split, Split(tmp_path, "train") as copy:
        digest = split.fingerprint()
        assert copy.fingerprint() == digest
    with h5py.File(tmp_path / "train" / "graphene_img_clean.h5", "r+") as file:
        file["images"][31, 5, 5] += 1
    with Split(tmp_path, "train") as split:
        assert split.fingerprint() != digest


def test_frames_know_their_contrast_and_are_read_as_needed(gratings: Path, monkeypatch) -> None:
    chosen = torch.tensor([5, 0, 31])
    with Split(gratings, "train") as split:
        cached = CleanFrames(split)
        monkeypatch.setattr(dataset, "CACHE_BYTES", 1000)
        streamed = CleanFrames(split)
        assert streamed.cached is None
        torch.testing.assert_close(streamed.relative(chosen), cached.relative(chosen))
    torch.testing.assert_close(streamed.contrast, cached.contrast)
    torch.testing.assert_close(cached.mean, torch.ones(32), atol=1e-5, rtol=0)
    # A grating of amplitude 0.3 has a standard deviation of 0.3 / sqrt(2).
    torch.testing.assert_close(cached.contrast, torch.full((32,), 0.212), atol=0.01, rtol=0)
    assert not cached.scanned.any()


def test_simulated_frames_have_detectors_states_and_defects(gratings, tmp_path) -> None:
    shutil.copytree(gratings / "train", tmp_path / "train")
    detectors = ["stem", "counting"] * 16
    electrons = 40 / np.array([DQE0[name] for name in detectors])
    even = {"beam_x": 0.0, "beam_y": 0.0, "beam_width_u": 1e6, "beam_width_v": 1e6,
            "beam_angle": 0.0, "beam_mean": 1.0, "kind": "grating"}  # fmt: skip
    table = pl.DataFrame({
        "detector": detectors, "electrons_per_pixel": electrons, "structure": np.arange(32) // 4,
        "image": [0, 1] * 16, "state": [0, 0, 1, 1] * 8,
    }).with_columns(**{key: pl.lit(value) for key, value in even.items()})  # fmt: skip
    table.write_parquet(tmp_path / "train" / "graphene_img_metadata.parquet")
    with h5py.File(tmp_path / "train" / "graphene_img_structures.h5", "w") as file:
        for number in range(8):
            for state, name in enumerate((f"{number}", f"{number}-1")):
                file[f"{name}/defects"] = np.full((1, 2), number + 10 * state)
                file[f"{name}/atoms"], file[f"{name}/numbers"] = np.zeros((0, 2)), np.zeros(0)
                file[f"{name}/names"] = ["V1"]
    with Split(tmp_path, "train") as split:
        frames = CleanFrames(split, defects=True)
        assert str(split) == "32 frames of 64 x 64, simulated (grating)"
    assert frames.scanned.tolist() == [True, False] * 16
    assert frames.others[:6].tolist() == [2, 3, 0, 1, 6, 7]
    assert [int(one[0, 0]) for _, _, one, _ in frames.structures[:6]] == [0, 0, 10, 10, 1, 1]
    torch.testing.assert_close(frames.mean, torch.ones(32), atol=0.02, rtol=0)


@pytest.fixture
def frames(gratings):
    """Frames 2k and 2k + 1 are two states of one image."""
    with Split(gratings, "train") as split:
        found = CleanFrames(split)
        found.others = torch.arange(32) ^ 1
        yield found


def test_recordings_have_the_dose_asked_for_and_fresh_poisson_noise(frames):
    indices, generator = torch.arange(32), chance(1)
    clean, snr = frames.relative(indices)[:, None], torch.full((32,), 2.0)
    draw = partial(Source(frames, QUIET, 64, CPU).record, indices, clean, snr, clean[:, 1:])
    batch, later, again = (draw(one) for one in (generator, generator, chance(1)))
    assert not torch.equal(batch.noisy, later.noisy)
    assert torch.equal(batch.noisy, again.noisy)
    expected = (2.0 / frames.contrast) ** 2 * DQE0["counting"]
    torch.testing.assert_close(batch.scale[:, 0, 0, 0], expected)
    assert float(batch.noisy.mean() / batch.target.mean()) == pytest.approx(1, abs=0.01)
    chi = (batch.noisy - batch.target).square() / batch.target.clamp_min(1e-6)
    assert float(chi.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("draw", [Source.patches, Source.clips])
def test_defects_go_with_their_patches(frames, draw, monkeypatch):
    """A bright spot is put at the defect of each frame, and is found where its weight is."""
    # A turned contrast would leave nothing of the spot.
    quiet = torch.full((16,), 400.0)
    monkeypatch.setattr(dataset, "levelled", lambda _, clean, __: (clean, quiet))
    frames.split.table = pl.DataFrame({"pixel_size_nm": [0.06] * 32})
    nothing = np.zeros((0, 2)), np.zeros(0)
    frames.structures = [(*nothing, [[8 + number, 50 - number]], ["V1"]) for number in range(32)]
    near = frames.marks(torch.arange(32))[:, 0]
    assert [int(one.argmax()) for one in near] == [64 * (50 - n) + 8 + n for n in range(32)]
    assert near[0, 50, 8] == 1
    assert float(near[0, 50, 10]) == pytest.approx(np.exp(-0.5), abs=1e-5)  # 0.12 nm away
    frames.cached = 1 + 50 * near
    recipe = replace(QUIET, defects=3.0, augmented=0.5)
    batch = draw(Source(frames, recipe, 48, CPU), torch.arange(16), chance(3))
    assert batch.marks.shape == (16, 3, 48, 48)
    weight = batch.marks[:, :1]
    centred = [one - one.mean((2, 3), keepdim=True) for one in (batch.target, weight)]
    like = torch.nn.functional.cosine_similarity(*(one.flatten(1) for one in centred))
    seen = weight.amax((1, 2, 3)) > 0.5
    assert seen.sum() > 5
    assert (like[seen] > 0.8).all()


@pytest.mark.parametrize("draw", [Source.patches, Source.clips])
def test_sites_go_with_their_patches(frames, draw, monkeypatch):
    frames.split.table = pl.DataFrame({"pixel_size_nm": [0.05] * 32})
    lattice = 4.0 + 8 * np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)
    lost = (lattice == [20, 36]).all(1)  # and what is near the edge is not judged
    frames.structures = [(lattice[~lost], np.full(63, 6), lattice[lost], ["V1"])] * 32
    inner = torch.arange(12, 60, 8)
    expected = torch.zeros(64, 64)
    expected[inner[:, None], inner], expected[36, 20] = 1, 11
    sites = frames.marks(torch.arange(32))[:, 1]
    assert (sites == expected).all()
    monkeypatch.setattr(dataset, "levelled", lambda _, clean, __: (clean, torch.full((16,), 4e2)))
    frames.cached = 1 + 1000 * sites
    recipe = replace(QUIET, defects=3.0, augmented=0.5)
    batch = draw(Source(frames, recipe, 64, CPU), torch.arange(16), chance(3))
    sites = batch.marks[:, 1]
    assert {0, 35 + 11} == set(sites.sum((1, 2)).int().tolist())  # none where it is magnified
    for place, image in zip(sites > 0, batch.target[:, 0], strict=True):
        assert not place.any() or image[place].min() > image[~place].mean()


def test_clips_change_at_one_frame_and_the_middle_is_the_truth(frames, monkeypatch):
    for name in ("DRIFT", "JITTER", "TURN", "CUT"):
        monkeypatch.setattr(dataset, name, 0.0)
    draw = partial(Source(frames, QUIET, 64, CPU).clips, torch.arange(32))
    batch = draw(chance(1))
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
    frames.others = torch.arange(32)  # no other states, no change
    flat = draw(chance(1)).noisy.flatten(2)
    assert (flat - flat[:, :1]).abs().max() < 0.1 * flat.mean()


def test_drift_moves_frames_by_what_was_drawn(monkeypatch):
    for name in ("JITTER", "TURN", "RESTING"):
        monkeypatch.setattr(dataset, name, 0.0)
    y, x = np.mgrid[:64, :64]
    blob = torch.tensor(np.exp(-((y - 32) ** 2 + (x - 32) ** 2) / 18), dtype=torch.float32)
    clip = moved(blob.repeat(6, 5, 1, 1), 64, 0.0, chance(2))
    weight = clip / clip.sum((2, 3), keepdim=True)
    path = torch.stack([(weight * torch.tensor(one)).sum((2, 3)) for one in (x, y)], 2)
    steps = path.diff(dim=1)
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=0.12)  # bicubic
    assert steps[:, 0].norm(dim=1).max() <= 3.05
    assert torch.allclose(path[:, 2], torch.tensor([32.0, 32.0]), atol=0.02)
