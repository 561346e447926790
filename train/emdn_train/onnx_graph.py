"""A net as a self-contained ONNX graph: intensities in, intensities out."""

import logging
import math
import warnings
from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from emdn_models import ModelError, __version__
from emdn_models.nets.electrons import denormalise, middle, noise_map, normalise

log = logging.getLogger(__name__)
# It warns of every torchvision operator that is not there.
logging.getLogger("torch.onnx").setLevel(logging.ERROR)

OPSET = 18
INPUTS = ("frames", "scale", "offset", "gain")
_PACKED = 1024  # numbers of a constant from which on it is worth a Cast


class Graph(nn.Module):
    """A net between intensities in and intensities out, as it is exported.

    denoised = ((net((e - scale) / sqrt(scale))) * sqrt(scale) + scale) * gain + offset
    with e = (frames - offset) / gain. ``frames`` is (n, 1, h, w), or (n, F, h, w), each amid its
    neighbours, of which the net makes the middle one; scale (mean
    electrons per pixel), offset and gain (units per electron) are (n, 1, 1, 1).
    Nothing in it depends on the whole frame, so that it can be tiled and streamed.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, frames: Tensor, scale: Tensor, offset: Tensor, gain: Tensor) -> Tensor:
        """Map (n, F, h, w) to the middle frames denoised, (n, 1, h, w)."""
        electrons = (frames - offset) / gain
        y = self.net(normalise(electrons, scale), noise_map(middle(electrons), scale))
        return denormalise(y, scale) * gain + offset


def to_onnx(graph: nn.Module, frames: int = 1) -> onnx.ModelProto:
    """Convert a graph of (n, frames, h, w), n, h and w dynamic, to ONNX operators of opset 18."""
    # The example is larger than any multiple, so that no size is taken as fixed.
    example = (
        torch.rand(2, frames, 320, 288) * 50,
        *(torch.rand(2, 1, 1, 1) + 1 for _ in range(3)),
    )
    n, h, w = (torch.export.Dim(axis, min=1) for axis in "nhw")
    with warnings.catch_warnings():
        # torch's own converter warns of its own deprecations.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=["denoised"],
            dynamic_shapes=({0: n, 2: h, 3: w}, {0: n}, {0: n}, {0: n}),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise ModelError("torch.onnx.export returned no program")
    model: onnx.ModelProto = program.model_proto
    operators = {node.op_type for node in model.graph.node}
    if "BatchNormalization" in operators:
        log.warning("batch norm stays in the graph: it follows a ReLU and cannot be folded")
    foreign = {node.domain for node in model.graph.node} - {""}
    if foreign:
        raise ModelError(f"the graph uses operators outside ONNX: {', '.join(sorted(foreign))}")
    return model


def pack(model: onnx.ModelProto) -> None:
    """Store constants that float16 holds exactly in it, each behind a Cast to float32.

    The file is half as large and computes the same: onnxruntime casts when it opens it.
    """
    graph, casts = model.graph, []
    for constant in graph.initializer:
        if constant.data_type != onnx.TensorProto.FLOAT or math.prod(constant.dims) < _PACKED:
            continue
        values = numpy_helper.to_array(constant)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if np.array_equal(halves.astype(np.float32), values):
            name, stored = constant.name, f"{constant.name}.float16"
            constant.CopyFrom(numpy_helper.from_array(halves, stored))
            casts.append(helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def unpacked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with float32 constants in place of what `pack` has stored."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    stored = {one.name: one for one in made.graph.initializer}
    for node in list(made.graph.node):
        if node.op_type == "Cast" and node.input[0] in stored:
            constant = stored[node.input[0]]
            values = numpy_helper.to_array(constant).astype(np.float32)
            constant.CopyFrom(numpy_helper.from_array(values, node.output[0]))
            made.graph.node.remove(node)
    return made


def describe(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace torch's traces, which hold paths of this machine, by what deploying needs."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for values in (model.graph.value_info, model.graph.input, model.graph.output):
        for value in values:
            del value.metadata_props[:]
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    model.graph.name = metadata["model"]
    model.producer_name, model.producer_version = "emdn", __version__
    onnx.helper.set_model_props(model, dict(metadata))
