"""A killed run loses nothing: the repeated command gives the frames of an undisturbed one."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy.readers import open_frames


def stacks(folder: Path) -> dict[str, np.ndarray]:
    """Return the frames of every output, by name."""
    found = {}
    for path in folder.iterdir():
        if path.suffix == ".json":
            continue
        with open_frames(path) as frames:
            found[path.name] = frames.read(0, frames.shape[0])
    return found


@pytest.mark.parametrize(
    ("given", "name", "flags"),
    [
        ("movie.h5", "out.h5", ()),
        ("movie.h5", "out.h5", ("--compress",)),
        ("movie.h5", "out.tif", ("--sigma",)),
        ("movie.h5", "out.zarr", ("--sigma",)),
        ("movie.h5", "out.mrc", ()),
        ("frames", "out.hspy", ()),
    ],
)
def test_a_killed_run_goes_on(
    tmp_path, box_model, lattice, denoise_killed, call, given, name, flags
) -> None:
    movie = lattice(20.0, (9, 32, 40)).astype(np.uint16)
    with h5py.File(tmp_path / "movie.h5", "w") as file:
        file["frames"] = movie
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(movie):
        np.save(tmp_path / "frames" / f"f_{number}.npy", frame)
    found = []
    for kills in ((), (2, 6)):
        out = tmp_path / f"out{len(kills)}"
        out.mkdir()
        command = (tmp_path / given, "-o", out / name, *flags, "--model", box_model)
        command += ("--device", "cpu", "--batch", 2)
        for frames in kills:
            denoise_killed(frames, *command)
            assert not (out / name).exists()
        assert call("denoise", *command) == 0
        found.append(stacks(out))
    assert found[0].keys() == found[1].keys()
    for key, stack in found[0].items():
        np.testing.assert_array_equal(found[1][key], stack)
