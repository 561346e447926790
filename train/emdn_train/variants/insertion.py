"""Integers for inner convolutions of an exported graph, as pairs of plain ONNX operators.

A tensor that is rounded gets the pair QuantizeLinear, DequantizeLinear behind it (QDQ). The
graph stays one in float32 that any runtime can read; onnxruntime turns a convolution between
such pairs into one of integers (QLinearConv), and takes a ReLU and the pairs into it.

Activations have 8 bits without sign and one scale a tensor. Weights are signed, symmetric, one
scale an output channel, and have **7 bits**: on AVX2 without VNNI two products are added in 16
bits that saturate (vpmaddubsw), and 2 x 255 x 64 fits them where 2 x 255 x 127 does not. So the
same file gives the same bits on every x86 machine.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

LARGEST_WEIGHT = 64
"""Of the quantised weights: 7 bits."""

_LEVELS = 255
# Operators that pass values on: what goes in and what comes out has one scale, so that
# onnxruntime moves the integers themselves.
_MOVES = ("Concat", "DepthToSpace", "MaxPool", "Reshape", "Resize", "SpaceToDepth", "Transpose")

Range = tuple[float, float]


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions of planes, transposed ones too; those of rows judge spectra."""
    planes = {one.name for one in model.graph.initializer if len(one.dims) == 4}
    kinds = ("Conv", "ConvTranspose")
    return [one for one in model.graph.node if one.op_type in kinds and one.input[1] in planes]


