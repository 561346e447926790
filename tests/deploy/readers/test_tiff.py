"""TIFF as programs and microscopes write it: series, sizes, and files that are cut short."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from emdn_deploy.readers import Choice, open_frames, open_selected
from emdn_models.errors import FormatError, MissingExtraError

STACK = np.random.default_rng(0).poisson(30, (20, 24, 32)).astype(np.uint16)


def write(path: Path, frames: np.ndarray = STACK, **options: Any) -> Path:
    """Write frames as grey values; ``pages``: one by one."""
    if options.pop("pages", False):
        with tifffile.TiffWriter(path, **options) as file:
            for frame in frames:
                file.write(frame, photometric="minisblack", metadata=None, contiguous=False)
        return path
    tifffile.imwrite(path, frames, photometric="minisblack", **options)
    return path


def sizes(path: Path, dataset: str | None = None) -> dict[str, tuple[float | None, str]]:
    with open_frames(path, Choice(dataset)) as frames:
        return {axis.name: (axis.step, axis.units) for axis in frames.axes}


def test_each_ome_image_has_its_own_sizes(tmp_path):
    """scifio#318, ilastik#3091: not those of another image, nor x's unit for y."""
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for frames, axes, x, y in (
            (STACK[:8], "TYX", (0.02, "nm"), (30.0, "pm")),
            (STACK[0], "YX", (1.7, "µm"), (1.8, "µm")),
        ):
            file.write(
                frames, photometric="minisblack",
                metadata={"axes": axes, "PhysicalSizeX": x[0], "PhysicalSizeXUnit": x[1],
                          "PhysicalSizeY": y[0], "PhysicalSizeYUnit": y[1],
                          "TimeIncrement": 0.5, "TimeIncrementUnit": "s"},
            )  # fmt: skip
    assert sizes(path) == {"t": (0.5, "s"), "x": (0.02, "nm"), "y": (30.0, "pm")}
    assert sizes(path, "1") == {"x": (1.7, "µm"), "y": (1.8, "µm")}
    with open_frames(path) as frames:
        assert frames.notes == (f"of 2 series, 0 (8, 24, 32) is taken: {frames.why}",)


def test_imagej_keeps_time_slices_and_units_of_each_axis(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", STACK.reshape(5, 4, 24, 32), imagej=True, resolution=(50, 25),
        metadata={"axes": "TZYX", "unit": "nm", "spacing": 2.5, "finterval": 0.25,
                  "tunit": "sec"},
    )  # fmt: skip
    assert sizes(tmp_path / "a.tif") == {
        "t": (0.25, "s"), "z": (2.5, "nm"), "y": (0.04, "nm"), "x": (0.02, "nm"),
    }  # fmt: skip


def test_detectors_beside_each_other_are_not_one_stack(tmp_path, refuses):
    """tifffile#50, ilastik#887: HAADF and BF have scales of their own."""
    both = STACK.reshape(10, 2, 24, 32)
    for name, options in (("a.tif", {"imagej": True}), ("a.ome.tif", {"ome": True})):
        path = write(tmp_path / name, both, metadata={"axes": "TCYX"}, **options)
        refuses(path, r"has 2 channels .*axes tcyx.* --axes t0yx or t1yx")
        with open_frames(path, Choice(axes="tuyx")) as frames:
            assert frames.shape == (20, 24, 32)
    composite = write(tmp_path / "b.tif", STACK[:2], imagej=True,
                      metadata={"axes": "CYX", "mode": "composite"})  # fmt: skip
    refuses(composite, "has 2 channels")


def test_frames_that_a_library_took_for_colours(tmp_path, reads, refuses):
    """brainglobe-utils#45: three pages, written by a default as RGB."""
    path = tmp_path / "three.tif"
    tifffile.imwrite(path, STACK[:3], photometric="rgb", planarconfig="separate")
    refuses(path, r"3 channels \(colours .* --axes tyx$")
    reads(path, STACK[:3], Choice(axes="tyx"))


