"""The nets in torch: seven architectures, most of them behind the spectral front end.

Each is an ``nn.Module`` with ``multiple``, the step to which it pads H and W inside itself, and
``forward(x, noise=None)`` as of `emdn_models.nets.architectures.Net`. One that is not fitted by
the error of its output has a method ``loss(x, y, noise, error)`` (`MCNN.loss`).
"""

import numpy as np
import torch
from torch import nn

from emdn_models.checkpoint import Weights
from emdn_models.errors import ModelError
from emdn_models.nets.architectures import CAFCN, MCNN, DnCNN, FFDNet, MSDNet, REDNet, UNet
from emdn_models.nets.spectral import WithSpectrum
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
    """Return a new net with freshly drawn weights; ModelError of an unknown model or preset."""
    spec = spec_of(name)
    if preset not in spec.presets:
        raise ModelError(f"{spec.name} has no preset {preset!r}; it has {', '.join(spec.presets)}")
    chosen, net = spec.presets[preset], NETS[spec.name]
    if not chosen.windows:
        return net(**chosen.options)
    inputs = chosen.frames + len(chosen.windows)
    return WithSpectrum(net(**chosen.options, inputs=inputs), chosen.windows)


def load_state(net: nn.Module, name: str, weights: Weights) -> None:
    """Put a checkpoint's tensors into a net; ModelError if names or shapes are not the net's."""
    state = {key: torch.from_numpy(np.array(array)) for key, array in weights.state.items()}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"{name}: the checkpoint's tensors do not fit preset {weights.preset!r} ({error})"
        ) from error
