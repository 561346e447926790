"""TIFF to TIFF: what ImageJ shows of the input it shows of the output."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from emdn_deploy import job
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import open_frames
from emdn_deploy.report import Report

STACK = np.random.default_rng(0).poisson(20, (6, 24, 32)).astype(np.uint16)


@pytest.fixture
def run(box_model: Path) -> Callable[..., Report]:
    def denoise(source: Path, **options: Any) -> Report:
        given = {"model": str(box_model), "device": "cpu", "overwrite": True, **options}
        return job.run(source, DenoiseOptions(**given))

    return denoise


def steps(path: Path) -> list[tuple[str, float | None, str]]:
    with open_frames(path) as frames:
        return [(axis.name, axis.step and round(axis.step, 9), axis.units) for axis in frames.axes]


@pytest.mark.parametrize("options", [{}, {"compress": True}, {"dtype": "int32"}])
def test_a_hyperstack_stays_one(tmp_path: Path, run, options: dict[str, Any]) -> None:
    source = tmp_path / "a.tif"
    tifffile.imwrite(
        source, STACK.reshape(2, 3, 24, 32), imagej=True, resolution=(50, 25),
        metadata={"axes": "TZYX", "unit": "nm", "spacing": 2.5, "finterval": 0.25, "tunit": "s"},
    )  # fmt: skip
    target = run(source, **options).output
    assert target.name == "a_denoised.tif"
    assert steps(target) == steps(source)
    with tifffile.TiffFile(target) as file:
        assert (file.series[0].axes, file.series[0].shape) == ("TZYX", (2, 3, 24, 32))
        if not options:
            assert file.imagej_metadata["finterval"] == 0.25
            assert (file.imagej_metadata["frames"], file.imagej_metadata["slices"]) == (2, 3)
    # Some of the frames are a plain stack.
    assert run(source, frames="1:5", **options).frames == 4
    assert [name for name, *_ in steps(target)] == ["t", "y", "x"]


@pytest.mark.parametrize("options", [{}, {"compress": True}])
def test_the_time_between_frames_is_kept(tmp_path: Path, run, options: dict[str, Any]) -> None:
    hyperspy = pytest.importorskip("hyperspy.api")
    source = tmp_path / "a.tif"
    tifffile.imwrite(
        source, STACK, imagej=True, resolution=(50, 25),
        metadata={"axes": "TYX", "unit": "micron", "finterval": 0.25, "tunit": "ms"},
    )  # fmt: skip
    target = run(source, **options).output
    assert steps(target) == [("t", 0.25, "ms"), ("y", 40.0, "nm"), ("x", 20.0, "nm")]
    time = hyperspy.load(target).axes_manager.navigation_axes[0]
    assert (time.scale, time.units) == (0.25, "ms")
    assert steps(run(source, frames="::2", **options).output)[0] == ("t", 0.5, "ms")


def test_channels_that_are_frames_of_one_scale(tmp_path: Path, run) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK.reshape(3, 2, 24, 32), imagej=True,
                     metadata={"axes": "TCYX"})  # fmt: skip
    target = run(tmp_path / "a.tif", axes="tuyx", preview=tmp_path / "a.png").output
    with tifffile.TiffFile(target) as file:
        assert file.series[0].axes == "TCYX"
    with open_frames(target) as frames:
        assert frames.shape == (6, 24, 32)


@pytest.mark.parametrize("sigma", [False, True])
def test_min_is_white_stays_so(tmp_path: Path, run, sigma: bool) -> None:
    """scikit-image#1940: the same numbers, shown in the same way; electrons count down."""
    frames = np.random.default_rng(1).poisson(20, (4, 64, 64))
    tifffile.imwrite(tmp_path / "a.tif", (255 - frames).astype(np.uint8), photometric="miniswhite")
    np.save(tmp_path / "b.npy", frames.astype(np.uint8))
    down, up = (run(tmp_path / name, sigma=sigma) for name in ("a.tif", "b.npy"))
    assert (down.intensity.gain, down.intensity.offset) == (-1.0, 255.0)
    assert down.intensity.scale == pytest.approx(up.intensity.scale, rel=1e-6)
    assert "electrons are taken to count down from 255" in down.intensity.note
    with tifffile.TiffFile(down.output) as file:
        assert file.pages.first.photometric.name == "MINISWHITE"
        found = file.asarray()
    np.testing.assert_allclose(255 - found, np.load(up.output), atol=1e-3)
    if sigma:
        with tifffile.TiffFile(down.sigma) as file:
            assert file.pages.first.photometric.name == "MINISBLACK"
            np.testing.assert_allclose(file.asarray(), np.load(up.sigma), atol=1e-3)


def test_a_folder_of_min_is_white_frames(tmp_path: Path, run) -> None:
    (tmp_path / "run").mkdir()
    for number, frame in enumerate(255 - STACK.astype(np.uint8)):
        tifffile.imwrite(tmp_path / f"run/{number}.tif", frame, photometric="miniswhite")
    report = run(tmp_path / "run", to="tif")
    assert report.intensity.gain == -1
    with tifffile.TiffFile(report.output) as file:
        assert file.pages.first.photometric.name == "MINISWHITE"


def test_units_that_are_no_lengths(tmp_path: Path, run) -> None:
    """A diffraction pattern, each axis in its own unit."""
    source = tmp_path / "a.tif"
    tags = [(65003, "s", 0, "1/nm", True), (65004, "s", 0, "mrad", True),
            (65009, "d", 1, 0.25, True), (65010, "d", 1, 0.5, True)]  # fmt: skip
    tifffile.imwrite(source, STACK, photometric="minisblack", extratags=tags)
    assert steps(run(source).output)[1:] == [("y", 0.5, "mrad"), ("x", 0.25, "1/nm")]


def test_the_orientation_is_kept(tmp_path: Path, run) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", metadata=None,
                     extratags=[(274, "H", 1, 4, True)])  # fmt: skip
    with tifffile.TiffFile(run(tmp_path / "a.tif").output) as file:
        assert file.pages.first.tags["Orientation"].value == 4
