from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from emdn_deploy import preview
from emdn_deploy.intensity import Intensity
from emdn_deploy.readers import Axis
from emdn_models.errors import OutputError

SCALE = Intensity(20.0, 1.0, 0.0, 4.5, "")


def draw(path: Path, shape: tuple[int, int], axis: Axis) -> np.ndarray:
    frame = np.random.default_rng(0).poisson(20, shape).astype(np.float32)
    preview.draw(path, frame, np.full(shape, 20, np.float32), SCALE, axis, "title")
    return matplotlib.image.imread(path)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (20, 200)])
def test_any_frame_can_be_drawn(tmp_path: Path, shape: tuple[int, int]) -> None:
    picture = draw(tmp_path / "p.png", shape, Axis())
    assert picture.shape[:2] == (840, 1200)
    assert picture.std() > 0.05


def test_a_calibrated_frame_gets_a_scale_bar(tmp_path: Path) -> None:
    bare = draw(tmp_path / "a.png", (64, 64), Axis())
    barred = draw(tmp_path / "b.png", (64, 64), Axis("x", "nm", 0.02))
    changed = np.abs(bare - barred).max(axis=2) > 0.1
    assert 100 < changed.sum() < 20_000


@pytest.mark.parametrize(
    ("extent", "length"), [(1.28, 0.2), (10, 2), (100, 20), (3.4, 1), (0.02, 0.005)]
)
def test_bars_have_round_lengths(extent: float, length: float) -> None:
    assert preview.bar_length(extent) == pytest.approx(length)


def test_metres_become_readable() -> None:
    assert preview.readable(2e-11, "m", 256) == (pytest.approx(0.02), "nm")
    assert preview.readable(2e-13, "m", 256) == (pytest.approx(0.2), "pm")
    assert preview.readable(0.1, "Å", 256) == (0.1, "Å")


def test_white_noise_has_a_flat_spectrum() -> None:
    noise = np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32)
    power = preview.log_power(noise)
    assert abs(power[:32].mean() - power[48:80].mean()) < 0.05


def test_spectra_are_cut_to_what_holds_signal() -> None:
    x = np.arange(160) * np.ones((128, 1))
    truth = 20 + 3 * np.cos(2 * np.pi * x / 8)  # a quarter of the Nyquist frequency
    noisy = np.random.default_rng(0).poisson(truth).astype(np.float32)
    floor = float(np.median(preview.log_power(noisy)))
    reach = preview.signal_reach(preview.log_power(truth + 1e-3 * (noisy - truth)), floor)
    assert reach == pytest.approx(1.25 * 0.25, abs=0.03)
    assert preview.signal_reach(preview.log_power(noisy), floor) > 0.9
    assert preview._middle(np.zeros((128, 160)), reach).shape == pytest.approx((41, 51), abs=4)


def test_a_weak_result_is_shown_in_its_own_contrast(tmp_path: Path) -> None:
    noisy = np.random.default_rng(0).poisson(20, (64, 64)).astype(np.float32)
    flat = np.full((64, 64), 20, np.float32)
    flat[:, 32:] = 20.5
    assert preview.contrast(flat) == (20, 20.5)
    preview.draw(tmp_path / "p.png", noisy, flat, SCALE, Axis())
    after = matplotlib.image.imread(tmp_path / "p.png")[100:300, 450:750, 0]
    assert (after.min(), after.max()) == (0, 1)


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none/p\.png: cannot be written"):
        draw(tmp_path / "none" / "p.png", (8, 8), Axis())
