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


def test_spectra_are_cut_to_what_holds_signal():
    x = np.arange(160) * np.ones((128, 1))
    truth = 20 + 3 * np.cos(2 * np.pi * x / 8)  # a quarter of the Nyquist frequency
    noisy = np.random.default_rng(0).poisson(truth).astype(np.float32)
    power = figures.log_power(noisy)
    assert abs(power[:32].mean() - power[48:64, :60].mean()) < 0.05  # white noise is flat
    floor = float(np.median(power))
    reach = figures.signal_reach(figures.log_power(truth + 1e-3 * (noisy - truth)), floor)
    assert reach == pytest.approx(1.25 * 0.25, abs=0.03)
    assert figures.signal_reach(power, floor) > 0.9


def test_a_weak_result_is_shown_in_its_own_contrast(tmp_path):
    noisy = np.random.default_rng(0).poisson(20, (64, 64)).astype(np.float32)
    flat = np.full((64, 64), 20, np.float32)
    flat[:, 32:] = 20.5
    assert figures.contrast(flat) == (20, 20.5)
    figures.draw(tmp_path / "p.png", noisy, flat, SCALE, Axis())
    after = matplotlib.image.imread(tmp_path / "p.png")[100:300, 450:750, 0]
    assert (after.min(), after.max()) == (0, 1)


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


def test_a_movie_has_the_time_and_a_bar(tmp_path):
    def picture(*axes: Axis) -> np.ndarray:
        film(tmp_path / "m.gif", np.full((3, 256, 256), 7.0), *axes)
        with Image.open(tmp_path / "m.gif") as opened:
            return np.asarray(opened.convert("L")).astype(int)

    bare, barred = picture(), picture(Axis("t", "s", 0.001), Axis("x", "nm", 0.02))
    changed = bare != barred
    assert changed[: figures.STRIP, :256].any()  # the time
    assert not changed[figures.STRIP :, :256].any()
    # 1 nm of 5.12 is 50 of 256 pixels.
    row = changed[figures.STRIP :, 260:][int(0.935 * 256)]
    assert row.sum() == pytest.approx(51, abs=3)
