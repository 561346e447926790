"""Weights that a model starts from instead of chance."""

import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from emdn_models import ModelError, checkpoint, classes, pretrained
from emdn_models.nets import build, load_state

if TYPE_CHECKING:
    from emdn_train.config import FitConfig

log = logging.getLogger(__name__)


def start_from(net: nn.Module, name: str, config: "FitConfig") -> dict[str, Any] | None:
    """Load the weights that the config starts from: FILE, or FILE:NAME for another model's.

    A FILE of ``shipped`` is the packaged checkpoint.

    Returns
    -------
    dict
        How those weights were fitted, as far as the checkpoint says; of another
        model also its name and how many convolutions were taken.

    Raises
    ------
    ModelError
        If the checkpoint holds no such model, the model has another preset, or no
        convolution of the other model has a shape that occurs in this one.
    """
    path, other = split_start(os.fspath(config.start or ""))
    if path == "shipped" and not Path(path).exists():
        path = os.fspath(pretrained.CHECKPOINT)
    held = checkpoint.load(path)
    own = name if name in held else classes.split(name)[0]
    weights = checkpoint.pick(path, held, other or own)
    if other:
        source = build(other, weights.preset)
        load_state(source, other, weights)
        taken, count = transplant(net, source)
        if not taken:
            raise ModelError(
                f"{path}: no convolution of {other} ({weights.preset}) has the shape of one of "
                f"{name} ({config.preset}); start from another model or preset, or without --from"
            )
        log.info("%s: %d of %d convolutions start from %s of %s", name, taken, count, other, path)
        earlier = weights.metadata.get("recipe") or {}
        return {**earlier, "model": other, "convolutions": f"{taken} of {count}"}
    if weights.preset != config.preset:
        raise ModelError(
            f"{path}: {name} has preset {weights.preset!r}, this run asks for {config.preset!r}"
        )
    load_state(net, name, weights)
    log.info("%s: starts from %s of %s", name, own, path)
    earlier = weights.metadata.get("recipe")
    return earlier if own == name else {**(earlier or {}), "model": own}


def split_start(text: str) -> tuple[str, str | None]:
    """Split FILE:NAME; a file whose own name ends like that is taken whole."""
    path, colon, name = text.rpartition(":")
    if colon and classes.known(name) and not Path(text).exists():
        return path, name
    return text, None


@torch.no_grad()
def transplant(net: nn.Module, source: nn.Module) -> tuple[int, int]:
    """Copy convolutions from one net to another, the n-th of a shape to the n-th of that shape.

    A bias goes with its weights where both have one; all else stays as it is.

    Returns
    -------
    Number of convolutions taken, and number of convolutions of ``net``.
    """
    found = defaultdict(list)
    for layer in _convolutions(source):
        found[type(layer), layer.weight.shape].append(layer)
    taken, layers = 0, _convolutions(net)
    for layer in layers:
        same = found[type(layer), layer.weight.shape]
        if not same:
            continue
        given = same.pop(0)
        layer.weight.copy_(given.weight)
        if layer.bias is not None and given.bias is not None:
            layer.bias.copy_(given.bias)
        taken += 1
    return taken, len(layers)


def _convolutions(net: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
