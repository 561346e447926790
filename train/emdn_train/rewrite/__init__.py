"""Exact rewrites of nets before export: other layers, the same numbers.

onnxruntime runs plain 3 x 3 convolutions near the machine's peak; what loses time is
the rest of a graph. Each rewrite is algebra, and each is held against what it replaces
by a test and by the exporter's own comparison.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from emdn_models.nets.cafcn import CAFCN
from emdn_models.nets.dncnn import DnCNN
from emdn_models.nets.ffdnet import FFDNet
from emdn_models.nets.mcnn import MCNN, Up
from emdn_models.nets.msdnet import MSDNet
from emdn_models.nets.rednet import REDNet
from emdn_models.nets.spectral import FittedGain
from emdn_models.nets.unet import UNet
from emdn_train.onnx_graph import Graph
from emdn_train.rewrite.cafcn import SplitCAFCN
from emdn_train.rewrite.chains import EdgedDnCNN, EdgedFFDNet, EdgedREDNet
from emdn_train.rewrite.layers import ConvolvedGain, ShuffledUp, transposed_as_conv
from emdn_train.rewrite.msdnet import BlockedMSDNet
from emdn_train.rewrite.pyramids import JoinlessMCNN, JoinlessUNet
from emdn_train.rewrite.units import FoldedGraph

REWRITES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    Graph: FoldedGraph,
    CAFCN: SplitCAFCN,
    DnCNN: EdgedDnCNN,
    FFDNet: EdgedFFDNet,
    REDNet: EdgedREDNet,
    UNet: JoinlessUNet,
    MCNN: JoinlessMCNN,
    nn.ConvTranspose2d: transposed_as_conv,
    Up: ShuffledUp,
    MSDNet: BlockedMSDNet,
    FittedGain: ConvolvedGain,
}
"""What replaces a module of each type, and is then searched for more; it may take its tensors."""


def rewritten(module: nn.Module) -> nn.Module:
    """Return a copy of a net, or of the graph around one, with every rewrite applied."""
    return _replaced(copy.deepcopy(module).eval())


def _replaced(module: nn.Module) -> nn.Module:
    rewrite = REWRITES.get(type(module))
    if rewrite is not None:
        module = rewrite(module).eval()
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return module
