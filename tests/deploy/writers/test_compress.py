"""Compressed outputs: the same frames, in files that other programs read, and continued."""

import contextlib
import gzip
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy import cli, job, output
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.output import Filling
from emdn_deploy.readers import Choice, open_frames
from emdn_models.errors import OutputError

KINDS = ["h5", "hspy", "tif"]


@pytest.fixture
def source(tmp_path: Path, lattice) -> Path:
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = lattice(250.0, (8, 64, 60)).astype(np.uint16)
        file["note"] = "kept"
    return path


@pytest.fixture
def run(box_model: Path) -> Callable[..., job.Report]:
    def denoise(source: Path, **options: Any) -> job.Report:
        given = {"model": str(box_model), "device": "cpu", "batch": 2, **options}
        return job.run(source, DenoiseOptions(**given))

    return denoise


def pixels(path: Path, choice: Choice | None = None) -> np.ndarray:
    with open_frames(path, choice or Choice()) as frames:
        return np.array(frames.read_block(0, frames.shape[0]))


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("to", KINDS)
def test_the_frames_are_the_same_and_smaller(source: Path, run, to: str, dtype: str) -> None:
    plain = run(source, to=to, dtype=dtype, output=source.with_name(f"plain.{to}"))
    packed = run(source, to=to, dtype=dtype, compress=True, output=source.with_name(f"p.{to}"))
    np.testing.assert_array_equal(pixels(packed.output), pixels(plain.output))
    assert packed.saturated == plain.saturated
    assert packed.output.stat().st_size < 0.97 * plain.output.stat().st_size
    assert not list(source.parent.glob("*.partial*"))


