"""An output appears whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import job, output
from emdn_deploy.filling import Filling
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.pipeline import blocks
from emdn_deploy.readers import open_frames
from emdn_deploy.sums import Sums
from emdn_deploy.writers import Layout
from emdn_models.errors import OutputError


@pytest.fixture
def source(tmp_path: Path, lattice) -> Path:
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = lattice(20.0, (8, 24, 24)).astype(np.uint16)
    return path


def run(source: Path, model: Path, **options) -> job.Report:
    return job.run(source, DenoiseOptions(model=str(model), device="cpu", **options))


def test_an_existing_output_is_refused(source: Path, box_model: Path) -> None:
    first = run(source, box_model).output
    before = first.read_bytes()
    with pytest.raises(OutputError, match="exists already; add --overwrite"):
        run(source, box_model)
    assert first.read_bytes() == before
    run(source, box_model, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_input_is_never_overwritten(source: Path, box_model: Path, overwrite: bool) -> None:
    before = source.read_bytes()
    link = source.with_name("link.h5")
    link.symlink_to(source)
    for target in (source, link):
        with pytest.raises(OutputError, match="is the input itself"):
            run(source, box_model, output=target, overwrite=overwrite)
    assert source.read_bytes() == before


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """Make the writer raise when it comes to a frame."""
    write = output.Output.write

    def arm(frame: int, error: BaseException) -> None:
        def failing(self: output.Output, start: int, *blocks: np.ndarray) -> None:
            if start >= frame:
                raise error
            write(self, start, *blocks)

        monkeypatch.setattr(output.Output, "write", failing)

    return arm


@pytest.mark.parametrize(("frame", "error"), [(4, ValueError("a bug")), (0, KeyboardInterrupt())])
def test_a_failure_leaves_nothing(source: Path, box_model: Path, stop_at, frame, error) -> None:
    """Neither an error, nor an interruption before anything is done."""
    before = sorted(source.parent.iterdir())
    stop_at(frame, error)
    with pytest.raises(type(error)):
        run(source, box_model, batch=2)
    assert sorted(source.parent.iterdir()) == before


@pytest.mark.parametrize("suffix", [".h5", ".hspy", ".tif", ".mrc", ".npy"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OutputError("No space left")])
def test_an_interrupted_run_is_continued(
    source: Path, box_model: Path, stop_at, monkeypatch, suffix: str, error: BaseException
) -> None:
    frames = "0:8" if suffix == ".hspy" else None
    whole = run(source, box_model, batch=2, output=source.parent / f"whole{suffix}", frames=frames)
    target = source.parent / f"cut{suffix}"
    stop_at(4, error)
    with pytest.raises(type(error)):
        run(source, box_model, batch=2, output=target, frames=frames)
    assert not target.exists()
    monkeypatch.undo()
    read = []
    monkeypatch.setattr(job.pipeline, "blocks", lambda *span: read.append(span) or blocks(*span))
    report = run(source, box_model, batch=2, output=target, frames=frames)
    assert report.resumed == 4
    assert read == [(4, 8, 2)]
    assert report.ratio == pytest.approx(whole.ratio, rel=1e-12)
    assert pixels(target) == pixels(whole.output)
    assert not list(source.parent.glob("*.partial*"))


def test_threads_and_batch_do_not_matter(
    source: Path, box_model: Path, stop_at, monkeypatch
) -> None:
    """Neither for the frames, nor for continuing a run that was interrupted."""
    whole = run(source, box_model, threads=1, output=source.with_name("whole.h5"))
    stop_at(4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(source, box_model, threads=1, batch=2)
    monkeypatch.undo()
    report = run(source, box_model, threads=3)
    assert report.resumed == 4
    assert pixels(report.output) == pixels(whole.output)


def pixels(path: Path) -> bytes:
    with open_frames(path) as frames:
        return frames.read(0, frames.shape[0]).tobytes()


def test_a_killed_run_is_continued(source: Path, box_model: Path, denoise_killed) -> None:
    """SIGKILL, so that nothing is tidied up, while frames are being written."""
    with h5py.File(source, "r+") as file:
        del file["frames"]
        rng = np.random.default_rng(0)
        file["frames"] = rng.poisson(20, (40, 64, 64)).astype(np.uint16)
    target = source.parent / "cut.h5"
    denoise_killed(
        10, source, "-o", target, "--model", box_model, "--device", "cpu", "--batch", "2"
    )
    assert not target.exists()
    report = run(source, box_model, batch=2, output=target)
    assert report.resumed == 10
    whole = run(source, box_model, batch=2, output=source.parent / "whole.h5")
    assert pixels(target) == pixels(whole.output)


@pytest.mark.parametrize("change", ["gain", "model", "input"])
def test_another_run_is_not_continued(
    source: Path, box_model: Path, make_model, stop_at, monkeypatch, change: str
) -> None:
    stop_at(4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(source, box_model, batch=2)
    monkeypatch.undo()
    model, options = box_model, {"batch": 2}
    if change == "gain":
        options["gain"] = 2.0
    elif change == "model":
        model = make_model(source.parent / "other.onnx", model="other")
    else:
        os.utime(source, (1, 1))
    named = {"input": "input_files", "model": "model, model_sha256"}.get(change, change)
    with pytest.raises(OutputError, match=f"interrupted run with another .*{named}"):
        run(source, model, **options)
    report = run(source, model, overwrite=True, **options)
    assert report.resumed == 0


def test_a_failure_keeps_the_earlier_output(
    source: Path, box_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(source, box_model).output
    before = first.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(OutputError, match="I/O error"):
        run(source, box_model, overwrite=True)
    assert first.read_bytes() == before


def test_a_full_disk_is_named(source: Path, box_model: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.fail("this test needs /dev/full (Linux)")
    opened = output.Output.__new__(output.Output)
    opened.partial = Path("/dev/full")
    layout = Layout(np.zeros(1, np.int64))
    filling = Filling(layout, opened.partial, opened.partial, Sums())
    opened._fillings = {"frames": filling}
    with filling.file, pytest.raises(OutputError, match="No space left on device"):
        opened.write(0, *np.zeros((2, 1, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("name", "message"),
    [("none/out.h5", "no such folder"), (".", "is a folder"), ("out.xyz", "unknown kind of file")],
)
def test_impossible_targets_are_named(source: Path, box_model: Path, name, message) -> None:
    with pytest.raises(OutputError, match=message):
        run(source, box_model, output=source.parent / name)


def test_a_read_only_folder_is_named(
    source: Path, box_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(OutputError, match="cannot be written to; choose another place"):
        run(source, box_model)
