"""BioImage.IO packages: exported models for Fiji, deepImageJ, QuPath, ilastik and napari.

These programs give a model one tensor and nothing else. So the graph in a package measures scale,
offset and gain of the frames itself, and shifts its result to the mean of the frame, as
`emdn_deploy` does for a lone frame without bad pixels.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
import onnx
import tifffile
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper
from onnxruntime import InferenceSession
from onnxscript import FLOAT, optimizer, script
from onnxscript import opset17 as op

from emdn_deploy.session import ModelInfo, Session, open_session
from emdn_models import MissingExtraError, ModelError, ParityError, __version__
from emdn_models.errors import install
from emdn_models.files import renamed
from emdn_models.spec import spec_of
from emdn_train.onnx_graph import INPUTS, TOLERANCE
from emdn_train.simulate.dataset import first_specimens

OPSET, IR_VERSION = 17, 8
"""What the onnxruntime of Fiji's plugins reads."""

CELL = 16
"""Side, in pixels, of the windows that noise is measured in."""

_LEAST_SIDE = 64
_INSIDE = 0.25  # cycles per pixel: below, structure
_SPECIMEN, _LEVEL = "dichalcogenide", 0.4

_DOCUMENTATION = """# {name}

Removes noise from electron micrographs{movie}. Made by emdn {version} from its model {model}.

- Input: {frames} channel(s), the frame in the middle; raw intensities, linear in electrons, neither
  normalised nor clipped. Scale, offset and gain are measured in the graph.
- Output: the denoised frame in the units of the input, with the mean of its frame.
- Give whole frames: a tile is scaled by its own noise. Replace dead and hot pixels and NaN first.
- The noise of neighbouring pixels must be independent, as of counting detectors, not of CCDs.
- Integer counts give what `emdn-deploy denoise` gives for a single frame; that program also
  measures stacks, knows correlated noise, corrects detectors and keeps calibration.

## Validation
The test tensors are a simulated frame, at a signal to noise of {level:g} a pixel, and its result.
Mean gains on the fit's own test frames, in dB by signal to noise: {gains}.
"""


@script()
@no_type_check
def _measure(frames: FLOAT[...], waves: FLOAT[...]):
    """Measure scale, offset and gain, (n, 1, 1, 1), of (n, F, h, w), as `emdn_deploy.dose` does.

    The noise is the median amplitude of high frequencies (Donoho and Johnstone, Biometrika 81
    (1994) 425), where a lattice is a few spots and hot pixels are few.
    """
    level = op.ReduceMean(frames, axes=[1, 2, 3])
    shape = op.Concat(op.Constant(value_ints=[-1, 1]), op.Shape(frames, start=2), axis=0)
    rows = op.Concat(op.Shape(frames, start=0, end=1), op.Constant(value_ints=[-1]), axis=0)
    column = op.Constant(value_ints=[-1, 1, 1, 1])

    spectra = op.Conv(op.Reshape(frames, shape), waves, strides=[16, 16])
    amplitudes = op.Reshape(op.Abs(spectra), rows)
    upper, _places = op.TopK(amplitudes, op.Shape(amplitudes, start=1) / 2)
    median = op.Reshape(op.ReduceMin(upper, axes=[1]), column)
    sigma = op.Max(median / 0.6745, op.Abs(level) * 6e-5, 1e-30)

    pixels = op.Reshape(frames, rows)
    lower, _places = op.TopK(pixels, op.Shape(pixels, start=1) / 1000 + 1, largest=0)
    low = op.Reshape(op.ReduceMax(lower, axes=[1]), column)
    positive = op.And(level > 0.0, low > -0.5 * sigma)
    offset = op.Where(positive, 0.0, op.Min(low, level - sigma))

    signal = level - offset
    measured = sigma * (sigma / signal)
    fraction = op.ReduceMax(op.Abs(frames - op.Round(frames)), axes=[1, 2, 3])
    counts = op.And(op.And(positive, fraction == 0.0), op.Abs(measured - 1.0) < 0.2)
    gain = op.Where(counts, 1.0, measured)
    scale = signal / gain
    return scale, offset, gain


