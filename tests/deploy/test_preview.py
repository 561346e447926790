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
    assert preview._readable(2e-11, "m", 256) == (pytest.approx(0.02), "nm")
    assert preview._readable(2e-13, "m", 256) == (pytest.approx(0.2), "pm")
    assert preview._readable(0.1, "Å", 256) == (0.1, "Å")


def test_white_noise_has_a_flat_spectrum() -> None:
    noise = np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32)
    power = preview.log_power(noise)
    assert abs(power[:32].mean() - power[48:80].mean()) < 0.05


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none/p\.png: cannot be written"):
        draw(tmp_path / "none" / "p.png", (8, 8), Axis())
