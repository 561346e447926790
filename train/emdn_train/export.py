"""From a checkpoint to ONNX files that are proven to compute the same, in fp32, int8 or fp16.

In int8, for CPUs, and fp16, for GPUs, computes the net between its first and its last convolution;
the frame, its intensities and the spectra beside it stay in float32. Such a file is written only
if it is as good, judged on a CPU, where onnxruntime computes fp16 in float32 from rounded weights.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, shape_inference
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxscript import ir
from torch.utils.flop_counter import FlopCounterMode

from emdn_deploy.session import Session, open_session
from emdn_models import MODELS, ModelError, __version__, checkpoint, metrics, pretrained
from emdn_models.files import renamed
from emdn_models.nets import build, load_state
from emdn_models.nets.scaling import BLUR
from emdn_models.spec import spec_of
from emdn_train.calibrate import Recorded, recordings, resting_movie, scale_of
from emdn_train.onnx_graph import INPUTS, folded, unpacked, write
from emdn_train.simulate.dataset import one_thread

log = logging.getLogger(__name__)

LARGEST_LOSS_DB, LARGEST_MEAN_SHIFT = 0.1, 0.005
_RANGED, _JUDGED = 24, 48  # frames that int8 takes its ranges from, and that others are judged on
_LARGEST_HALF = 8192.0  # of what enters the net, in units of the noise; sums have 3 bits more


@dataclass(frozen=True)
class Exported:
    """One exported model."""

    name: str
    path: Path
    gflop_256: float
    error: float  # largest difference between onnxruntime and torch, as a share of the range


def export(
    source: str | PathLike[str],
    out: str | PathLike[str],
    names: tuple[str, ...] | None = None,
    *,
    half: bool = False,
) -> list[Exported]:
    """Convert models of a checkpoint, all if None; write the index and the checkpoint beside them.

    A model whose training diverged is passed over with a message. What the folder holds of other
    models stays, and what was measured of the same weights. The index names as default the model
    with the largest mean gain, never a ``MODEL@movie``; these come last. With ``half`` the weights
    are rounded to float16, and stored in half the space; the models compute in float32 all the
    same. A `ParityError` says that a graph does not compute what its net does, and nothing is
    written for it; a `ModelError`, that the checkpoint does not hold a model, or none is left.
    """
    weights = checkpoint.load(source)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {name: checkpoint.pick(source, weights, name) for name in names or weights}
    done: list[Exported] = []
    for name in _ordered(chosen):
        if (status := chosen[name].metadata.get("status")) != "fitted":
            log.warning("%s: its training ended as %r", name, status)
        if status == "diverged":
            continue
        if half:
            chosen[name] = _rounded(chosen[name])
        done.append(export_one(name, chosen[name], folder / f"{name}.onnx"))
        log.info("%s: within %.1e of torch", name, done[-1].error)
    if not done:
        raise ModelError(f"{os.fspath(source)}: no model to export; fit one with emdn-train fit")
    copied = folder / checkpoint.FILE_NAME
    earlier = checkpoint.load(copied) if copied.exists() else {}
    checkpoint.save(copied, earlier | {one.name: chosen[one.name] for one in done})
    _enter(done, chosen, folder)
    return done


def export_one(name: str, weights: checkpoint.Weights, path: Path) -> Exported:
    """Export one model to ``path``; errors are those of `emdn_train.onnx_graph.write`."""
    net = build(name, weights.preset)
    preset = spec_of(name).presets[weights.preset]
    load_state(net, name, weights)
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, preset.frames, 256, 256))
    gflop = counter.get_total_flops() / 1e9
    # The graph sees the noise map's window too.
    window = BLUR - 1 if getattr(net, "uses_noise", False) else 0
    facts = {
        "emdn_schema": "1",
        "model": name,
        "preset": weights.preset,
        "weights_sha256": weights_sha256(weights.state),
        "frames": str(preset.frames),
        "multiple": str(preset.multiple),
        "receptive_field": str(preset.receptive_field[1] + window),
        "tiling_exact": "false" if preset.whole_frame else "true",
        "whole_frame": preset.whole_frame,
        "halo": "" if preset.halo is None else str(preset.halo),
        "parameters": str(preset.parameters),
        "gflop_256": f"{gflop:.4f}",
        "recipe": json.dumps(weights.metadata.get("recipe", {})),
        "quality": json.dumps(weights.metadata.get("validation", {})),
        "emdn_version": __version__,
        "torch_version": version("torch"),
        "input_units": "any, linear in electrons: frames = gain * electrons + offset",
        "normalisation": "x = (electrons - scale) / sqrt(scale), scale the stack's mean",
        "licence": "MIT",
    }
    error = write(net, preset.frames, {key: text for key, text in facts.items() if text}, path)
    return Exported(name, path, gflop, error)


def _rounded(weights: checkpoint.Weights) -> checkpoint.Weights:
    """Round the kernels and matrices of a model to float16; biases stay as they are."""
    state = {
        name: array.astype(np.float16) if array.dtype == np.float32 and array.ndim > 1 else array
        for name, array in weights.state.items()
    }
    return replace(weights, state=state)


def weights_sha256(state: Mapping[str, NDArray[Any]]) -> str:
    """Hash names and values of all tensors, in the order of their names."""
    digest = sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()


def _ordered(names: Iterable[str]) -> list[str]:
    """Sort names as ``MODELS`` has them, those of models for movies last."""
    models = list(MODELS)
    return sorted(names, key=lambda name: ("@" in name, models.index(spec_of(name).name), name))


def _enter(done: list[Exported], chosen: Mapping[str, checkpoint.Weights], folder: Path) -> None:
    """Enter exported models into the index; what was measured of the same weights stays."""
    path, copied = folder / pretrained.INDEX, folder / checkpoint.FILE_NAME
    entries = pretrained.read_index(path)["models"] if path.exists() else {}
    for one in done:
        weights, known = chosen[one.name], entries.get(one.name, {})
        entries[one.name] = {
            "file": one.path.name,
            "sha256": pretrained.sha256(one.path),
            "preset": weights.preset,
            "parameters": spec_of(one.name).presets[weights.preset].parameters,
            "gflop_256": round(one.gflop_256, 3),
            "validation": weights.metadata.get("validation", {}),
            "recipe": weights.metadata.get("recipe", {}),
            "variants": _variants(one.path),
        }
        for key, command in (("sigma", "calibrate"), ("quality", "quality")):
            if known.get(key, {}).get("weights_sha256") == weights_sha256(weights.state):
                entries[one.name][key] = known[key]
            else:
                log.info("%s: %s is not known yet; emdn-train %s", one.name, key, command)

    def mean_gain(name: str) -> float:
        gains = entries[name].get("validation", {}).get("gain_db", {})
        return sum(gains.values()) / len(gains) if gains else float("-inf")

    names = _ordered(entries)
    made = {
        # None where all are for movies.
        "default": max((one for one in names if "@" not in one), key=mean_gain, default=None),
        "checkpoint": {"file": copied.name, "sha256": pretrained.sha256(copied)},
        "models": {name: entries[name] for name in names},
    }
    pretrained.write_index(path, made)


@one_thread()
def add_precision(source: Path, precision: str) -> Path:
    """Make ``NAME.int8.onnx`` or ``NAME.fp16.onnx`` beside a ``NAME.onnx`` and enter it.

    A ModelError says that it is refused, and what an earlier run made of it is removed, if over
    simulated frames the gain falls by more than 0.1 dB, or the intensity moves by more than 0.5 %.
    """
    target = source.with_suffix(f".{precision}.onnx")
    try:
        with renamed(target) as partial:
            model = quantised(source, partial) if precision == "int8" else halved(source)
            known = {**_metadata(source), "precision": precision}
            helper.set_model_props(model, known)
            onnx.checker.check_model(model, full_check=True)
            onnx.save(model, partial)
            loss, shift = losses(*(open_session(one, "cpu", 1) for one in (source, partial)))
            found = f"{target}: loses {loss:.3f} dB, mean off by {shift:.3%}"
            if not (loss <= LARGEST_LOSS_DB and shift <= LARGEST_MEAN_SHIFT):  # nor a NaN
                limits = f"{LARGEST_LOSS_DB} dB and {LARGEST_MEAN_SHIFT:.1%}"
                raise ModelError(f"{found}; refused, {limits} are allowed")
            log.info("%s", found)
    except ModelError:
        target.unlink(missing_ok=True)
        raise
    finally:
        facts = {"variants": _variants(source)}
        pretrained.add_facts(source.parent, source.stem, pretrained.sha256(source), facts)
    return target


def _metadata(path: Path) -> dict[str, str]:
    return {one.key: one.value for one in onnx.load(path).metadata_props}


def _variants(source: Path) -> dict[str, dict[str, str]]:
    """Describe the files of the same weights in other precisions, as the index does."""
    weights, found = _metadata(source)["weights_sha256"], dict[str, dict[str, str]]()
    for precision in ("int8", "fp16"):
        path = source.with_suffix(f".{precision}.onnx")
        if path.exists() and _metadata(path)["weights_sha256"] == weights:
            found[precision] = {"file": path.name, "sha256": pretrained.sha256(path)}
    return found


@cache
def simulated() -> list[Recorded]:
    """Simulate frames, those that int8 takes its ranges from and then those to judge on."""
    return list(recordings(_RANGED + _JUDGED, 128))


def _inputs(frame: Recorded, count: int) -> tuple[NDArray[np.float32], float, float, float]:
    """Return (1, count, H, W), a frame amid its neighbours; its scale, offset and gain."""
    stack = resting_movie(frame.noisy, frame.clean, count)
    found = scale_of(stack)
    return stack[None], found.scale, found.offset, found.gain


def losses(model: Session, variant: Session) -> tuple[float, float]:
    """Return the mean loss of gain in dB, and the mean shift of a frame's mean intensity."""
    lost, shifts = [], []
    for frame in simulated()[-_JUDGED:]:
        inputs = _inputs(frame, model.info.frames)
        before, after = (one.run(*inputs)[0] for one in (model, variant))
        gains = [metrics.gain_db(frame.noisy, y, frame.clean, frame.valid) for y in (before, after)]
        lost.append(float(gains[0] - gains[1]))
        shifts.append(abs(float(after.mean(dtype=float) / before.mean(dtype=float)) - 1))
    return float(np.mean(lost)), float(np.mean(shifts))


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
    inner = [one for one in found if not ahead.intersection(one.output)][1:-1]
    if not inner:
        raise ModelError(f"{model.graph.name}: has no inner convolutions; use fp32")
    return inner


