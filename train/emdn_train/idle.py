"""Layers that have stopped to count: a ReLU that is never positive cuts off all before it."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from emdn_models.nets.electrons import noise_map, normalise
from emdn_train.batches import Batch
from emdn_train.recipes import Recipe, loss

FRAMES = 4
"""How many frames of each validation batch are looked at."""


def idle(net: nn.Module, recipe: Recipe, held: Sequence[Batch]) -> list[str]:
    """Name the parameters whose gradient is zero, in all elements and for all frames.

    They have no part in what the net computes, and training can't bring them back.
    A whole branch ends up so when the layer that joins it has died (Lu et al., Dying
    ReLU and initialization, arXiv:1903.06733); the loss does not show it. Weights of
    zero hold gradients back only until they are first stepped: here they let them through.

    Parameters
    ----------
    held
        Validation batches; without any, nothing is found.
    """
    net = deepcopy(net).eval()
    with torch.no_grad():
        for value in net.parameters():
            if value.ndim > 1:
                value[value == 0] = 1.0
    alive: set[str] = set()
    frames = 0
    for batch in held:
        noisy, target, scale = (part[:FRAMES] for part in batch)
        if not len(noisy):
            continue
        frames += len(noisy)
        device = next(net.parameters()).device
        noisy, target, scale = noisy.to(device), target.to(device), scale.to(device)
        x, y = normalise(noisy, scale), normalise(target, scale)
        loss(recipe, net, x, y, noise_map(noisy, scale)).backward()
        alive |= {
            name for name, value in net.named_parameters()
            if value.grad is not None and value.grad.any()
        }  # fmt: skip
        net.zero_grad(set_to_none=True)
    return [name for name, _ in net.named_parameters() if name not in alive] if frames else []


@torch.no_grad()
def redraw(net: nn.Module, names: Sequence[str], fresh: dict[str, Tensor]) -> None:
    """Put ``fresh`` values, as drawn for a new net, in place of the named parameters."""
    for name, value in net.named_parameters():
        if name in names:
            value.copy_(fresh[name])


def told(names: Sequence[str]) -> str:
    """Return the layers that the named parameters belong to, as text."""
    return ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
