"""Outputs: one process at a time, named, and one error wherever a disk is full."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from emdn_models import OutputError
from emdn_models.files import locked, written

HOLD = """
import sys
from pathlib import Path
from emdn_models.files import locked
with locked(Path(sys.argv[1]), "out"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    path = tmp_path / "fit.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(OutputError, match="another process"), locked(path, "out"):
                pass
        finally:
            process.kill()
    assert path.exists()
    with pytest.raises(ZeroDivisionError), locked(path, "out"):
        raise ZeroDivisionError
    assert not path.exists()


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
