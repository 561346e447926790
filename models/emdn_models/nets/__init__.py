"""The seven architectures in torch, one file each.

Each is an ``nn.Module`` with ``forward(x, noise=None)``: x is (N, 1, H, W) in noise
units (`emdn_models.nets.scaling`), any H and W; noise is the standard deviation of
the noise, of the same shape and units, or None. ``multiple`` is the step to which a
net pads H and W inside itself. A net that is not fitted by the error of its output has a
method ``loss(x, y, noise, error)`` (`emdn_models.nets.mcnn`). Modules stand in the order of
their paper, so that published weights can be loaded tensor by tensor.
"""

import numpy as np
import torch
from torch import nn

from emdn_models.checkpoint import Weights
from emdn_models.errors import ModelError
from emdn_models.nets.cafcn import CAFCN
from emdn_models.nets.dncnn import DnCNN
from emdn_models.nets.ffdnet import FFDNet
from emdn_models.nets.mcnn import MCNN
from emdn_models.nets.msdnet import MSDNet
from emdn_models.nets.rednet import REDNet
from emdn_models.nets.spectral import WithSpectrum
from emdn_models.nets.unet import UNet
from emdn_models.spec import spec_of

NETS: dict[str, type[nn.Module]] = {
    "cafcn": CAFCN,
    "dncnn": DnCNN,
    "ffdnet": FFDNet,
    "unet": UNet,
    "rednet": REDNet,
    "mcnn": MCNN,
    "msdnet": MSDNet,
}


def build(name: str, preset: str = "shipped") -> nn.Module:
    """Return a new net with freshly drawn weights.

    Raises
    ------
    ModelError
        If the model or the preset is unknown.
    """
    spec = spec_of(name)
    model, presets = spec.name, spec.presets
    if preset not in presets:
        raise ModelError(f"{model} has no preset {preset!r}; it has {', '.join(presets)}")
    chosen = presets[preset]
    if not chosen.windows:
        return NETS[model](**chosen.options)
    return WithSpectrum(
        NETS[model](**chosen.options, inputs=chosen.frames + len(chosen.windows)), chosen.windows
    )


def load_state(net: nn.Module, name: str, weights: Weights) -> None:
    """Put a checkpoint's tensors into a net.

    Raises
    ------
    ModelError
        If names or shapes are not the net's.
    """
    state = {key: torch.from_numpy(np.array(array)) for key, array in weights.state.items()}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"{name}: the checkpoint's tensors do not fit preset {weights.preset!r} ({error})"
        ) from error
