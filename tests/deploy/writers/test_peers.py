"""Outputs opened by the programs that users open them with: same frames, same axes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy import Denoiser, job
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import open_frames

# What the peers warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def movie(tmp_path: Path, lattice) -> Path:
    """A calibrated MRC stack: 0.2 angstrom a pixel."""
    path = tmp_path / "movie.mrc"
    with mrcfile.new(path, lattice(20.0, (4, 30, 44)).astype(np.uint16)) as file:
        file.set_image_stack()
        file.voxel_size = 0.2
    return path


@pytest.fixture
def run(box_model: Path) -> Callable[..., Path]:
    def denoise(source: Path, **options: Any) -> Path:
        given = DenoiseOptions(model=str(box_model), device="cpu", gain=1.0, offset=0.0, **options)
        return job.run(source, given).output

    return denoise


@pytest.fixture
def expected(movie: Path, box_model: Path) -> np.ndarray:
    with open_frames(movie) as frames:
        return Denoiser(box_model).denoise(frames.read(0, 4), gain=1.0, offset=0.0)


def test_hyperspy_opens_the_hspy_file(movie: Path, run, expected) -> None:
    hyperspy = pytest.importorskip("hyperspy.api")
    target = run(movie, to="hspy")
    assert target.name == "movie_denoised.hspy"
    signal = hyperspy.load(target)
    np.testing.assert_array_equal(signal.data, expected)
    manager = signal.axes_manager
    assert [axis.name for axis in manager.navigation_axes] == ["frame"]
    assert [(axis.name, axis.units) for axis in manager.signal_axes] == [("x", "Å"), ("y", "Å")]
    assert manager[1].scale == pytest.approx(0.2)
    assert signal.metadata.General.original_filename == "movie.mrc"


def test_hyperspy_shows_the_same_axes_after_mirroring(tmp_path: Path, run, lattice) -> None:
    hyperspy = pytest.importorskip("hyperspy.api")
    signal = hyperspy.signals.Signal2D(lattice(20.0, (3, 30, 44)).astype(np.uint16))
    for axis, (name, units, scale) in zip(
        signal.axes_manager._axes, [("time", "s", 0.5), ("y", "nm", 0.02), ("x", "nm", 0.03)],
        strict=True,
    ):  # fmt: skip
        axis.name, axis.units, axis.scale, axis.offset = name, units, scale, 1.5
    signal.metadata.set_item("Acquisition_instrument.TEM.beam_energy", 80.0)
    signal.save(tmp_path / "movie.hspy")
    before, after = (
        hyperspy.load(tmp_path / "movie.hspy"),
        hyperspy.load(run(tmp_path / "movie.hspy")),
    )
    assert repr(after.axes_manager) == repr(before.axes_manager)
    assert after.data.shape == before.data.shape
    assert after.data.dtype == np.float32
    before.metadata.General.FileIO = after.metadata.General.FileIO = None
    assert after.metadata.as_dictionary() == before.metadata.as_dictionary()


def test_hyperspy_opens_a_mirrored_velox_file(tmp_path: Path, run, lattice) -> None:
    """Velox's own HDF5 tree, frames last."""
    path = tmp_path / "movie.h5"
    frames = lattice(20.0, (3, 30, 44)).astype(np.uint16)
    with h5py.File(path, "w") as file:
        file["Data/Image/abc/Data"] = np.moveaxis(frames, 0, 2)
    with h5py.File(run(path)) as file:
        assert file["Data/Image/abc/Data"].shape == (30, 44, 3)


def test_nexusformat_opens_the_hspy_file(movie: Path, run, expected) -> None:
    nexusformat = pytest.importorskip("nexusformat.nexus")
    root = nexusformat.nxload(str(run(movie, to="hspy")))
    data = root.get_default()
    np.testing.assert_array_equal(data.nxsignal.nxvalue, expected)
    frame, y, x = data.nxaxes
    assert len(frame) == 4
    assert x.attrs["units"] == "Å"
    np.testing.assert_allclose(np.diff(x.nxvalue), 0.2, rtol=1e-5)
    np.testing.assert_allclose(np.diff(y.nxvalue), 0.2, rtol=1e-5)


