"""Outputs opened by the programs that users open them with: same frames, same axes."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy import Denoiser
from emdn_deploy.readers import open_frames
from emdn_models.errors import FormatError

# What the peers warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")
STACK = np.random.default_rng(0).poisson(20, (6, 24, 32)).astype(np.uint16)


@pytest.fixture
def movie(tmp_path: Path, lattice) -> Path:
    """A calibrated MRC stack: 0.2 angstrom a pixel."""
    path = tmp_path / "movie.mrc"
    with mrcfile.new(path, lattice(20.0, (4, 30, 44)).astype(np.uint16)) as file:
        file.set_image_stack()
        file.voxel_size = 0.2
    return path


@pytest.fixture
def denoise(run) -> Callable[..., Path]:
    given = {"gain": 1.0, "offset": 0.0, "overwrite": True}
    return lambda source, **options: run(source, **given, **options).output


@pytest.fixture
def expected(movie: Path, box_model: Path) -> np.ndarray:
    with open_frames(movie) as frames:
        return Denoiser(box_model).denoise(frames.read(0, 4), gain=1.0, offset=0.0)


def steps(path: Path) -> list[tuple[str, float | None, str]]:
    with open_frames(path) as frames:
        return [(axis.name, axis.step and round(axis.step, 9), axis.units) for axis in frames.axes]


def test_hyperspy_nexusformat_and_emdfile_open_the_hspy_file(movie, denoise, expected, tmp_path):
    hyperspy = pytest.importorskip("hyperspy.api")
    nexusformat = pytest.importorskip("nexusformat.nexus")
    emdfile = pytest.importorskip("emdfile")
    target, copy = denoise(movie, to="hspy"), tmp_path / "a.h5"
    copy.write_bytes(target.read_bytes())
    signal, data = hyperspy.load(target), nexusformat.nxload(str(target)).get_default()
    array = emdfile.read(str(copy), emdpath="Experiments/movie")
    for found in (signal.data, data.nxsignal.nxvalue, array.data):
        np.testing.assert_array_equal(found, expected)
    axes = signal.axes_manager.signal_axes
    assert [(axis.name, axis.units) for axis in axes] == [("x", "Å"), ("y", "Å")]
    assert axes[0].scale == pytest.approx(0.2)
    assert data.nxaxes[2].attrs["units"] == "Å"
    np.testing.assert_allclose(np.diff(data.nxaxes[2].nxvalue), 0.2, rtol=1e-5)
    assert list(array.dim_names) == ["frame", "y", "x"]
    assert list(array.dim_units)[1:] == ["Å", "Å"]
    assert array.dims[2][1] - array.dims[2][0] == pytest.approx(0.2)


def test_hyperspy_shows_the_same_axes_after_mirroring(tmp_path, denoise, lattice):
    hyperspy = pytest.importorskip("hyperspy.api")
    signal = hyperspy.signals.Signal2D(lattice(20.0, (3, 30, 44)).astype(np.uint16))
    for axis, (name, units, scale) in zip(
        signal.axes_manager._axes, [("time", "s", 0.5), ("y", "nm", 0.02), ("x", "nm", 0.03)],
        strict=True,
    ):  # fmt: skip
        axis.name, axis.units, axis.scale, axis.offset = name, units, scale, 1.5
    signal.metadata.set_item("Acquisition_instrument.TEM.beam_energy", 80.0)
    signal.save(tmp_path / "movie.hspy")
    before = hyperspy.load(tmp_path / "movie.hspy")
    after = hyperspy.load(denoise(tmp_path / "movie.hspy"))
    assert repr(after.axes_manager) == repr(before.axes_manager)
    assert (after.data.shape, after.data.dtype) == (before.data.shape, np.float32)
    before.metadata.General.FileIO = after.metadata.General.FileIO = None
    assert after.metadata.as_dictionary() == before.metadata.as_dictionary()


def test_hyperspy_opens_a_mirrored_velox_file(tmp_path, denoise, lattice):
    hyperspy, counts = pytest.importorskip("hyperspy.api"), lattice(20.0, (3, 30, 44))
    facts = {
        "BinaryResult": {"PixelSize": {"width": "2e-11", "height": "3e-11"}, "PixelUnitX": "m",
                         "Offset": {"x": "0", "y": "0"}, "DetectorIndex": "0"},
        "Detectors": {"Detector-0": {"DetectorName": "HAADF"}}, "Scan": {"FrameTime": "0.5"},
        "Acquisition": {"AcquisitionStartDatetime": {"DateTime": "1500000000"}},
    }  # fmt: skip
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with h5py.File(tmp_path / "movie.emd", "w") as file:
        file["Version"] = [json.dumps({"format": "Velox", "version": "11"})]
        file["Data/Image/0123abcd/Data"] = np.moveaxis(counts.astype(np.uint16), 0, 2)
        file["Data/Image/0123abcd/Metadata"] = np.repeat(text[:, None], 3, axis=1)
    before, after = (
        hyperspy.load(path) for path in (tmp_path / "movie.emd", denoise(tmp_path / "movie.emd"))
    )
    assert repr(after.axes_manager) == repr(before.axes_manager)
    with open_frames(tmp_path / "movie_denoised.emd") as frames:
        np.testing.assert_array_equal(after.data, frames.read(0, 3))
    assert before.metadata.General.title == after.metadata.General.title == "HAADF"


def test_tifffile_and_imagej_open_the_tiff(movie, denoise, expected):
    target = denoise(movie, to="tif")
    with tifffile.TiffFile(target) as file:
        np.testing.assert_array_equal(file.asarray(), expected)
        assert file.is_imagej
        assert file.imagej_metadata["unit"] == "nm"
        assert '"model": "box"' in file.imagej_metadata["Info"]
        over, under = file.pages[0].tags["XResolution"].value
        assert under / over == pytest.approx(0.02, rel=1e-5)
    with open_frames(denoise(movie, to="tif", frames="2")) as frames:
        assert frames.shape == (1, 30, 44)
        assert frames.axis("x").units == "nm"


def test_mrcfile_opens_the_mrc(movie, denoise, expected):
    with mrcfile.mmap(movie, "r+") as file:
        file.set_extended_header(np.arange(96, dtype=np.uint8).view("V96"))
        file.header.exttyp = b"MRCO"
    target = denoise(movie, to="mrc")
    assert mrcfile.validate(target, print_file=None)
    with mrcfile.open(target) as file:
        np.testing.assert_array_equal(file.data, expected)
        assert int(file.header.mode) == 2
        assert float(file.voxel_size.x) == pytest.approx(0.2)
        assert bytes(file.header.exttyp) == b"MRCO"
        assert file.extended_header.tobytes() == bytes(range(96))
        assert float(file.header.dmax) == pytest.approx(expected.max())
        assert float(file.header.dmean) == pytest.approx(expected.mean())
        assert "denoised by box" in str(file.get_labels())


@pytest.mark.parametrize("shape", [(24, 24), (4, 1, 24, 24), (4, 24, 24, 1), (2, 2, 24, 24)])
def test_numpy_opens_the_npy(tmp_path, denoise, lattice, shape):
    frames = lattice(20.0, (4, 24, 24))
    np.save(tmp_path / "stack.npy", frames)
    np.save(tmp_path / "a.npy", frames.ravel()[: int(np.prod(shape))].reshape(shape))
    target = denoise(tmp_path / "a.npy")
    made = np.load(target)
    assert made.shape == shape
    if len(shape) > 2:
        whole = np.load(denoise(tmp_path / "stack.npy"))
        np.testing.assert_array_equal(made.ravel(), whole.ravel())
    facts = json.loads(target.with_name(target.name + ".json").read_text())
    assert facts["axes"][1] == {"name": "x", "units": "", "step": None, "origin": 0.0}
    assert facts["emdn"]["model"] == "box"


@pytest.mark.parametrize(
    ("chosen", "count", "axis"),
    [("2:8:3", 2, ("time", "s", 1.5, 11.0)), ("0:3,5:8", 6, ("frame", "", 1.0, 0.0))],
)
def test_a_selection_keeps_its_times(tmp_path, denoise, lattice, chosen, count, axis):
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("entry")
        file.attrs["default"] = "entry"
        group.attrs.update({"signal": "frames", "axes": ["time", "y", "x"]})
        group["frames"] = lattice(20.0, (9, 24, 24)).astype(np.uint16)
        group["time"] = 10 + 0.5 * np.arange(9)
        group["time"].attrs["units"] = "s"
    target = denoise(path, frames=chosen)
    assert target.suffix == ".hspy"
    with open_frames(target) as frames:
        assert frames.shape == (count, 24, 24)
        time = frames.axes[0]
        assert (time.name, time.units, time.step, time.origin) == axis


@pytest.mark.parametrize("options", [{}, {"compress": True}])
def test_a_tiff_keeps_the_time_between_frames(tmp_path, denoise, options):
    source = tmp_path / "a.tif"
    tifffile.imwrite(
        source, STACK, imagej=True, resolution=(50, 25),
        metadata={"axes": "TYX", "unit": "micron", "finterval": 0.25, "tunit": "ms"},
    )  # fmt: skip
    target = denoise(source, **options)
    assert steps(target) == [("t", 0.25, "ms"), ("y", 40.0, "nm"), ("x", 20.0, "nm")]
    assert steps(denoise(source, frames="::2", **options))[0] == ("t", 0.5, "ms")


def test_min_is_white_is_refused(tmp_path, run):
    """Electrons would count down; what only looks inverted, as floats, stays so."""
    frames, white = np.random.default_rng(1).poisson(20, (4, 64, 64)), "miniswhite"
    tifffile.imwrite(tmp_path / "a.tif", (255 - frames).astype(np.uint8), photometric=white)
    with pytest.raises(FormatError, match="is min-is-white"):
        run(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", frames.astype(np.float32), photometric=white)
    with tifffile.TiffFile(run(tmp_path / "b.tif").output) as file:
        assert file.pages.first.photometric.name == "MINISWHITE"


def test_a_tiff_keeps_units_and_orientation(tmp_path, denoise):
    source, gray = tmp_path / "a.tif", {"photometric": "minisblack"}
    # A diffraction pattern, each axis in its own unit.
    tags = [(65003, "s", 0, "1/nm", True), (65004, "s", 0, "mrad", True),
            (65009, "d", 1, 0.25, True), (65010, "d", 1, 0.5, True)]  # fmt: skip
    tifffile.imwrite(source, STACK, extratags=tags, **gray)
    assert steps(denoise(source))[1:] == [("y", 0.5, "mrad"), ("x", 0.25, "1/nm")]
    turned = [(274, "H", 1, 4, True)]
    tifffile.imwrite(source, STACK, metadata=None, extratags=turned, **gray)
    with tifffile.TiffFile(denoise(source)) as file:
        assert file.pages.first.tags["Orientation"].value == 4
