from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import tiling
from emdn_deploy.session import open_session
from emdn_models.errors import ModelError


@pytest.mark.parametrize("size", [(97, 131), (64, 300), (300, 41), (128, 128)])
@pytest.mark.parametrize("pixels", [48 * 48, 64 * 64, 5000])
def test_tiles_equal_the_whole_frame_bit_for_bit(
    box_model: Path, size: tuple[int, int], pixels: int
) -> None:
    session = open_session(box_model, "cpu", threads=1)
    frames = np.random.default_rng(0).poisson(5, (2, *size)).astype(np.float32)
    runs = []

    def run(tile: np.ndarray) -> np.ndarray:
        runs.append(tile.shape)
        return session.run(tile, 5.0, 0.0, 1.0)

    tiled = np.empty_like(frames)
    tiling.apply(run, frames, session.info, tiled, pixels)
    assert len(runs) > 2
    assert all(height * width <= pixels for _, height, width in runs)
    np.testing.assert_array_equal(tiled, session.run(frames, 5.0, 0.0, 1.0))


@pytest.mark.parametrize("size", [(96, 128), (97, 131), (64, 300), (300, 41), (128, 128)])
@pytest.mark.parametrize("pixels", [48 * 48, 64 * 64, 5000])
def test_even_tiles_have_one_shape_and_the_same_result(
    box_model: Path, size: tuple[int, int], pixels: int
) -> None:
    session = open_session(box_model, "cpu", threads=1)
    frames = np.random.default_rng(0).poisson(5, (2, *size)).astype(np.float32)
    shapes = []

    def run(tile: np.ndarray) -> np.ndarray:
        shapes.append(tile.shape[1:])
        return session.run(tile, 5.0, 0.0, 1.0)

    tiled = np.empty_like(frames)
    tiling.apply(run, frames, session.info, tiled, pixels, even=True)
    np.testing.assert_array_equal(tiled, session.run(frames, 5.0, 0.0, 1.0))
    assert all(height * width <= pixels for height, width in shapes)
    # To within the multiple, 2: an odd side leaves one of two.
    for axis in range(2):
        lengths = {shape[axis] for shape in shapes}
        assert max(lengths) - min(lengths) < session.info.multiple
        assert size[axis] % 2 or len(lengths) == 1


def test_a_smaller_halo_would_not_do(box_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(box_model, "cpu", threads=1)
    frames = np.random.default_rng(0).poisson(5, (1, 96, 96)).astype(np.float32)
    monkeypatch.setattr(tiling, "halo", lambda info: 2)
    tiled = np.empty_like(frames)
    tiling.apply(lambda f: session.run(f, 5, 0, 1), frames, session.info, tiled, 2500)
    assert not np.array_equal(tiled, session.run(frames, 5, 0, 1))


def test_models_that_cannot_be_tiled_are_refused_by_name(box_model: Path) -> None:
    info = open_session(box_model, "cpu").info
    frames = np.zeros((1, 64, 64), np.float32)
    with pytest.raises(ModelError, match="box"):
        tiling.apply(lambda f: f, frames, replace(info, tiling_exact=False), frames, 1000)
    named = replace(info, tiling_exact=False, text={"whole_frame": "Resize (a) places pixels"})
    with pytest.raises(ModelError, match=r"box .* by tiles: Resize \(a\) places pixels; use"):
        tiling.apply(lambda f: f, frames, named, frames, 1000)
    with pytest.raises(ModelError, match="box sees 90 pixels"):
        tiling.apply(lambda f: f, frames, replace(info, receptive_field=90), frames, 1000)


@pytest.mark.parametrize(
    ("field", "multiple", "expected"), [(41, 1, 21), (50, 2, 26), (82, 2, 42), (158, 32, 96)]
)
def test_the_halo_covers_the_field(box_model: Path, field, multiple, expected) -> None:
    info = replace(open_session(box_model, "cpu").info, receptive_field=field, multiple=multiple)
    assert tiling.halo(info) == expected
