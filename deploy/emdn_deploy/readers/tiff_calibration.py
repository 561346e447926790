"""What a TIFF says of its pixels: sizes, times and the microscope, in each program's own way."""

import math
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from emdn_deploy.calibration import beam, known_unit
from emdn_deploy.readers.frames import Axis

Steps = dict[str, tuple[float, str]]

# DigitalMicrograph's tags along x, y and z: the unit, and six further on the step.
_DM = {"x": 65003, "y": 65004, "t": 65005}
_DIGITS = r"<{}>\s*([^<]+?)\s*</{}>"
# A printer's resolution is coarser than this, a microscope's finer.
_LARGEST_M = 1e-6


def steps(file: Any, series: Any, number: int) -> dict[str, Axis]:
    """Return the calibration of the axes that have one, by their letters.

    Parameters
    ----------
    number
        Which of the file's series it is.
    """
    found: Steps = {}
    key = series.keyframe
    tags = {tag.code: tag.value for tag in key.tags}
    for source in (
        _digital_micrograph(tags), _ome(file, key, number), _imagej(file, key, tags), _fei(tags),
        _tvips(tags), _zeiss(tags), _olympus(tags), _jeol(tags), _resolution(tags),
    ):  # fmt: skip
        found = dict(source) | found
    return {
        letter: Axis(letter, known_unit(unit), abs(float(step)))
        for letter, (step, unit) in found.items()
        if step and np.isfinite(step) and unit
    }


def facts(key: Any) -> dict[str, str]:
    """Return the beam's energy and the camera's length, where the microscope wrote them."""
    tags = {tag.code: tag.value for tag in key.tags}
    jeol = _jeol_text(tags)
    volts = [
        _mapping(_fei_of(tags), "Beam").get("HV"),
        _mapping(tags, 37706).get("TemHighTension"),
        _tagged(jeol, "AccelerationVoltage"),
    ]
    length = _tagged(jeol, "SelectorValue") if _tagged(jeol, "ModeString") == "DIFF" else None
    zeiss = _mapping(tags, 34118).get("ap_actualkv")
    kilovolts = _number(zeiss[1]) if isinstance(zeiss, tuple) and len(zeiss) > 1 else None
    volts.append(1000 * kilovolts if kilovolts else None)
    return beam(
        volts=next((v for v in map(_number, volts) if v), None),
        camera_length_mm=_number(length),
        scanning="SEM" if _fei_of(tags) or zeiss else "TEM",
    )


def _digital_micrograph(tags: Mapping[int, Any]) -> Steps:
    found = {}
    for letter, code in _DM.items():
        unit, step = str(tags.get(code, "")).strip("\0 "), _number(tags.get(code + 6))
        if step:
            found[letter] = step, unit
    # Some write the unit of x only.
    if "x" in found:
        found.setdefault("y", found["x"])
        found["y"] = found["y"][0], found["y"][1] or found["x"][1]
    return found


def _ome(file: Any, key: Any, number: int) -> Steps:
    """Read the sizes of the image that is series ``number``."""
    if not file.is_ome or not file.ome_metadata:
        return {}
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError:
        return {}
    images = [pixels.attrib for pixels in root.iter() if pixels.tag.rpartition("}")[2] == "Pixels"]
    if number >= len(images):
        return {}
    own, found = images[number], {}
    if int(own.get("SizeX", 0)) != key.imagewidth or int(own.get("SizeY", 0)) != key.imagelength:
        return {}
    for letter in "XYZ":
        if step := _number(own.get(f"PhysicalSize{letter}")):
            found[letter.lower()] = step, own.get(f"PhysicalSize{letter}Unit", "µm")
    if step := _number(own.get("TimeIncrement")):
        found["t"] = step, own.get("TimeIncrementUnit", "s")
    return found


