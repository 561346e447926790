"""Acquisitions that are still being written."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser, cli, growing, watch
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.readers import open_frames
from emdn_models.errors import FormatError


@pytest.fixture
def frames(lattice) -> np.ndarray[Any, Any]:
    return 3.0 * lattice(20.0, (40, 32, 32))


def options(model: Path, **more: Any) -> DenoiseOptions:
    return DenoiseOptions(model=str(model), device="cpu", **more)


class Camera:
    """Writes some frames whenever the watcher sleeps, and so needs no clock."""

    def __init__(self, frames: np.ndarray[Any, Any], steps: list[Callable[[], None]]) -> None:
        self.frames, self.steps = frames, steps

    def sleep(self, _: float) -> None:
        if self.steps:
            self.steps.pop(0)()


def test_new_files_are_denoised_in_order(tmp_path: Path, box_model: Path, frames) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    def put(*numbers: int) -> Callable[[], None]:
        def step() -> None:
            for number in numbers:
                np.save(folder / f"f_{number}.npy", frames[number])

        return step

    # Number 10 comes before 9 is complete, and must wait for it.
    half = folder / "f_9.npy"

    def begin() -> None:
        half.write_bytes(b"\x93NUMPY")

    def nothing() -> None:
        pass

    steps = [put(*range(8)), nothing, nothing, begin, put(9, 10), nothing, nothing, put(11)]
    camera = Camera(frames, steps)
    arrivals = list(watch.folder(folder, options(box_model, to="npy"), 3.0, 1.0, camera.sleep))
    names = [arrival.source.name for arrival in arrivals]
    assert names == [f"f_{number}.npy" for number in (*range(8), 9, 10, 11)]
    assert all(arrival.lag_s < 60 for arrival in arrivals)
    # One scale for all, that of the first frames: files alone would give others.
    with open_frames(arrivals[0].output) as one:
        assert one.shape == (1, 32, 32)
    scale = watch._first_recipe(
        folder, [folder / f"f_{i}.npy" for i in range(8)], options(box_model)
    )
    for arrival in (arrivals[0], arrivals[-1]):
        number = int(arrival.source.stem.split("_")[1])
        expected = Denoiser(box_model).run(frames[number : number + 1].astype("f4"), scale.scale)
        np.testing.assert_array_equal(np.load(arrival.output), expected)
    assert "first 8 frames" in scale.scale.note


def test_what_was_done_before_is_not_done_again(tmp_path: Path, box_model: Path, frames) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"f_{number}.npy", frames[number])
    given = options(box_model, out_dir=tmp_path / "out")
    first = list(watch.folder(folder, given, 2.0, 1.0, lambda _: None))
    assert len(first) == 3
    np.save(folder / "f_3.npy", frames[3])
    again = list(watch.folder(folder, given, 2.0, 1.0, lambda _: None))
    assert [arrival.source.name for arrival in again] == ["f_3.npy"]
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_tree_keeps_its_folders(tmp_path: Path, box_model: Path, frames) -> None:
    folder = tmp_path / "run"
    for number in (2, 10):
        place = folder / f"Second_{number}"
        place.mkdir(parents=True)
        np.save(place / "frame.npy", frames[number])
    done = list(watch.folder(folder, options(box_model, to="mrc"), 2.0, 1.0, lambda _: None))
    assert [arrival.output.relative_to(tmp_path).as_posix() for arrival in done] == [
        "run_denoised/Second_2/frame_denoised.mrc",
        "run_denoised/Second_10/frame_denoised.mrc",
    ]


def test_a_missing_folder_is_named(tmp_path: Path, box_model: Path) -> None:
    with pytest.raises(FormatError, match="no such folder to watch"):
        list(watch.folder(tmp_path / "none", options(box_model), 1.0, 1.0))


WRITER = """
import sys, h5py, numpy as np
frames = np.load(sys.argv[2])
with h5py.File(sys.argv[1], "w", libver="latest") as file:
    data = file.create_dataset(
        "entry/frames", shape=(0, *frames.shape[1:]), maxshape=(None, *frames.shape[1:]),
        chunks=(1, *frames.shape[1:]), dtype=frames.dtype)
    file.swmr_mode = True
    print("ready", flush=True)
    for start in range(0, len(frames), 5):
        sys.stdin.readline()
        data.resize(start + 5, axis=0)
        data[start:start + 5] = frames[start:start + 5]
        data.flush()
        print("written", flush=True)
"""


def test_a_growing_dataset_is_followed(
    tmp_path: Path, box_model: Path, frames, capsys, monkeypatch
) -> None:
    np.save(tmp_path / "frames.npy", frames)
    source, target = tmp_path / "live.h5", tmp_path / "out.h5"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(source), str(tmp_path / "frames.npy")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    left = len(frames) // 5

    def more(_: float) -> None:
        """Let the next frames be written whenever the watcher sleeps."""
        nonlocal left
        if left:
            left -= 1
            writer.stdin.write(b"\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == b"written\n"

    monkeypatch.setattr(growing, "dataset", partial(growing.dataset, sleep=more))
    with writer:
        assert writer.stdout.readline() == b"ready\n"
        with pytest.raises(SystemExit) as ended:
            cli.main(
                ["watch", str(source), "-o", str(target), "--model", str(box_model), "--device",
                 "cpu", "--poll", "0.02", "--idle", "1.5"]
            )  # fmt: skip
    assert (ended.value.code or 0) == 0
    assert "frames     40, largest lag" in capsys.readouterr().out
    with h5py.File(target) as file:
        made = file["entry/frames"]
        assert made.shape == (40, 32, 32)
        assert made.dtype == np.float32
        facts = dict(file["emdn"].attrs)
    assert facts["intensity_ratio"] == pytest.approx(1, abs=0.01)
    assert facts["gain"] == pytest.approx(3.0, rel=0.15)
    with open_frames(target) as after:
        denoised = after.read(0, 40)
    assert np.abs(denoised.mean(axis=(1, 2)) / frames.mean(axis=(1, 2)) - 1).max() < 0.02
    assert np.var(np.diff(denoised, axis=0)) < 0.3 * np.var(np.diff(frames, axis=0))


def test_stopping_completes_the_output(tmp_path: Path, box_model: Path, frames) -> None:
    source, target = tmp_path / "a.h5", tmp_path / "out.h5"
    with h5py.File(source, "w", libver="latest") as file:
        file.create_dataset("frames", data=frames, chunks=(1, 32, 32), maxshape=(None, 32, 32))
    arrivals = growing.dataset(source, target, options(box_model, batch=4), 60.0, 1.0)
    next(arrivals)
    next(arrivals)
    assert not target.exists()
    arrivals.close()
    with h5py.File(target) as file:
        assert file["frames"].shape == (8, 32, 32)
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_that_cannot_be_followed_is_named(tmp_path: Path, box_model: Path) -> None:
    source = tmp_path / "a.h5"
    source.write_text("no HDF5")
    with pytest.raises(FormatError, match="must write it in SWMR mode"):
        list(growing.dataset(source, tmp_path / "out.h5", options(box_model), 1.0, 1.0))
    with h5py.File(source, "w", libver="latest") as file:
        file.create_dataset(
            "frames", shape=(0, 32, 32), dtype="u2", chunks=(1, 32, 32), maxshape=(None, 32, 32)
        )
    with pytest.raises(FormatError, match="stayed empty for 2 s"):
        list(
            growing.dataset(
                source, tmp_path / "out.h5", options(box_model), 2.0, 1.0, lambda _: None
            )
        )
