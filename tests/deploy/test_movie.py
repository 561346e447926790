from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emdn_deploy import movie
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
        assert opened.size == (2 * 32 + 4, 24)


def test_both_sides_share_their_limits() -> None:
    dark, bright = np.full((4, 6), 2.0, np.float32), np.full((4, 6), 6.0, np.float32)
    picture = movie.side_by_side([dark, bright], 0.0, 8.0)
    assert (picture[:, :6] == 64).all()
    assert (picture[:, 10:] == 191).all()


@pytest.mark.parametrize("shape", [(1100, 700), (1, 2000), (513, 513)])
def test_large_frames_are_binned(shape: tuple[int, int]) -> None:
    frame = np.ones(shape, np.float32)
    picture = movie.side_by_side([frame, frame], 0.0, 1.0)
    assert picture.shape[0] <= movie.MAX_SIDE
    assert picture.shape[1] <= 2 * movie.MAX_SIDE + 4
    assert (picture == 255).all()


def test_a_movie_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"m\.gif: cannot be written"):
        write(tmp_path / "none" / "m.gif", np.ones((2, 8, 8)))
