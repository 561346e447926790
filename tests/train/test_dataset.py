"""Data sets: the original's layout as it is, clear errors for what is not, classes of frames."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import torch

from emdn_models import FormatError, checkpoint
from emdn_train.cli import main
from emdn_train.dataset import CleanFrames, Split
from emdn_train.noise import DETECTORS


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


@pytest.mark.parametrize(
    ("clean", "noisy", "message"),
    [
        ((7, 20, 20, 1), (6, 20, 20, 1), "must come in pairs"),
        ((7, 20, 20, 1), (7, 20, 24, 1), "must come in pairs"),
        ((7, 1, 20, 20), (7, 1, 20, 20), r"of shape \(N, H, W, 1\)"),
        ((20, 20, 7), (20, 20, 7), r"of shape \(N, H, W, 1\)"),
        ((7, 20, 20, 3), (7, 20, 20, 3), r"of shape \(N, H, W, 1\)"),
        ((20, 20), (20, 20), r"of shape \(N, H, W, 1\)"),
        ((0, 20, 20, 1), (0, 20, 20, 1), "N at least 1"),
    ],
)
def test_wrong_shapes_are_named(
    tmp_path: Path, clean: tuple[int, ...], noisy: tuple[int, ...], message: str
) -> None:
    folder = original(tmp_path, np.zeros(clean, "f4"), np.zeros(noisy, "f4"))
    with pytest.raises(FormatError, match=message) as error:
        Split(folder, "train")
    assert str(folder) in str(error.value)


def test_missing_file_key_and_garbage_are_named(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(FormatError, match="not found"):
        Split(tmp_path, "test")
    write(tmp_path, "clean", images, key="frames")
    with pytest.raises(FormatError, match="its dataset 'images' is None; expected numbers"):
        Split(tmp_path, "train")
    (tmp_path / "train" / "graphene_img_clean.h5").write_bytes(b"no HDF5")
    with pytest.raises(FormatError, match="cannot be read as HDF5"):
        Split(tmp_path, "train")


def test_pixels_that_are_not_finite_are_an_error(tmp_path: Path, images: np.ndarray) -> None:
    images[3, 2, 1] = np.nan
    with Split(original(tmp_path, images, images), "train") as split:
        split.clean([0, 1])
        with pytest.raises(FormatError, match="frame 3 has pixels that are not finite"):
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
        cached = CleanFrames.of(split)
        monkeypatch.setattr("emdn_train.dataset.CACHE_BYTES", 1000)
        streamed = CleanFrames.of(split)
        assert streamed.cached is None
        torch.testing.assert_close(streamed.relative(chosen), cached.relative(chosen))
    torch.testing.assert_close(streamed.contrast, cached.contrast)
    assert cached.cached.shape == (32, 64, 64)
    torch.testing.assert_close(cached.mean, torch.ones(32), atol=1e-5, rtol=0)
    # A grating of amplitude 0.3 has a standard deviation of 0.3 / sqrt(2).
    torch.testing.assert_close(cached.contrast, torch.full((32,), 0.212), atol=0.01, rtol=0)
    assert not cached.scanned.any()


@pytest.fixture(scope="module")
def both(gratings: Path, tmp_path_factory) -> Path:
    """The gratings, every other one recorded by a scanned probe."""
    root = tmp_path_factory.mktemp("both")
    for split, count in (("train", 32), ("test", 4)):
        shutil.copytree(gratings / split, root / split)
        detectors = np.where(np.arange(count) % 2 == 0, "stem", "counting")
        dqe = [DETECTORS[name].dqe0 for name in detectors]
        even = {"beam_x": 0.0, "beam_y": 0.0, "beam_width_u": 1e6, "beam_width_v": 1e6,
                "beam_angle": 0.0, "beam_mean": 1.0, "kind": "grating"}  # fmt: skip
        pl.DataFrame({"detector": detectors, "electrons_per_pixel": 40 / np.array(dqe)}
        ).with_columns(**{key: pl.lit(value) for key, value in even.items()}).write_parquet(
            root / split / "graphene_img_metadata.parquet"
        )  # fmt: skip
    return root


@pytest.mark.parametrize(("kind", "first"), [("stem", 0), ("tem", 1)])
def test_a_class_has_its_frames_alone(both: Path, kind, first) -> None:
    with Split(both, "train") as every, Split(both, "train", kind) as own:
        assert len(own) == 16
        assert set(own.table["detector"] == "stem") == {kind == "stem"}
        numbers = np.arange(first, 32, 2)
        for name in ("clean", "noisy", "relative"):
            whole, part = getattr(every, name), getattr(own, name)
            np.testing.assert_array_equal(part(slice(None)), whole(numbers))
            np.testing.assert_array_equal(part([3, 1]), whole(numbers[[3, 1]]))


def test_a_class_that_the_data_lack_is_named(gratings: Path, both: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"train: none of its 32 frames .* class stem"):
        Split(gratings, "train", "stem")
    shutil.copytree(both, tmp_path / "tem")
    table = tmp_path / "tem/test/graphene_img_metadata.parquet"
    pl.read_parquet(table).with_columns(detector=pl.lit("ccd")).write_parquet(table)
    with pytest.raises(FormatError, match=r"test: none of its 4 frames .* class stem"):
        Split(tmp_path / "tem", "test", "stem")


@pytest.mark.usefixtures("_tiny_net")
def test_a_model_is_fitted_to_a_class_and_saved_under_its_name(both: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        main(
            ["fit", "--data", str(both), "--out", str(tmp_path), "--models", "tiny", "--class",
             "stem", "--patch", "32", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
        )  # fmt: skip
    assert not left.value.code
    ((name, weights),) = checkpoint.load(tmp_path / checkpoint.FILE_NAME).items()
    recipe = weights.metadata["recipe"]
    assert name == "tiny@stem"
    assert recipe["data"] == "16 frames of 64 x 64, simulated (grating), of class stem alone"
    assert recipe["steps"] == 2, "16 frames of 32 are scanned"
