"""Exported models in other precisions: int8 for CPUs, fp16 for GPUs, written only if as good.

What computes with other numbers is the net between its first and its last convolution; the
frame, its intensities and the spectra beside it stay in float32. Both are judged on a CPU, where
onnxruntime computes fp16 in float32 from rounded weights.
"""

import logging
import os
import tempfile
from functools import cache
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from emdn_deploy.session import Session, open_session
from emdn_models import metrics, pretrained
from emdn_train.calibrate import Recorded, mended, recordings, resting_movie, scale_of
from emdn_train.export import add_facts, entries_of
from emdn_train.onnx_graph import INPUTS, unpacked
from emdn_train.simulate.dataset import first_specimens, one_thread

LARGEST_LOSS_DB, LARGEST_MEAN_SHIFT = 0.1, 0.005
LEVELS = (0.05, 0.12, 0.4, 1.2, 3.0)
"""Signal to noise per pixel of the frames that a precision is judged on."""

_FITTED = 24  # other frames, 128 x 128, that int8 takes the ranges of its numbers from
_LARGEST_HALF = 8192.0  # of what enters the net, in units of the noise; sums have 3 bits more


class Made(NamedTuple):
    """What came of a precision: the file, what speaks against it, loss of gain, shift of mean."""

    path: Path
    refusal: str  # empty if the file was written
    loss_db: float
    mean_shift: float

    def __str__(self) -> str:
        """Say it in a line."""
        if self.refusal:
            return f"{self.path.name}: refused: {self.refusal}"
        return (
            f"{self.path}  {self.path.stat().st_size / 1e6:.2f} MB  loses {self.loss_db:.3f} dB, "
            f"mean off by {100 * self.mean_shift:.3f} %"
        )


@one_thread()
def add(folder: Path, name: str, precision: str) -> Made:
    """Make ``NAME.PRECISION.onnx`` beside an exported model and enter it into the index.

    It is refused, and what an earlier run made of it removed, if the mean gain over simulated
    frames falls by more than 0.1 dB, or the mean intensity moves by more than 0.5 % at one of
    the ``LEVELS``.
    """
    entry = entries_of(folder, (name,))[name]
    source = folder / entry["file"]
    target = source.with_name(f"{source.stem}.{precision}.onnx")
    variants = {key: one for key, one in entry.get("variants", {}).items() if key != precision}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".precision-") as scratch:
        file = Path(scratch) / target.name  # onnxruntime names a model after its file
        made = Made(target, f"it has no convolutions to compute in {precision}", nan, nan)
        if (quantised if precision == "int8" else halved)(source, file):
            variant = open_session(file, "cpu", 1)
            loss, shift = compare(open_session(source, "cpu", 1), variant)
            made = Made(target, refusal(loss, shift), loss, shift)
        if made.refusal:
            target.unlink(missing_ok=True)
        else:
            variants[precision] = {
                "file": target.name,
                "sha256": pretrained.sha256(file),
                "weights_sha256": variant.info.text["weights_sha256"],
                "loss_db": round(made.loss_db, 4),
                "mean_shift": round(made.mean_shift, 6),
            }
            os.replace(file, target)
    add_facts(folder, name, entry["sha256"], {"variants": variants})
    return made


def refusal(loss_db: float, mean_shift: float) -> str:
    """Say what speaks against a variant; empty if nothing does. A NaN is refused."""
    reasons = []
    if not loss_db <= LARGEST_LOSS_DB:
        reasons.append(f"loses {loss_db:.2f} dB, more than {LARGEST_LOSS_DB:g}")
    if not mean_shift <= LARGEST_MEAN_SHIFT:
        shift, largest = 100 * mean_shift, 100 * LARGEST_MEAN_SHIFT
        reasons.append(f"mean off by {shift:.2f} %, more than {largest:g} %")
    return ", ".join(reasons)


def compare(model: Session, variant: Session) -> tuple[float, float]:
    """Return the mean loss of gain in dB, and the largest shift of a level's mean intensity."""
    losses, shifts = [], []
    for frame in judged_on():
        inputs = _inputs(frame, model.info.frames)
        before, after = (one.run(*inputs)[0] for one in (model, variant))
        gains = [metrics.gain_db(frame.noisy, y, frame.clean, frame.valid) for y in (before, after)]
        losses.append(float(gains[0] - gains[1]))
        shifts.append(abs(float(after.mean(dtype=float) / before.mean(dtype=float)) - 1))
    by_level = np.reshape(shifts, (-1, len(LEVELS))).mean(0)
    return float(np.mean(losses)), float(by_level.max())


@cache
def judged_on() -> list[Recorded]:
    """Simulate nine kinds of frames at each of ``LEVELS``: first specimens of the test split."""
    return [mended(one.noisy, one.clean) for one in first_specimens(LEVELS)]


@cache
def ranged_by() -> list[Recorded]:
    """Simulate frames that int8 takes its ranges from; the test split has none of them."""
    return list(recordings(_FITTED, 128))


def _inputs(frame: Recorded, count: int) -> tuple[NDArray[np.float32], float, float, float]:
    """Return (1, count, H, W), a frame amid its neighbours; its scale, offset and gain."""
    stack = resting_movie(frame.noisy, frame.clean, count)
    found = scale_of(stack)
    return stack[None], found.scale, found.offset, found.gain