def test_emdfile_opens_the_hspy_file(movie: Path, run, expected, tmp_path: Path) -> None:
    emdfile = pytest.importorskip("emdfile")
    renamed = run(movie, to="hspy").rename(tmp_path / "movie_denoised.h5")
    array = emdfile.read(str(renamed), emdpath="Experiments/movie")
    np.testing.assert_array_equal(array.data, expected)
    assert list(array.dim_names) == ["frame", "y", "x"]
    assert list(array.dim_units)[1:] == ["Å", "Å"]
    assert array.dims[2][1] - array.dims[2][0] == pytest.approx(0.2)


def test_tifffile_and_imagej_open_the_tiff(movie: Path, run, expected) -> None:
    target = run(movie, to="tif")
    with tifffile.TiffFile(target) as file:
        np.testing.assert_array_equal(file.asarray(), expected)
        assert file.is_imagej
        assert file.imagej_metadata["unit"] == "nm"
        assert '"model": "box"' in file.imagej_metadata["Info"]
        over, under = file.pages[0].tags["XResolution"].value
        assert under / over == pytest.approx(0.02, rel=1e-5)
    hyperspy = pytest.importorskip("hyperspy.api")
    axis = hyperspy.load(target).axes_manager.signal_axes[0]
    assert (axis.units, axis.scale) == ("nm", pytest.approx(0.02, rel=1e-5))


def test_a_single_frame_tiff(movie: Path, run, expected) -> None:
    target = run(movie, to="tif", frames="2")
    with open_frames(target) as frames:
        assert frames.shape == (1, 30, 44)
        assert frames.axis("x").units == "nm"


def test_mrcfile_opens_the_mrc(movie: Path, run, expected, tmp_path: Path) -> None:
    with mrcfile.mmap(movie, "r+") as file:
        file.set_extended_header(np.arange(96, dtype=np.uint8).view("V96"))
        file.header.exttyp = b"MRCO"
    target = run(movie, to="mrc")
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


def test_numpy_opens_the_npy(movie: Path, run, expected) -> None:
    import json

    target = run(movie, to="npy")
    np.testing.assert_array_equal(np.load(target, allow_pickle=False), expected)
    facts = json.loads(target.with_name(target.name + ".json").read_text())
    assert facts["axes"][1] == {
        "name": "x",
        "units": "Å",
        "step": pytest.approx(0.2),
        "origin": 0.0,
    }
    assert facts["emdn"]["model"] == "box"
    assert facts["emdn"]["intensity_ratio"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("shape", [(24, 24), (4, 1, 24, 24), (4, 24, 24, 1), (2, 2, 24, 24)])
def test_an_npy_keeps_its_shape(tmp_path: Path, run, lattice, shape: tuple[int, ...]) -> None:
    frames = lattice(20.0, (4, 24, 24))
    np.save(tmp_path / "stack.npy", frames)
    np.save(tmp_path / "a.npy", frames.ravel()[: int(np.prod(shape))].reshape(shape))
    made = np.load(run(tmp_path / "a.npy"))
    assert made.shape == shape
    if len(shape) > 2:
        np.testing.assert_array_equal(made.ravel(), np.load(run(tmp_path / "stack.npy")).ravel())


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".mrc"])
def test_each_kind_of_output_can_be_an_input(movie: Path, run, expected, suffix: str) -> None:
    first = run(movie, to=suffix[1:])
    with open_frames(first) as frames:
        np.testing.assert_array_equal(frames.read(0, 4), expected)


def test_a_selection_keeps_its_times(tmp_path: Path, run, lattice) -> None:
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("entry")
        file.attrs["default"] = "entry"
        group.attrs.update({"signal": "frames", "axes": ["time", "y", "x"]})
        group["frames"] = lattice(20.0, (9, 24, 24)).astype(np.uint16)
        group["time"] = 10 + 0.5 * np.arange(9)
        group["time"].attrs["units"] = "s"
    target = run(path, frames="2:8:3")
    assert target.suffix == ".hspy"
    with open_frames(target) as frames:
        assert frames.shape == (2, 24, 24)
        time = frames.axes[0]
        assert (time.name, time.units, time.step, time.origin) == ("time", "s", 1.5, 11.0)
