"""TIFF as programs and microscopes write it: series, sizes, and files that are cut short."""

import re
import struct
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


def test_detectors_beside_each_other_are_not_one_stack(tmp_path):
    """tifffile#50, ilastik#887: HAADF and BF have scales of their own."""
    both = STACK.reshape(10, 2, 24, 32)
    for name, options in (("a.tif", {"imagej": True}), ("a.ome.tif", {"ome": True})):
        path = write(tmp_path / name, both, metadata={"axes": "TCYX"}, **options)
        with pytest.raises(FormatError, match=r"has 2 channels .*axes tcyx.* --axes t0yx or t1yx"):
            open_frames(path)
        with open_frames(path, Choice(axes="tuyx")) as frames:
            assert frames.shape == (20, 24, 32)
    composite = write(tmp_path / "b.tif", STACK[:2], imagej=True,
                      metadata={"axes": "CYX", "mode": "composite"})  # fmt: skip
    with pytest.raises(FormatError, match="has 2 channels"):
        open_frames(composite)


def test_frames_that_a_library_took_for_colours(tmp_path):
    """brainglobe-utils#45: three pages, written by a default as RGB."""
    path = tmp_path / "three.tif"
    tifffile.imwrite(path, STACK[:3], photometric="rgb", planarconfig="separate")
    with pytest.raises(FormatError, match=r"3 channels \(colours .* --axes tyx$"):
        open_frames(path)
    with open_frames(path, Choice(axes="tyx")) as frames:
        np.testing.assert_array_equal(frames.read(0, 3), STACK[:3])


def test_frames_that_were_written_one_by_one(tmp_path):
    """One series a frame, as tifffile's `write` makes them when called for each."""
    path = tmp_path / "single.tif"
    with tifffile.TiffWriter(path) as file:
        for frame in STACK:
            file.write(frame)
    with open_frames(path) as frames:
        assert "all 20 series" in frames.notes[0]
        np.testing.assert_array_equal(frames.read(0, 20), STACK)
    with open_frames(path, Choice("3")) as frames:
        np.testing.assert_array_equal(frames.read(0, 1)[0], STACK[3])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(FormatError, match="is cut short"):
        open_frames(path)
    with tifffile.TiffWriter(path) as file:
        file.write(STACK[0])
        file.write(STACK[1].astype(np.uint8))
    with pytest.raises(FormatError, match=r"holds 2 series: .*--dataset NAME"):
        open_frames(path)


def test_a_palette_is_said(tmp_path):
    """Zeiss's SEM files: greys, with some entries for what is written on top."""
    frame, ramp = STACK[0].astype(np.uint8), np.arange(256, dtype=np.uint16) * 257
    palette = np.stack([ramp] * 3)
    tifffile.imwrite(tmp_path / "a.tif", frame, photometric="palette", colormap=palette)
    with open_frames(tmp_path / "a.tif") as frames:
        np.testing.assert_array_equal(frames.read(0, 1)[0], frame)
        assert "has a palette" in frames.notes[0]


