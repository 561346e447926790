"""MRC, DM, SER and what RosettaSciIO reads: calibration, choices, and files that are cut short."""

import struct
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest

from emdn_deploy.readers import Choice, open_frames, open_selected
from emdn_models.errors import FormatError

STACK = np.random.default_rng(0).poisson(30, (5, 24, 32)).astype(np.int16)
OVERVIEW = np.full((40, 30), 7, np.int16)
THUMBNAIL = np.zeros((8, 8), np.int32)


def write(path: Path, frames: np.ndarray = STACK, **header: float) -> Path:
    """Write an MRC stack of 2 angstrom a pixel, with some fields of the header changed."""
    with mrcfile.new(path, frames, overwrite=True) as file:
        file.set_image_stack()
        file.voxel_size = 2.0
        for name, value in header.items():
            file.header[name] = value
    return path


@pytest.mark.parametrize(
    ("header", "steps"),
    [
        ({"mx": 0, "my": 0, "mz": 0}, (None, None)),  # python-mrcz#13
        ({"mx": -32, "cella": (64, -48, 1)}, (2, 2)),
        ({"cella": (np.nan, np.inf, 0)}, (None, None)),
        # Rows run along x, columns along y.
        ({"mapc": 2, "mapr": 1, "mx": 24, "my": 32, "cella": (72, 64, 1)}, (3, 2)),
    ],
)
def test_odd_voxels_of_mrc(tmp_path, recwarn, header, steps):
    with open_frames(write(tmp_path / "a.mrc", **header)) as frames:
        assert (frames.axis("y").step, frames.axis("x").step) == steps
        np.testing.assert_array_equal(frames.read(0, 5), STACK)
    assert not recwarn.list


def test_an_mrc_file_of_one_known_size(tmp_path, run):
    path = write(tmp_path / "a.mrc", cella=(-64, np.nan, 1))
    with open_frames(path) as frames:
        assert "absolute value" in frames.notes[0]
    with mrcfile.open(run(path, to="mrc", gain=1.0).output, header_only=True) as file:
        assert (file.voxel_size.x, file.voxel_size.y) == (2, 0)
    with pytest.raises(FormatError, match="one array, found --dataset 1"):
        open_frames(path, Choice(dataset="1"))


@pytest.mark.parametrize("promised", [0, 3])
def test_frames_beyond_what_the_header_promises(tmp_path, reads, promised):
    """As of a recording that was stopped: none is lost, and it is said."""
    path = write(tmp_path / "a.mrc", nz=promised, mz=1)
    with path.open("ab") as file:
        file.write(b"half a frame")
    frames = reads(path, STACK)
    assert f"promises {promised} frames, the file holds 5, which are taken" in frames.notes[0]


