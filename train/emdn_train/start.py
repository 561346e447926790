"""Weights that a model starts from instead of chance."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from emdn_models import ModelError, checkpoint, pretrained
from emdn_models.nets import load_state
from emdn_models.spec import spec_of

if TYPE_CHECKING:
    from emdn_train.config import FitConfig

log = logging.getLogger(__name__)


def start_from(net: nn.Module, name: str, config: "FitConfig") -> dict[str, Any] | None:
    """Load the weights that the config starts from.

    A file of ``shipped`` is the packaged checkpoint. A model for a class of frames starts from
    itself where the file holds it, else from the model of all frames.

    Returns
    -------
    dict
        How those weights were fitted, as far as the checkpoint says.

    Raises
    ------
    ModelError
        If the checkpoint holds no such model, or the model has another preset.
    """
    path = os.fspath(config.start or "")
    packaged = path == "shipped" and not Path(path).exists()
    path = os.fspath(pretrained.CHECKPOINT) if packaged else path
    held = checkpoint.load(path)
    if packaged:  # it holds models of earlier versions, too
        held = {one: held[one] for one in held if one in pretrained.index()["models"]}
    own = name if name in held else spec_of(name).name
    weights = checkpoint.pick(path, held, own)
    if weights.preset != config.preset:
        raise ModelError(
            f"{path}: {name} has preset {weights.preset!r}, this run asks for {config.preset!r}"
        )
    load_state(net, name, weights)
    log.info("%s: starts from %s of %s", name, own, path)
    earlier = weights.metadata.get("recipe")
    return earlier if own == name else {**(earlier or {}), "model": own}
