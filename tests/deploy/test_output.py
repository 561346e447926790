"""An output appears whole or not at all."""

import os
import threading
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy import cli, denoise_file, output, watch
from emdn_deploy.batching import blocks
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.output import Sums
from emdn_deploy.readers import open_frames
from emdn_models.errors import FormatError, OutputError


@pytest.fixture
def source(tmp_path: Path, lattice) -> Path:
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = lattice(20.0, (8, 24, 24)).astype(np.uint16)
    return path


def test_an_existing_output_is_refused(source, run):
    first = run(source).output
    before = first.read_bytes()
    with pytest.raises(OutputError, match="exists already; add --overwrite"):
        run(source)
    assert first.read_bytes() == before
    run(source, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_input_is_never_overwritten(source, run, overwrite):
    before = source.read_bytes()
    link = source.with_name("link.h5")
    link.symlink_to(source)
    for target in (source, link):
        with pytest.raises(OutputError, match="is the input itself"):
            run(source, output=target, overwrite=overwrite)
    assert source.read_bytes() == before


@pytest.mark.parametrize(("frame", "error"), [(0, ValueError("a bug")), (0, KeyboardInterrupt())])
def test_a_failure_leaves_nothing(source, run, stop_at, frame, error):
    """Neither an error nor an interruption before anything is done."""
    before = sorted(source.parent.iterdir())
    stop_at(frame, error)
    with pytest.raises(type(error)):
        run(source, batch=2)
    assert sorted(source.parent.iterdir()) == before


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OutputError("No space left"), ValueError("a bug")]
)
def test_an_interrupted_run_is_continued(source, run, interrupted, monkeypatch, error):
    """Whatever ended it; what is done is not read again. For all kinds: writers/test_outputs.py."""
    whole = run(source, batch=2, output=source.parent / "whole.h5")
    target = source.parent / "cut.h5"
    interrupted(source, error, output=target)
    assert not target.exists()
    read = []
    monkeypatch.setattr(denoise_file, "blocks", lambda *span: read.append(span) or blocks(*span))
    report = run(source, batch=2, output=target)
    assert report.resumed == 4
    assert read == [(4, 8, 2)]
    assert report.record["intensity_ratio"] == pytest.approx(
        whole.record["intensity_ratio"], rel=1e-12
    )
    assert pixels(target) == pixels(whole.output)
    assert not list(source.parent.glob("*.partial*"))


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


def test_a_failure_keeps_the_earlier_output(source, run, monkeypatch):
    first = run(source).output
    before = first.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(OutputError, match="I/O error"):
        run(source, overwrite=True)
    assert first.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [("none/out.h5", "no such folder"), (".", "is a folder"), ("out.xyz", "unknown kind of file"),
     ("out.h5", "cannot be written to; choose another place")],
)  # fmt: skip
def test_impossible_targets_are_named(source, run, monkeypatch, name, message):
    monkeypatch.setattr(os, "access", lambda *_: name != "out.h5")  # root may write anywhere
    with pytest.raises(OutputError, match=message):
        run(source, output=source.parent / name)


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
@pytest.mark.parametrize("role", ["dark", "gain_map", "defects", "model", "member", "partial"])
def test_no_input_is_ever_an_output(source, run, box_model, tmp_path, role, link):
    precious, out, given = tmp_path / "precious.npy", tmp_path / "out.npy", source
    np.save(precious, np.ones((24, 24), np.float32))
    options = {"model": str(box_model), role: precious}
    if role == "model":
        precious.write_bytes(box_model.read_bytes())
        options = {"model": str(precious)}
    elif role in ("member", "partial"):
        options, given = {"model": str(box_model)}, tmp_path / "pre*.npy"
    before = precious.read_bytes()
    if role == "partial":  # what is written to first
        out = tmp_path / "out.npy"
        precious.rename(tmp_path / "precious.npy")
        link_to = tmp_path / "out.npy.partial"
    else:
        link_to = precious if link == "same" else out
        out = link_to
    if link == "hard" or (role == "partial" and link == "same"):
        link_to.hardlink_to(precious)
    elif link == "symbolic":
        link_to.symlink_to(precious)
    with pytest.raises(OutputError, match=r"is the input .*itself; emdn never overwrites it"):
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