def inner(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions that can be quantised.

    All but those that read the frame or make the denoised one: what enters and leaves
    stays in float32, and with it whatever is added to the frame itself. Transposed ones
    stay too, for which onnxruntime has no integers.
    """
    convs = convolutions(model)
    behind = _reached(model, [node.output[0] for node in convs])
    before = {name for node in convs for name in _needed(model, node)}
    return [
        node
        for node in convs
        if node.op_type == "Conv" and node.input[0] in behind and node.output[0] in before
    ]


def families(model: onnx.ModelProto, convs: Iterable[onnx.NodeProto]) -> list[list[str]]:
    """Return the tensors to be rounded for some convolutions, those together that share a range.

    They are inputs and outputs of the convolutions, these behind the ReLU if one follows, and
    what operators that only move values make of them.
    """
    readers = _readers(model)
    chosen = {name for conv in convs for name in (conv.input[0], _end(conv, readers))}
    parent = {name: name for name in chosen}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in reversed(model.graph.node):
        if node.op_type in _MOVES and node.output[0] in parent:
            for name in _moved(node, model):
                parent.setdefault(name, name)
                parent[root(name)] = root(node.output[0])
    order = [name for node in model.graph.node for name in node.output if name in parent]
    together: dict[str, list[str]] = {}
    for name in order:
        together.setdefault(root(name), []).append(name)
    return list(together.values())


def inserted(
    model: onnx.ModelProto, convs: Iterable[onnx.NodeProto], ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """Return a copy of a graph in which some convolutions compute with integers.

    Parameters
    ----------
    convs
        Some of those that `inner` returns.
    ranges
        Smallest and largest value of each tensor, at least of those of `families`; values
        beyond are clipped.
    """
    chosen = {conv.output[0] for conv in convs}
    convs = [node for node in inner(model) if node.output[0] in chosen]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    # Shapes and types that torch noted of tensors that are others now.
    del graph.value_info[:]
    known = {one.name: one for one in graph.initializer}
    steps = {
        name: _step(min(ranges[one][0] for one in family), max(ranges[one][1] for one in family))
        for family in families(model, convs)
        for name in family
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] in chosen:
            factors = _weights(graph, nodes, known[node.input[1]])
            step = steps[node.input[0]][0]
            if len(node.input) > 2:
                _bias(graph, nodes, known[node.input[2]], node.output[0], step * factors)
                node.input[2] = _real(node.output[0] + ".bias")
            node.input[1] = _real(node.input[1])
        for at, name in enumerate(node.input):
            if name in steps:
                node.input[at] = _real(name)
        nodes.append(node)
        for name in node.output:
            if name in steps:
                constants = _constants(graph, name, *steps[name])
                nodes += [
                    helper.make_node("QuantizeLinear", [name, *constants], [_whole(name)]),
                    helper.make_node("DequantizeLinear", [_whole(name), *constants], [_real(name)]),
                ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    used = {name for node in graph.node for name in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(made)
    return made


def _step(low: float, high: float) -> tuple[np.float32, NDArray[np.uint8]]:
    """Return scale and zero point of a range; zero is always one of the numbers."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / _LEVELS if high > low else 1.0)
    return scale, np.asarray(np.rint(-low / scale), dtype=np.uint8)


def _weights(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], weight: onnx.TensorProto
) -> NDArray[np.float32]:
    """Round a kernel, once however many read it; return its scales, one an output channel."""
    values = numpy_helper.to_array(weight)
    largest = np.abs(values).max(axis=tuple(range(1, values.ndim)))
    factors = np.where(largest > 0, largest / LARGEST_WEIGHT, 1.0).astype(np.float32)
    if not any(one.name == _whole(weight.name) for one in graph.initializer):
        whole = np.rint(values / factors.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        _per_channel(graph, nodes, weight.name, whole, factors)
    return factors


def _bias(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    bias: onnx.TensorProto,
    owner: str,
    factors: NDArray[np.float32],
) -> None:
    """Round a bias to the units of the sums, in 32 bits."""
    limits = np.iinfo(np.int32)
    whole = np.rint(numpy_helper.to_array(bias).astype(np.float64) / factors)
    clipped = np.clip(whole, limits.min, limits.max).astype(np.int32)
    _per_channel(graph, nodes, owner + ".bias", clipped, factors)


def _per_channel(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    name: str,
    whole: NDArray[np.signedinteger],
    factors: NDArray[np.float32],
) -> None:
    """Store integers with a scale a channel, and the node that reads them."""
    constants = _constants(graph, name, factors, np.zeros(len(factors), whole.dtype))
    graph.initializer.append(numpy_helper.from_array(whole, _whole(name)))
    inputs = [_whole(name), *constants]
    nodes.append(helper.make_node("DequantizeLinear", inputs, [_real(name)], axis=0))


def _constants(graph: onnx.GraphProto, name: str, scale: object, zero: object) -> list[str]:
    """Store scale and zero point of a tensor; return their names."""
    values = {f"{name}.scale": scale, f"{name}.zero": zero}
    for key, value in values.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))
    return list(values)


def _whole(name: str) -> str:
    return f"{name}.whole"


def _real(name: str) -> str:
    return f"{name}.real"


def _readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _end(conv: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]) -> str:
    """Return the output of a convolution, or of the ReLU that alone reads it."""
    name: str = conv.output[0]
    following = readers.get(name, [])
    return following[0].output[0] if [one.op_type for one in following] == ["Relu"] else name


def _moved(node: onnx.NodeProto, model: onnx.ModelProto) -> list[str]:
    """Return the inputs of a moving operator that hold values, and not sizes."""
    constants = {one.name for one in model.graph.initializer}
    names = node.input if node.op_type == "Concat" else node.input[:1]
    return [name for name in names if name not in constants]


def _reached(model: onnx.ModelProto, start: Iterable[str]) -> set[str]:
    """Name all tensors that follow from some."""
    found = set(start)
    for node in model.graph.node:
        if found.intersection(node.input):
            found.update(node.output)
    return found


def _needed(model: onnx.ModelProto, conv: onnx.NodeProto) -> set[str]:
    """Name all tensors that a node's input follows from."""
    found = {conv.input[0]}
    for node in reversed(model.graph.node):
        if found.intersection(node.output):
            found.update(node.input)
    return found
