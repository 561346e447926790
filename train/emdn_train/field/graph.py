"""A graph, node by node: which pixels of the frame every number in it depends on.

No tensor of the frame is computed. Nodes that only move numbers about move what is known
of them, by the reference implementation of ONNX; nodes that compute join it. So reshapes
and transpositions need no algebra of their own, and taps of weight zero do not count.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from emdn_train.field import windows
from emdn_train.field.values import (
    LEFT,
    RIGHT,
    Known,
    NotLocalError,
    Seen,
    Value,
    as_seen,
    nothing,
    union,
)

POINTWISE = frozenset({
    "Abs", "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg",
    "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus",
    "Sqrt", "Sub", "Sum", "Tanh", "Where",
})  # fmt: skip
SCALING = frozenset({"BatchNormalization", "DequantizeLinear", "QuantizeLinear"})
"""Pointwise too, by constants for a channel that do not broadcast as others do."""
MOVING = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Reshape", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
REDUCING = frozenset({
    "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare",
})  # fmt: skip
POOLING = frozenset({"AveragePool", "MaxPool"})
WHOLE = frozenset({"GlobalAveragePool", "GlobalMaxPool"})


def seen_by_output(program: onnx.ModelProto, size: tuple[int, int], along: int) -> Seen:
    """Return what every pixel of the output sees along an axis of a frame of ``size``.

    Parameters
    ----------
    along
        2 for rows, 3 for columns. The other side of ``size`` may be as short as the size
        multiple; see `emdn_train.field.windows`.

    Returns
    -------
    Seen
        Of (1, 1, H, W).

    Raises
    ------
    NotLocalError
        If a node looks at the whole frame, computes with its size, or is not known here.
    """
    graph = program.graph
    values: dict[str, Value] = {one.name: Known(np.ones((1, 1, 1, 1), "f4")) for one in graph.input}
    places = np.arange(size[along - 2], dtype=np.int32)
    places = np.broadcast_to(places[:, None] if along == 2 else places, (1, 1, *size))
    values["frames"] = Seen(places, places)
    values |= {one.name: Known(numpy_helper.to_array(one)) for one in graph.initializer}
    for node in graph.node:
        inputs = [values.get(name) for name in node.input]
        made = _outputs(node, inputs, along, size[along - 2], program)
        values |= zip(node.output, made, strict=False)
    output = values[graph.output[0].name]
    assert isinstance(output, Seen)
    return output


def _outputs(
    node: onnx.NodeProto,
    inputs: list[Value | None],
    along: int,
    length: int,
    program: onnx.ModelProto,
) -> list[Value]:
    """Return the values of a node's outputs."""
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    operator = node.op_type
    there = [value for value in inputs if value is not None]

    def evaluated(arrays: list[Any]) -> list[Any]:
        return _evaluate(node, arrays, program)

    if operator == "Shape":
        return [_shape(there[0], given)]
    if operator == "Constant" or all(isinstance(value, Known) for value in there):
        return _known(node, inputs, evaluated)
    if operator in POINTWISE:
        return [union([as_seen(value, node) for value in there])]
    trained = not given.get("training_mode", 0)
    if operator in SCALING and trained and all(isinstance(one, Known) for one in there[1:]):
        return [as_seen(there[0], node)]
    if operator == "MatMul":
        return [_product(node, there)]
    if operator in MOVING:
        if operator == "Gather" and _chosen_by_size(node, there, along):
            return [_edges(inputs, evaluated)]
        return _moved(node, inputs, evaluated)
    data = as_seen(there[0], node)
    if operator in REDUCING or operator in WHOLE:
        return [_reduced(node, data, inputs, given, length)]
    if given.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotLocalError(node, "has auto_pad, which is not followed")
    if operator in POOLING:
        return [windows.pool(data, given, along, node)]
    if operator in ("Conv", "ConvTranspose") and isinstance(there[1], Known):
        weight = there[1].array
        if (
            operator == "Conv" and weight.shape[2:] == (1,) and given.get("group", 1) == 1
        ):  # of rows: features alone
            return [_mixed(data, weight[:, :, 0].T, 1)]
        rule = windows.conv if operator == "Conv" else windows.conv_transpose
        return [rule(data, weight, given, along)]
    if operator == "Pad" and data.first.ndim == 4 and isinstance(there[1], Known):
        pads = [int(one) for one in there[1].array]
        if len(pads) == 8 and pads[0] == pads[1] == pads[4] == pads[5] == 0:
            return [windows.pad(data, [*pads[2:4], *pads[6:8]], along)]
    if operator == "Resize" and data.first.ndim == 4:
        return [windows.resize(data, _new_size(data, inputs), given, along, node)]
    raise NotLocalError(node, "is not known to look at a neighbourhood alone")


def _shape(value: Value, given: dict[str, Any]) -> Known:
    """Return a shape; what it says of batch and channels holds for a tile too."""
    array = value.array if isinstance(value, Known) else value.first
    axes = range(array.ndim)[given.get("start", 0) : given.get("end", array.ndim)]
    sized = any(axis > 1 for axis in axes) and (isinstance(value, Seen) or value.sized)
    return Known(np.array([array.shape[axis] for axis in axes], np.int64), sized)


