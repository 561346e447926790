"""Exported models in other precisions: int8 for CPUs, fp16 for GPUs, written only if as good.

What computes with other numbers is the net between its first and its last convolution; the
frame, its intensities and the spectra beside it stay in float32.
"""

import logging
import os
import tempfile
from functools import cache
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from emdn_deploy.session import Session, open_session
from emdn_models import metrics, pretrained
from emdn_train import manifest
from emdn_train.calibrate import Recorded, mended, recordings, scale_of
from emdn_train.onnx_graph import INPUTS, unpacked
from emdn_train.simulate.folder import one_thread
from emdn_train.simulate.testset import first_specimens

LARGEST_LOSS_DB, LARGEST_MEAN_SHIFT = 0.1, 0.005
LEVELS = (0.05, 0.12, 0.4, 1.2, 3.0)
"""Signal to noise per pixel of the frames that a precision is judged on."""

FITTED = 24
"""Other simulated frames, 128 x 128, that int8 takes the ranges of its numbers from."""

_LARGEST_HALF = 8192.0  # of what enters the net, in units of the noise; sums have 3 bits more


class Made(NamedTuple):
    """What came of a precision: the file, or why there is none; loss of gain, shift of mean."""

    path: Path | None
    refusal: str
    loss_db: float
    mean_shift: float


def add(folder: Path, name: str, precision: str) -> Made:
    """Make ``NAME.PRECISION.onnx`` beside an exported model and enter it into the manifest.

    It is refused, and what an earlier run made of it removed, if the mean gain over simulated
    frames falls by more than 0.1 dB, or the mean intensity moves by more than 0.5 % at one of
    the ``LEVELS``.
    """
    listed = folder / manifest.NAME
    entry = manifest.chosen(listed, (name,))[name]
    source = folder / entry["file"]
    target = source.with_name(f"{source.stem}.{precision}.onnx")
    variants = {key: one for key, one in entry.get("variants", {}).items() if key != precision}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".precision-") as scratch:
        file = Path(scratch) / target.name  # onnxruntime names a model after its file
        made = _make(source, precision, file)
        if made.refusal:
            target.unlink(missing_ok=True)
        else:
            variants[precision] = {
                "file": target.name, "sha256": pretrained.sha256(file),
                "weights_sha256": open_session(file, "cpu", 1).info.text["weights_sha256"],
                "loss_db": round(made.loss_db, 4), "mean_shift": round(made.mean_shift, 6),
            }  # fmt: skip
            os.replace(file, target)
            made = made._replace(path=target)
    manifest.add(listed, name, entry["sha256"], {"variants": variants})
    return made


@one_thread()
def _make(source: Path, precision: str, file: Path) -> Made:
    model = unpacked(onnx.load(source))
    inner = inner_convolutions(model)
    if precision == "int8":
        inner = [node for node in inner if node.op_type == "Conv"]
    if not inner:
        kind = "transposed ones have no integers" if precision == "int8" else "or only two"
        return Made(None, f"no convolutions to compute in {precision} ({kind})", nan, nan)
    judged = file
    if precision == "int8":
        results = {name for node in inner for name in node.output}
        relus = [one for one in model.graph.node
                 if one.op_type == "Relu" and results.intersection(one.input)]  # fmt: skip
        plain = file.with_name("float32.onnx")
        onnx.save(model, plain)
        quantise(plain, [node.name for node in inner + relus], file)
    else:
        onnx.save(halved(model), file)
        judged = file.with_name("rounded.onnx")
        onnx.save(halved(model, emulated=True), judged)
    for path in {file, judged}:
        made = onnx.load(path)
        known = {one.key: one.value for one in model.metadata_props}
        helper.set_model_props(made, known | {"precision": precision})
        onnx.save(made, path)
    loss, shift = compare(open_session(source, "cpu", 1), open_session(judged, "cpu", 1))
    return Made(None, refusal(loss, shift), loss, shift)


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
    for frame in judged():
        numbers = _numbers(frame.noisy)
        whole, other = (one.run(frame.noisy[None], *numbers)[0] for one in (model, variant))
        gains = [metrics.gain_db(frame.noisy, y, frame.clean, frame.valid) for y in (whole, other)]
        losses.append(float(gains[0] - gains[1]))
        shifts.append(abs(float(other.mean(dtype=float) / whole.mean(dtype=float)) - 1))
    by_level = np.reshape(shifts, (-1, len(LEVELS))).mean(0)
    return float(np.mean(losses)), float(by_level.max())


@cache
def judged() -> list[Recorded]:
    """Simulate nine kinds of frames at each of ``LEVELS``: first specimens of the test split."""
    return [mended(one.noisy, one.clean) for one in first_specimens(LEVELS)]