def test_frames_that_were_written_one_by_one(tmp_path, reads, refuses):
    """One series a frame, as tifffile's `write` makes them when called for each."""
    path = tmp_path / "single.tif"
    with tifffile.TiffWriter(path) as file:
        for frame in STACK:
            file.write(frame)
    assert "all 20 series" in reads(path, STACK).notes[0]
    reads(path, STACK[3], Choice("3"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    refuses(path, "is cut short")


def test_colours_and_series_are_refused_or_left_out(tmp_path, reads, refuses):
    path, colours = tmp_path / "a.tif", np.zeros((24, 32, 3), np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(colours, photometric="rgb", metadata=None)
        file.write(STACK[0], photometric="minisblack", metadata=None)
    assert reads(path, STACK[0]).why == "the only one of 2 series that holds frames"
    tifffile.imwrite(path, colours, photometric="rgb")
    refuses(path, "colour")
    # Zeiss's SEM files: greys, with some entries of a palette for what is written on top.
    palette = np.stack([np.arange(256, dtype=np.uint16) * 257] * 3)
    tifffile.imwrite(path, STACK[0].astype(np.uint8), photometric="palette", colormap=palette)
    assert reads(path, STACK[0]).notes
    with tifffile.TiffWriter(path) as file:
        file.write(STACK[0], photometric="minisblack", metadata=None)
        file.write(STACK[0, :, :20], photometric="minisblack", metadata=None)
    refuses(path, r"2 series: .*--dataset NAME")
    reads(path, STACK[0, :, :20], Choice("1"))


def test_what_needs_imagecodecs_says_so(tmp_path, monkeypatch):
    def missing(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", missing)
    path = write(tmp_path / "a.tif", compression="zlib")
    with open_frames(path) as frames, pytest.raises(MissingExtraError, match=r"\[filters\]"):
        frames.read(0, 1)


def zeiss() -> bytes:
    return b"\r\n".join([b"0", b"0", b"0", b"5.8e-09", b"50000.0", b"6", b""])


JEOL = """<?xml version="1.0"?><TemReporter><ElectronGun><AccelerationVoltage>200000
</AccelerationVoltage></ElectronGun><Eos><EosMode>{}</EosMode></Eos><ImageFormingSystem><ModeString>{}
</ModeString><SelectorValue>{}</SelectorValue></ImageFormingSystem><Bad>\x01</Bad></TemReporter>"""
FEI = b"[Beam]\r\nHV=5000\r\n[Scan]\r\nPixelWidth=3.4e-09\r\nPixelHeight=3.6e-09\r\n"


@pytest.mark.parametrize(
    ("options", "steps", "unit"),
    [
        ({"extratags": [(34682, 2, None, FEI, True)]}, (3.4e-9, 3.6e-9), "m"),
        ({"extratags": [(34118, 7, None, zeiss(), True)]}, (1.856e-7,) * 2, "m"),
        ({"description": JEOL.format("eosTEM", "MAG", "150000")}, (1.82079e-9,) * 2, "m"),
        ({"description": JEOL.format("eosTEM", "DIFF", "400")}, (None, None), ""),
        ({"description": JEOL.format("eosASID", "MAG", "400000")}, (None, None), ""),
        ({"resolution": (7038270, 7038270), "resolutionunit": "CENTIMETER"},
         (1.42080e-9,) * 2, "m"),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, (None, None), ""),
    ],
)  # fmt: skip
def test_microscopes_write_sizes_into_tags_of_their_own(tmp_path, options, steps, unit):
    """The values of what RosettaSciIO reads from files of these makers."""
    given = {"metadata": None, "resolution": (93, 93), "resolutionunit": "INCH", **options}
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], **given)
    with open_frames(tmp_path / "a.tif") as frames:
        for letter, step in zip("xy", steps, strict=True):
            axis = frames.axis(letter)
            assert axis.step == (step if step is None else pytest.approx(step, rel=1e-5))
            assert axis.units == unit


KINDS: list[dict[str, Any]] = [
    {}, {"metadata": None}, {"imagej": True}, {"ome": True}, {"tile": (16, 16)}, {"pages": True},
    {"compression": "zlib", "predictor": True}, {"byteorder": ">", "pages": True},
    {"compression": "zlib", "ome": True, "bigtiff": True},
]  # fmt: skip


@pytest.mark.parametrize("options", KINDS)
def test_a_file_cut_anywhere_is_complete_or_says_what_is_missing(tmp_path, reads, options):
    content = write(tmp_path / "a.tif", **options).read_bytes()
    reads(tmp_path / "a.tif", STACK)
    path = tmp_path / "cut.tif"
    places = np.random.default_rng(1).integers(1, len(content), 12)
    for place in (*places, int(0.5 * len(content)), len(content) - 1):
        path.write_bytes(content[:place])
        try:
            with open_frames(path) as frames:
                found = frames.read(0, frames.shape[0])
        except FormatError as error:
            said = str(error)
            assert "cut.tif: is cut short" in said
            if "--frames 0:" in said:
                count = int(said.partition("--frames 0:")[2])
                with open_selected(path, Choice(), f"0:{count}") as frames:
                    np.testing.assert_array_equal(frames.read(0, count), STACK[:count])
        else:
            np.testing.assert_array_equal(found, STACK)


def test_an_ome_tiff_in_several_files(tmp_path, reads, refuses):
    write(tmp_path / "x.ome.tif", STACK[:3], ome=True, metadata={"axes": "TYX"})
    with tifffile.TiffFile(tmp_path / "x.ome.tif") as file:
        text = file.ome_metadata
    assert text is not None
    planes = "".join(
        f'<TiffData FirstT="{3 * i}" IFD="0" PlaneCount="3">'
        f'<UUID FileName="{i}.ome.tif">urn:uuid:{i}</UUID></TiffData>'
        for i in range(2)
    )
    text = text.replace('SizeT="3"', 'SizeT="6"')
    text = text.replace('<TiffData IFD="0" PlaneCount="3"/>', planes)
    for i in range(2):
        own = re.sub('UUID="[^"]*"', f'UUID="urn:uuid:{i}"', text, count=1)
        write(tmp_path / f"{i}.ome.tif", STACK[3 * i : 3 * i + 3], description=own, metadata=None)
    reads(tmp_path / "0.ome.tif", STACK[:6])
    (tmp_path / "1.ome.tif").unlink()
    refuses(tmp_path / "0.ome.tif", "3 of 6 frames")