def _imagej(file: Any, key: Any, tags: Mapping[int, Any]) -> Steps:
    """Read what ImageJ writes, and what stands under its names where tifffile wrote the file."""
    known: Mapping[str, Any] = file.imagej_metadata or {}
    if key.is_shaped:
        known = tifffile.tifffile.shaped_description_metadata(key.description)
    found: Steps = {}
    unit = str(known.get("unit", ""))
    if unit not in ("", "pixel", "pixels"):
        for letter, code in (("x", 282), ("y", 283)):
            over, under = tags.get(code, (0, 1))
            if over:
                found[letter] = under / over, str(known.get(f"{letter}unit", unit))
        if step := _number(known.get("spacing")):
            found["z"] = step, str(known.get("zunit", unit))
    if step := _number(known.get("finterval")):
        found["t"] = step, str(known.get("tunit", "s"))
    return found


def _fei_of(tags: Mapping[int, Any]) -> Mapping[str, Any]:
    return _mapping(tags, 34680) or _mapping(tags, 34682)


def _fei(tags: Mapping[int, Any]) -> Steps:
    scan = _mapping(_fei_of(tags), "Scan")
    return _pair(scan.get("PixelWidth"), scan.get("PixelHeight"), "m")


def _tvips(tags: Mapping[int, Any]) -> Steps:
    known = _mapping(tags, 37706)
    return _pair(known.get("PixelSizeX"), known.get("PixelSizeY"), "nm")


def _zeiss(tags: Mapping[int, Any]) -> Steps:
    """Read the fourth unnamed value: metres a pixel of the 1024 that the screen is wide."""
    known = _mapping(tags, 34118).get("")
    width = _number(tags.get(256))
    step = _number(known[3]) if isinstance(known, tuple) and len(known) > 3 else None
    return _pair(step * 1024 / width, None, "m") if step and width else {}


def _olympus(tags: Mapping[int, Any]) -> Steps:
    known = _mapping(tags, 33560)
    return _pair(known.get("pixelsizex"), known.get("pixelsizey"), "m")


def _jeol_text(tags: Mapping[int, Any]) -> str:
    text = str(tags.get(270, ""))
    return text if "<TemReporter" in text[:200] else ""


def _jeol(tags: Mapping[int, Any]) -> Steps:
    """Divide the camera's pixel, which the resolution tells, by the magnification."""
    text = _jeol_text(tags)
    pixel = {letter: step for letter, (step, _) in _printed(tags).items()}
    factor = _number(_tagged(text, "SelectorValue"))
    # A camera sees no magnified specimen, nor a calibrated pattern, while the probe scans.
    if not factor or len(pixel) < 2 or _tagged(text, "EosMode") != "eosTEM":
        return {}
    if _tagged(text, "ModeString") != "DIFF":
        return _pair(pixel["x"] / factor, pixel["y"] / factor, "m")
    volts = _number(_tagged(text, "AccelerationVoltage"))
    if not volts:
        return {}
    # Camera length in mm: the angle of a pixel over the wavelength.
    per = 1e-3 * factor * _wavelength_nm(volts)
    return _pair(pixel["x"] / per, pixel["y"] / per, "1/nm")


def _resolution(tags: Mapping[int, Any]) -> Steps:
    """Take the common tags only where they cannot be a printer's."""
    found = _printed(tags)
    return {} if any(step > _LARGEST_M for step, _ in found.values()) else found


def _printed(tags: Mapping[int, Any]) -> Steps:
    inch_or_cm = {2: 0.0254, 3: 0.01}.get(int(tags.get(296, 2)))
    found = {}
    for letter, code in (("x", 282), ("y", 283)):
        value = tags.get(code)
        if inch_or_cm and isinstance(value, tuple) and len(value) == 2 and all(value):
            found[letter] = inch_or_cm * value[1] / value[0], "m"
    return found


def _wavelength_nm(volts: float) -> float:
    """Return an electron's wavelength (relativistic)."""
    return 1.226426 / math.sqrt(volts * (1 + 0.978476e-6 * volts))


def _pair(x: Any, y: Any, unit: str) -> Steps:
    x = _number(x)
    y = _number(y) or x
    return {"x": (x, unit), "y": (y, unit)} if x and y else {}


def _mapping(known: Any, name: Any) -> Mapping[Any, Any]:
    value = known.get(name) if isinstance(known, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _tagged(text: str, name: str) -> str | None:
    """Return what the first element ``name`` holds; JEOL's XML is not always well-formed."""
    found = re.search(_DIGITS.format(name, name), text)
    return found[1] if found else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
