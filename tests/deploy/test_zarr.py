"""Zarr and OME-Zarr, read and written with the real library."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emdn_deploy.readers import Choice, open_frames
from emdn_models.errors import FormatError, MissingExtraError, OutputError

zarr = pytest.importorskip("zarr", reason="needs the extra zarr")
STACK = np.random.default_rng(0).poisson(20, (7, 24, 40)).astype(np.uint16)
AXES = [("t", "time", "millisecond"), ("y", "space", "nanometer"), ("x", "space", "nanometer")]


def image(path: str = "0", name: str = "movie") -> dict[str, Any]:
    """Describe a multiscale image whose pixels are 0.02 nm by 0.03 nm, and 5 ms apart."""

    def level(number: int) -> dict[str, Any]:
        scale = {"type": "scale", "scale": [1.0, 0.2 * 2**number, 0.3 * 2**number]}
        return {"path": path.replace("0", str(number)), "coordinateTransformations": [scale]}

    moved = [{"type": "scale", "scale": [5.0, 0.1, 0.1]},
             {"type": "translation", "translation": [0.0, 1.0, 2.0]}]  # fmt: skip
    axes = [{"name": name, "type": kind, "unit": unit} for name, kind, unit in AXES]
    return {"name": name, "axes": axes, "datasets": [level(0), level(1)],
            "coordinateTransformations": moved}  # fmt: skip


def save(path: Path, version: int = 3, chunks: tuple[int, ...] = (1, 24, 40), **more: Any) -> Path:
    known = {"multiscales": [image()]}
    attributes = known if version == 2 else {"ome": {"version": "0.5", **known}}
    group = zarr.create_group(path, zarr_format=version, attributes=attributes)
    group.create_array("0", data=STACK, chunks=chunks, **more)
    group.create_array("1", data=STACK[:, ::2, ::2], chunks=(1, 12, 20))
    labels = {"multiscales": [image()], "image-label": {}}
    group.create_group("labels/cells", attributes=labels).create_array("0", data=STACK)
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("chunks", [(1, 24, 40), (3, 16, 16)])
def test_a_multiscale_image_gives_its_first_level(tmp_path, version, chunks):
    with open_frames(save(tmp_path / "movie.ome.zarr", version, chunks)) as frames:
        assert (frames.format, frames.dataset, frames.order) == (f"Zarr {version}", "0", "tyx")
        np.testing.assert_array_equal(frames.read(0, 7), STACK)
        np.testing.assert_array_equal(frames.read(2, 5), STACK[2:5])
        t, y, x = frames.axes
        assert (t.step, t.units) == (5.0, "ms")
        assert (y.step, y.units, y.origin) == (pytest.approx(0.02), "nm", 1.0)
        assert (x.step, x.units, x.origin) == (pytest.approx(0.03), "nm", 2.0)
        assert frames.compressed
        assert frames.notes == ()
        assert any("zarr" in str(file) for file in frames.files)


def test_plain_arrays_and_several_stacks(tmp_path):
    zarr.save_array(tmp_path / "plain", STACK)  # a store needs no suffix
    with open_frames(tmp_path / "plain") as frames:
        np.testing.assert_array_equal(frames.read(0, 7), STACK)
    group = zarr.create_group(tmp_path / "two.zarr")
    for name in ("first", "deep/second"):
        group.create_array(name, data=STACK)
    with pytest.raises(FormatError, match=r"holds 2 stacks \(Zarr\): .*deep/second \(7, 24, 40\)"):
        open_frames(tmp_path / "two.zarr")
    with open_frames(tmp_path / "two.zarr", Choice("/deep/second")) as frames:
        np.testing.assert_array_equal(frames.read(0, 7), STACK)
    for store, asked in (("two", "none"), ("empty", None)):
        zarr.open_group(tmp_path / f"{store}.zarr", mode="a")
        with pytest.raises(FormatError, match=r"it offers|holds no frames"):
            open_frames(tmp_path / f"{store}.zarr", Choice(asked))


def test_what_is_damaged_or_hostile_is_an_error_of_one_line(tmp_path, monkeypatch):
    path = save(tmp_path / "gone.zarr", 2)
    next(file for file in (path / "0").iterdir() if file.name[0] == "3").unlink()
    with open_frames(path) as frames:
        assert frames.notes == ("1 of 7 chunks are missing, read as 0",)
    known = path / "0/.zarray"
    facts = json.loads(known.read_text())
    for change in ({"shape": "many"}, {"compressor": {"id": "pickle"}}):  # which could run anything
        known.write_text(json.dumps({**facts, **change}))
        with pytest.raises(FormatError, match="damaged or no ZARR file"):
            open_frames(path)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingExtraError, match=r"needs zarr; pip install .*\[zarr\]"):
        open_frames(path)


@pytest.mark.parametrize("version", [2, 3])
def test_scale_and_units_survive(tmp_path, run, version):
    source = save(tmp_path / "movie.ome.zarr", version)
    report = run(source, gain=1.0, offset=0.0)
    assert report.output == tmp_path / "movie_denoised.zarr"
    made = zarr.open(report.output, mode="r")
    array = made["0"]
    assert (array.dtype, array.chunks, array.metadata.dimension_names) == (
        "float32", (1, 24, 40), ("t", "y", "x"),
    )  # fmt: skip
    (described,) = made.attrs["ome"]["multiscales"]
    assert described["axes"] == image()["axes"]
    scale, origin = described["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == pytest.approx([5.0, 0.02, 0.03])
    assert origin["translation"] == [0.0, 1.0, 2.0]
    assert made.attrs["emdn"]["model"] == "box"
    assert made.attrs["emdn"]["output_mean"] == pytest.approx(array[:].mean())
    with open_frames(report.output) as again, open_frames(source) as before:
        assert again.axes == before.axes
        np.testing.assert_array_equal(again.read(0, 7), array[:])
        np.testing.assert_array_equal(array[4], again.read(4, 5)[0])


def test_a_folder_is_replaced_only_if_it_is_a_store_and_asked_for(tmp_path, run):
    source, target = save(tmp_path / "a.zarr"), tmp_path / "b.zarr"
    run(source, output=target)
    first = sorted(target.rglob("*"))
    with pytest.raises(OutputError, match=r"b\.zarr: exists already; add --overwrite"):
        run(source, output=target)
    run(source, output=target, overwrite=True)
    assert sorted(target.rglob("*")) == first
    np.save(target / "dark.npy", np.zeros((24, 40), np.float32))
    with pytest.raises(OutputError, match="is the input itself, or holds one"):
        run(source, output=target, overwrite=True, dark=target / "dark.npy")
    (tmp_path / "mine.zarr").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        run(source, output=tmp_path / "mine.zarr", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.zarr", "b.zarr", "mine.zarr"}
