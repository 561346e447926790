"""What a denoised file says of the run that made it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import tifffile

from emdn_deploy.config import DenoiseOptions
from emdn_deploy.model_file import stored
from emdn_deploy.readers import is_hdf5
from emdn_deploy.readers.hdf5 import open_file
from emdn_deploy.writers.hdf5 import GROUP
from emdn_models import pretrained
from emdn_models.errors import ModelError


def of(path: Path) -> dict[str, Any]:
    """Return the record that ``emdn-deploy denoise`` wrote, empty where there is none."""
    if path.is_file() and is_hdf5(path):
        return _hdf5(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        return _tiff(path)
    beside = path.with_name(path.name + ".json")
    if path.suffix.lower() == ".npy" and beside.is_file():
        return _found(beside.read_text(encoding="utf-8"), "emdn")
    return {}


def _hdf5(path: Path) -> dict[str, Any]:
    with open_file(path) as file:
        groups = [name for name in file if name == GROUP or name.startswith(f"{GROUP}_")]
        if not groups:
            return {}
        # A frame that was denoised twice has two records; the last is of these pixels.
        last = file[max(groups, key=lambda name: int(name[len(GROUP) + 1 :] or 1))]
        attributes = dict(last.attrs) if isinstance(last, h5py.Group) else {}
    return {key: getattr(value, "item", lambda v=value: v)() for key, value in attributes.items()}


def _tiff(path: Path) -> dict[str, Any]:
    with tifffile.TiffFile(path) as file:
        described = file.imagej_metadata or {}
        if not described and file.shaped_metadata:
            described = file.shaped_metadata[0]
    return _found(str(described.get("Info", "")), None)


def _found(text: str, key: str | None) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    found = facts.get(key) if key and isinstance(facts, dict) else facts
    return found if isinstance(found, dict) and "model_sha256" in found else {}


def apart(facts: Mapping[str, Any]) -> int:
    """Return how far apart frames are that a denoised frame owes nothing to."""
    return int(facts.get("model_frames", 1)) // 2 + 1


def completed(options: DenoiseOptions, facts: Mapping[str, Any]) -> DenoiseOptions:
    """Take from a record what the options leave open: model and precision, references, selection.

    Raises
    ------
    ModelError
        If the model that it names is not the one that is shipped under this name, and none
        is given.
    """
    if not facts:
        return options
    changes: dict[str, Any] = {}
    if options.model is None:
        changes["precision"] = stored(facts.get("precision", "fp32"))
        changes["model"] = _model(facts, changes["precision"])
    selected = str(facts.get("input_frames", "all"))
    if options.frames is None and selected != "all":
        changes["frames"] = selected
    for name in ("dark", "gain_map", "defects"):
        if getattr(options, name) is None and name in facts:
            changes[name] = Path(str(facts[name]))
    return replace(options, **changes)


def _model(facts: Mapping[str, Any], precision: str) -> str:
    name = str(facts["model"])
    shipped = pretrained.index()["models"].get(name, {})
    if precision != "fp32":
        shipped = shipped.get("variants", {}).get(precision, {})
    if shipped.get("sha256") != facts["model_sha256"]:
        raise ModelError(
            f"{name}: found no shipped model {name} with the sha256 of the record, "
            f"{str(facts['model_sha256'])[:12]}..., with which the frames were denoised; "
            "give its file, or another sound model, by --model"
        )
    return name.removesuffix("@movie")  # its replicates are of single frames
