"""The reader: the original's layout as it is, and clear errors for what is not that."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_models import FormatError
from emdn_train.data import open_split


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
    with open_split(original(tmp_path, images, images + 1), "train") as split:
        assert len(split) == 7
        assert split.shape == (20, 24)
        assert split.table is None
        np.testing.assert_array_equal(split.clean(slice(None)), images[..., 0])
        order = [5, 0, 5, 3]
        np.testing.assert_array_equal(split.noisy(order), images[order, :, :, 0] + 1)
        relative = split.relative([2, 1])
        np.testing.assert_allclose(relative.mean((1, 2)), 1, rtol=1e-5)
        np.testing.assert_allclose(relative[0], images[2, :, :, 0] / images[2].mean(), rtol=1e-5)


def test_takes_integers_and_frames_without_a_channel(tmp_path: Path) -> None:
    counts = np.arange(2 * 8 * 8, dtype=np.uint16).reshape(2, 8, 8)
    with open_split(original(tmp_path, counts, counts), "train") as split:
        frame = split.clean([1])
        assert frame.dtype == np.float32
        np.testing.assert_array_equal(frame[0], counts[1])


def test_reads_only_the_frames_asked_for(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    fetch = h5py.Dataset.__getitem__

    def spy(self: h5py.Dataset, key: object, **options: object) -> object:
        read.append(key)
        return fetch(self, key, **options)

    with open_split(original(tmp_path, images, images), "train") as split:
        monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
        split.clean([4, 2])
    assert read == [4, 2]


@pytest.mark.parametrize(
    ("clean", "noisy", "message"),
    [
        ((7, 20, 20, 1), (6, 20, 20, 1), "must come in pairs"),
        ((7, 20, 20, 1), (7, 20, 24, 1), "must come in pairs"),
        ((7, 1, 20, 20), (7, 1, 20, 20), r"looks like \(N, 1, H, W\)"),
        ((1, 20, 20, 7), (1, 20, 20, 7), r"looks like \(1, H, W, N\)"),
        ((20, 20, 7), (20, 20, 7), r"looks like \(H, W, N\)"),
        ((7, 20, 20, 3), (7, 20, 20, 3), r"expected \(N, H, W, 1\)"),
        ((20, 20), (20, 20), r"expected \(N, H, W, 1\)"),
        ((0, 20, 20, 1), (0, 20, 20, 1), "no frames"),
    ],
)
def test_wrong_shapes_are_named(
    tmp_path: Path, clean: tuple[int, ...], noisy: tuple[int, ...], message: str
) -> None:
    folder = original(tmp_path, np.zeros(clean, "f4"), np.zeros(noisy, "f4"))
    with pytest.raises(FormatError, match=message) as error:
        open_split(folder, "train")
    assert str(folder) in str(error.value)


def test_missing_file_key_and_garbage_are_named(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(FormatError, match="not found"):
        open_split(tmp_path, "test")
    write(tmp_path, "clean", images, key="frames")
    with pytest.raises(FormatError, match="no dataset 'images'; found frames"):
        open_split(tmp_path, "train")
    (tmp_path / "train" / "graphene_img_clean.h5").write_bytes(b"no HDF5")
    with pytest.raises(FormatError, match="cannot be read as HDF5"):
        open_split(tmp_path, "train")


def test_text_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expected float32"):
        open_split(original(tmp_path, np.array([b"a"]), np.array([b"a"])), "train")


def test_pixels_that_are_not_finite_are_an_error(tmp_path: Path, images: np.ndarray) -> None:
    images[3, 2, 1] = np.nan
    with open_split(original(tmp_path, images, images), "train") as split:
        split.clean([0, 1])
        with pytest.raises(FormatError, match="frame 3 has pixels that are not finite"):
            split.clean([1, 3])


def test_frames_out_of_range_are_an_index_error(tmp_path: Path, images: np.ndarray) -> None:
    with (
        open_split(original(tmp_path, images, images), "train") as split,
        pytest.raises(IndexError),
    ):
        split.clean([7])
