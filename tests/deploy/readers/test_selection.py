from dataclasses import replace

import numpy as np
import pytest

from emdn_deploy.readers import Axis, Choice, open_frames
from emdn_deploy.readers.frames import parse_selection, select
from emdn_models.errors import FormatError

STACK = np.arange(10 * 8 * 9, dtype=np.uint16).reshape(10, 8, 9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:5", STACK[:5]), ("::3", STACK[::3]), ("2:9:2", STACK[2:9:2]), ("-3:", STACK[-3:]),
        ("4", STACK[4:5]), ("-1", STACK[-1:]), (":", STACK), ("5:100", STACK[5:]),
        ("0:3,5:", STACK[[0, 1, 2, 5, 6, 7, 8, 9]]), ("7, 2:4", STACK[[7, 2, 3]]),
        ("0:6:2,6:9:2", STACK[:9:2]), ("3,-1", STACK[[3, 9]]),
    ],
)  # fmt: skip
def test_frames_are_counted_as_python_does(tmp_path, text, expected):
    np.save(tmp_path / "a.npy", STACK)
    with open_frames(tmp_path / "a.npy") as frames:
        taken = select(frames, text)
        assert taken.shape == expected.shape
        np.testing.assert_array_equal(taken.read(0, len(expected)), expected)
        np.testing.assert_array_equal(taken.read(len(expected) - 1, len(expected)), expected[-1:])


def test_nonsense_is_named(tmp_path):
    for text in ["", "a", "1:b", "0:2,", "1,,2", "0:5:0", "5:0:-1", "1:2:3:4", "1.5"]:
        with pytest.raises(FormatError, match="is no selection; give start:stop:step"):
            parse_selection(text, 10)
    np.save(tmp_path / "a.npy", STACK)
    with open_frames(tmp_path / "a.npy") as frames:
        for text, name in [("10:20", "10:20"), ("0:3,12,5", "12")]:
            with pytest.raises(FormatError, match=f"--frames {name} takes none of 10 frames"):
                select(frames, text)
        for text in ["0,0", "0:3,2:5", "9,-1"]:
            with pytest.raises(FormatError, match=f"--frames {text} takes some frames twice"):
                select(frames, text)


@pytest.mark.parametrize(
    ("text", "step", "origin"), [("2:8:3", 1.5, 1.0), ("4", 0.5, 2.0), ("0:3,5:8", None, 0.0)]
)
def test_the_time_between_frames_survives(tmp_path, text, step, origin):
    np.save(tmp_path / "a.npy", STACK)
    with open_frames(tmp_path / "a.npy") as frames:
        timed = replace(frames, axes=(Axis("time", "s", 0.5), *frames.axes[1:]))
        axis = select(timed, text).axes[0]
        assert (axis.step, axis.origin) == (step, origin)


def test_any_axis_order_becomes_a_stack(tmp_path):
    np.save(tmp_path / "a.npy", np.moveaxis(STACK, 0, 2))
    with open_frames(tmp_path / "a.npy", Choice(axes="yxt")) as frames:
        taken = select(frames, "1:4")
        assert taken.stored_shape == (3, 8, 9)
        np.testing.assert_array_equal(taken.read(0, 3), STACK[1:4])
