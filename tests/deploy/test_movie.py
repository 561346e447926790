from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emdn_deploy import movie
from emdn_deploy.readers import Axis
from emdn_models.errors import OutputError


def write(path: Path, frames: np.ndarray) -> None:
    stack = np.asarray(frames, np.float32)
    movie.write(path, lambda a, b: stack[a:b], lambda a, b: stack[a:b] * 0 + 10, len(stack))


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (7, 7), (250, movie.MAX_FRAMES)])
def test_frames_are_spread_over_the_stack(tmp_path: Path, count: int, shown: int) -> None:
    # Each frame has its number's brightness, so that none is dropped as a repetition.
    ramp = np.linspace(0, 20, 32)[None, None, :] + np.arange(count)[:, None, None] * 0.05
    write(tmp_path / "m.gif", np.broadcast_to(ramp, (count, 24, 32)))
    with Image.open(tmp_path / "m.gif") as opened:
        assert opened.n_frames == shown
        assert opened.size == (2 * 256 + 4, 192 + movie.STRIP)  # 8 times as large


def test_each_side_has_its_own_limits() -> None:
    dark, bright = np.full((4, 256), 2.0, np.float32), np.full((4, 256), 6.0, np.float32)
    picture = movie.side_by_side([dark, bright], [(0.0, 8.0), (5.0, 7.0)])
    assert (picture[:, :256] == 64).all()
    assert (picture[:, 260:] == 128).all()


def test_a_frame_is_captioned_with_names_time_and_a_bar() -> None:
    grey = np.zeros((200, 516), np.uint8)
    bare = np.asarray(movie.captioned(grey, "frame 3", None, 256))
    barred = np.asarray(movie.captioned(grey, "0.003 s", Axis("x", "nm", 0.02), 256))
    assert bare.shape == (200 + movie.STRIP, 516)
    assert (bare[:200] == 0).all()
    assert bare[200:, :60].max() > 100  # before
    assert bare[200:, 260:300].max() > 100  # after
    # 1 nm of 5.12 is 50 of 256 pixels.
    line = barred[200 + movie.STRIP // 2]
    assert (np.diff(np.flatnonzero(line > 200))[-49:] == 1).all()
    assert (line[456:509] > 200).sum() == 51
    assert (bare[200:, 350:] == 0).all()
    assert (bare[200:, 44:250] != barred[200:, 44:250]).any()  # the time


@pytest.mark.parametrize("shape", [(1100, 700), (1, 2000), (513, 513)])
def test_large_frames_are_binned(shape: tuple[int, int]) -> None:
    frame = np.ones(shape, np.float32)
    picture = movie.side_by_side([frame, frame], [(0.0, 1.0)] * 2)
    assert picture.shape[0] <= movie.MAX_SIDE
    assert picture.shape[1] <= 2 * movie.MAX_SIDE + 4
    assert (picture == 255).all()


def test_a_movie_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"m\.gif: cannot be written"):
        write(tmp_path / "none" / "m.gif", np.ones((2, 8, 8)))