def quantised(source: Path, target: Path) -> onnx.ModelProto:
    """Return a model whose inner convolutions compute in integers, between pairs of QDQ nodes.

    Weights have 7 bits, so that sums of two products do not saturate on processors without
    VNNI: the file gives the same frames on all of them. Transposed convolutions have no integers.
    """
    model = unpacked(source)
    inner = [node for node in inner_convolutions(model) if node.op_type == "Conv"]
    results = {name for node in inner for name in node.output}
    inner += [one for one in model.graph.node if one.op_type == "Relu" and one.input[0] in results]
    count = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value

    class Frames(CalibrationDataReader):  # type: ignore[misc]
        frames = iter(simulated()[:_RANGED])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            if (frame := next(self.frames, None)) is None:
                return None
            stack, *numbers = _inputs(frame, count)
            columns = (np.full((1, 1, 1, 1), number, np.float32) for number in numbers)
            return dict(zip(INPUTS, (stack, *columns), strict=True))

    # Or it advises to optimise first, which is not for a file to keep.
    helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_static(
        model, target, Frames(), quant_format=QuantFormat.QDQ, per_channel=True,
        reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        nodes_to_quantize=[node.name for node in inner],
    )  # fmt: skip
    return onnx.load(target)


def halved(source: Path) -> onnx.ModelProto:
    """Return a model that computes in float16 from the net's inner convolutions on to the last.

    What enters is clipped: beyond the largest half are infinities, and from them NaN.
    onnxruntime's own converter would make halves of intensities too.
    """
    known = shape_inference.infer_shapes(unpacked(source), strict_mode=True)
    ends = [node.output[0] for node in inner_convolutions(known)]
    model = ir.from_proto(known)
    order = list(model.graph)
    made = [node.outputs[0].name for node in order]
    net = order[made.index(ends[0]) : made.index(ends[-1]) + 1]
    inside = {one for node in net for one in node.outputs if one.dtype == ir.DataType.FLOAT}
    limits = [ir.node("Constant", [], {"value_float": sign * _LARGEST_HALF}) for sign in (-1, 1)]
    model.graph.insert_before(order[0], limits)
    casts = dict[ir.Value, ir.Value]()
    for node in order:
        inner = node in net
        # The factors of a Resize are float32 whatever the image is.
        for at, value in enumerate(node.inputs[:1] if node.op_type == "Resize" else node.inputs):
            outer = value not in inside
            if value is None or value.dtype != ir.DataType.FLOAT or inner != outer:
                continue
            if value not in casts:
                clip = ir.node("Clip", [value, *(limit.outputs[0] for limit in limits)])
                to = ir.DataType.FLOAT16 if inner else ir.DataType.FLOAT
                cast = ir.node("Cast", clip.outputs if inner else [value], {"to": to})
                model.graph.insert_before(node, [clip, cast] if inner else [cast])
                casts[value] = cast.outputs[0]
            node.replace_input_with(at, casts[value])
    for value in inside:
        value.dtype = ir.DataType.FLOAT16
    return folded(model, lambda node: node.op_type in ("Clip", "Cast"))
