"""The imaging mode that a file's own metadata give: a scanned probe, or a camera.

Readers put it under ``KEY`` into `emdn_deploy.readers.frames.Frames.metadata`, as ``STEM`` or
``TEM``, where the file says so; diffraction, SEM, contradiction and silence give nothing.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from emdn_deploy.readers.guarded import read
from emdn_deploy.readers.hdf5_axes import text_of
from emdn_models.classes import Mode

KEY = "imaging"

_STEM = {"STEM", "SCANNING", "SCANNINGDETECTOR"}
_TEM = {"TEM", "IMAGING", "IMAGINGDETECTOR"}
# What the simulator's data sets hold; "mixed" has both modes.
_SIMULATED = {"stem": "STEM", "graphene": "TEM", "movie": "TEM"}


def mode_of(metadata: Mapping[str, str]) -> Mode | None:
    """Return the mode that a reader found, None where it is unknown."""
    found: dict[str, Mode] = {"STEM": "stem", "TEM": "tem"}
    return found.get(metadata.get(KEY, ""))


def from_words(*words: str) -> dict[str, str]:
    """Turn what a file says of its mode into metadata."""
    said = set(re.findall("[A-Z]+", " ".join(words).upper()))
    stem, tem = bool(said & _STEM), bool(said & _TEM)
    if stem == tem or "SEM" in said:
        return {}
    # A scanning microscope's projector is in diffraction whatever is recorded.
    if tem and "DIFFRACTION" in said:
        return {}
    return {KEY: "STEM" if stem else "TEM"}


def from_hyperspy(metadata: Any) -> dict[str, str]:
    """Read HyperSpy's ``Acquisition_instrument.TEM.acquisition_mode`` from a nested mapping."""
    for name in ("Acquisition_instrument", "TEM"):
        metadata = metadata.get(name) if isinstance(metadata, Mapping) else None
    attributes = getattr(metadata, "attrs", metadata)
    if not isinstance(attributes, Mapping):
        return {}
    return from_words(text_of(attributes.get("acquisition_mode")))


def from_hdf5(file: h5py.File, path: str, convention: str) -> dict[str, str]:
    """Read the mode of the frames at ``path``: of Velox, HyperSpy, and of simulated frames."""
    group = file[path.rpartition("/")[0] or "/"]
    if convention == "Velox":
        return _velox(group)
    if convention == "HyperSpy":
        return from_hyperspy(group.get("metadata"))
    if text_of(file.attrs.get("format")) == "emdn-simulation":
        settings = _json(text_of(file.attrs.get("settings")))
        return from_words(_SIMULATED.get(str(settings.get("kind")), ""))
    return {}


def _velox(group: h5py.Group) -> dict[str, str]:
    """Find the detector of the frames among those that the first frame's JSON lists."""
    try:
        raw = np.asarray(read(group["Metadata"], np.s_[:, 0]), dtype=np.uint8).tobytes()
    except (KeyError, ValueError, TypeError, OSError):
        return {}
    facts = _json(raw.split(b"\0", 1)[0])
    result, detectors = facts.get("BinaryResult"), facts.get("Detectors")
    if not isinstance(result, dict) or not isinstance(detectors, dict):
        return {}
    own = detectors.get(f"Detector-{result.get('DetectorIndex')}")
    if own is None:
        named = [
            one
            for one in detectors.values()
            if isinstance(one, dict) and one.get("DetectorName") == result.get("Detector")
        ]
        own = named[0] if len(named) == 1 else None
    return from_words(str(own.get("DetectorType", ""))) if isinstance(own, dict) else {}


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
