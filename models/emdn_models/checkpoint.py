"""``em_denoise_model.h5``: the weights of one or more models in one HDF5 file.

Layout (format version 1)::

    /                      attributes: format, format_version, emdn_version
    /<model>               attributes: preset, metadata (JSON text)
    /<model>/<tensor>      float32, float16 or integer arrays, named as in the net's state_dict

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

from emdn_models import __version__, hdf5
from emdn_models.errors import CheckpointError, ModelError
from emdn_models.hdf5 import written

FILE_NAME = "em_denoise_model.h5"
FORMAT = hdf5.CHECKPOINT
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Weights:
    """One model's tensors and how they came about."""

    preset: str  # size of the net that the tensors fit
    state: Mapping[str, NDArray[Any]]  # complete for the net's load_state_dict
    metadata: Mapping[str, Any] = field(default_factory=dict)  # recipe, data, seed, versions


def save(path: str | PathLike[str], models: Mapping[str, Weights]) -> None:
    """Write a checkpoint as `hdf5.written` does; a folder that is missing is made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with written(target) as out:
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
    if os.path.exists(path) and not os.path.isfile(path):
        raise CheckpointError(f"{os.fspath(path)}: is no file; expected a checkpoint")
    try:
        if os.path.exists(path):
            hdf5.check_heaps(path)
        with h5py.File(path, "r") as file:
            hdf5.check_attributes(file.id)
            _check(path, file)
            left = os.path.getsize(path)
            models = {}
            for name in file:
                models[name] = _read(file, name, left)
                left -= sum(array.nbytes for array in models[name].state.values())
            return models
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
    except (AttributeError, KeyError, MemoryError, RuntimeError, TypeError, ValueError) as error:
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


def _read(file: h5py.File, name: str, left: int) -> Weights:
    """Read a model whose tensors take ``left`` bytes at most."""
    group = _inside(file, name, h5py.Group)
    hdf5.check_attributes(group.id)
    preset, metadata = group.attrs["preset"], json.loads(str(group.attrs["metadata"]))
    if not isinstance(preset, str) or not isinstance(metadata, dict):
        raise ValueError(f"{name} has no preset, or metadata that are no mapping")
    state = {}
    for tensor in group:
        dataset = _inside(group, tensor, h5py.Dataset)
        kind, stored = dataset.dtype, dataset.id.get_storage_size()
        if dataset.shape is None or kind.kind not in "biuf" or kind.itemsize > 8:
            raise ValueError(f"{name}/{tensor} holds {kind}, shape {dataset.shape}, not numbers")
        # As they are saved: what is compressed, virtual or elsewhere may claim any size.
        plain = dataset.chunks is None and not dataset.is_virtual and dataset.external is None
        if not plain or stored != dataset.nbytes or stored > left:
            raise ValueError(
                f"{name}/{tensor} claims {dataset.nbytes} bytes of shape {dataset.shape}, which "
                "are not in the file as emdn-train writes them"
            )
        left -= stored
        state[tensor] = dataset[()].astype(kind.newbyteorder("="), copy=False)
    return Weights(preset, state, metadata)


def _inside(group: h5py.Group, name: str, kind: type) -> Any:
    """Return what has a name, if it is in this very file and of one kind."""
    if not isinstance(name, str):
        raise ValueError(f"the name {name!r} is not UTF-8")
    item = (
        group.get(name) if group.get(name, getlink=True, getclass=True) is h5py.HardLink else None
    )
    if not isinstance(item, kind):
        raise ValueError(f"{name} is no {kind.__name__.lower()}")
    return item