def test_colours_and_series_are_refused_or_left_out(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(np.zeros((24, 32, 3), np.uint8), photometric="rgb", metadata=None)
        file.write(STACK[0], photometric="minisblack", metadata=None)
    with open_frames(path) as frames:
        np.testing.assert_array_equal(frames.read(0, 1), STACK[:1])
        assert frames.why == "the only one of 2 series that holds frames"
    tifffile.imwrite(path, np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    with pytest.raises(FormatError, match="colour"):
        open_frames(path)
    with tifffile.TiffWriter(path) as file:
        file.write(STACK[0], photometric="minisblack", metadata=None)
        file.write(STACK[0, :, :20], photometric="minisblack", metadata=None)
    with pytest.raises(FormatError, match=r"2 series: .*--dataset NAME"):
        open_frames(path)
    with open_frames(path, Choice("1")) as frames:
        np.testing.assert_array_equal(frames.read(0, 1)[0], STACK[0, :, :20])


def test_what_needs_imagecodecs_says_so(tmp_path, monkeypatch):
    def missing(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", missing)
    path = write(tmp_path / "a.tif", compression="zlib")
    said = r"pip install \"\.\[filters\]\""
    with open_frames(path) as frames, pytest.raises(MissingExtraError, match=said):
        frames.read(0, 1)
    path.write_bytes(b"plain text, no TIFF")
    with pytest.raises(FormatError, match="no TIF file"):
        open_frames(path)


def zeiss() -> bytes:
    lines = ["0", "0", "0", "5.8e-09", "50000.0", "6", "AP_ACTUALKV", "EHT = 5.00 kV"]
    return "\r\n".join(lines).encode() + b"\r\n"


JEOL = """<?xml version="1.0"?><TemReporter><ElectronGun><AccelerationVoltage>200000
</AccelerationVoltage></ElectronGun><Eos><EosMode>{}</EosMode></Eos><ImageFormingSystem><ModeString>{}
</ModeString><SelectorValue>{}</SelectorValue></ImageFormingSystem><Bad>\x01</Bad></TemReporter>"""
FEI = b"[Beam]\r\nHV=5000\r\n[Scan]\r\nPixelWidth=3.4e-09\r\nPixelHeight=3.6e-09\r\n"


def tvips() -> bytes:
    """The header of EM-MENU: only the version, pixel sizes and high tension are not zero."""
    parts = []
    for names in (tifffile.TIFF.TVIPS_HEADER_V1, tifffile.TIFF.TVIPS_HEADER_V2):
        header = np.zeros(1, np.dtype(names))
        for name, value in {"Version": 2, "Magic": 0xAAAAAAAA, "PixelSizeX": 1.42,
                            "PixelSizeY": 1.43, "TemHighTension": 99000}.items():  # fmt: skip
            if name in header.dtype.names:
                header[name] = value
        parts.append(header.tobytes())
    return b"".join(parts)


@pytest.mark.parametrize(
    ("options", "steps", "unit"),
    [
        ({"extratags": [(34682, 2, None, FEI, True)]}, (3.4e-9, 3.6e-9), "m"),
        ({"extratags": [(37706, 7, None, tvips(), True)]}, (1.42, 1.43), "nm"),
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


def test_olympus_writes_a_structure(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], metadata=None, extratags=[(33560, "I", 1, 0, True)])
    content = bytearray(path.read_bytes())
    start = len(content)
    general = struct.pack("<10xhdd8xd2x34s32s", -12, 23.9, 24.1, 1e5, b"Quemesa", b"")
    head = struct.pack("<4s6xhhhhh6x32sH", b"SIS0", 0, 0, 1, 1, 100, b"", 1)
    content += head + struct.pack("<hhI", 1, 1, start + 68) + general
    place = content.index(struct.pack("<HHI", 33560, 4, 1)) + 8
    content[place : place + 4] = struct.pack("<I", start)
    path.write_bytes(content)
    found = sizes(path)
    assert found["x"] == (pytest.approx(2.39e-11), "m")
    assert found["y"] == (pytest.approx(2.41e-11), "m")


def test_electron_events_are_named(tmp_path):
    path = write(tmp_path / "a.tif", STACK[0].astype(np.uint8), metadata=None)
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags["Compression"].valueoffset
    content = bytearray(path.read_bytes())
    content[place : place + 2] = (65001).to_bytes(2, "little")
    (tmp_path / "a.eer").write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.eer: holds electron events \(EER\).*sum them"):
        open_frames(tmp_path / "a.eer")


KINDS: list[dict[str, Any]] = [
    {}, {"metadata": None}, {"imagej": True}, {"ome": True}, {"bigtiff": True},
    {"compression": "zlib"}, {"compression": "zlib", "metadata": None}, {"tile": (16, 16)},
    {"compression": "zlib", "predictor": True}, {"byteorder": ">"},
    {"compression": "zlib", "ome": True, "bigtiff": True}, {"pages": True},
    {"byteorder": ">", "pages": True},
]  # fmt: skip


@pytest.mark.parametrize("options", KINDS)
def test_a_file_cut_anywhere_is_complete_or_says_what_is_missing(tmp_path, options):
    content = write(tmp_path / "a.tif", **options).read_bytes()
    with open_frames(tmp_path / "a.tif") as frames:
        np.testing.assert_array_equal(frames.read(0, 20), STACK)
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


def test_a_cut_file_ends_a_run_before_it_starts(tmp_path, run):
    path = write(tmp_path / "a.tif", np.tile(STACK, (3, 1, 1)))
    path.write_bytes(path.read_bytes()[: -30 * 24 * 32 * 2])
    with pytest.raises(FormatError, match=r"is cut short: .* frames are there.*--frames"):
        run(path)
    assert run(path, frames="0:20").frames == 20


def test_an_ome_tiff_in_several_files(tmp_path):
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
    with open_frames(tmp_path / "0.ome.tif") as frames:
        np.testing.assert_array_equal(frames.read(0, 6), STACK[:6])
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(FormatError, match="3 of 6 frames"):
        open_frames(tmp_path / "0.ome.tif")
