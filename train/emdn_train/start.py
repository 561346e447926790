"""Weights that a model starts from instead of chance."""

from typing import TYPE_CHECKING, Any

from torch import nn

from emdn_models import ModelError, checkpoint
from emdn_models.nets import load_state

if TYPE_CHECKING:
    from emdn_train.config import FitConfig


def start_from(net: nn.Module, name: str, config: "FitConfig") -> dict[str, Any] | None:
    """Load a model's weights from the checkpoint that the config starts from.

    Returns
    -------
    dict
        How those weights were fitted, as far as the checkpoint says.
    """
    path = config.start or ""
    weights = checkpoint.pick(path, checkpoint.load(path), name)
    if weights.preset != config.preset:
        raise ModelError(
            f"{path}: {name} has preset {weights.preset!r}, this run asks for {config.preset!r}"
        )
    load_state(net, name, weights)
    return weights.metadata.get("recipe")