def test_the_hdf5_filters_are_named(source: Path, run) -> None:
    with h5py.File(run(source, compress=True).output) as file:
        data = file["frames"]
        assert (data.compression, data.shuffle, data.chunks) == ("gzip", True, (1, 64, 60))
        assert file["note"][()] == b"kept"
        assert file["emdn"].attrs["output_compression"] == "zlib"
        assert file["emdn"].attrs["intensity_ratio"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("order", ["yxt", "xyt", "utyx", "tyxc", "yx"])
def test_any_axis_order(tmp_path: Path, run, order: str) -> None:
    lengths = {"t": 3, "u": 2, "y": 30, "x": 44, "c": 1}
    shape = tuple(lengths[letter] for letter in order)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.random.default_rng(0).poisson(20, shape).astype(np.uint8)
    options = {"axes": order, "dataset": "/data", "gain": 1.0, "offset": 0.0}
    plain = run(path, output=tmp_path / "plain.h5", **options).output
    packed = run(path, output=tmp_path / "packed.h5", compress=True, **options).output
    with h5py.File(plain) as one, h5py.File(packed) as other:
        np.testing.assert_array_equal(one["data"][()], other["data"][()])


def test_a_compressed_tiff_is_calibrated(source: Path, run) -> None:
    hyperspy = pytest.importorskip("hyperspy.api")
    with h5py.File(source, "r+") as file:
        for axis, name in enumerate("tyx"):
            scale = file.create_dataset(name, data=np.arange(file["frames"].shape[axis]) * 0.02)
            scale.attrs["units"] = "s" if name == "t" else "nm"
            scale.make_scale(name)
            file["frames"].dims[axis].attach_scale(scale)
    target = run(source, to="tif", compress=True).output
    with tifffile.TiffFile(target) as file:
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"
        assert '"intensity_ratio": ' in file.shaped_metadata[0]["Info"]
    with open_frames(target) as frames:
        assert (frames.axis("x").units, frames.axis("y").step) == ("nm", pytest.approx(0.02))
    axis = hyperspy.load(target).axes_manager.signal_axes[0]
    assert (axis.units, axis.scale) == ("nm", pytest.approx(0.02, rel=1e-5))


@pytest.mark.parametrize("to", ["mrc", "npy"])
def test_what_is_never_compressed_is_named(source: Path, run, to: str) -> None:
    with pytest.raises(OutputError, match=f"{to} files are not compressed; leave out --compress"):
        run(source, to=to, compress=True)
    assert list(source.parent.iterdir()) == [source]


def test_the_command_takes_it(source: Path, box_model: Path, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["denoise", str(source), "--model", str(box_model), "--compress"])
    assert not left.value.code
    with h5py.File(source.with_name("movie_denoised.h5")) as file:
        assert file["frames"].compression == "gzip"


@pytest.mark.parametrize("to", KINDS)
def test_an_interrupted_run_is_continued(source: Path, run, monkeypatch, to: str) -> None:
    dtype = "uint8"
    whole = run(source, to=to, dtype=dtype, compress=True, output=source.with_name(f"whole.{to}"))
    write = output.Output.write

    def failing(self: output.Output, start: int, *blocks: np.ndarray) -> None:
        if start >= 4:
            raise KeyboardInterrupt
        write(self, start, *blocks)

    monkeypatch.setattr(output.Output, "write", failing)
    target = source.with_name(f"cut.{to}")
    with pytest.raises(KeyboardInterrupt):
        run(source, to=to, dtype=dtype, compress=True, output=target)
    monkeypatch.undo()
    assert not target.exists()
    with pytest.raises(OutputError, match="interrupted run with another output_compression"):
        run(source, to=to, dtype=dtype, output=target)
    report = run(source, to=to, dtype=dtype, compress=True, output=target)
    assert report.resumed == 4
    assert report.saturated == whole.saturated > 0
    assert report.ratio == pytest.approx(whole.ratio, rel=1e-12)
    np.testing.assert_array_equal(pixels(target), pixels(whole.output))
    assert not list(source.parent.glob("*.partial*"))


@pytest.mark.parametrize("to", KINDS)
def test_an_interruption_while_the_file_is_filled(source: Path, run, monkeypatch, to: str) -> None:
    """What was filled in is thrown away; the frames are not."""
    packed = Filling._packed

    def failing(self: Filling) -> Iterator[bytes]:
        for number, chunk in enumerate(packed(self)):
            if number == 3:
                raise KeyboardInterrupt
            yield chunk

    monkeypatch.setattr(Filling, "_packed", failing)
    target = source.with_name(f"cut.{to}")
    with pytest.raises(KeyboardInterrupt):
        run(source, to=to, compress=True, output=target)
    assert not target.exists()
    monkeypatch.undo()
    report = run(source, to=to, compress=True, output=target)
    assert report.resumed == 8
    whole = run(source, to=to, compress=True, output=source.with_name(f"whole.{to}"))
    np.testing.assert_array_equal(pixels(target), pixels(whole.output))


@pytest.mark.parametrize("to", ["h5", "tif"])
def test_a_killed_run_is_continued(source: Path, run, box_model: Path, to: str, child) -> None:
    """SIGKILL while frames are written: nothing is tidied up."""
    with h5py.File(source, "r+") as file:
        del file["frames"]
        file["frames"] = np.random.default_rng(0).poisson(20, (200, 48, 48)).astype(np.uint16)
    target, code = source.with_name(f"cut.{to}"), (
        "import sys, time\n"
        "from emdn_deploy import cli, denoiser, output\n"
        "output.SYNC_SECONDS = 0.0\n"
        "answer = denoiser.Denoiser.answer\n"
        "def slow(*a, **b):\n    time.sleep(0.03)\n    return answer(*a, **b)\n"
        "denoiser.Denoiser.answer = slow\n"
        "cli.main(sys.argv[1:])\n"
    )  # fmt: skip
    arguments = ["denoise", str(source), "-o", str(target), "--model", str(box_model),
                 "--device", "cpu", "--batch", "2", "--compress"]  # fmt: skip
    process = child(code, *arguments)
    while process.poll() is None:
        with (
            contextlib.suppress(Exception),
            np.load(source.with_name(f"cut.{to}.partial.map")) as saved,
        ):
            if saved["done"].sum() >= 10:
                break
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not target.exists()
    report = run(source, output=target, compress=True)
    assert 10 <= report.resumed < 200
    whole = run(source, output=source.with_name(f"whole.{to}"), compress=True)
    np.testing.assert_array_equal(pixels(target), pixels(whole.output))


@pytest.mark.parametrize("kind", ["h5", "tif", "gz"])
def test_a_compressed_input_gives_a_compressed_output(
    tmp_path: Path, run, capsys, caplog, kind: str
) -> None:
    """Unless it is said otherwise, or the kind of output is never compressed."""
    caplog.set_level("INFO")
    frames = np.random.default_rng(0).poisson(30, (4, 64, 64)).astype(np.uint16)
    path = tmp_path / f"a.{kind}"
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("frames", data=frames, compression="lzf")
    elif kind == "tif":
        tifffile.imwrite(path, frames, photometric="minisblack", compression="zlib")
    else:
        with mrcfile.new(tmp_path / "a.mrc", frames):
            pass
        path.write_bytes(gzip.compress((tmp_path / "a.mrc").read_bytes()))
    packed = run(path).output
    assert "65.5 kB of float32" in caplog.text
    plain = run(path, compress=False, output=tmp_path / f"plain{packed.suffix}").output
    if kind == "gz":
        assert packed.suffix == ".mrc"
        packed = run(path, to="hspy").output
        plain = run(path, to="hspy", compress=False, output=tmp_path / "plain.hspy").output
    assert packed.stat().st_size < 0.97 * plain.stat().st_size
    np.testing.assert_array_equal(pixels(packed), pixels(plain))


def test_a_disk_without_room_is_named_before_anything_is_written(
    source: Path, run, monkeypatch
) -> None:
    usage = shutil.disk_usage(source.parent)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"needs 123 kB of float32, and its disk has 100 kB free"):
        run(source)
    with pytest.raises(OutputError, match="246 kB of float32 and sigma"):
        run(source, sigma=True)
    with pytest.raises(OutputError, match="its disk has"):
        job.plan(source, DenoiseOptions())
    assert list(source.parent.iterdir()) == [source]
    assert run(source, compress=True).frames == 8
