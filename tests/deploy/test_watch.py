"""Acquisitions that are still being written."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser, cli, output, preprocess, watch
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import Choice, open_frames, open_list
from emdn_deploy.readers.frames import select
from emdn_deploy.writers import recorded
from emdn_models.errors import FormatError, OutputError


@pytest.fixture
def frames(lattice) -> np.ndarray[Any, Any]:
    return 3.0 * lattice(20.0, (40, 32, 32))


@pytest.fixture
def put(tmp_path: Path, frames) -> Callable[..., Path]:
    """Write files of the folder ``run``, one frame each."""

    def write(*numbers: int, array: np.ndarray[Any, Any] | None = None, cut: int = 0) -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        for number in numbers:
            path = folder / f"f_{number}.npy"
            np.save(path, frames[number] if array is None else array)
            if cut:
                path.write_bytes(path.read_bytes()[:-cut])
        return folder

    return write


def options(model: Path, **more: Any) -> DenoiseOptions:
    return DenoiseOptions(model=str(model), device="cpu", **more)


def follow_folder(
    source: Path, given: DenoiseOptions, *steps: Callable[[], object] | None
) -> list[watch.Arrival]:
    """Watch a folder; whenever the watcher sleeps, one step is made, so that no clock is needed."""
    left = list(steps)

    def sleep(_: float) -> None:
        if left and (step := left.pop(0)):
            step()

    return list(watch.folder(source, given, 3.0, 1.0, sleep))


def test_new_files_are_denoised_in_order(box_model, frames, put):
    # Number 10 comes before 9 is complete, and must wait for it.
    folder = put(*())
    half = folder / "f_9.npy"
    arrivals = follow_folder(
        folder, options(box_model, to="npy"),
        lambda: put(*range(8)), None, None, lambda: half.write_bytes(b"\x93NUMPY"),
        lambda: put(9, 10), None, None, lambda: put(11),
    )  # fmt: skip
    names = [arrival.source.name for arrival in arrivals]
    assert names == [f"f_{number}.npy" for number in (*range(8), 9, 10, 11)]
    assert all(arrival.lag_s < 60 for arrival in arrivals)
    # One scale for all, that of the first frames: files alone would give others.
    with open_frames(arrivals[0].output) as one:
        assert one.shape == (1, 32, 32)
    first = [folder / f"f_{i}.npy" for i in range(8)]
    scale = preprocess.find_recipe(open_list(folder, first, Choice()), options(box_model)).scale
    for arrival in (arrivals[0], arrivals[-1]):
        number = int(arrival.source.stem.split("_")[1])
        expected = Denoiser(box_model).run(frames[number : number + 1].astype("f4"), scale)
        np.testing.assert_array_equal(np.load(arrival.output), expected[0])
    assert "; from the first 8 frames" in recorded(arrivals[0].output)["intensity"]


def test_what_was_done_before_is_not_done_again(tmp_path, box_model, put, caplog):
    given = options(box_model, out_dir=tmp_path / "out")
    assert len(follow_folder(put(0, 1, 2), given)) == 3
    folder = put(3)
    os.utime(folder / "f_1.npy", (time.time() + 9, time.time() + 9))
    again = follow_folder(folder, given)
    assert [arrival.source.name for arrival in again] == ["f_3.npy"]
    assert len(list((tmp_path / "out").glob("*.npy"))) == 4
    newer = [text for text in caplog.messages if "is newer than its output" in text]
    assert [text.partition("run/")[2][:7] for text in newer] == ["f_1.npy"]


def test_a_tree_keeps_its_folders(tmp_path, box_model, frames):
    folder = tmp_path / "run"
    for number in (2, 10):
        place = folder / f"Second_{number}"
        place.mkdir(parents=True)
        np.save(place / "frame.npy", frames[number])
    done = follow_folder(folder, options(box_model, to="mrc"))
    made = [arrival.output.relative_to(tmp_path).as_posix() for arrival in done]
    assert made == [f"run_denoised/Second_{i}/frame_denoised.mrc" for i in (2, 10)]
    with pytest.raises(FormatError, match="no such folder to watch"):
        follow_folder(tmp_path / "none", options(box_model))


def test_bad_files_are_skipped_and_tried_again(tmp_path, box_model, frames, put, caplog):
    """At the first file, in between, of another size, empty, no frames at all."""
    folder = put(0, cut=100)
    put(1, 3)
    put(2, array=frames[2][:16])
    put(5, array=np.array("text"))
    (folder / "f_4.npy").touch()
    steps = [
        None, None, lambda: (put(6, cut=100), put(7)), None, None, lambda: put(0, 6), None, None,
        None, lambda: put(7, array=frames[8]), None, None,
    ]  # fmt: skip
    with pytest.raises(FormatError, match=r"3 of 8 files were not denoised: .*f_2.npy, .*f_4.npy"):
        follow_folder(folder, options(box_model, to="npy"), *steps)
    made = sorted((tmp_path / "run_denoised").glob("*.npy"), key=lambda path: path.stat().st_mtime)
    assert [path.stem for path in made] == [f"f_{i}_denoised" for i in (1, 3, 0, 6, 7)]
    for words in ("f_0.npy", "f_2.npy: is 16 x 32, earlier", "f_5.npy", "f_6.npy"):
        assert sum(words in text and "skipped" in text for text in caplog.messages) == 1
    assert any("f_7.npy: has changed" in text for text in caplog.messages)
    first = [folder / "f_1.npy", folder / "f_3.npy"]
    scale = preprocess.find_recipe(open_list(folder, first, Choice()), options(box_model)).scale
    expected = Denoiser(box_model).run(frames[8:9].astype("f4"), scale)
    np.testing.assert_array_equal(np.load(tmp_path / "run_denoised/f_7_denoised.npy"), expected[0])


def test_what_was_written_can_be_opened(tmp_path, box_model, put):
    """Also where outputs lie in the folder itself, in which they are no inputs."""
    folder = put(0, 1, 2)
    made = follow_folder(folder, options(box_model, to="npy"))
    with open_frames(tmp_path / "run_denoised/*.npy") as stack:
        assert stack.shape == (3, 32, 32)
        np.testing.assert_array_equal(stack.read(2, 3)[0], np.load(made[2].output))
    for _ in range(2):
        follow_folder(folder, options(box_model, to="npy", out_dir=folder))
        assert len(list(folder.rglob("*.npy"))) == 6
    for source, first in ((folder, "f_0.npy"), (folder / "*_denoised.npy", "f_0_denoised.npy")):
        with open_frames(source) as stack:
            assert stack.why.startswith(f"in natural order, {first}")


WRITER = """
import sys, time, h5py, numpy as np
frames = np.load(sys.argv[2])
with h5py.File(sys.argv[1], "w", libver="latest") as file:
    data = file.create_dataset(
        "entry/frames", shape=(0, *frames.shape[1:]), maxshape=(None, *frames.shape[1:]),
        chunks=(1, *frames.shape[1:]), dtype=frames.dtype)
    file.swmr_mode = True
    print("ready", flush=True)
    for start in range(0, len(frames), 5):
        data.resize(start + 5, axis=0)
        data[start:start + 5] = frames[start:start + 5]
        data.flush()
        time.sleep(0.05)
