"""Pictures of a stack before and after: one frame with its spectra, and a movie."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from emdn_deploy import figures
from emdn_deploy.dose import Intensity
from emdn_deploy.readers import Axis
from emdn_models.errors import OutputError

SCALE = Intensity(20.0, 1.0, 0.0, 4.5, "")


def draw(path: Path, shape: tuple[int, int], axis: Axis) -> np.ndarray:
    frame = np.random.default_rng(0).poisson(20, shape).astype(np.float32)
    figures.draw(path, frame, np.full(shape, 20, np.float32), SCALE, axis, "title")
    return matplotlib.image.imread(path)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (20, 200)])
def test_any_frame_can_be_drawn(tmp_path, shape):
    bare = draw(tmp_path / "p.png", shape, Axis())
    assert bare.shape[:2] == (840, 1200)
    barred = draw(tmp_path / "b.png", shape, Axis("x", "nm", 0.02))
    changed = np.abs(bare - barred).max(axis=2) > 0.1
    assert 100 < changed.sum() < 20_000  # the scale bar


def test_bars_have_round_lengths_in_readable_units():
    for extent, length in [(1.28, 0.2), (10, 2), (100, 20), (3.4, 1), (0.02, 0.005)]:
        assert figures.bar_length(extent) == pytest.approx(length)
    assert figures.readable(2e-11, "m", 256) == (pytest.approx(0.02), "nm")
    assert figures.readable(2e-13, "m", 256) == (pytest.approx(0.2), "pm")
    assert figures.readable(0.1, "Å", 256) == (0.1, "Å")


def test_the_spectrum_of_white_noise_is_flat():
    power = figures.log_power(np.random.default_rng(0).poisson(20, (128, 160)))
    assert abs(power[:32].mean() - power[48:64, :60].mean()) < 0.05


def film(path: Path, frames: np.ndarray, *axes: Axis) -> None:
    stack = np.asarray(frames, np.float32)
    sides = [lambda a, b: stack[a:b], lambda a, b: stack[a:b] * 0 + 10]
    figures.movie(path, *sides, len(stack), *axes)


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"none/p\.png: cannot be written"):
        draw(tmp_path / "none" / "p.png", (8, 8), Axis())
    with pytest.raises(OutputError, match=r"m\.gif: cannot be written"):
        film(tmp_path / "none" / "m.gif", np.ones((2, 8, 8)))


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (7, 7), (250, figures.MAX_FRAMES)])
def test_frames_of_a_movie_are_spread_over_the_stack(tmp_path, count, shown):
    # Each frame has its number's brightness, so that none is dropped as a repetition.
    ramp = np.linspace(0, 20, 32)[None, None, :] + np.arange(count)[:, None, None] * 0.05
    film(tmp_path / "m.gif", np.broadcast_to(ramp, (count, 24, 32)))
    with Image.open(tmp_path / "m.gif") as opened:
        assert opened.n_frames == shown
        assert opened.size == (2 * 256 + 4, 192 + figures.STRIP)  # 8 times as large


@pytest.mark.parametrize("shape", [(1100, 700), (1, 2000), (513, 513), (4, 256)])
def test_each_side_has_its_own_limits_and_large_frames_are_binned(tmp_path, shape):
    frames = np.random.default_rng(0).normal(100, 1, (2, *shape)).astype(np.float32)
    sides = [lambda a, b: frames[a:b], lambda a, b: 1e3 * frames[a:b]]
    figures.movie(tmp_path / "m.gif", *sides, 2)
    with Image.open(tmp_path / "m.gif") as opened:
        width, height = opened.size
        grey = np.asarray(opened.convert("L"))[figures.STRIP :]
    assert height <= figures.MAX_SIDE + figures.STRIP
    assert width <= 2 * figures.MAX_SIDE + 4
    half = (width - 4) // 2
    before, after = grey[:, :half], grey[:, -half:]
    assert np.abs(before.astype(int) - after).mean() < 40 > abs(before.mean() - 128)
