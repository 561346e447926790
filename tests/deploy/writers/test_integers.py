"""Outputs of whole numbers: rounded, saturated, counted, and told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy import Denoiser, cli, job, output
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import Choice, open_frames
from emdn_deploy.writers import storable
from emdn_models.errors import OutputError


@pytest.fixture
def source(tmp_path: Path, lattice) -> Path:
    """Frames around 250, which uint8 holds in part only."""
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = lattice(250.0, (6, 24, 28)).astype(np.uint16)
    return path


@pytest.fixture
def expected(source: Path, box_model: Path) -> np.ndarray:
    with h5py.File(source) as file:
        return Denoiser(box_model).denoise(file["frames"][()], gain=1.0, offset=0.0)


@pytest.fixture
def run(box_model: Path) -> Callable[..., job.Report]:
    def denoise(source: Path, **options: Any) -> job.Report:
        return job.run(
            source, DenoiseOptions(model=str(box_model), device="cpu", gain=1.0, offset=0.0,
                                   batch=2, **options),
        )  # fmt: skip

    return denoise


@pytest.mark.parametrize(
    ("dtype", "values", "stored", "outside"),
    [
        ("uint8", [-0.5, 0.4, 1.5, 2.5, 255.4, 255.6, 1e30, -1], [0, 0, 2, 2, 255, 255, 255, 0], 3),
        ("int8", [-128.4, -129, 127.5, -np.inf], [-128, -128, 127, -128], 3),
        ("int32", [2147483520.0, 2.0**31, -(2.0**31)], [2147483520, 2**31 - 1, -(2**31)], 1),
        ("uint32", [4294967040.0, 2.0**32, -0.6], [4294967040, 2**32 - 1, 0], 2),
    ],
)  # fmt: skip
def test_rounding_and_saturation(dtype: str, values, stored, outside: int) -> None:
    whole, count = storable(np.array(values, np.float32), np.dtype(dtype))
    assert whole.dtype == dtype
    assert whole.tolist() == stored
    assert count == outside


def test_float_frames_are_left_as_they_are() -> None:
    frames = np.array([1.5, np.nan], np.float32)
    same, count = storable(frames, np.dtype("<f4"))
    assert same is frames
    assert count == 0


def test_nan_is_no_integer() -> None:
    with pytest.raises(OutputError, match="NaN cannot be stored as uint8"):
        storable(np.array([np.nan], np.float32), np.dtype("uint8"))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
@pytest.mark.parametrize("to", ["h5", "hspy", "tif", "mrc", "npy"])
def test_every_kind_of_output(source: Path, run, expected, to: str, dtype: str) -> None:
    if to == "mrc" and dtype in ("uint8", "uint32", "int32"):
        with pytest.raises(OutputError, match=f"mrc files hold .*int16, uint16, not {dtype}; "):
            run(source, to=to, dtype=dtype)
        assert list(source.parent.iterdir()) == [source]
        return
    report = run(source, to=to, dtype=dtype)
    limits = np.iinfo(dtype)
    whole = np.rint(expected.astype(float))
    with open_frames(report.output) as frames:
        assert frames.dtype.newbyteorder("=") == dtype
        np.testing.assert_array_equal(frames.read(0, 6), whole.clip(limits.min, limits.max))
    outside = int(((whole < limits.min) | (whole > limits.max)).sum())
    assert (outside > 0) == (dtype in ("uint8", "int8"))
    assert report.saturated == outside
    assert recorded(report.output)["saturated_pixels"] == outside
    assert recorded(report.output)["output_dtype"] == dtype
    # What is lost by saturation shows in the mean.
    assert report.ratio == pytest.approx(
        whole.clip(limits.min, limits.max).mean() / ground(source), rel=1e-6
    )


def ground(source: Path) -> float:
    with h5py.File(source) as file:
        return float(file["frames"][()].mean())


def recorded(path: Path) -> dict[str, Any]:
    """Return the record of a run from any kind of output (MRC holds a label only)."""
    if path.suffix in (".h5", ".hspy"):
        with h5py.File(path) as file:
            return dict(file["emdn"].attrs)
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            notes = file.imagej_metadata or file.shaped_metadata[0]
            return json.loads(notes["Info"])
    if path.suffix == ".npy":
        return json.loads(path.with_name(path.name + ".json").read_text())["emdn"]
    with mrcfile.open(path) as file:
        labels = " ".join(str(label) for label in file.get_labels())
    dtype, count = labels.split("stored as ")[1].split(" pixels")[0].split(", ")
    return {"saturated_pixels": int(count), "output_dtype": dtype}


@pytest.mark.parametrize("to", ["h5", "hspy", "tif", "mrc", "npy"])
def test_a_continued_run_counts_all_of_its_pixels(
    source: Path, run, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    dtype = "int8" if to == "mrc" else "uint8"
    whole = run(source, to=to, dtype=dtype, output=source.with_name(f"whole.{to}"))
    write = output.Output.write

    def failing(self: output.Output, start: int, *blocks: np.ndarray) -> None:
        if start >= 4:
            raise KeyboardInterrupt
        write(self, start, *blocks)

    monkeypatch.setattr(output.Output, "write", failing)
    target = source.with_name(f"cut.{to}")
    with pytest.raises(KeyboardInterrupt):
        run(source, to=to, dtype=dtype, output=target)
    monkeypatch.undo()
    with pytest.raises(OutputError, match="interrupted run with another output_dtype"):
        run(source, to=to, dtype="int16", output=target)
    report = run(source, to=to, dtype=dtype, output=target)
    assert report.resumed == 4
    assert report.saturated == whole.saturated > 0
    assert report.ratio == pytest.approx(whole.ratio, rel=1e-12)
    with open_frames(target) as cut, open_frames(whole.output) as all_at_once:
        np.testing.assert_array_equal(cut.read(0, 6), all_at_once.read(0, 6))


def test_frames_last_and_x_first(tmp_path: Path, run, box_model: Path, lattice) -> None:
    frames = lattice(90.0, (3, 24, 28)).astype(np.uint16)
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = frames.transpose(2, 1, 0)
    target = run(path, dtype="uint16", axes="xyt").output
    expected = Denoiser(box_model).denoise(frames, gain=1.0, offset=0.0)
    with open_frames(target, Choice(axes="xyt")) as opened:
        np.testing.assert_array_equal(opened.read(0, 3), np.rint(expected))


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_the_command_tells_how_many(source: Path, box_model: Path, capsys) -> None:
    common = ("denoise", source, "--model", box_model, "--device", "cpu", "--overwrite")
    assert call(*common, "--dtype", "uint8") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    count = int(lines["saturated"].split()[0])
    assert count > 0
    assert lines["saturated"].endswith("pixels outside the range of uint8")
    assert call(*common, "--dtype", "uint8", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["saturated"], facts["dtype"]) == (count, "uint8")
    assert call(*common) == 0
    assert "saturated" not in capsys.readouterr().out
    assert call(*common, "--dtype", "uint16", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["size_bytes"] == 2 * 6 * 24 * 28
    assert call(*common, "--dtype", "float16") == 2
    assert call(*common, "--dtype", "uint8", "--to", "mrc") == 1
    assert "mrc files hold float32, int8, int16, uint16, not uint8" in capsys.readouterr().err