"""


@pytest.mark.parametrize("suffix", ["h5", "tif"])
def test_a_growing_dataset_is_followed(tmp_path, box_model, frames, call, capsys, suffix):
    np.save(tmp_path / "frames.npy", frames)
    source, target = tmp_path / "live.h5", tmp_path / f"out.{suffix}"
    command = [sys.executable, "-c", WRITER, source, tmp_path / "frames.npy"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"ready\n"
        status = call("watch", source, "-o", target, "--model", box_model, "--device", "cpu",
                      "--poll", 0.02, "--idle", 1.5, "--gain", 3, "--offset", 0)  # fmt: skip
    assert status == 0
    assert "frames     40, largest lag" in capsys.readouterr().out
    facts = recorded(target)
    assert facts["intensity_ratio"] == pytest.approx(1, abs=0.01)
    assert "check" in facts
    with open_frames(target) as after, open_frames(source) as before:
        assert (after.dtype, after.shape) == (np.float32, (40, 32, 32))
        count = facts["intensity"].split("from the first ")[1].split()[0]
        some, given = select(before, f"0:{count}"), options(box_model, gain=3, offset=0)
        first = preprocess.find_recipe(some, given)
        expected = Denoiser(box_model).run(frames.astype("f4"), first.scale)
        np.testing.assert_array_equal(after.read(0, 40), expected)


@pytest.fixture
def live(tmp_path: Path, frames) -> Path:
    with h5py.File(tmp_path / "live.h5", "w", libver="latest") as file:
        file.create_dataset("frames", data=frames, chunks=(1, 32, 32), maxshape=(None, 32, 32))
    return tmp_path / "live.h5"


def follow(
    live: Path, target: Path, model: Path, sleep: Callable[[float], None] = lambda _: None,
    **more: Any,
) -> list[watch.Arrival]:  # fmt: skip
    given = options(model, batch=4, output=target, **more)
    return list(watch.dataset(live, given, 2.0, 1.0, sleep))


def test_stopping_completes_the_output(tmp_path, movie_model, live, frames):
    """With the frames that waited for their neighbours."""
    target = tmp_path / "out.npy"
    arrivals = watch.dataset(live, options(movie_model, output=target), 60.0, 1.0)
    assert next(arrivals).frames == 38
    assert not target.exists()
    arrivals.close()
    follow(live, tmp_path / "whole.npy", movie_model)
    made = np.load(target)
    assert made.shape == (40, 32, 32)
    np.testing.assert_array_equal(made, np.load(tmp_path / "whole.npy"))
    assert not list(tmp_path.glob("*.partial*"))


def test_a_file_that_cannot_be_followed_is_named(tmp_path, box_model):
    source = tmp_path / "a.h5"
    source.write_text("no HDF5")
    with pytest.raises(FormatError, match="must write it in SWMR mode"):
        follow(source, tmp_path / "out.h5", box_model)
    with h5py.File(source, "w", libver="latest") as file:
        file.create_dataset(
            "frames", (0, 32, 32), "u2", chunks=(1, 32, 32), maxshape=(None, 32, 32)
        )
    with pytest.raises(FormatError, match="stayed empty for 2 s"):
        follow(source, tmp_path / "out.h5", box_model)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(28, "full")])
def test_after_an_error_the_same_command_goes_on(
    tmp_path, box_model, live, monkeypatch, error, caplog
):
    follow(live, tmp_path / "whole.h5", box_model)
    target, put = tmp_path / "out.h5", output.Output._put

    def failing(self: output.Output, name: str, start: int, *given: Any) -> Any:
        if start >= 12:
            raise error
        return put(self, name, start, *given)

    monkeypatch.setattr(output.Output, "_put", failing)
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)) as raised:
        follow(live, target, box_model)
    monkeypatch.undo()
    assert not target.exists()
    said = f"12 frames are kept in {target}.partial: the same command goes on from there"
    assert said in str(raised.value) + caplog.text
    assert sum(arrival.frames for arrival in follow(live, target, box_model)) == 28
    first, second = recorded(target), recorded(tmp_path / "whole.h5")
    for name in ("intensity_ratio", "output_std", "largest_shift", "check"):
        assert first[name] == second[name]
    with open_frames(target) as made, open_frames(tmp_path / "whole.h5") as whole:
        np.testing.assert_array_equal(made.read(0, 40), whole.read(0, 40))
    assert not list(tmp_path.glob("*.partial*"))


def test_a_consumer_that_fails_publishes_nothing(tmp_path, box_model, live, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "terminal is gone")

    monkeypatch.setattr("builtins.print", broken)
    given = {"output": tmp_path / "out.h5", "model": str(box_model), "device": "cpu", "idle": 0.0}
    with pytest.raises(OSError, match="terminal is gone"):
        cli.watch(source=live, **given)
    assert not (tmp_path / "out.h5").exists()
    assert (tmp_path / "out.h5.partial").exists()
