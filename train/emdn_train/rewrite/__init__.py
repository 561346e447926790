"""Exact rewrites of nets before export: other layers, the same numbers.

onnxruntime runs plain 3 x 3 convolutions near the machine's peak; what loses time is
the rest of a graph. Each rewrite is algebra, and each is held against what it replaces
by a test and by the exporter's own comparison.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from emdn_models.nets.mcnn import Up
from emdn_train.rewrite.layers import ShuffledUp, transposed_as_conv

REWRITES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.ConvTranspose2d: transposed_as_conv,
    Up: ShuffledUp,
}
"""What replaces a layer, or a whole net, of each type; it may take over its tensors."""


def rewritten(net: nn.Module) -> nn.Module:
    """Return a copy of a net in eval mode with every rewrite applied."""
    return _replaced(copy.deepcopy(net).eval())


def _replaced(module: nn.Module) -> nn.Module:
    """Replace a module by its rewrite, or else look for rewrites inside it."""
    rewrite = REWRITES.get(type(module))
    if rewrite is not None:
        return rewrite(module).eval()
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return module
