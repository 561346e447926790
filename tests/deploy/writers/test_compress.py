"""Compressed outputs: the same frames, in files that other programs read, and continued."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from emdn_deploy import cli, job, output
from emdn_deploy.filling import Filling
from emdn_deploy.options import DenoiseOptions
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
def test_a_killed_run_is_continued(
    source: Path, run, box_model: Path, denoise_killed, to: str
) -> None:
    """SIGKILL while frames are written: nothing is tidied up."""
    with h5py.File(source, "r+") as file:
        del file["frames"]
        file["frames"] = np.random.default_rng(0).poisson(20, (40, 48, 48)).astype(np.uint16)
    target = source.with_name(f"cut.{to}")
    denoise_killed(
        10, source, "-o", target, "--model", box_model, "--device", "cpu", "--batch", "2",
        "--compress",
    )  # fmt: skip
    assert not target.exists()
    report = run(source, output=target, compress=True)
    assert report.resumed == 10
    whole = run(source, output=source.with_name(f"whole.{to}"), compress=True)
    np.testing.assert_array_equal(pixels(target), pixels(whole.output))
