"""Reader of MatConvNet networks, in which DnCNN and FFDNet were published.

SimpleNN keeps its tensors in its layers, DagNN in a list beside them. MATLAB files of
version 7.3 are HDF5 with every axis reversed; scipy reads the older ones.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from emdn_models import CheckpointError

Array = NDArray[np.float64]
Stage = tuple[str, str, list[Array]]
"""A kind of layer, its name and its tensors in the shapes of torch."""


def stages(path: Path) -> list[Stage]:
    """List the layers of the network ``net`` in a MATLAB file.

    Returns
    -------
    list
        Kind, name and tensors: weights (outputs, inputs, height, width) and bias of a
        ``conv``; scale, shift, mean and standard deviation of a ``norm``; other kinds by
        MatConvNet's own name in small letters, their tensors as they are.

    Raises
    ------
    CheckpointError
        If the file is damaged or holds no such network.
    """
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                net = {key: _from_hdf5(file["net"][key]) for key in ("layers", "params")
                       if key in file["net"]}  # fmt: skip
        else:
            net = _from_matlab5(loadmat(path, appendmat=False, variable_names="net")["net"])
        layers = net["layers"]
        if isinstance(layers, dict):  # a DagNN keeps fields of all layers, tensors elsewhere
            values = dict(zip(net["params"]["name"], net["params"]["value"], strict=True))
            found = [
                (kind.removeprefix("dagnn."), name, [values[key] for key in parameters])
                for kind, name, parameters in zip(
                    layers["type"], layers["name"], layers["params"], strict=True
                )
            ]
        else:
            found = [
                (layer["type"], layer.get("name", "unnamed"), list(layer.get("weights", ())))
                for layer in layers
            ]
        return [_as_torch(*stage) for stage in found]
    except Exception as error:  # h5py and scipy raise of every kind on damaged files
        raise CheckpointError(
            f"{path} is not a MATLAB file with a MatConvNet network 'net' in it "
            f"({type(error).__name__}: {error})"
        ) from error


def _as_torch(kind: str, name: str, tensors: list[NDArray[Any]]) -> Stage:
    """Bring the tensors of a MatConvNet layer into torch's shapes."""
    arrays = [np.asarray(tensor, np.float64) for tensor in tensors]
    if kind.lower() == "conv":
        # MATLAB drops trailing ones: (height, width, inputs, outputs) may lack outputs.
        weight = arrays[0].reshape(arrays[0].shape + (1,) * (4 - arrays[0].ndim))
        return "conv", name, [weight.transpose(3, 2, 0, 1), *(b.ravel() for b in arrays[1:])]
    if kind.lower() in ("bnorm", "batchnorm"):
        scale, shift, *moments = arrays
        return "norm", name, [scale.ravel(), shift.ravel(), *(row for m in moments for row in m.T)]
    return kind.lower(), name, arrays


def _from_hdf5(item: h5py.Group | h5py.Dataset) -> Any:
    """Turn a part of a MATLAB 7.3 file into dicts, lists, text and arrays."""
    if isinstance(item, h5py.Group):
        return {key: _from_hdf5(value) for key, value in item.items()}
    if "MATLAB_empty" in item.attrs:
        return []
    if item.dtype == h5py.ref_dtype:
        return [_from_hdf5(item.file[reference]) for reference in item[()].ravel()]
    if item.attrs.get("MATLAB_class") == b"char":
        return "".join(map(chr, item[()].ravel()))
    return item[()].T


def _from_matlab5(item: NDArray[Any]) -> Any:
    """Turn a part of an older MATLAB file into the same."""
    if item.dtype.names:
        records = [{k: _from_matlab5(record[k]) for k in item.dtype.names} for record in item.flat]
        if len(records) == 1:
            return records[0]
        return {k: [record[k] for record in records] for k in item.dtype.names}
    if item.dtype == object:
        return [_from_matlab5(cell) for cell in item.flat]
    return "".join(item.flat) if item.dtype.kind == "U" else item
