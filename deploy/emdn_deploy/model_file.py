"""ONNX files of models: which one a name stands for, what it says of itself, what it may hold.

A file is read before onnxruntime sees it, and only the few fields of ``onnx.proto`` that decide
whether its graph is run at all.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from emdn_deploy.config import Precision
from emdn_models import pretrained
from emdn_models.errors import ModelError

SCHEMA = "1"
# Pixels that a tile may need around itself, and frames that a model may see at once.
_LARGEST, _MOST_FRAMES = 2**16, 15
_MOST_BYTES, _MOST_NODES, _MOST_TEXT = 2**30, 20_000, 2**20
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
# Of ``onnx.proto``: number and kind of the fields that are looked at, * where there are several.
_FIELDS = {
    "ModelProto": {
        "graph": (7, "GraphProto"),
        "metadata_props": (14, "StringStringEntryProto*"),
        "functions": (25, "bytes*"),
    },
    "GraphProto": {
        "node": (1, "NodeProto*"),
        "initializer": (5, "TensorProto*"),
        "input": (11, "ValueInfoProto*"),
        "sparse_initializer": (15, "bytes*"),
    },
    "NodeProto": {
        "op_type": (4, "string"),
        "attribute": (5, "AttributeProto*"),
        "domain": (7, "string"),
    },
    "AttributeProto": {
        "t": (5, "TensorProto"),
        "g": (6, "bytes"),
        "tensors": (10, "TensorProto*"),
        "graphs": (11, "bytes*"),
        "sparse_tensor": (22, "bytes"),
        "sparse_tensors": (23, "bytes*"),
    },
    "TensorProto": {
        "dims": (1, "int*"),
        "name": (8, "string"),
        "external_data": (13, "bytes*"),
        "data_location": (14, "int"),
    },
    "ValueInfoProto": {"name": (1, "string")},
    "StringStringEntryProto": {"key": (1, "string"), "value": (2, "string")},
}
_KINDS = {"int": 3, "string": 9, "bytes": 12}


@dataclass(frozen=True)
class ModelInfo:
    """The metadata of an exported ONNX file.

    Attributes
    ----------
    sha256
        Of the ONNX file.
    precision
        Numbers that it computes with, as it says itself.
    frames
        How many frames it sees to denoise the middle one of them, an odd number.
    multiple
        Step that height and width are padded to inside the graph.
    receptive_field
        Side, in pixels, of the largest square that an output pixel sees.
    halo
        Border, in pixels, that a tile needs on every inner side, a multiple of ``multiple``;
        None in files that do not say, for which the field decides.
    tiling_exact
        Whether halo tiles give the whole frame's result; if not, ``text`` has the node that
        sees more as ``whole_frame``.
    gflop_256
        GFLOP for one 256 x 256 frame.
    recipe, quality
        How the weights were trained and what they were measured to do.
    text
        All of it as the file has it.
    """

    path: Path
    sha256: str
    name: str
    preset: str
    precision: str
    frames: int
    multiple: int
    receptive_field: int
    halo: int | None
    tiling_exact: bool
    parameters: int
    gflop_256: float
    recipe: Mapping[str, Any]
    quality: Mapping[str, Any]
    text: Mapping[str, str]


def resolve(model: str | PathLike[str] | None, precision: Precision = "fp32") -> Path:
    """Return the ONNX file of a shipped model's name or of a path.

    Parameters
    ----------
    model
        A shipped name, the path of an ``.onnx`` file, or None for the default.
    precision
        Which variant: a shipped one's file stands in the index, that of ``NAME.onnx`` is
        ``NAME.int8.onnx`` beside it. ``fp32`` is the model, or the file, itself, and ``tf32``
        the same on a GPU that may round.

    Raises
    ------
    ModelError
        If there is no such name, file or variant.
    """
    if precision not in get_args(Precision):
        raise ModelError(
            f"no precision is called {precision!r}; there are {', '.join(get_args(Precision))}"
        )
    precision = stored(precision)
    if model is None:
        return pretrained.onnx_path(pretrained.default_model(), precision)
    text = str(model)
    if isinstance(model, str) and not text.endswith(".onnx") and not {"/", "\\"} & set(text):
        return pretrained.onnx_path(text, precision)
    path, suffix = Path(model), f".{precision}.onnx"
    if not path.is_file():
        raise ModelError(f"{path}: no such ONNX file")
    if precision == "fp32" or path.name.endswith(suffix):
        return path
    variant = path.with_name(path.stem + suffix)
    if not variant.is_file():
        raise ModelError(f"{path}: has no {precision} variant; {variant} does not exist")
    return variant


def stored(precision: Precision) -> Precision:
    """Return the variant whose file a precision needs: TF32 is a way to compute with float32."""
    return "fp32" if precision == "tf32" else precision


def read(path: Path, precision: Precision = "fp32") -> ModelInfo:
    """Read the metadata that ``emdn-train export`` writes, and check what the graph may do.

    Raises
    ------
    ModelError
        If it is no ONNX file of emdn's, is of a newer schema or not of that precision, or has
        operators that are not in `OPERATORS`, functions or parts in other files.
    """
    text, inputs = contents(path)
    schema = text.get("emdn_schema")
    if schema is None or inputs != ["frames", "scale", "offset", "gain"]:
        raise ModelError(
            f"{path}: is not a model exported by emdn (inputs {', '.join(inputs)}, "
            f"emdn_schema {schema}); export one with emdn-train export"
        )
    if schema != SCHEMA:
        raise ModelError(f"{path}: has emdn_schema {schema}, this emdn reads {SCHEMA}; update emdn")
    try:
        info = _parsed(path, text)
    except (KeyError, OverflowError, RecursionError, ValueError) as error:
        raise ModelError(
            f"{path}: its metadata is incomplete or damaged ({str(error)[:200]!r}); "
            "export it again with emdn-train export"
        ) from error
    if stored(precision) not in ("fp32", info.precision):
        raise ModelError(f"{path}: says that it is {info.precision}, not {precision}")
    return info


def _parsed(path: Path, text: Mapping[str, str]) -> ModelInfo:
    info = ModelInfo(
        path=path,
        sha256=pretrained.sha256(path),
        name=text["model"],
        preset=text["preset"],
        precision=text.get("precision", "fp32"),
        frames=int(text.get("frames", "1")),
        multiple=int(text["multiple"]),
        receptive_field=int(text["receptive_field"]),
        halo=int(text["halo"]) if "halo" in text else None,
        tiling_exact=text["tiling_exact"] == "true",
        parameters=int(text["parameters"]),
        gflop_256=float(text["gflop_256"]),
        recipe=json.loads(text["recipe"]),
        quality=json.loads(text["quality"]),
        text=dict(text),
    )
    sizes = info.multiple, info.receptive_field, info.parameters + 1, (info.halo or 0) + 1
    if min(sizes) < 1 or max(info.multiple, info.receptive_field, info.halo or 0) > _LARGEST:
        raise ValueError(f"sizes {sizes}")
    if info.frames not in range(1, _MOST_FRAMES + 1, 2):
        raise ValueError(f"{info.frames} frames, expected an odd number up to {_MOST_FRAMES}")
    if not 0 <= info.gflop_256 < math.inf:
        raise ValueError(f"{info.gflop_256} GFLOP")
    if not (isinstance(info.recipe, dict) and isinstance(info.quality, dict)):
        raise ValueError("recipe or quality that are no mapping")
    return info


def contents(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return a model's metadata, and the names of its inputs that are no constants.

    Raises ModelError as `read` for a graph that is not run.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ModelError(f"{path}: is larger than {_MOST_BYTES / 2**30:g} GB, expected a denoiser")
    try:
        model = _proto().FromString(path.read_bytes())
        metadata = {str(one.key): str(one.value) for one in model.metadata_props}
        inputs = [str(one.name) for one in model.graph.input]
        if not model.HasField("graph") or sum(map(len, metadata.values())) > _MOST_TEXT:
            raise ValueError("no graph, or metadata of more than 1 MB")
        _check_graph(path, model)
    except (DecodeError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(
            f"{path}: is damaged or no ONNX file ({error}); is it a complete file written by "
            "emdn-train export?"
        ) from error
    constants = {one.name for one in model.graph.initializer}
    return metadata, [one for one in inputs if one not in constants]


@cache
def _proto() -> Any:
    """Make the message ``ModelProto`` of `_FIELDS`; what else a file has is skipped."""
    file = descriptor_pb2.FileDescriptorProto(name="model.proto", package="emdn")
    for name, listed in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in listed.items():
            one = message.field.add(name=field, number=number, label=3 if kind[-1] == "*" else 1)
            if kind.strip("*") in _KINDS:
                one.type = _KINDS[kind.strip("*")]
            else:
                one.type, one.type_name = 11, f".emdn.{kind.strip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("emdn.ModelProto"))


def _check_graph(path: Path, model: Any) -> None:
    graph, most = model.graph, 2 * path.stat().st_size
    if model.functions:
        raise ModelError(f"{path}: has functions of its own; export it without them")
    if graph.sparse_initializer:
        raise ModelError(f"{path}: has sparse constants; save them in full")
    if len(graph.node) > _MOST_NODES:
        raise ModelError(f"{path}: has {len(graph.node)} nodes, expected {_MOST_NODES} at most")
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            inside = attribute.HasField("g") or attribute.HasField("sparse_tensor")
            if inside or attribute.graphs or attribute.sparse_tensors:
                raise ModelError(
                    f"{path}: {node.op_type or 'a node'} has a graph or a sparse constant inside; "
                    "export it again without"
                )
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            domain = f"{node.domain}." if node.domain else ""
            raise ModelError(
                f"{path}: has the operator {domain}{node.op_type[:80]!r}, which emdn does not run "
                "in models from elsewhere; export it again without"
            )
    for tensor in tensors:
        if tensor.external_data or tensor.data_location:
            raise ModelError(f"{path}: has constants in other files; save it as a single one")
        # More elements than there are half bytes.
        if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > most:
            dims = list(tensor.dims[:8])
            raise ModelError(f"{path}: the constant {tensor.name[:80]!r} claims shape {dims}")
