"""An output appears whole or not at all."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import job, output
from emdn_deploy.options import DenoiseOptions
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


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(
    source: Path, box_model: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    before = sorted(source.parent.iterdir())
    write = output.Output.write

    def failing(self: output.Output, start: int, frames: np.ndarray) -> None:
        if start >= 4:
            raise kind(28, "No space left on device")
        write(self, start, frames)

    monkeypatch.setattr(output.Output, "write", failing)
    with pytest.raises(kind):
        run(source, box_model, batch=2)
    assert sorted(source.parent.iterdir()) == before


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
    opened.layout = output.Layout(np.zeros(1, np.int64))
    with (
        open("/dev/full", "r+b", buffering=0) as opened._file,
        pytest.raises(OutputError, match="No space left on device"),
    ):
        opened.write(0, np.zeros((1, 4, 4), np.float32))


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