def inner_convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the net's convolutions but the first and the last, in order.

    Those of the spectra lie ahead of a matrix product: their powers pass the largest half.
    """
    ahead: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "MatMul" or ahead.intersection(node.output):
            ahead.update(node.input)
    kinds = ("Conv", "ConvTranspose")
    found = [one for one in model.graph.node if one.op_type in kinds]
    return [one for one in found if not ahead.intersection(one.output)][1:-1]


def quantised(source: Path, target: Path) -> bool:
    """Write a model whose inner convolutions compute in integers, between pairs of QDQ nodes.

    Weights have 7 bits, so that sums of two products do not saturate on processors without
    VNNI: the file gives the same frames on all of them. False if there are no such convolutions;
    transposed ones have no integers.
    """
    model = unpacked(onnx.load(source))
    inner = [node for node in inner_convolutions(model) if node.op_type == "Conv"]
    results = {name for node in inner for name in node.output}
    relus = [node for node in model.graph.node if node.op_type == "Relu"]
    inner += [node for node in relus if results.intersection(node.input)]
    if not inner:
        return False
    count = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value

    class Frames(CalibrationDataReader):  # type: ignore[misc]
        frames = iter(ranged_by())

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            if (frame := next(self.frames, None)) is None:
                return None
            stack, *numbers = _inputs(frame, count)
            columns = (np.full((1, 1, 1, 1), number, np.float32) for number in numbers)
            return dict(zip(INPUTS, (stack, *columns), strict=True))

    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advises to optimise first, which is not for a file to keep
    try:
        quantize_static(
            model, target, Frames(), quant_format=QuantFormat.QDQ, per_channel=True,
            reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_quantize=[node.name for node in inner],
        )  # fmt: skip
    finally:
        logging.disable(earlier)
    _save(onnx.load(target), model, "int8", target)
    return True


def halved(source: Path, target: Path) -> bool:
    """Write a model that computes in float16 from the net's inner convolutions on to the last.

    What enters is clipped: beyond the largest half are infinities, and from them NaN. False if
    the net has no inner convolutions. onnxruntime's own converter would make halves of
    intensities too.
    """
    model = unpacked(onnx.load(source))
    graph, inside = model.graph, _between(model)
    known = shape_inference.infer_shapes(model, strict_mode=True).graph
    floats = {one.name for one in [*known.input, *known.value_info]
              if one.type.tensor_type.elem_type == TensorProto.FLOAT}  # fmt: skip
    weights = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT}
    limits = (("least", -_LARGEST_HALF), ("most", _LARGEST_HALF))
    made = {name: numpy_helper.from_array(np.array(value, "f4"), name) for name, value in limits}
    nodes: dict[str, onnx.NodeProto] = {}  # by what they make

    def cast(name: str, result: str, to: int) -> str:
        nodes.setdefault(result, helper.make_node("Cast", [name], [result], to=to))
        return result

    for node in graph.node:
        inner = node.output[0] in inside
        # The factors of a Resize are float32 whatever the image is.
        for at, name in enumerate(node.input if node.op_type != "Resize" else node.input[:1]):
            half = f"{name}.half"
            if inner and name in weights:
                values = numpy_helper.to_array(weights[name]).astype(np.float16)
                made[half] = numpy_helper.from_array(values, half)
                node.input[at] = half
            elif inner and name in floats - inside:
                clipped = f"{name}.clipped"
                clip = helper.make_node("Clip", [name, "least", "most"], [clipped])
                nodes.setdefault(clipped, clip)
                node.input[at] = cast(clipped, half, TensorProto.FLOAT16)
            elif not inner and name in inside & floats:
                node.input[at] = cast(name, f"{name}.single", TensorProto.FLOAT)
        nodes[node.output[0]] = node
    used = {name for node in nodes.values() for name in node.input}
    constants = [one for one in [*graph.initializer, *made.values()] if one.name in used]
    halves = helper.make_model(
        helper.make_graph(list(nodes.values()), graph.name, graph.input, graph.output, constants),
        opset_imports=model.opset_import, ir_version=model.ir_version,
    )  # fmt: skip
    _save(halves, model, "fp16", target)
    return bool(inside)


def _save(made: onnx.ModelProto, model: onnx.ModelProto, precision: str, path: Path) -> None:
    """Save a variant with the metadata of its model."""
    known = {one.key: one.value for one in model.metadata_props}
    helper.set_model_props(made, known | {"precision": precision})
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)


def _between(model: onnx.ModelProto) -> set[str]:
    """Name what the net's inner convolutions make, and the nodes that lie between them."""
    convs = {name for node in inner_convolutions(model) for name in node.output}
    after, before = set(convs), set(convs)
    for node in model.graph.node:
        if after.intersection(node.input):
            after.update(node.output)
    for node in reversed(model.graph.node):
        if before.intersection(node.output):
            before.update(node.input)
    nodes = [node for node in model.graph.node if (after & before).intersection(node.output)]
    return {name for node in nodes for name in node.output}
