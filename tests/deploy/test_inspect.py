"""Files with several stacks: ``inspect`` lists them, ``denoise`` refuses to choose."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

STACK = np.arange(5 * 16 * 24, dtype=np.uint16).reshape(5, 16, 24)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=STACK, chunks=(1, 16, 24))
        file["b/frames"] = STACK[:4].astype(np.float32)
    return path


def test_inspect_lists_all_candidates(two, call, capsys):
    assert call("inspect", two) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{two}: 2 stacks (plain HDF5), none of which is marked as the frames",
        "  /a         (5, 16, 24)  uint16  chunks (1, 16, 24)",
        "  /b/frames  (4, 16, 24)  float32",
        f"  choose    emdn-deploy denoise {two} --dataset /a",
    ]
    assert not printed.err


@pytest.mark.parametrize(
    ("shape", "model"),
    [((5, 16, 24), "unet@movie if frames show one scene, else unet, unless"),
     ((4, 16, 24), "unet unless"), ((2, 3, 16, 24), "unet unless"), ((16, 24), "unet unless")],
)  # fmt: skip
def test_inspect_names_the_model_that_a_movie_gets(shape, model, call, capsys, tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).poisson(9.0, shape).astype("u2"))
    assert call("inspect", tmp_path / "a.npy") == 0
    assert f"model      {model} --model says otherwise" in capsys.readouterr().out


def test_denoise_still_refuses(two, box_model, call, capsys):
    before = sorted(two.parent.iterdir())
    assert call("denoise", two, "--model", box_model, "--device", "cpu") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds 2 stacks (plain HDF5): /a (5, 16, 24) uint16; /b/frames" in error
    assert error.endswith("choose one with --dataset PATH\n")
    assert call("denoise", two, "--dry-run") == 1
    assert sorted(two.parent.iterdir()) == before


def test_two_series_of_a_tiff(tmp_path, call, capsys):
    path = tmp_path / "two.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(STACK, photometric="minisblack")
        file.write(STACK[:2, :8].astype(np.float32), photometric="minisblack")
        file.write(STACK[:, :8], photometric="minisblack")
    assert call("inspect", path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("3 series, none of which is marked as the frames")
    assert lines[1:3] == ["  0  (5, 16, 24)  uint16", "  1  (2, 8, 24)  float32"]
    assert lines[-1].endswith("--dataset 0")
