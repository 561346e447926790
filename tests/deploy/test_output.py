"""An output appears whole or not at all."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import denoise_file, output, writers
from emdn_deploy.batching import blocks
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import open_frames
from emdn_models.errors import FormatError, OutputError


@pytest.fixture
def source(tmp_path: Path, lattice) -> Path:
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = lattice(20.0, (8, 24, 24)).astype(np.uint16)
    return path


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OutputError("No space left"), ValueError("a bug")]
)
def test_an_interrupted_run_is_continued(source, run, interrupted, stop_at, monkeypatch, error):
    """Whatever ended it; what is done is not read again. For all kinds: writers/test_outputs.py."""
    stop_at(0, error)
    with pytest.raises(type(error)):
        run(source)
    assert list(source.parent.iterdir()) == [source]
    monkeypatch.undo()
    interrupted(source, error)
    read = []
    monkeypatch.setattr(denoise_file, "blocks", lambda *span: read.append(span) or blocks(*span))
    assert run(source, batch=2).resumed == 4
    assert read == [(4, 8, 2)]


def pixels(path: Path) -> bytes:
    with open_frames(path) as frames:
        return frames.read(0, frames.shape[0]).tobytes()


@pytest.mark.parametrize("change", ["gain", "model", "input"])
def test_another_run_is_not_continued(source, run, box_model, make_model, interrupted, change):
    interrupted(source)
    model, options = box_model, {"batch": 2}
    if change == "gain":
        options["gain"] = 2.0
    elif change == "model":
        model = make_model(source.parent / "other.onnx", model="other")
    else:
        os.utime(source, (1, 1))
    named = {"input": "input_files", "model": "model, model_sha256"}.get(change, change)
    with pytest.raises(OutputError, match=f"interrupted run with another .*{named}"):
        run(source, model=str(model), **options)
    report = run(source, model=str(model), overwrite=True, **options)
    assert report.resumed == 0


def test_an_existing_output_stays(source, run, monkeypatch):
    """Without --overwrite, and if that fails in the end."""
    first = run(source).output
    before = first.read_bytes()
    with pytest.raises(OutputError, match="exists already; add --overwrite"):
        run(source)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(OutputError, match="I/O error"):
        run(source, overwrite=True)
    assert first.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [("none/out.h5", "no such folder"), (".", "is a folder"), ("out.xyz", "is no name for an outp"),
     ("out.h5", "cannot be written to; create it, or choose another")],
)  # fmt: skip
def test_impossible_targets_are_named(source, run, monkeypatch, name, message):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(OutputError, match=message):
        run(source, output=source.parent / name)


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
@pytest.mark.parametrize("role", ["source", "dark", "model", "member", "partial"])
def test_no_input_is_ever_an_output(source, box_model, tmp_path, role, link):
    precious, out = tmp_path / "precious.npy", tmp_path / "out.npy"
    np.save(precious, np.ones((24, 24), np.float32))
    if role == "model":
        precious.write_bytes(box_model.read_bytes())
    before, options = precious.read_bytes(), {"model": str(box_model)}
    options |= {"dark": precious} if role == "dark" else {}
    options |= {"model": str(precious)} if role == "model" else {}
    given = {"dark": source, "model": source, "source": precious}.get(role, tmp_path / "pre*.npy")
    written = tmp_path / "out.npy.partial" if role == "partial" else out  # what is written first
    if link == "symbolic":
        written.symlink_to(precious)
    elif link == "hard" or role == "partial":
        written.hardlink_to(precious)
    else:
        out = precious
    with pytest.raises(OutputError, match="is the input itself, or holds one; emdn never overwri"):
        denoise_file.run(given, DenoiseOptions(device="cpu", output=out, overwrite=True, **options))
    assert precious.read_bytes() == before


@pytest.mark.parametrize("name", ["out.npy.json", "out_sigma.npy", "out_sigma.npy.json", "p.png"])
def test_nothing_is_replaced_unasked(source, run, name):
    mine, target = source.with_name(name), source.with_name("out.npy")
    mine.write_text("mine")
    options = {"output": target, "sigma": "sigma" in name, "frames": "0:2"}
    options["preview"] = source.with_name("p.png")
    with pytest.raises(OutputError, match=f"{name}: exists already"):
        run(source, **options)
    assert mine.read_text() == "mine"
    assert not target.exists()
    run(source, overwrite=True, **options)
    assert mine.read_bytes()[:4] != b"mine"


def test_a_partial_file_of_somebody_else_is_left_alone(source, run):
    other = source.with_name("movie_denoised.h5.partial")
    other.write_text("a download")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"no run of emdn .*; move it away"):
            run(source, overwrite=overwrite)
    assert other.read_text() == "a download"


def test_a_block_that_fails_is_counted_once(source, run, monkeypatch):
    """The disk is full after its frames, and before its standard deviations."""
    whole = run(source, batch=2, sigma=True, output=source.with_name("whole.tif"))
    target, put, calls = source.with_name("out.tif"), output.Output._put, []

    def failing(self: output.Output, name: str, *given):
        calls.append(name)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")
        return put(self, name, *given)

    monkeypatch.setattr(output.Output, "_put", failing)
    with pytest.raises(OutputError, match=r"No space left .* 4 frames are kept in .*the same comm"):
        run(source, batch=2, sigma=True, output=target)
    monkeypatch.undo()
    report = run(source, batch=2, sigma=True, output=target)
    assert report.resumed == 4
    for name in ("output_mean", "output_std", "intensity_ratio", "net_intensity_ratio"):
        assert report.record[name] == whole.record[name]


def test_pictures_replace_nothing_but_themselves(source, run, call, capsys):
    """Not even while they are drawn, and what cannot be drawn is said before the run."""
    picture, target = source.with_name("p.png"), source.with_name("second.h5")
    run(source, preview=picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    for name, path in (("--preview", "p.xyz"), ("--movie", "m.png"), ("--report", "m.h")):
        assert call("denoise", source, "-o", target, name, source.with_name(path)) == 1
        assert "unknown kind of file" in capsys.readouterr().err
    both = {"preview": source.with_name("p.gif"), "movie": source.with_name("p.gif")}
    with pytest.raises(OutputError, match="would be written twice"):
        run(source, output=target, **both)
    assert not target.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_runs_on_one_output(source, run, overwrite):
    """One works, and the other says who does."""
    target = source.with_name("movie_denoised.h5")
    said = pytest.raises(OutputError, match=r"process.* is at work on it")
    with output.claimed([target], [], [], overwrite=False), said:
        run(source, overwrite=overwrite)
    assert list(source.parent.iterdir()) == [source]


def test_an_input_that_changes_meanwhile(source, run, monkeypatch):
    write = output.Output.write

    def changing(self: output.Output, *blocks: np.ndarray) -> None:
        write(self, *blocks)
        os.utime(source, (1, 1))

    monkeypatch.setattr(output.Output, "write", changing)
    with pytest.raises(FormatError, match=r"movie.h5: was changed while it was denoised"):
        run(source, batch=2)
    assert list(source.parent.iterdir()) == [source]


@pytest.mark.parametrize("suffix", [".h5", ".hspy", ".tif", ".mrc", ".npy", ".zarr"])
@pytest.mark.parametrize("compress", [False, True])
def test_a_kill_while_the_record_is_completed(source, run, monkeypatch, suffix, compress):
    """HDF5 leaves a file that it cannot read any more, and is begun anew, or filled again."""
    inside = suffix in (".h5", ".hspy")
    if compress and not inside:
        return
    options = {"sigma": True, "frames": None if suffix == ".h5" else "0:8", "compress": compress}
    whole = run(source, output=source.with_name(f"whole{suffix}"), **options)
    target = source.with_name(f"cut{suffix}")

    def dying(module: str, path: Path, late: object) -> None:
        if inside:
            with path.open("r+b") as file:
                file.write(bytes(200))
                file.seek(0, 2)
                file.write(bytes(3000))
        raise KeyboardInterrupt

    monkeypatch.setattr(writers, "finish", dying)
    with pytest.raises(KeyboardInterrupt):
        run(source, output=target, **options)
    monkeypatch.undo()
    report = run(source, output=target, **options)
    assert report.resumed == (0 if inside and not compress else 8)
    assert pixels(target) == pixels(whole.output)
    found, wanted = (writers.recorded(path) for path in (target, whole.output))
    assert {**found, "date": ""} == {**wanted, "date": ""}
    assert not list(source.parent.glob("*.partial*"))


@pytest.mark.parametrize(
    ("given", "name", "flags"),
    [
        ("movie.h5", "out.h5", ("--compress",)),
        ("movie.h5", "out.tif", ("--sigma",)),
        ("frames", "out.zarr", ()),
    ],
)
def test_a_killed_run_goes_on(source, box_model, lattice, denoise_killed, call, given, name, flags):
    """The repeated command gives the frames of an undisturbed one."""
    folder = source.with_name("frames")
    folder.mkdir()
    for number, frame in enumerate(lattice(20.0, (8, 24, 24))):
        np.save(folder / f"f_{number}.npy", frame)
    out, whole = source.with_name(name), source.with_name(f"whole_{name}")
    command = (source.with_name(given), *flags, "--model", box_model, "--device", "cpu")
    for frames in (2, 6):
        denoise_killed(frames, *command, "-o", out, "--batch", 2)
        assert not out.exists()
    for target in (out, whole):
        assert call("denoise", *command, "-o", target, "--batch", 2) == 0
    assert pixels(out) == pixels(whole)
    if "--sigma" in flags:
        assert pixels(source.with_name("out_sigma.tif")) == pixels(
            source.with_name("whole_out_sigma.tif")
        )