@script()
@no_type_check
def _keep_mean(frames: FLOAT[...], made: FLOAT[...]):
    """Shift what a model has made to the mean of the middle one of its frames."""
    middle = op.Gather(frames, op.Shape(frames, start=1, end=2) / 2, axis=1)
    wanted = op.ReduceMean(middle, axes=[2, 3])
    return made + (wanted - op.ReduceMean(made, axes=[2, 3]))


def waves() -> NDArray[np.float32]:
    """Return windowed waves of high frequency, (m, 1, CELL, CELL), of unit norm."""
    places, steps = np.arange(CELL) + 0.5, np.arange(0, CELL, 2)
    window = np.sin(np.pi * places / CELL) ** 2
    lines = window * np.cos(np.pi * places * steps[:, None] / CELL)
    high = np.hypot(steps[:, None], steps) >= 2 * CELL * _INSIDE
    found = np.einsum("uy,vx->uvyx", lines, lines)[high][:, None]
    return np.asarray(found / np.linalg.norm(found, axis=(2, 3), keepdims=True), np.float32)


def one_tensor(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph (n, F, h, w) -> (n, 1, h, w) that measures scale, offset and gain itself.

    Parameters
    ----------
    model
        As ``emdn-train export`` writes it.

    Raises
    ------
    ModelError
        If it has operators that `OPSET` does not have.
    """
    made = lowered(model)
    graph = made.graph
    head, tail = (
        compose.add_prefix(optimizer.optimize(part.to_model_proto()), prefix).graph
        for part, prefix in ((_measure, "measure."), (_keep_mean, "mean."))
    )
    same = {one.name: name for one, name in zip(head.output, INPUTS[1:], strict=True)}
    same |= {"denoised": "made", tail.input[1].name: "made", tail.output[0].name: "denoised"}
    same |= {head.input[0].name: "frames", tail.input[0].name: "frames"}
    nodes = [*head.node, *graph.node, *tail.node]
    for node in nodes:
        node.input[:] = [same.get(name, name) for name in node.input]
        node.output[:] = [same.get(name, name) for name in node.output]
    constants = [numpy_helper.from_array(waves(), head.input[1].name)]
    constants += [*head.initializer, *graph.initializer, *tail.initializer]
    used = {name for node in nodes for name in node.input}
    constants = [one for one in constants if one.name in used]
    denoised = helper.make_tensor_value_info("denoised", TensorProto.FLOAT, ["n", 1, "h", "w"])
    graph.CopyFrom(helper.make_graph(nodes, graph.name, graph.input[:1], [denoised], constants))
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{graph.name}: not in ONNX's operator set {OPSET} ({error})") from error
    return made


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in operator set 17, in which the axes of means were an attribute."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ir_version, made.opset_import[0].version = IR_VERSION, OPSET
    constants = {one.name: one for one in made.graph.initializer}
    later = ("num_outputs", "antialias", "keep_aspect_ratio_policy", "noop_with_empty_axes")
    for node in made.graph.node:
        left = [one for one in node.attribute if one.name not in later]
        if node.op_type in ("ReduceMean", "ReduceMax", "ReduceMin") and node.input[1:]:
            axes = numpy_helper.to_array(constants[node.input.pop()])
            left.append(helper.make_attribute("axes", axes.tolist()))
        del node.attribute[:]
        node.attribute.extend(left)
    return made


def library() -> Any:
    """Return bioimageio.spec, or raise MissingExtraError."""
    try:
        from bioimageio import spec
    except ImportError as error:
        raise MissingExtraError(
            f"packages need bioimageio.spec; install it with: {install('bioimageio')}"
        ) from error
    return spec


def write(source: Path) -> Path:
    """Write a package of an exported model, ``NAME.bioimageio.zip`` beside its ``NAME.onnx``.

    Raises
    ------
    ParityError
        If the graph in the package does not compute what the model does.
    ModelError
        If the specification refuses what is known of the model.
    MissingExtraError
        If bioimageio.spec is not installed.
    """
    spec = library()
    session, target = open_session(source, "cpu"), source.with_suffix(".bioimageio.zip")
    with tempfile.TemporaryDirectory() as scratch, renamed(target) as partial:
        folder = Path(scratch)
        onnx.save(one_tensor(onnx.load(source)), folder / "weights.onnx")
        frames = _test_frames(session.info.frames)
        denoised = _compare(folder / "weights.onnx", session, frames)
        for name, array in (("input", frames), ("output", denoised)):
            np.save(folder / f"{name}.npy", array)
            tifffile.imwrite(folder / f"{name}.tif", array.squeeze(), photometric="minisblack")
        content = _describe(session.info, folder, spec.ModelDescr.implemented_format_version)
        described = spec.build_description(content, context=spec.ValidationContext(root=folder))
        if not isinstance(described, spec.ModelDescr):
            raise ModelError(f"{source}: {described.validation_summary.format()}")
        described.covers = described.covers  # drawn from the tensors, else left out as a default
        spec.save_bioimageio_package(described, output_path=partial)
    return target


def _test_frames(count: int) -> NDArray[np.float32]:
    """Simulate recordings of one scene, (1, count, H, W), in electrons."""
    clean = {one.row["part"]: one.clean for one in first_specimens([_LEVEL])}[_SPECIMEN]
    chance = np.random.default_rng(0)
    return chance.poisson(clean, (1, count, *clean.shape)).astype(np.float32)


def _compare(path: Path, session: Session, frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a package's graph and return what it makes, if that is what the model makes."""
    runner = InferenceSession(path, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = runner.run(None, {"frames": frames})[0]
    wanted = session.run(frames, float(frames.mean(dtype=float)), 0.0, 1.0)
    wanted += frames[:, frames.shape[1] // 2].mean(dtype=float) - wanted.mean(dtype=float)
    difference = float(np.abs(found[:, 0] - wanted).max() / np.ptp(wanted))
    if not difference <= TOLERANCE:
        raise ParityError(
            f"{session.info.path}: its package differs from it by {difference:.1e} of the output's "
            f"range, more than {TOLERANCE:.0e}; nothing was written"
        )
    return found


def _describe(info: ModelInfo, folder: Path, version: str) -> dict[str, Any]:
    """Return the description of a package, and write its documentation into ``folder``."""
    known, half = spec_of(info.name), info.frames // 2
    movie = f", each amid {2 * half} neighbours" if half else ""
    name = f"emdn {info.name.replace('@', ' ')} (electron microscopy denoising)"
    gains = info.quality.get("gain_db", {}).items()
    text = _DOCUMENTATION.format(
        name=name, model=info.name, version=__version__, movie=movie, frames=info.frames,
        level=_LEVEL, gains=", ".join(f"{gain} at {level}" for level, gain in gains) or "unknown",
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")
    channels = [f"frame {step:+d}" if step else "frame" for step in range(-half, half + 1)]

    def tensor(name: str, channels: list[str], size: Callable[[str], Any]) -> dict[str, Any]:
        axes = [{"type": "batch"}, {"type": "channel", "channel_names": channels}]
        axes += [{"type": "space", "id": axis, "size": size(axis)} for axis in "yx"]
        return {
            "id": name, "axes": axes, "data": {"type": "float32"},
            "test_tensor": {"source": f"{name}.npy"}, "sample_tensor": {"source": f"{name}.tif"},
        }  # fmt: skip

    noisy = tensor("input", channels, lambda _: {"min": _LEAST_SIDE, "step": 1})
    clean = tensor("output", ["frame"], lambda axis: {"tensor_id": "input", "axis_id": axis})
    noisy["preprocessing"] = [{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}]
    cited = re.search(r"(arXiv|doi):([\w./]+\w)", known.source)
    prefix = "10.48550/arXiv." if cited and cited[1] == "arXiv" else ""
    return {
        "type": "model",
        "format_version": version,
        "name": name,
        "description": f"Removes noise from electron micrographs{movie}. Network: {known.title}.",
        "authors": [{"name": "The emdn developers"}],
        "cite": [{"text": known.source, "doi": prefix + cited[2]}] if cited else [],
        "license": "MIT",
        "version": __version__,
        "tags": ["denoising", "electron-microscopy", "in-situ", "low-dose", "2d"],
        "documentation": {"source": "README.md"},
        "inputs": [noisy],
        "outputs": [clean],
        "weights": {"onnx": {"source": "weights.onnx", "opset_version": OPSET}},
    }
