"""Every kind of output: compressed, of whole numbers, with standard deviations, and continued."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy import Denoiser, denoise_file
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import Choice, open_frames
from emdn_deploy.report import Report, describe
from emdn_deploy.writers import recorded, storable
from emdn_models.errors import OutputError

KINDS = ["h5", "hspy", "tif", "mrc", "npy", "zarr"]
PACKED = ["h5", "hspy", "tif"]
# HyperSpy and nexusformat warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def source(tmp_path: Path, lattice) -> Path:
    """A plain HDF5 file around 250, which uint8 holds in part only."""
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["set/frames"] = lattice(250.0, (8, 24, 30)).astype(np.uint16)
        file["set/frames"].attrs["units"] = "counts"
        for axis, (name, units) in enumerate([("t", "s"), ("y", "nm"), ("x", "nm")]):
            scale = file.create_dataset(f"set/{name}", data=np.arange((8, 24, 30)[axis]) * 0.02)
            scale.attrs["units"] = units
            scale.make_scale(name)
            file["set/frames"].dims[axis].attach_scale(scale)
    return path


@pytest.fixture
def denoise(run) -> Callable[..., Report]:
    return lambda source, **more: run(source, **{"batch": 2, "gain": 1.0, "offset": 0.0, **more})


def pixels(path: Path, dataset: str | None = None) -> np.ndarray:
    with open_frames(path, Choice(dataset)) as frames:
        return np.array(frames.read_block(0, frames.shape[0]))


def both(report: Report) -> list[np.ndarray]:
    """Read frames, and sigma if there is any, from where the report says that they are."""
    if report.sigma is None:
        return [pixels(report.output)]
    inside = report.sigma.startswith("/") and not Path(report.sigma).exists()
    second = pixels(report.output, report.sigma) if inside else pixels(Path(report.sigma))
    return [pixels(report.output), second]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("to", KINDS)
def test_frames_and_sigma(source, denoise, box_model, to, compress):
    if compress and to not in PACKED:
        with pytest.raises(OutputError, match=f"{to} files cannot hold compressed frames"):
            denoise(source, to=to, compress=True)
        assert list(source.parent.iterdir()) == [source]
        return
    report = denoise(source, to=to, compress=compress, sigma=True)
    expected = Denoiser(box_model).denoise_with_sigma(pixels(source), gain=1.0, offset=0.0)
    for found, wanted in zip(both(report), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-4)
    names = {path.name for path in source.parent.iterdir()} - {"movie.h5"}
    beside = {f"movie_denoised_sigma.{to}"} if to in ("tif", "mrc", "npy", "zarr") else set()
    assert {name for name in names if "json" not in name} == {f"movie_denoised.{to}"} | beside


@pytest.mark.parametrize(
    ("dtype", "values", "stored", "outside"),
    [
        ("uint8", [-0.5, 0.4, 1.5, 2.5, 255.4, 255.6, 1e30, -1], [0, 0, 2, 2, 255, 255, 255, 0], 3),
        ("int8", [-128.4, -129, 127.5, -np.inf], [-128, -128, 127, -128], 3),
        ("uint32", [4294967040.0, 2.0**32, -0.6], [4294967040, 2**32 - 1, 0], 2),
        ("float32", [1.5, -0.25], [1.5, -0.25], 0),
    ],
)  # fmt: skip
def test_rounding_and_saturation(dtype, values, stored, outside):
    whole, count = storable(np.array(values, np.float32), np.dtype(dtype))
    assert (whole.dtype, whole.tolist(), count) == (dtype, stored, outside)
    if dtype != "float32":
        with pytest.raises(OutputError, match=f"NaN cannot be stored as {dtype}"):
            storable(np.array([np.nan], np.float32), np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("to", KINDS)
def test_whole_numbers(source, denoise, to, dtype):
    if to == "mrc" and dtype == "uint8":
        with pytest.raises(OutputError, match="mrc files cannot hold uint8"):
            denoise(source, to=to, dtype=dtype)
        return
    report = denoise(source, to=to, dtype=dtype)
    limits = np.iinfo(dtype)
    whole = np.rint(pixels(denoise(source, output=source.with_name("w.h5")).output))
    kept = whole.astype(float).clip(limits.min, limits.max)
    with open_frames(report.output) as frames:
        assert frames.dtype.newbyteorder("=") == dtype
        np.testing.assert_array_equal(frames.read(0, 8), kept)
    outside = int((kept != whole).sum())
    assert (outside > 0) == (dtype == "uint8")
    facts = recorded(report.output)
    facts = report.record if to == "mrc" else facts
    assert report.record["saturated_pixels"] == facts["saturated_pixels"] == outside
    assert (facts["output_dtype"], facts["model"]) == (dtype, "box")
    # What is lost by saturation shows in the mean.
    assert report.record["intensity_ratio"] == pytest.approx(
        kept.mean() / pixels(source).mean(), rel=1e-6
    )


@pytest.mark.parametrize("options", [{"compress": True, "sigma": True}, {"sigma": True}])
@pytest.mark.parametrize("to", KINDS)
def test_an_interrupted_run_is_continued(source, denoise, interrupted, to, options):
    if options.get("compress") and to not in PACKED:
        return
    options = {"to": to, **options}
    whole = denoise(source, output=source.with_name(f"whole.{to}"), **options)
    target = source.with_name(f"cut.{to}")
    interrupted(source, output=target, gain=1.0, offset=0.0, **options)
    assert not target.exists()
    assert not target.with_name(f"cut_sigma.{to}").exists()
    with pytest.raises(OutputError, match="interrupted run with another gain, scale"):
        denoise(source, output=target, **{**options, "gain": 2.0})
    report = denoise(source, output=target, **options)
    assert report.resumed == 4
    assert {**report.record, "date": ""} == {**whole.record, "date": ""}
    assert report.check == whole.check
    for found, wanted in zip(both(report), both(whole), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert not list(source.parent.glob("*.partial*"))


@pytest.mark.parametrize("order", ["yxt", "xyt", "txy", "utyx", "tyxc", "yx"])
def test_any_axis_order(tmp_path, denoise, order):
    """Of what is compressed, rounded, or a standard deviation."""
    lengths = {"t": 3, "u": 2, "y": 30, "x": 44, "c": 1}
    shape = tuple(lengths[letter] for letter in order)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.random.default_rng(0).poisson(20, shape).astype(np.uint8)
    straight = tmp_path / "straight.npy"
    with open_frames(path, Choice("data", order)) as frames:
        np.save(straight, frames.read(0, frames.shape[0]))
    wanted = both(denoise(straight, sigma=True))
    for number, options in enumerate([{"compress": True}, {"dtype": "uint8"}]):
        target = tmp_path / f"{number}.h5"
        denoise(path, axes=order, dataset="/data", sigma=True, output=target, **options)
        for name, one in zip(("data", "data_sigma"), wanted, strict=True):
            with h5py.File(target) as file:
                assert file[name].shape == shape
            with open_frames(target, Choice(name, order)) as frames:
                found = frames.read(0, frames.shape[0])
            whole = "dtype" in options and name == "data"
            np.testing.assert_array_equal(found, np.rint(one) if whole else one)


def test_what_hdf5_and_tiff_say_of_compression_and_sigma(source, denoise):
    with h5py.File(denoise(source, compress=True, sigma=True).output) as file:
        data, sigma, record = file["set/frames"], file["set/frames_sigma"], file["emdn"].attrs
        assert (data.compression, data.shuffle, data.chunks) == ("gzip", True, (1, 24, 30))
        assert {name: sigma.attrs[name] for name in sigma.attrs if name != "DIMENSION_LIST"} == {
            "units": "counts", "sigma_of": "frames", "long_name": "standard deviation of frames",
        }  # fmt: skip
        assert sigma.dims[2][0] == file["set/x"]
        assert (record["output_compression"], record["frames"]) == ("zlib", "/set/frames")
        assert (record["ensemble"], record["intensity_ratio"]) == (8, pytest.approx(1, abs=0.01))
        assert "uncalibrated for box" in record["sigma"]
    target = denoise(source, to="tif", compress=True).output
    with tifffile.TiffFile(target) as file:
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"
    assert "intensity_ratio" in recorded(target)
    with open_frames(target) as frames:
        assert (frames.axis("x").units, frames.axis("y").step) == ("nm", pytest.approx(0.02))


@pytest.mark.parametrize("kind", ["h5", "tif"])
def test_a_compressed_input_gives_a_compressed_output(tmp_path, run, kind):
    """Unless it is said otherwise, or the kind of output is never compressed."""
    frames = np.random.default_rng(0).poisson(30, (4, 64, 64)).astype(np.uint16)
    path = tmp_path / f"a.{kind}"
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("frames", data=frames, compression="lzf")
    else:
        tifffile.imwrite(path, frames, photometric="minisblack", compression="zlib")
    packed = run(path).output
    plain = run(path, compress=False, output=tmp_path / f"plain{packed.suffix}").output
    assert packed.stat().st_size < 0.97 * plain.stat().st_size
    np.testing.assert_array_equal(pixels(packed), pixels(plain))
    np.testing.assert_array_equal(pixels(run(path, to="npy").output), pixels(plain))


def test_a_disk_without_room_is_named_before_anything_is_written(source, run, monkeypatch):
    usage = shutil.disk_usage(source.parent)._replace(free=20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"46\.1 kB of float32 and sigma, .* has 20 kB free"):
        run(source, sigma=True)
    with pytest.raises(OutputError, match="needs 23 kB of float32"):
        denoise_file.plan(source, DenoiseOptions())
    assert list(source.parent.iterdir()) == [source]
    assert run(source, dtype="uint8").frames == 8


@pytest.mark.parametrize("options", [
    {"to": "hspy"}, {"sigma": True}, {"compress": True}, {"to": "tif"}, {"to": "npy"},
])  # fmt: skip
def test_a_file_that_may_not_become_so_large_is_one_error(
    tmp_path, denoise, lattice, room, options
):
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = lattice(20.0, (24, 96, 96)).astype(np.uint8)
    with room(700_000), pytest.raises(OutputError, match="File too large"):
        denoise(path, **options)
    # What waits to be compressed goes on from there.
    assert (len(list(tmp_path.iterdir())) == 1) == ("compress" not in options)
    assert denoise(path, **options).frames == 24
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize("to", ["h5", "hspy"])
def test_an_output_with_sigma_is_an_input_without_a_question(source, denoise, to):
    first = denoise(source, to=to, sigma=True)
    dataset = first.sigma.removesuffix("_sigma")
    assert any(f"{dataset} (" in line for line in describe(first.output, Choice()))
    for sigma in (False, True):
        again = denoise(first.output, sigma=sigma, suffix=f"_again_{sigma}")
        assert again.record["input_dataset"] == dataset
        with h5py.File(again.output) as file:
            assert (first.sigma in file) == sigma
        assert pixels(again.output).shape == (8, 24, 30)


def test_files_of_sigma_say_what_they_are(source, denoise):
    with mrcfile.open(denoise(source, to="mrc", sigma=True).sigma) as file:
        assert "standard deviation of movie_denoised.mrc" in "".join(file.get_labels())
        assert file.header.dmean == pytest.approx(file.data.mean(), rel=1e-5)
    facts = recorded(Path(denoise(source, to="tif", sigma=True).sigma))
    assert facts["content"] == "standard deviation of movie_denoised.tif"
    assert facts["output_mean"] > 0
    assert "intensity_ratio" not in facts


def test_nothing_of_an_earlier_sigma_is_lost(source, denoise):
    """Neither a file of it, nor a dataset of this name that is somebody else's."""
    denoise(source, to="tif", sigma=True).output.unlink()
    with pytest.raises(OutputError, match=r"_sigma\.tif: exists already"):
        denoise(source, to="tif", sigma=True)
    denoise(source, to="tif", sigma=True, overwrite=True)
    with h5py.File(source, "r+") as file:
        file["set/frames_sigma"] = np.ones(3)
    with pytest.raises(OutputError, match="holds /set/frames_sigma already"):
        denoise(source, sigma=True)
    assert denoise(source, to="hspy", sigma=True).sigma == "/Experiments/movie/data_sigma"
    with h5py.File(denoise(source).output) as file:
        assert file["set/frames_sigma"].shape == (3,)


def test_a_scan_that_becomes_one_row_of_frames_is_named(tmp_path, run, caplog):
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).poisson(20, (2, 3, 32, 40)))
    for to, said in (("tif", True), ("mrc", True), ("h5", False)):
        caplog.clear()
        run(tmp_path / "scan.npy", to=to, gain=1.0)
        assert ("its 2 x 3 frames become one row" in caplog.text) is said