@pytest.mark.parametrize("followed", [False, True])
def test_an_interrupted_block_is_counted_once(
    tmp_path, run, box_model, lattice, monkeypatch, followed
):
    """Ctrl-C ends a followed file, with what is whole; anything else goes on where it was."""
    source, whole, target = (tmp_path / name for name in ("in.h5", "whole.h5", "out.h5"))
    with h5py.File(source, "w", libver="latest") as file:
        movie = lattice(20.0, (8, 24, 24)).astype(np.uint16)
        file.create_dataset("frames", data=movie, chunks=(1, 24, 24), maxshape=(None, 24, 24))
    add, calls = Sums.add_part, []

    def interrupted(self: Sums, *given) -> None:
        add(self, *given)
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt

    options = DenoiseOptions(model=str(box_model), device="cpu", batch=2, output=target)
    if followed:
        monkeypatch.setattr(Sums, "add_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(watch.dataset(source, target, options, 0.0, 0.01))
        with h5py.File(target) as file:
            assert len(file["frames"]) == 4
            mean, stored = file["emdn"].attrs["output_mean"], file["frames"][:].mean()
        assert mean == pytest.approx(stored, rel=1e-6)
        return
    run(source, batch=2, output=whole)
    monkeypatch.setattr(Sums, "add_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        denoise_file.run(source, options)
    assert denoise_file.run(source, options).resumed == 4
    with h5py.File(target) as one, h5py.File(whole) as other:
        for name in ("output_mean", "output_std", "intensity_ratio", "net_intensity_ratio"):
            found, expected = (file["emdn"].attrs[name] for file in (one, other))
            assert found == pytest.approx(expected, rel=1e-12)


def test_pictures_replace_nothing_but_themselves(tmp_path, run):
    """Not even while they are drawn, and what cannot be drawn is said before the run."""
    given, other = tmp_path / "movie.partial.tif", tmp_path / "m.partial.gif"
    tifffile.imwrite(given, np.full((2, 24, 24), 7, "u2"), photometric="minisblack")
    other.write_text("mine")
    before = given.read_bytes()
    target, picture = tmp_path / "out.tif", tmp_path / "movie.tif"
    run(given, output=target, preview=picture, movie=tmp_path / "m.gif")
    assert (given.read_bytes(), other.read_text()) == (before, "mine")
    assert tifffile.imread(picture).ndim == 3
    for options in (
        {"preview": tmp_path / "p.xyz"},
        {"movie": tmp_path / "m.png"},
        {"report": tmp_path / "m.png"},
    ):
        with pytest.raises(OutputError, match="unknown kind of file"):
            run(given, output=tmp_path / "second.tif", **options)
    assert not (tmp_path / "second.tif").exists()
    both = {"preview": tmp_path / "p.gif", "movie": tmp_path / "p.gif"}
    with pytest.raises(OutputError, match="would be written twice"):
        run(given, output=tmp_path / "second.tif", **both)


def test_two_runs_on_one_output(source, run, monkeypatch):
    """One works, and the other says who does; whichever came first."""
    inside, go_on = threading.Event(), threading.Event()
    write = output.Output.write

    def waiting(self: output.Output, *blocks: np.ndarray) -> None:
        inside.set()
        go_on.wait()
        write(self, *blocks)

    monkeypatch.setattr(output.Output, "write", waiting)
    first = threading.Thread(target=run, args=(source,))
    first.start()
    try:
        inside.wait()
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="another process is at work on it"):
                run(source, overwrite=overwrite)
    finally:
        go_on.set()
        first.join()
    monkeypatch.undo()
    whole = run(source, output=source.with_name("whole.h5"))
    assert pixels(source.with_name("movie_denoised.h5")) == pixels(whole.output)
    assert not list(source.parent.glob("*.partial*"))


def test_a_folder_with_its_output_inside_is_continued(source, run, interrupted, lattice):
    """Unless one of its files has changed meanwhile."""
    folder = source.with_name("run")
    folder.mkdir()
    for number, frame in enumerate(lattice(20.0, (8, 24, 24))):
        np.save(folder / f"f_{number}.npy", frame)
    for given, name in ((folder, "f_1.npy"), (folder / "f_*.npy", "f_2.npy")):
        interrupted(given, output=folder / "out.npy", overwrite=True)
        os.utime(folder / name, (1, 1))
        with pytest.raises(OutputError, match=r"interrupted run with another .*input_files"):
            run(given, batch=2, output=folder / "out.npy")
    interrupted(folder, output=folder / "out.npy", overwrite=True)
    assert run(folder, batch=2, output=folder / "out.npy").resumed == 4


def test_check_and_record_speak_of_all_frames(
    source, run, dimming, interrupted, monkeypatch, capsys, caplog
):
    caplog.set_level("INFO", "emdn_deploy")
    whole = run(source, model=str(dimming), batch=2, output=source.with_name("whole.h5"))
    interrupted(source, model=str(dimming))
    shown = []
    given = DenoiseOptions(model=str(dimming), device="cpu", batch=2)
    report = denoise_file.run(source, given, lambda done, count: shown.append((done, count)))
    assert whole.record["check"]
    assert (report.record["check"], report.check.failing) == (
        whole.record["check"],
        whole.check.failing,
    )
    with h5py.File(report.output) as one, h5py.File(whole.output) as other:
        for name in set(other["emdn"].attrs) - {"date"}:
            assert one["emdn"].attrs[name] == other["emdn"].attrs[name], name
    assert shown[0] == (4, 8)  # so that the time left is that of the frames left
    monkeypatch.setattr(cli.sys.stderr, "isatty", lambda: True, raising=False)
    clock = iter([0.0, 100.0, 101.0])
    monkeypatch.setattr(cli.time, "perf_counter", lambda: next(clock))
    show = cli._progress()
    show(4, 8)
    show(6, 8)
    assert "6/8 frames, 2.0/s, 1 s left" in capsys.readouterr().err


def plain(folder: Path, suffix: str, frames: np.ndarray) -> Path:
    path = folder / f"plain{suffix}"
    if suffix == ".npy":
        np.save(path, frames)
    elif suffix == ".mrc":
        with mrcfile.new(path) as file:
            file.set_data(frames)
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["frames"] = frames
    else:
        packed = "zlib" if suffix == ".btf" else None
        tifffile.imwrite(path, frames, photometric="minisblack", compression=packed)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".btf", ".h5"])