def _known(
    node: onnx.NodeProto,
    inputs: list[Value | None],
    evaluated: Callable[[list[Any]], list[Any]],
) -> list[Value]:
    """Compute what does not depend on pixels.

    A constant that fills a shape is itself the same everywhere. An image of constants, once
    padded, has edges like any other: it is followed like one that depends on no pixel.
    """
    arrays = [None if value is None else value.array for value in inputs]  # type: ignore[union-attr]
    made = evaluated(arrays)
    fills = node.op_type in ("ConstantOfShape", "Expand")
    decisive = inputs[:1] if node.op_type == "Expand" else [] if fills else inputs
    sized = any(isinstance(value, Known) and value.sized for value in decisive)
    shaped = any(isinstance(value, Known) and value.sized for value in inputs)
    if fills and shaped and not sized and np.asarray(made[0]).dtype.kind == "f":
        return [nothing(np.shape(made[0]))]
    return [Known(np.asarray(one), sized) for one in made]


def _moved(
    node: onnx.NodeProto,
    inputs: list[Value | None],
    evaluated: Callable[[list[Any]], list[Any]],
) -> list[Value]:
    """Move what is known of numbers as the node moves the numbers."""
    joins = node.op_type == "Concat"
    first, last = [], []
    for index, value in enumerate(inputs):
        if value is None:
            one = other = None
        elif index and not joins:
            if isinstance(value, Seen):
                raise NotLocalError(node, "takes its indices or its shape from the frame")
            one = other = value.array
        else:
            seen = as_seen(value, node)
            one, other = seen.first, seen.last
        first.append(one)
        last.append(other)
    made = zip(evaluated(first), evaluated(last), strict=True)
    return [Seen(one, other) for one, other in made]


def _product(node: onnx.NodeProto, there: list[Value]) -> Seen:
    """Return what a product with a constant matrix depends on: whole rows, or whole columns.

    Raises
    ------
    NotLocalError
        If both factors depend on the frame, as in attention.
    """
    left, right = there
    if isinstance(left, Seen) and isinstance(right, Known) and right.array.ndim == 2:
        axis, matrix = -1, right.array
    elif isinstance(right, Seen) and isinstance(left, Known) and left.array.ndim == 2:
        axis, matrix = -2, left.array.T
    else:
        raise NotLocalError(node, "multiplies what depends on the frame by such")
    seen = left if isinstance(left, Seen) else right
    assert isinstance(seen, Seen)
    return _mixed(seen, matrix, axis)


def _mixed(seen: Seen, matrix: NDArray[Any], axis: int) -> Seen:
    """Return what sums of numbers along an axis depend on, (inputs, outputs) their weights."""
    # Outputs with the same taps are the same; matrices without zeros have one kind.
    patterns, which = np.unique(matrix.T != 0, axis=0, return_inverse=True)
    first, last = np.moveaxis(seen.first, axis, -1), np.moveaxis(seen.last, axis, -1)
    lows = [first[..., taps].min(-1, initial=RIGHT) for taps in patterns]
    highs = [last[..., taps].max(-1, initial=LEFT) for taps in patterns]
    return Seen(
        np.moveaxis(np.stack(lows, -1)[..., which.reshape(-1)], -1, axis),
        np.moveaxis(np.stack(highs, -1)[..., which.reshape(-1)], -1, axis),
    )


def _chosen_by_size(node: onnx.NodeProto, there: list[Value], along: int) -> bool:
    """Say whether a Gather takes pixels by where the frame ends, as mirrored edges are."""
    data, indices = there
    if not (isinstance(data, Seen) and isinstance(indices, Known) and indices.sized):
        return False
    axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), 0)
    return axis % data.first.ndim == along


def _edges(inputs: list[Value | None], evaluated: Callable[[list[Any]], list[Any]]) -> Seen:
    """Return pixels that an edge has touched, of the shape that the node makes."""
    arrays = [v.first if isinstance(v, Seen) else v.array for v in inputs if v is not None]
    shape = np.shape(evaluated(arrays)[0])
    return Seen(np.full(shape, LEFT, np.int32), np.full(shape, RIGHT, np.int32))


def _reduced(
    node: onnx.NodeProto,
    data: Seen,
    inputs: list[Value | None],
    given: dict[str, Any],
    length: int,
) -> Seen:
    """Return what a sum, mean or extreme over some axes depends on: all that is in it.

    Over channels that is as local as its inputs.

    Raises
    ------
    NotLocalError
        If every result sees all of the axis that is looked at.
    """
    axes: tuple[int, ...] | None = tuple(given["axes"]) if "axes" in given else None
    if node.op_type in WHOLE:
        axes = tuple(range(2, data.first.ndim))
    elif len(inputs) > 1 and isinstance(inputs[1], Known):
        axes = tuple(int(axis) for axis in inputs[1].array.reshape(-1))
    kept = bool(given.get("keepdims", 1))
    first = data.first.min(axes, keepdims=kept)
    last = data.last.max(axes, keepdims=kept)
    if np.all((first <= 0) & (last >= length - 1)):
        raise NotLocalError(node, "looks at the whole frame")
    return Seen(first, last)


def _new_size(data: Seen, inputs: list[Value | None]) -> tuple[int, ...]:
    """Return the shape that a Resize makes, from its scales or its sizes."""
    scales, sizes = [*inputs[2:], None, None][:2]
    if isinstance(sizes, Known) and sizes.array.size:
        return tuple(int(one) for one in sizes.array)
    assert isinstance(scales, Known)
    pairs = zip(data.first.shape, scales.array, strict=True)
    return tuple(int(length * factor) for length, factor in pairs)


def _evaluate(node: onnx.NodeProto, arrays: list[Any], program: onnx.ModelProto) -> list[Any]:
    """Run one node by the reference implementation of ONNX."""
    names = [name for name in node.input if name]
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names)],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=program.opset_import)
    feeds = {name: one for name, one in zip(node.input, arrays, strict=True) if name}
    return list(ReferenceEvaluator(model).run(None, feeds))
