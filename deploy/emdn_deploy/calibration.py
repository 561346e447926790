"""Lengths in the units that a file format prescribes, and the dose that follows from them."""

from emdn_deploy.readers.frames import Axis

_METRES = {
    "m": 1.0, "mm": 1e-3, "µm": 1e-6, "um": 1e-6, "micron": 1e-6, "microns": 1e-6,
    "nm": 1e-9, "pm": 1e-12, "å": 1e-10, "a": 1e-10, "ang": 1e-10, "angstrom": 1e-10,
}  # fmt: skip


def step_in(axis: Axis, units: str) -> float | None:
    """Return an axis' step in ``units``, None where it has no step or is no length."""
    own = _METRES.get(axis.units.strip().replace("μ", "µ").lower())
    if axis.step is None or own is None:
        return None
    return axis.step * own / _METRES[units.lower()]


def dose(y: Axis, x: Axis, electrons: float) -> float | None:
    """Return electrons per square angstrom, None where a pixel's size is not known."""
    steps = [step_in(axis, "Å") for axis in (y, x)]
    return electrons / (steps[0] * steps[1]) if steps[0] and steps[1] else None
