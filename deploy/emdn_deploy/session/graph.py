"""What an ONNX file holds, read without onnx or onnxruntime, and which graphs are run at all.

Only the few fields of ``onnx.proto`` that decide it are read.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from emdn_models.errors import ModelError

# What shipped models, their variants and other denoisers are made of: each of these works in time
# and memory that its inputs bound. No loops, no branches, no text, no files.
_NAMES = """
Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant
ConstantOfShape Conv ConvInteger ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div
DynamicQuantizeLinear Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu
Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual
Log LogSoftmax LpNormalization MatMul MatMulInteger Max MaxPool Mean Min Mish Mod Mul Neg Not Or
PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear Range Reciprocal ReduceL1 ReduceL2
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round
ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign
SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Trilu Unsqueeze Upsample Where
Xor
"""
OPERATORS = frozenset(_NAMES.split())
MOST_BYTES, MOST_NODES, MOST_TEXT = 2**30, 20_000, 2**20


@dataclass(frozen=True)
class Contents:
    """What a file says: its metadata, and the names of its inputs that are no constants."""

    metadata: Mapping[str, str]
    inputs: list[str]


def read(path: Path) -> Contents:
    """Read a model's metadata and inputs, and refuse a graph that may do more than compute.

    Raises
    ------
    ModelError
        If it is no ONNX file, or has operators that are not in `OPERATORS`, functions or parts
        in other files.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ModelError(f"{path}: is larger than {MOST_BYTES / 2**30:g} GB, expected a denoiser")
    data = memoryview(path.read_bytes())
    try:
        return _model(path, data)
    except (IndexError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: is damaged or no ONNX file ({error}); is it a complete file written by "
            "emdn-train export?"
        ) from error


def _model(path: Path, data: memoryview) -> Contents:
    graphs, metadata = list[memoryview](), dict[str, str]()
    for field, value in _fields(data):
        if field == 7:  # graph
            graphs.append(_bytes(value))  # protobuf joins several to one
        elif field == 14:  # metadata_props
            pair = {key: _text(content) for key, content in _fields(_bytes(value))}
            metadata[pair.get(1, "")] = pair.get(2, "")
        elif field == 25:
            raise ModelError(f"{path}: has functions of its own; export it without them")
    if not graphs or sum(map(len, metadata.values())) > MOST_TEXT:
        raise ValueError("metadata of more than 1 MB" if graphs else "no graph")
    inputs, constants, nodes = list[str](), set[str](), 0
    for field, value in itertools.chain.from_iterable(map(_fields, graphs)):
        if field == 1:
            nodes += 1
            _check_node(path, _bytes(value))
        elif field == 5:
            constants.add(_check_tensor(path, _bytes(value), len(data)))
        elif field == 15:
            raise ModelError(f"{path}: has sparse constants; save them in full")
        elif field == 11:
            inputs.append(_text(_first(_bytes(value), 1)))
    if nodes > MOST_NODES:
        raise ModelError(f"{path}: has {nodes} nodes, expected {MOST_NODES} at most")
    return Contents(metadata, [one for one in inputs if one not in constants])


def _check_node(path: Path, data: memoryview) -> None:
    kind = domain = ""
    for field, value in _fields(data):
        if field == 4:
            kind = _text(value)
        elif field == 7:
            domain = _text(value)
        elif field == 5:  # attribute
            for part, content in _fields(_bytes(value)):
                if part in (5, 10):
                    _check_tensor(path, _bytes(content), len(data))
                elif part in (6, 11, 22, 23):
                    raise ModelError(
                        f"{path}: {kind or 'a node'} has a graph or a sparse constant inside; "
                        "export it again without"
                    )
    if domain not in ("", "ai.onnx") or kind not in OPERATORS:
        raise ModelError(
            f"{path}: has the operator {domain + '.' if domain else ''}{kind[:80]!r}, which emdn "
            "does not run in models from elsewhere; export it again without"
        )


def _check_tensor(path: Path, data: memoryview, most: int) -> str:
    """Refuse a constant that lies elsewhere or claims more elements than there are half bytes."""
    name, dims = "", list[int]()
    for field, value in _fields(data):
        if field == 1:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif field == 8:
            name = _text(value)
        elif field == 13 or (field == 14 and value):
            raise ModelError(f"{path}: has constants in other files; save it as a single one")
    if max(dims, default=0) >= 2**63 or math.prod(dims) > 2 * most:
        raise ModelError(f"{path}: the constant {name[:80]!r} claims shape {dims[:8]}")
    return name


def _first(data: memoryview, field: int) -> int | memoryview:
    return next(value for number, value in _fields(data) if number == field)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a protobuf message: number, and an integer or bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            number, place = _varint(data, place)
            yield key >> 3, number
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field of kind {kind} at byte {place}")
        if place + length > len(data):
            raise ValueError("cut short")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _packed(data: memoryview) -> list[int]:
    found, place = [], 0
    while place < len(data):
        number, place = _varint(data, place)
        found.append(number)
    return found


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")
