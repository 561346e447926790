"""HDF5 files on a disk that fills up: one error, whichever write fails."""

import h5py
import numpy as np
import pytest

from emdn_models import OutputError
from emdn_models.hdf5 import written


def fill(path, check):
    noise = np.random.default_rng(0).normal(size=(20, 32, 32))
    with written(path) as out:
        data = out.file.create_dataset("a", (20, 32, 32), "f4", chunks=(1, 32, 32))
        packed = out.file.create_dataset(
            "b", (20, 32, 32), "f4", chunks=(1, 32, 32), compression="gzip"
        )
        for number, frame in enumerate(noise):
            data[number] = packed[number] = frame
            out.file[f"more/{number}"] = np.arange(number)
            if check:
                out.check()
        data.attrs["units"] = "electrons"


@pytest.mark.parametrize("check", [True, False])
def test_wherever_the_disk_is_full_it_is_one_error(tmp_path, room, check):
    path = tmp_path / "out.h5"
    fill(path, check)
    whole = path.read_bytes()
    points = [0, 1, 96, len(whole) - 1]
    points += np.random.default_rng(1).integers(len(whole), size=16).tolist()
    for size in points:
        with room(size), pytest.raises(OutputError, match=r"out.h5: cannot be written \(File too"):
            fill(path, check)
    with room(len(whole)):
        fill(path, check)
    assert path.read_bytes() == whole
    with h5py.File(path) as file:
        assert file["a"][19].std() == pytest.approx(1, abs=0.1)
