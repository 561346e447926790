"""DM and SER files: which image is taken, and what the microscope wrote beside it."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import job
from emdn_deploy.calibration import imaging_mode
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import Choice, open_frames
from emdn_deploy.readers.frames import SeveralStacks
from emdn_models.errors import FormatError

STACK = np.random.default_rng(0).poisson(30, (6, 16, 24)).astype(np.uint16)
OVERVIEW = np.full((40, 30), 7, np.uint16)
THUMBNAIL = np.zeros((8, 8), np.int32)


@pytest.mark.parametrize("suffix", [".dm3", ".dm4"])
@pytest.mark.parametrize("thumbnail", [(), (THUMBNAIL,)])
def test_a_movie_beside_an_overview(
    tmp_path: Path, dm_file: Callable[..., Path], suffix: str, thumbnail
) -> None:
    """Whether there is a thumbnail or not, and in either order."""
    path = dm_file(tmp_path / f"a{suffix}", STACK, more=(OVERVIEW, *thumbnail))
    with open_frames(path) as frames:
        np.testing.assert_array_equal(frames.read(0, 6), STACK)
        assert frames.axis("x").step == float(np.float32(0.02))
        assert frames.notes == (f"image 0 is taken: {frames.why}",)
        assert "the only stack (6, 16, 24); single frames: 1 (40, 30)" in frames.why
    with open_frames(path, Choice("1")) as frames:
        np.testing.assert_array_equal(frames.read(0, 1)[0], OVERVIEW)
        assert (frames.axis("x").step, frames.notes) == (1.0, ())
    other = dm_file(tmp_path / f"b{suffix}", OVERVIEW, more=(STACK, *thumbnail))
    with open_frames(other) as frames:
        np.testing.assert_array_equal(frames.read(0, 6), STACK)
        assert "image 1 is taken" in frames.notes[0]


def test_two_movies_are_a_choice(tmp_path: Path, dm_file) -> None:
    path = dm_file(tmp_path / "a.dm4", STACK, more=(STACK[:3],))
    with pytest.raises(SeveralStacks, match=r"2 images: 0 \(6, 16, 24\).*1 \(3, 16, 24\)"):
        open_frames(path)


def test_a_spectrum_is_no_second_image(tmp_path: Path, dm_file) -> None:
    path = dm_file(tmp_path / "a.dm4", OVERVIEW, more=(STACK[0, 0], THUMBNAIL))
    with open_frames(path) as frames:
        np.testing.assert_array_equal(frames.read(0, 1)[0], OVERVIEW)
        assert frames.why == "the only image of grey values"


@pytest.mark.parametrize(
    ("mode", "known"),
    [
        ("IMAGING", {"magnification": 320.0, "acquisition_mode": "TEM"}),
        ("DIFFRACTION", {"camera_length": 320.0}),
        ("SCANNING", {"magnification": 320.0, "camera_length": 135.0, "acquisition_mode": "STEM"}),
    ],
)
def test_the_microscope_is_kept(
    tmp_path: Path, dm_file, box_model: Path, mode: str, known: dict[str, float | str]
) -> None:
    """As HyperSpy names it: keV, mm and seconds."""
    path = dm_file(
        tmp_path / "a.dm3", STACK,
        numbers={"Microscope Info.Voltage": 200e3, "Microscope Info.STEM Camera Length": 135.0,
                 "Microscope Info.Indicated Magnification": 320.0,
                 "DataBar.Exposure Time (s)": 0.25},
        texts={"Microscope Info.Operation Mode": mode,
               "Microscope Info.Illumination Mode": "STEM" if mode == "SCANNING" else "TEM"},
    )  # fmt: skip
    report = job.run(path, DenoiseOptions(model=str(box_model), device="cpu"))
    with h5py.File(report.output) as file:
        found = file["Experiments/a/metadata/Acquisition_instrument/TEM"]
        assert found["Camera"].attrs["exposure"] == 0.25
        assert dict(found.attrs) == {"beam_energy": 200.0, **known}
    hyperspy = pytest.importorskip("hyperspy.api")
    assert hyperspy.load(report.output).metadata.Acquisition_instrument.TEM.beam_energy == 200


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ("STEM NANOPROBE SCANNING DIFFRACTION", "STEM"),
        ("TEM IMAGING MAG1", "TEM"),
        ("TEM IMAGING DIFFRACTION", None),
        ("TEM SCANNING", None),
        ("SEM SCANNING", None),
        ("", None),
    ],
)
def test_words_give_a_mode_or_none(words: str, mode: str | None) -> None:
    assert imaging_mode(*words.split()) == mode


@pytest.mark.parametrize(
    ("step", "expected", "units", "said"),
    [
        (42_464_134.6, 0.0424641346, "1/nm", ("taken as 1/m",)),
        (1.0, None, "", ("not calibrated",)),
        (0.0, None, "", ()),
        (5e-9, 5e-9, "m", ()),
    ],
)
def test_a_diffraction_pattern_is_not_in_metres(
    tmp_path: Path, ser_file, step: float, expected, units: str, said: tuple[str, ...]
) -> None:
    with open_frames(ser_file(tmp_path / "a_1.ser", STACK, step)) as frames:
        axis = frames.axis("x")
        assert axis.step == (expected if expected is None else pytest.approx(expected))
        assert axis.units == units
        assert len(frames.notes) == len(said)
        assert all(word in note for word, note in zip(said, frames.notes, strict=True))


EMI = """<ObjectInfo><ExperimentalConditions><MicroscopeConditions>
<AcceleratingVoltage>300000</AcceleratingVoltage></MicroscopeConditions></ExperimentalConditions>
<ExperimentalDescription><Root><Data><Label>Mode</Label><Value>STEM nP SA Zoom Diffraction</Value>
<Unit></Unit></Data>
<Data><Label>Camera length</Label><Value>0.04</Value><Unit>m</Unit></Data></Root>
</ExperimentalDescription><AcquireInfo/><DetectorRange/></ObjectInfo>"""


def test_the_emi_beside_a_series_is_read_if_it_can_be(tmp_path: Path, ser_file) -> None:
    path = ser_file(tmp_path / "a_1.ser", STACK)
    (tmp_path / "a.emi").write_text(EMI)
    with open_frames(path) as frames:
        tem = "Acquisition_instrument.TEM."
        assert frames.metadata[tem + "beam_energy"] == "300"
        assert frames.metadata[tem + "camera_length"] == "40"
        assert frames.metadata[tem + "acquisition_mode"] == "STEM"
    (tmp_path / "a.emi").write_text("no XML")
    with open_frames(path) as frames:
        np.testing.assert_array_equal(frames.read(0, 6), STACK)


def test_a_series_that_is_cut_short(tmp_path: Path, ser_file, box_model: Path) -> None:
    path = ser_file(tmp_path / "a_1.ser", STACK)
    path.write_bytes(path.read_bytes()[: -2 * 24 * 16 * 2])
    with pytest.raises(FormatError, match=r"4 of 6 frames are there.*--frames 0:4"):
        job.run(path, DenoiseOptions(model=str(box_model), device="cpu"))
    with open_frames(path) as frames:
        np.testing.assert_array_equal(frames.read(0, 4), STACK[:4])