@cache
def calibrated() -> list[Recorded]:
    """Simulate frames that int8 takes its ranges from; the test split has none of them."""
    return list(recordings(FITTED, 128))


def _numbers(noisy: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return scale, offset and gain as a deployment measures them on a frame (H, W)."""
    found = scale_of(noisy[None])
    return found.scale, found.offset, found.gain


def inner_convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the net's convolutions but the first and the last, in order.

    Those of the spectra lie ahead of a matrix product: their powers pass the largest half.
    """
    ahead: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "MatMul" or ahead.intersection(node.output):
            ahead.update(node.input)
    kinds = ("Conv", "ConvTranspose")
    return [one for one in model.graph.node
            if one.op_type in kinds and not ahead.intersection(one.output)][1:-1]  # fmt: skip


def quantise(source: Path, nodes: list[str], target: Path) -> None:
    """Write a model whose named nodes compute in integers, between pairs of QDQ nodes.

    Weights have 7 bits, so that sums of two products do not saturate on processors without
    VNNI: the file gives the same frames on all of them.
    """

    class Frames(CalibrationDataReader):  # type: ignore[misc]
        frames = iter(calibrated())

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            frame = next(self.frames, None)
            if frame is None:
                return None
            numbers = zip(INPUTS[1:], _numbers(frame.noisy), strict=True)
            columns = {key: np.full((1, 1, 1, 1), one, np.float32) for key, one in numbers}
            return {INPUTS[0]: frame.noisy[None, None], **columns}

    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advises to optimise first, which is not for a file to keep
    try:
        quantize_static(
            source, target, Frames(), quant_format=QuantFormat.QDQ, per_channel=True,
            reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
        )  # fmt: skip
    finally:
        logging.disable(earlier)


def halved(model: onnx.ModelProto, *, emulated: bool = False) -> onnx.ModelProto:
    """Return a copy that computes in float16 from the net's inner convolutions on to the last.

    What enters is clipped: beyond the largest half are infinities, and from them NaN. With
    ``emulated`` a graph in float32 that rounds whatever the other has as a half: on a CPU
    onnxruntime computes halves in float32, and forgets to round.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    inside = _between(made)
    inferred = shape_inference.infer_shapes(made, strict_mode=True).graph
    floats = {one.name for one in [*inferred.input, *inferred.value_info, *inferred.output]
              if one.type.tensor_type.elem_type == TensorProto.FLOAT}  # fmt: skip
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer
                 if one.data_type == TensorProto.FLOAT}  # fmt: skip
    outside = {name for node in graph.node if node.output[0] not in inside for name in node.input}
    outside |= {one.name for one in graph.output}
    nodes: list[onnx.NodeProto] = []
    kind = np.float32 if emulated else np.float16

    def constant(name: str, values: NDArray[Any]) -> None:
        graph.initializer.append(numpy_helper.from_array(values, name))

    def cast(name: str, result: str, to: int) -> None:
        nodes.append(helper.make_node("Cast", [name], [result], to=to))

    def rounded(name: str, result: str) -> None:
        cast(name, f"{result}.bits" if emulated else result, TensorProto.FLOAT16)
        if emulated:
            cast(f"{result}.bits", result, TensorProto.FLOAT)

    for name, value in (("least", -_LARGEST_HALF), ("most", _LARGEST_HALF)):
        constant(name, np.asarray(value, np.float32))
    entered: set[str] = set()
    for original in list(graph.node):
        node = onnx.NodeProto.FromString(original.SerializeToString())
        inner = node.output[0] in inside
        # The factors of a Resize are float32 whatever the image is.
        for at, name in enumerate(node.input if node.op_type != "Resize" else node.input[:1]):
            if not inner or name not in floats | set(constants):
                continue
            node.input[at] = f"{name}.half"
            if name in inside | entered:
                continue
            entered.add(name)
            if name in constants:
                constant(f"{name}.half", constants[name].astype(np.float16).astype(kind))
            else:
                nodes.append(helper.make_node("Clip", [name, "least", "most"], [f"{name}.clipped"]))
                rounded(f"{name}.clipped", f"{name}.half")
        nodes.append(node)
        for at, name in enumerate(node.output):
            if not inner or name not in floats:
                continue
            node.output[at] = f"{name}.exact" if emulated else f"{name}.half"
            if emulated:
                rounded(f"{name}.exact", f"{name}.half")
            if name in outside:
                cast(f"{name}.half", name, TensorProto.FLOAT)
    del graph.node[:], graph.value_info[:]  # types that torch noted of what are halves now
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    left = [one for one in made.graph.initializer if one.name in used]
    left = [onnx.TensorProto.FromString(one.SerializeToString()) for one in left]
    del graph.initializer[:]
    graph.initializer.extend(left)
    onnx.checker.check_model(made, full_check=True)
    return made


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
