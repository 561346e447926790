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


def film(path: Path, frames: np.ndarray) -> None:
    stack = np.asarray(frames, np.float32)
    figures.movie(path, lambda a, b: stack[a:b], lambda a, b: stack[a:b] * 0 + 10, len(stack))


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


def test_each_side_has_its_own_limits_and_large_frames_are_binned():
    dark, bright = np.full((4, 256), 2.0, np.float32), np.full((4, 256), 6.0, np.float32)
    picture = figures.side_by_side([dark, bright], [(0.0, 8.0), (5.0, 7.0)])
    assert (picture[:, :256] == 64).all()
    assert (picture[:, 260:] == 128).all()
    for shape in [(1100, 700), (1, 2000), (513, 513)]:
        frame = np.ones(shape, np.float32)
        picture = figures.side_by_side([frame, frame], [(0.0, 1.0)] * 2)
        assert picture.shape[0] <= figures.MAX_SIDE
        assert picture.shape[1] <= 2 * figures.MAX_SIDE + 4
        assert (picture == 255).all()


def test_a_frame_is_captioned_with_names_time_and_a_bar():
    grey = np.zeros((200, 516), np.uint8)
    bare = np.asarray(figures.captioned(grey, "frame 3", None, 256))
    barred = np.asarray(figures.captioned(grey, "0.003 s", Axis("x", "nm", 0.02), 256))
    assert bare.shape == (200 + figures.STRIP, 516)
    assert (bare[:200] == 0).all()
    assert bare[200:, :60].max() > 100  # before
    assert bare[200:, 260:300].max() > 100  # after
    # 1 nm of 5.12 is 50 of 256 pixels.
    assert (barred[200 + figures.STRIP // 2][456:509] > 200).sum() == 51
    assert (bare[200:, 350:] == 0).all()
    assert (bare[200:, 44:250] != barred[200:, 44:250]).any()  # the time
