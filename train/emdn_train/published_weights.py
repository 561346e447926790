"""Weights that the authors of DnCNN and FFDNet published, put into the nets here.

::

    .mat   MatConvNet, SimpleNN or DagNN, of MATLAB 5 to 7.2 or 7.3 (which is HDF5)
    .pth   a PyTorch state_dict: convolutions and batch norms in the order of the net

Tensors are taken in the order of the paper's layers, whatever a file calls them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import nn

from emdn_models import MODELS, CheckpointError, ModelError
from emdn_models.nets import NETS
from emdn_train.matconvnet import Array, Stage, stages

DEPTHS = {"dncnn": (17, 20), "ffdnet": (15,)}
"""Convolutions of the published variants: DnCNN-S and DnCNN-B; FFDNet for grey images."""

TORCH_EPS = 1e-5
"""What torch adds to a batch norm's variance; a state_dict does not hold it."""


@dataclass(frozen=True)
class Layer:
    """One convolution and the batch norm behind it.

    Attributes
    ----------
    name
        What the file calls the convolution.
    weight
        (outputs, inputs, height, width).
    bias
        (outputs,).
    norm
        (4, outputs): scale, shift, mean and standard deviation; None if there is none,
        or if it was merged into the convolution.
    """

    name: str
    weight: Array
    bias: Array
    norm: Array | None = None


def load(model: str, path: str | PathLike[str]) -> nn.Module:
    """Return the paper preset of a net with published weights in it, ready to denoise.

    Depth and batch norm follow the file. MATLAB's FFDNet counts the four sub-images
    down the columns, the net here along the rows: its second and third are swapped.

    Parameters
    ----------
    model
        ``dncnn`` or ``ffdnet``.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    ModelError
        If its layers are not the model's.
    """
    if model not in DEPTHS:
        raise ModelError(f"no published weights of {model!r} are known; try {', '.join(DEPTHS)}")
    path = Path(path)
    layers = read(path)
    if len(layers) not in DEPTHS[model]:
        expected = " or ".join(map(str, DEPTHS[model]))
        raise ModelError(f"{path} holds {len(layers)} convolutions; {model} has {expected}")
    options = dict(MODELS[model].presets["paper"].options) | {"depth": len(layers)}
    if model == "dncnn":
        options["batch_norm"] = any(layer.norm is not None for layer in layers)
    net = NETS[model](**options)
    slots = _slots(net)
    for number, ((convolution, norm), layer) in enumerate(zip(slots, layers, strict=True), 1):
        problem = _misfit(convolution, norm, layer)
        if problem:
            raise ModelError(
                f"{path}: layer {number} of {len(layers)}, {layer.name!r}, {problem} in {model}; "
                "take the authors' weights for grey images"
            )
    if model == "ffdnet" and path.suffix == ".mat":
        layers[0] = replace(layers[0], weight=layers[0].weight[:, [0, 2, 1, 3, 4]])
        last = layers[-1]
        layers[-1] = replace(last, weight=last.weight[[0, 2, 1, 3]], bias=last.bias[[0, 2, 1, 3]])
    for (convolution, norm), layer in zip(slots, layers, strict=True):
        _assign(convolution, norm, layer)
    return net.eval()


def read(path: str | PathLike[str]) -> list[Layer]:
    """Read the convolutions of a published file in their order.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or holds anything but convolutions and batch
        norms.
    """
    path = Path(path)
    reader = {".mat": stages, ".pth": _state_dict, ".pt": _state_dict}.get(path.suffix)
    if reader is None:
        raise CheckpointError(f"{path}: published weights are .mat or .pth files")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    layers: list[Layer] = []
    for kind, name, tensors in reader(path):
        if kind == "conv" and tensors:
            weight = tensors[0]
            bias = tensors[1] if len(tensors) > 1 else np.zeros(len(weight))
            layers.append(Layer(name, weight, bias))
        elif kind == "norm" and len(tensors) == 4 and layers and layers[-1].norm is None:
            if len({tensor.shape for tensor in tensors}) > 1:
                raise CheckpointError(f"{path}: the tensors of {name!r} differ in length")
            layers[-1] = replace(layers[-1], norm=np.stack(tensors))
        elif kind == "sum" and layers:
            # A graph that adds the input has learned the noise's negative; the net subtracts.
            last = layers[-1]
            layers[-1] = replace(last, weight=-last.weight, bias=-last.bias)
        elif tensors:
            raise CheckpointError(
                f"{path}: cannot use {name!r}, a layer of kind {kind} with {len(tensors)} "
                "tensors; expected convolutions, each with at most one batch norm behind it "
                "that has scale, shift, mean and deviation"
            )
    return layers


def _slots(net: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """Pair every convolution of a net with the batch norm behind it."""
    slots: list[tuple[nn.Conv2d, nn.BatchNorm2d | None]] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            slots.append((module, None))
        elif isinstance(module, nn.BatchNorm2d):
            slots[-1] = (slots[-1][0], module)
    return slots


def _misfit(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, layer: Layer) -> str:
    """Say what of a layer does not fit, or nothing."""
    expected = tuple(convolution.weight.shape)
    if layer.weight.shape != expected:
        return f"has weights {layer.weight.shape}, expected {expected}"
    if layer.bias.shape != expected[:1]:
        return f"has biases {layer.bias.shape}, expected {expected[:1]}"
    if (layer.norm is None) != (norm is None):
        return f"has {'no' if norm else 'a'} batch norm, expected {'one' if norm else 'none'}"
    if layer.norm is not None and layer.norm.shape[1:] != expected[:1]:
        return f"has a batch norm of {layer.norm.shape[1:]}, expected {expected[:1]}"
    return ""


def _assign(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, layer: Layer) -> None:
    """Copy a layer that fits; a bias ahead of a batch norm moves into its mean."""
    convolution.weight.data.copy_(torch.from_numpy(layer.weight))
    if convolution.bias is not None:
        convolution.bias.data.copy_(torch.from_numpy(layer.bias))
    if norm is not None and layer.norm is not None:
        scale, shift, mean, deviation = layer.norm
        if convolution.bias is None:
            mean = mean - layer.bias
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.weight.data.copy_(torch.from_numpy(scale))
        norm.bias.data.copy_(torch.from_numpy(shift))
        norm.running_mean.copy_(torch.from_numpy(mean))
        norm.running_var.copy_(torch.from_numpy(deviation**2 - norm.eps))


def _state_dict(path: Path) -> Iterator[Stage]:
    """Group the tensors of a state_dict by module."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler happens to meet
        raise CheckpointError(
            f"{path} is not a plain PyTorch state_dict; a file that holds whole modules is not "
            "opened, since that would run its code: save module.state_dict() where it was made"
        ) from error
    if not isinstance(state, Mapping) or not all(torch.is_tensor(t) for t in state.values()):
        raise CheckpointError(f"{path}: expected a state_dict, names and tensors only")
    modules: dict[str, dict[str, Array]] = {}
    for key, tensor in state.items():
        name, _, part = key.rpartition(".")
        modules.setdefault(name, {})[part] = tensor.double().numpy()
    for name, parts in modules.items():
        if "running_var" in parts:
            deviation = np.sqrt(parts["running_var"] + TORCH_EPS)
            wanted = [parts.get(part) for part in ("weight", "bias", "running_mean")]
            yield "norm", name, [*(part for part in wanted if part is not None), deviation]
        elif "weight" in parts and parts["weight"].ndim == 4:
            yield "conv", name, [parts[part] for part in ("weight", "bias") if part in parts]
        else:
            yield "unknown", name, list(parts.values())
