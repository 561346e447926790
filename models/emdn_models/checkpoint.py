"""``em_denoise_model.h5``: the weights of one or more models in one HDF5 file, without pickle.

Layout (format version 1)::

    /                      attributes: format, format_version, emdn_version
    /<model>               attributes: preset, metadata (JSON text)
    /<model>/<tensor>      float32, float16 or integer arrays, named as in the net's state_dict
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from emdn_models import __version__, files
from emdn_models.errors import CheckpointError, ModelError

FILE_NAME = "em_denoise_model.h5"
FORMAT = files.CHECKPOINT
FORMAT_VERSION = 1

# What h5py and json raise of a damaged file.
_DAMAGE = (AttributeError, KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Weights:
    """One model's tensors and how they came about."""

    preset: str  # size of the net that the tensors fit
    state: Mapping[str, NDArray[Any]]  # complete for the net's load_state_dict
    metadata: Mapping[str, Any] = field(default_factory=dict)  # recipe, data, seed, versions


def save(path: str | PathLike[str], models: Mapping[str, Weights]) -> None:
    """Write a checkpoint as `files.written` does; a folder that is missing is made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.written(target) as out:
        out.file.attrs["format"] = FORMAT
        out.file.attrs["format_version"] = FORMAT_VERSION
        out.file.attrs["emdn_version"] = __version__
        for name, weights in models.items():
            group = out.file.create_group(name)
            group.attrs["preset"] = weights.preset
            group.attrs["metadata"] = json.dumps(dict(weights.metadata))
            for tensor, array in weights.state.items():
                group.create_dataset(tensor, data=array)


def load(path: str | PathLike[str]) -> dict[str, Weights]:
    """Read every model of a checkpoint.

    Raises CheckpointError for a file that is missing, damaged, no checkpoint, or of a newer emdn.
    """
    text = os.fspath(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"{text}: no such file; expected a checkpoint of emdn-train fit")
    try:
        with h5py.File(path, "r") as file:
            found, version = file.attrs.get("format"), file.attrs.get("format_version", 1)
            if found != FORMAT or version > FORMAT_VERSION:
                raise CheckpointError(
                    f"{text}: is {found} of version {version}, expected {FORMAT} of version "
                    f"{FORMAT_VERSION} or less; take one of emdn-train fit, or update emdn"
                )
            return {name: _read(group) for name, group in file.items()}
    except _DAMAGE as error:
        raise CheckpointError(
            f"{text}: is no checkpoint, or a damaged one ({error}); emdn reads HDF5 and no torch "
            "pickle: copy it again, or write it again with emdn-train fit"
        ) from error


def pick(path: str | PathLike[str], models: Mapping[str, Weights], name: str) -> Weights:
    """Return one model of a loaded checkpoint, or say which ones it holds."""
    if name not in models:
        raise ModelError(
            f"{os.fspath(path)}: holds no model {name!r}; it holds {', '.join(models) or 'none'}"
        )
    return models[name]


def _read(group: h5py.Group) -> Weights:
    preset, metadata = group.attrs["preset"], json.loads(str(group.attrs["metadata"]))
    if not isinstance(preset, str) or not isinstance(metadata, dict):
        raise ValueError(f"{group.name} has no preset, or metadata that are no mapping")
    state = {}
    for name, tensor in group.items():
        # As emdn saves them: what is compressed, virtual or elsewhere may claim any size.
        if tensor.dtype.kind not in "biuf" or tensor.id.get_storage_size() != tensor.nbytes:
            raise ValueError(f"{tensor.name} holds no numbers, or fewer than it claims")
        state[name] = tensor[()].astype(tensor.dtype.newbyteorder("="), copy=False)
    return Weights(preset, state, metadata)
