"""``em_denoise_model.h5``: the weights of one or more models in one HDF5 file.

Layout (format version 1)::

    /                      attributes: format, format_version, emdn_version
    /<model>               attributes: preset, metadata (JSON text)
    /<model>/<tensor>      float32 or integer arrays, named as in the net's state_dict

No pickle is involved: h5py, HDFView or any other HDF5 reader opens it.
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

from emdn_models import __version__
from emdn_models.errors import CheckpointError, ModelError
from emdn_models.files import renamed
from emdn_models.hdf5 import written

FILE_NAME = "em_denoise_model.h5"
FORMAT = "emdn-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Weights:
    """One model's tensors and how they came about.

    Attributes
    ----------
    preset
        Size of the net that the tensors fit.
    state
        Tensor name to array, complete for the net's ``load_state_dict``.
    metadata
        Whatever JSON can hold: recipe, data, seed, quality, versions.
    """

    preset: str
    state: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def save(path: str | PathLike[str], models: Mapping[str, Weights]) -> None:
    """Write a checkpoint beside ``path`` and move it there when it is complete.

    Raises
    ------
    OutputError
        If it cannot be written; what there was stays.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with renamed(target) as partial, written(partial) as out:
        file = out.file
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["emdn_version"] = __version__
        for name, weights in models.items():
            group = file.create_group(name)
            group.attrs["preset"] = weights.preset
            group.attrs["metadata"] = json.dumps(dict(weights.metadata))
            for tensor, array in weights.state.items():
                group.create_dataset(tensor, data=array)


def load(path: str | PathLike[str]) -> dict[str, Weights]:
    """Read every model of a checkpoint.

    Raises
    ------
    CheckpointError
        If the file is missing, is no HDF5 file, is no emdn checkpoint, is damaged,
        or is of a newer format.
    """
    try:
        with h5py.File(path, "r") as file:
            _check(path, file)
            return {name: _read(group) for name, group in file.items()}
    except OSError as error:
        if _is_pickle(path):
            raise CheckpointError(
                f"{os.fspath(path)}: is a torch pickle, not HDF5; emdn never unpickles, "
                "use a checkpoint written by emdn-train fit"
            ) from error
        raise CheckpointError(
            f"{os.fspath(path)}: cannot be read as HDF5 ({error}); "
            "expected a checkpoint written by emdn-train fit"
        ) from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # What h5py and json raise of a file that opens and is damaged further in.
        raise CheckpointError(
            f"{os.fspath(path)}: is a damaged checkpoint ({error}); "
            "copy it again, or write it again with emdn-train fit"
        ) from error


def pick(path: str | PathLike[str], models: Mapping[str, Weights], name: str) -> Weights:
    """Return one model of a loaded checkpoint, or say which ones it holds."""
    if name not in models:
        raise ModelError(
            f"{os.fspath(path)}: holds no model {name!r}; it holds {', '.join(models) or 'none'}"
        )
    return models[name]


def _is_pickle(path: str | PathLike[str]) -> bool:
    """Say whether a file begins as torch.save writes it: a zip, or in old versions a pickle."""
    try:
        with open(path, "rb") as file:
            return file.read(2).startswith((b"PK", b"\x80"))
    except OSError:
        return False


def _check(path: str | PathLike[str], file: h5py.File) -> None:
    found = file.attrs.get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"{os.fspath(path)}: format is {found!r}, expected {FORMAT!r}; "
            "only checkpoints written by emdn-train fit can be used"
        )
    version = int(file.attrs["format_version"])
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{os.fspath(path)}: format version {version} is newer than this emdn "
            f"reads ({FORMAT_VERSION}); update emdn"
        )


def _read(group: h5py.Group) -> Weights:
    return Weights(
        preset=str(group.attrs["preset"]),
        state={name: dataset[()] for name, dataset in group.items()},
        metadata=json.loads(str(group.attrs["metadata"])),
    )
