"""Lengths, units and facts of the microscope, as file formats prescribe them, and the dose."""

import re

from emdn_deploy.readers.frames import Axis

_METRES = {
    "m": 1.0, "mm": 1e-3, "µm": 1e-6, "um": 1e-6, "micron": 1e-6, "microns": 1e-6,
    "nm": 1e-9, "pm": 1e-12, "å": 1e-10, "a": 1e-10, "ang": 1e-10, "angstrom": 1e-10,
}  # fmt: skip

# Under this HyperSpy keeps what is known of the microscope.
INSTRUMENT = "Acquisition_instrument"


def step_in(axis: Axis, units: str) -> float | None:
    """Return an axis' step in ``units``, None where it has no step or is no length."""
    own = _METRES.get(axis.units.strip().replace("μ", "µ").lower())
    if axis.step is None or own is None:
        return None
    return axis.step * own / _METRES[units.lower()]


def known_unit(text: str) -> str:
    """Return a unit as the field writes it: ``micron`` and its like as µm."""
    text = text.strip("\0 ").replace("\\u00B5", "µ").replace("μ", "µ")
    known = {"micron": "µm", "microns": "µm", "um": "µm", "angstrom": "Å", "sec": "s"}
    return known.get(text.lower(), text)


def imaging_mode(*words: str) -> str | None:
    """Return ``STEM`` or ``TEM`` by a file's words; None for diffraction, SEM or contradiction."""
    said = set(re.findall("[A-Z]+", " ".join(words).upper()))
    stem, tem = not said.isdisjoint({"STEM", "SCANNING"}), not said.isdisjoint({"TEM", "IMAGING"})
    # A scanning microscope's projector is in diffraction whatever is recorded.
    if stem == tem or "SEM" in said or (tem and "DIFFRACTION" in said):
        return None
    return "STEM" if stem else "TEM"


def beam(
    *,
    volts: float | None = None,
    camera_length_mm: float | None = None,
    magnification: float | None = None,
    exposure_s: float | None = None,
    mode: str | None = None,
    scanning: str = "TEM",
) -> dict[str, str]:
    """Return metadata under the names that HyperSpy has for them (keV, mm, s).

    ``mode``: ``TEM`` or ``STEM``. ``scanning``: the instrument: ``TEM`` or ``SEM``.
    """
    known = {
        "beam_energy": None if volts is None else volts / 1000,
        "camera_length": camera_length_mm,
        "magnification": magnification,
        "Camera.exposure": exposure_s,
        "acquisition_mode": mode,
    }
    return {
        f"{INSTRUMENT}.{scanning}.{name}": value if isinstance(value, str) else f"{value:.10g}"
        for name, value in known.items()
        if value
    }


def dose(y: Axis, x: Axis, electrons: float) -> float | None:
    """Return electrons per square angstrom, None where a pixel's size is not known."""
    steps = [step_in(axis, "Å") for axis in (y, x)]
    return electrons / (steps[0] * steps[1]) if steps[0] and steps[1] else None
