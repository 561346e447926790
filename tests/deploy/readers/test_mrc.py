"""MRC headers that are not what they should be, and files that are compressed or cut short."""

import bz2
import gzip
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from emdn_deploy import job, selection
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import mrc, open_frames
from emdn_models.errors import FormatError

STACK = np.random.default_rng(0).poisson(30, (5, 24, 32)).astype(np.int16)


def write(path: Path, frames: np.ndarray = STACK, **header: float) -> Path:
    """Write a stack of 2 angstrom a pixel, with some fields of the header changed."""
    with mrcfile.new(path, frames, overwrite=True) as file:
        file.set_image_stack()
        file.voxel_size = 2.0
        for name, value in header.items():
            file.header[name] = value
    return path


def test_no_voxels_are_no_calibration(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """python-mrcz#13: mx = my = mz = 0."""
    path = write(tmp_path / "a.mrc", mx=0, my=0, mz=0)
    with open_frames(path) as frames:
        assert [axis.step for axis in frames.axes] == [None] * 3
        said = "has no voxel size (48 Å over my = 0, 64 Å over mx = 0): not calibrated"
        assert frames.notes == (said,)
    assert not recwarn.list


def test_a_negative_size_is_its_absolute_value(tmp_path: Path) -> None:
    with open_frames(write(tmp_path / "a.mrc", mx=-32, cella=(64.0, -48.0, 1.0))) as frames:
        assert (frames.axis("x").step, frames.axis("y").step) == (2.0, 2.0)
        assert frames.notes[0] == "the voxel size -2 Å along y is taken as 2 Å"


def test_columns_that_run_along_y(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mrc", mapc=2, mapr=1, cella=(24.0, 64.0, 1.0), mx=24, my=32)
    with open_frames(path) as frames:
        assert frames.shape == (5, 24, 32)
        assert (frames.axis("y").step, frames.axis("x").step) == (1.0, 2.0)
        assert "columns, rows and sections run along y, x, z" in frames.notes[0]


def test_a_size_that_is_none(tmp_path: Path) -> None:
    with open_frames(write(tmp_path / "a.mrc", cella=(np.nan, np.inf, 0.0))) as frames:
        assert frames.axis("x").step is frames.axis("y").step is None
        assert len(frames.notes) == 1


@pytest.mark.parametrize("promised", [0, 1, 3])
def test_frames_beyond_what_the_header_promises(tmp_path: Path, promised: int) -> None:
    """As of a recording that was stopped: none is lost, and it is said."""
    path = write(tmp_path / "a.mrc", nz=promised, mz=1)
    with path.open("ab") as file:
        file.write(b"half a frame")
    with open_frames(path) as frames:
        np.testing.assert_array_equal(frames.read(0, 5), STACK)
        assert f"promises {promised} frames, the file holds 5, which are taken" in frames.notes[0]


def test_frames_that_are_missing(tmp_path: Path, box_model: Path) -> None:
    path = write(tmp_path / "a.mrc")
    for cut in (1, 24 * 32 * 2, 24 * 32 * 5 + 3):
        path.write_bytes(write(path).read_bytes()[:-cut])
        there = (path.stat().st_size - 1024) // (24 * 32 * 2)
        with open_frames(path) as frames:
            np.testing.assert_array_equal(
                selection.select(frames, f"0:{there}").read(0, there), STACK[:there]
            )
            with pytest.raises(FormatError, match=f"{there} of 5 frames .* --frames 0:{there}"):
                frames.read(0, 5)
    with pytest.raises(FormatError, match="is cut short: 2 of 5"):
        job.run(path, DenoiseOptions(model=str(box_model), device="cpu"))
    path.write_bytes(path.read_bytes()[:1100])
    with pytest.raises(FormatError, match="is cut short: 0 of 5"):
        open_frames(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_compressed_stacks(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write(tmp_path / "a.mrc")
    path = tmp_path / f"a.mrc{suffix}"
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    path.write_bytes(pack(plain.read_bytes()))
    with open_frames(path) as frames:
        np.testing.assert_array_equal(frames.read(0, 5), STACK)
        assert frames.axis("x").step == 2.0
        assert frames.compressed
        assert str(tmp_path) in frames.notes[0]
    assert sorted(tmp_path.iterdir()) == [plain, path]
    # A file that claims to be longer than its header says is not unpacked to its end.
    path.write_bytes(pack(plain.read_bytes() + bytes(2**22)))
    with open_frames(path) as frames:
        assert frames.shape[0] == 5
        assert "is left out" in frames.notes[-1]
    path.write_bytes(pack(plain.read_bytes())[:-900])
    with (
        pytest.raises(FormatError, match=r"a\.mrc\.(gz|bz2): (is cut short|cannot be read)"),
        open_frames(path) as frames,
    ):
        frames.read(0, 5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path.write_bytes(pack(plain.read_bytes()))
    monkeypatch.setattr(mrc, "_block", full)
    with pytest.raises(Exception, match=r"No space left.*TMPDIR"):
        open_frames(path)


def test_four_bits_are_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"4 bits \(MRC mode 101\).*newstack"):
        open_frames(write(tmp_path / "a.mrc", mode=101))
    with pytest.raises(FormatError, match=r"mode \(77\)"):
        open_frames(write(tmp_path / "a.mrc", mode=77))


@pytest.mark.parametrize("kind", ["FEI1", "SERI", "AGAR"])
def test_tilts_are_those_of_the_frames_taken(tmp_path: Path, box_model: Path, kind: str) -> None:
    path = tmp_path / "a.mrc"
    sizes = {"FEI1": 768, "SERI": 6, "AGAR": 128}
    records = np.zeros((5, sizes[kind]), np.uint8)
    records[:, -1] = np.arange(5) + 10
    if kind == "FEI1":
        records[:, :4] = np.array([768], "<i4").view(np.uint8)
    with mrcfile.new(path, STACK, overwrite=True) as file:
        file.set_image_stack()
        file.set_extended_header(np.frombuffer(records.tobytes(), f"V{records.size}"))
        file.header.exttyp = kind.encode()
        extra = bytearray(file.header.extra2.tobytes())
        extra[16:20] = np.array(
            {"SERI": (6, 7), "AGAR": (0, 32)}.get(kind, (0, 0)), "<i2"
        ).tobytes()
        file.header.extra2 = bytes(extra)
    options = {"model": str(box_model), "device": "cpu", "to": "mrc", "gain": 1.0}
    report = job.run(path, DenoiseOptions(frames="1:5:2", **options))
    with mrcfile.open(report.output, permissive=True) as file:
        kept = np.frombuffer(file.extended_header.tobytes(), np.uint8).reshape(2, -1)
        assert kept[:, -1].tolist() == [11, 13]
        assert bytes(file.header.exttyp).decode() == kind
    packed = tmp_path / "b.mrc.gz"
    with gzip.open(packed, "wb") as into, path.open("rb") as plain:
        shutil.copyfileobj(plain, into)
    report = job.run(packed, DenoiseOptions(**options))
    with mrcfile.open(report.output, permissive=True) as file:
        assert file.extended_header.tobytes() == records.tobytes()