def test_frames_of_mrc_that_are_missing(tmp_path, refuses, run):
    path, frame = tmp_path / "a.mrc", 24 * 32 * 2
    for cut, there in ((1, 4), (frame, 4), (2 * frame + frame // 2, 2)):
        path.write_bytes(write(path).read_bytes()[:-cut])
        with open_selected(path, Choice(), f"0:{there}") as frames:
            np.testing.assert_array_equal(frames.read(0, there), STACK[:there])
        refuses(path, f"{there} of 5 frames .* --frames 0:{there}")
    with pytest.raises(FormatError, match="is cut short: 2 of 5"):
        run(path)
    assert run(path, frames="0:2").frames == 2


@pytest.mark.parametrize(("stamp", "flags", "signed"), [
    (1146047817, 0, False), (1146047817, 1, True), (0, 0, False),
])  # fmt: skip
def test_bytes_of_mrc_are_read_as_they_were_meant(tmp_path, reads, stamp, flags, signed):
    frames = (STACK * 5 % 256).astype(np.uint8)
    content = bytearray(write(tmp_path / "a.mrc", frames.view(np.int8)).read_bytes())
    content[152:160] = struct.pack("<ii", stamp, flags)
    content[76:84] = struct.pack("<ff", 0.0, 255.0)  # dmin, dmax
    (tmp_path / "a.mrc").write_bytes(content)
    reads(tmp_path / "a.mrc", frames.view(np.int8) if signed else frames)


def test_modes_of_mrc_that_are_no_frames(tmp_path, refuses):
    for mode, said in ((101, r"4 bits \(MRC mode 101\).*newstack"), (77, "mode '77'")):
        refuses(write(tmp_path / "a.mrc", mode=mode), said)
    with mrcfile.new(tmp_path / "fft.mrc", np.zeros((16, 16), np.complex64)):
        pass
    refuses(tmp_path / "fft.mrc", "complex")


@pytest.mark.parametrize("kind", ["FEI1", "SERI"])
def test_tilts_are_copied_with_all_frames(tmp_path, run, kind):
    path, records = tmp_path / "a.mrc", np.arange(30, dtype=np.uint8)
    with mrcfile.new(path, STACK, overwrite=True) as file:
        file.set_image_stack()
        file.set_extended_header(np.frombuffer(records.tobytes(), "V30"))
        file.header.exttyp = kind.encode()
        extra = bytearray(file.header.extra2.tobytes())
        extra[16:20] = np.array((6, 7), "<i2").tobytes()
        file.header.extra2 = bytes(extra)
    with mrcfile.open(run(path, to="mrc", gain=1.0).output) as file:
        assert file.extended_header.tobytes() == records.tobytes()
        assert bytes(file.header.exttyp).decode() == kind
        assert file.header.extra2.tobytes()[16:20] == extra[16:20]


@pytest.mark.parametrize("thumbnail", [(), (THUMBNAIL,)])
def test_a_movie_beside_an_overview(tmp_path, reads, dm_file, thumbnail):
    """Whether there is a thumbnail or not, and in either order."""
    path = dm_file(tmp_path / "a.dm4", STACK, more=(OVERVIEW, *thumbnail))
    frames = reads(path, STACK)
    assert frames.axis("x").step == float(np.float32(0.02))
    assert frames.notes == (f"of 2 images, 0 (5, 24, 32) is taken: {frames.why}",)
    assert "the only stack of several frames" in frames.why
    frames = reads(path, OVERVIEW, Choice("1"))
    assert (frames.axis("x").step, frames.notes) == (1.0, ())
    other = dm_file(tmp_path / "b.dm3", OVERVIEW, more=(STACK, *thumbnail))
    frames = reads(other, STACK)
    assert "1 (5, 24, 32) is taken" in frames.notes[0]


def test_images_of_dm_are_a_choice(tmp_path, reads, refuses, dm_file):
    path = dm_file(tmp_path / "a.dm4", STACK, more=(STACK[:3], THUMBNAIL, THUMBNAIL))
    refuses(path, r"3 images: 0 \(\) not readable.*; 1 \(5, 24, 32\) int16; .*--dataset")
    # A spectrum is no second image.
    path = dm_file(tmp_path / "b.dm4", OVERVIEW, more=(STACK[0, 0], THUMBNAIL))
    assert reads(path, OVERVIEW).why == "the only one of 2 images that holds frames"
    refuses(dm_file(tmp_path / "si.dm4", STACK, kind="Spectrum image"), "is spectrum image")
    refuses(dm_file(tmp_path / "c.dm4", STACK), "called '3'; it offers 0", Choice("3"))


def test_tags_of_dm_go_along(tmp_path, dm_file, run):
    path = dm_file(
        tmp_path / "a.dm3", STACK,
        tags={"Microscope Info.Voltage": 200e3, "Microscope Info.Operation Mode": "IMAGING"},
    )  # fmt: skip
    with h5py.File(run(path).output) as file:
        known = dict(file["Experiments/a/original_metadata"].attrs)
    assert known["Microscope Info.Voltage"] == "200000.0"
    assert known["Microscope Info.Operation Mode"] == "IMAGING"


@pytest.mark.parametrize(
    ("step", "expected", "units"),
    [
        (42_464_134.6, pytest.approx(0.0424641346), "1/nm"), (1.0, None, ""), (0.0, None, ""),
        (5e-9, pytest.approx(5e-9), "m"),
    ],
)  # fmt: skip
def test_a_diffraction_pattern_is_not_in_metres(tmp_path, ser_file, step, expected, units):
    with open_frames(ser_file(tmp_path / "a_1.ser", STACK, step)) as frames:
        axis = frames.axis("x")
        assert (axis.step, axis.units) == (expected, units)
        assert any("taken as 1/m" in note for note in frames.notes) == (units == "1/nm")


def test_a_series_that_is_cut_short(tmp_path, reads, refuses, ser_file):
    path = ser_file(tmp_path / "a_1.ser", STACK)
    (tmp_path / "a.emi").write_text("no XML")  # which is of no concern
    reads(path, STACK)
    path.write_bytes(path.read_bytes()[: -2 * 24 * 32 * 2])
    refuses(path, r"3 of 5 frames are there.*--frames 0:3")


@pytest.mark.filterwarnings("ignore")
def test_rosettasciio_reads_the_rest(tmp_path, reads, refuses):
    writer = pytest.importorskip("rsciio.ripple").file_writer
    known = [("t", 0.5, 5, "s"), ("y", 0.02, 24, "nm"), ("x", 0.02, 32, "nm")]
    axes = [
        {"name": name, "scale": scale, "offset": 0.0, "size": size, "units": units,
         "navigate": name == "t", "index_in_array": i}
        for i, (name, scale, size, units) in enumerate(known)
    ]  # fmt: skip
    metadata = {"General": {"title": ""}, "Signal": {"signal_type": ""}}
    signal = {
        "data": STACK.astype("u2"),
        "axes": axes,
        "metadata": metadata,
        "original_metadata": {},
    }
    writer(tmp_path / "a.rpl", signal)
    axis = reads(tmp_path / "a.rpl", STACK).axis("x")
    assert (axis.units, axis.step) == ("nm", pytest.approx(0.02))
    (tmp_path / "bad.mib").write_bytes(b"nothing")
    refuses(tmp_path / "bad.mib", "RosettaSciIO cannot read it")
