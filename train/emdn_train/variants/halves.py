"""Models that compute with half the bits, for GPUs: float16 inside the net, float32 around it.

An exported graph is taken as it is. What lies between its first and its last convolutions is
computed in halves; the frame, the numbers that scale it and what is made of the net's answer stay
in float32, since counts of a camera need more than the 11 bits of a half and pass its largest
number, 65504. A value beyond ``LARGEST`` standard deviations of the noise is clipped where it
enters: from infinities follow NaN, in all that a pixel is seen by.
"""

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

LARGEST = 8192.0
"""Of what enters the net, in its own units; sums of it have room for three bits more."""

_SUFFIX = ".half"
# Inputs that are float32 whatever the others are.
_FLOAT = {"Resize": (1, 2)}


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of an exported graph that computes its net in float16."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    inside = {name for node in between(made) for name in node.output}
    floats = _floats(made)
    constants = {one.name: one for one in graph.initializer}
    own = inside & floats
    nodes: list[onnx.NodeProto] = []
    entered: set[str] = set()
    for node in graph.node:
        if node.output[0] not in inside:
            nodes.append(node)
            continue
        for at, name in enumerate(node.input):
            if name not in floats or at in _FLOAT.get(node.op_type, ()):
                continue
            if name not in own | entered:
                entered.add(name)
                if name in constants:
                    graph.initializer.append(_half(constants[name]))
                else:
                    nodes += _entrance(graph, name)
            node.input[at] = name + _SUFFIX
        nodes.append(node)
        for at, name in enumerate(node.output):
            if name in own:
                node.output[at] = name + _SUFFIX
                # Read by what lies outside; if by nothing, it is left out below.
                nodes.append(
                    helper.make_node("Cast", [name + _SUFFIX], [name], to=TensorProto.FLOAT)
                )
    _replace(graph, nodes)
    # Types that torch noted of tensors that are halves now.
    del graph.value_info[:]
    onnx.checker.check_model(made)
    return made


def between(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions, and all that lies on a way from one of them to another.

    Spectra (`emdn_models.nets.spectral`) are not the net's: their powers pass the largest half.
    """
    ahead: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "MatMul" or ahead.intersection(node.output):
            ahead.update(node.input)
    own = {
        node.output[0]
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose") and not ahead.intersection(node.output)
    }
    after: set[str] = set()
    before: set[str] = set()
    for node in model.graph.node:
        if node.output[0] in own or after.intersection(node.input):
            after.update(node.output)
    for node in reversed(model.graph.node):
        if node.output[0] in own or before.intersection(node.output):
            before.update(node.input)
    return [
        node
        for node in model.graph.node
        if node.output[0] in own
        or (after.intersection(node.input) and before.intersection(node.output))
    ]


def _floats(model: onnx.ModelProto) -> set[str]:
    """Name all tensors of float32."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    named = [*graph.input, *graph.value_info, *graph.output]
    return {one.name for one in named if one.type.tensor_type.elem_type == TensorProto.FLOAT} | {
        one.name for one in graph.initializer if one.data_type == TensorProto.FLOAT
    }


def _half(constant: onnx.TensorProto) -> onnx.TensorProto:
    values: NDArray[np.float32] = numpy_helper.to_array(constant)
    return numpy_helper.from_array(values.astype(np.float16), constant.name + _SUFFIX)


def _entrance(graph: onnx.GraphProto, name: str) -> Iterable[onnx.NodeProto]:
    """Clip a tensor, and make halves of it."""
    limits = [f"{name}.least", f"{name}.most"]
    for limit, value in zip(limits, (-LARGEST, LARGEST), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), limit))
    clipped = f"{name}.clipped"
    return (
        helper.make_node("Clip", [name, *limits], [clipped]),
        helper.make_node("Cast", [clipped], [name + _SUFFIX], to=TensorProto.FLOAT16),
    )


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Put nodes into a graph, but for those that nothing reads, and their constants."""
    needed = {one.name for one in graph.output}
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [one for one in graph.initializer if one.name in needed]
    copies = [onnx.TensorProto.FromString(one.SerializeToString()) for one in constants]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph in float32 that rounds wherever one in halves does: to be run on a CPU.

    onnxruntime has no halves on a CPU. It computes in float32 there and leaves out the roundings
    in between, so that the graph itself would show those of its weights alone. Here each result
    goes to a half and back, which it keeps. What is left is that a GPU may add up in another
    order, or in halves.

    Parameters
    ----------
    model
        What `halved` has made.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    inferred = shape_inference.infer_shapes(made, strict_mode=True).graph
    halves = {one.name for one in inferred.value_info
              if one.type.tensor_type.elem_type == TensorProto.FLOAT16}  # fmt: skip
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for at, name in enumerate(node.output):
            if name not in halves:
                continue
            exact, rounded = f"{name}.exact", f"{name}.rounded"
            if node.op_type == "Cast":
                node.output[at] = rounded
            else:
                node.output[at] = exact
                nodes.append(helper.make_node("Cast", [exact], [rounded], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    for one in graph.initializer:
        if one.data_type == TensorProto.FLOAT16:
            one.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float32), one.name)
            )
    _replace(graph, nodes)
    onnx.checker.check_model(made)
    return made