def test_an_input_that_becomes_shorter(tmp_path, run, lattice, monkeypatch, suffix):
    """A line, not the signal SIGBUS; and the same command works when it is back."""
    path = plain(tmp_path, suffix, lattice(20.0, (64, 64, 64)).astype(np.float32))
    target, write = tmp_path / "out.hspy", output.Output.write
    whole = run(path, batch=2, output=tmp_path / "whole.hspy", frames="0:64")
    content, stat = path.read_bytes(), path.stat()

    def cutting(self: output.Output, *blocks: np.ndarray) -> None:
        write(self, *blocks)
        os.truncate(path, len(content) // 4)

    monkeypatch.setattr(output.Output, "write", cutting)
    with pytest.raises(FormatError, match=r"become shorter|truncated|cannot be read|was changed"):
        run(path, batch=2, output=target, frames="0:64")
    monkeypatch.undo()
    assert not target.exists()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(path, batch=2, output=target, frames="0:64")
    assert pixels(target) == pixels(whole.output)


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_an_input_that_changes_meanwhile(tmp_path, run, lattice, monkeypatch, how):
    frames = lattice(20.0, (8, 24, 24))
    path, write = plain(tmp_path, ".npy", frames), output.Output.write

    def changing(self: output.Output, *blocks: np.ndarray) -> None:
        write(self, *blocks)
        monkeypatch.setattr(output.Output, "write", write)  # it changes once
        stat = path.stat()
        if how == "replaced":  # at the same time, of the same size
            np.save(tmp_path / "new.npy", frames[::-1])
            os.replace(tmp_path / "new.npy", path)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        else:
            with path.open("r+b") as file:
                file.write(path.read_bytes())
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))

    monkeypatch.setattr(output.Output, "write", changing)
    with pytest.raises(FormatError, match=r"plain.npy: was changed while it was denoised"):
        run(path, batch=2, output=tmp_path / "out.npy")
    assert not list(tmp_path.glob("out.npy*"))


@pytest.mark.parametrize("suffix", [".h5", ".hspy", ".tif", ".mrc", ".npy", ".zarr"])
@pytest.mark.parametrize("sigma", [False, True])
def test_a_kill_while_the_record_is_completed(source, run, monkeypatch, suffix, sigma):
    """HDF5 leaves a file that it cannot read any more, and is begun anew."""
    options = {"sigma": sigma, "frames": None if suffix == ".h5" else "0:8"}
    whole = run(source, output=source.with_name(f"whole{suffix}"), **options)
    target = source.with_name(f"cut{suffix}")
    module = {".h5": "mirror", ".hspy": "hdf5", ".tif": "tiff"}.get(suffix, suffix[1:])

    def dying(path: Path, late: object) -> None:
        if suffix in (".h5", ".hspy"):
            with path.open("r+b") as file:
                file.write(bytes(200))
                file.seek(0, 2)
                file.write(bytes(3000))
        raise KeyboardInterrupt

    monkeypatch.setattr(f"emdn_deploy.writers.{module}.finish", dying)
    with pytest.raises(KeyboardInterrupt):
        run(source, output=target, **options)
    monkeypatch.undo()
    report = run(source, output=target, **options)
    assert report.resumed == (0 if suffix in (".h5", ".hspy") else 8)
    assert pixels(target) == pixels(whole.output)
    assert report.record["intensity_ratio"] == whole.record["intensity_ratio"]
    if sigma and suffix in (".h5", ".hspy"):
        with h5py.File(target) as one, h5py.File(whole.output) as other:
            assert (one[report.sigma][:] == other[whole.sigma][:]).all()
            assert one["emdn"].attrs["output_std"] == other["emdn"].attrs["output_std"]
    assert not list(source.parent.glob("*.partial*"))
