"""Exported models as other programs load them: BioImage.IO packages, Triton repositories.

Fiji, deepImageJ, QuPath, ilastik and napari give a model one tensor and nothing else. So the graph
in a package measures scale, offset and gain of the frames itself, and shifts its result to the mean
of the frame, as `emdn_deploy` does for a lone frame without bad pixels.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
import onnx
import tifffile
from onnx import GraphProto, ModelProto, TensorProto, compose, helper, numpy_helper
from onnxruntime import InferenceSession
from onnxscript import FLOAT, optimizer, script
from onnxscript import opset17 as op

from emdn_deploy.session import Session, open_session
from emdn_models import ModelError, __version__
from emdn_models.errors import library
from emdn_models.files import renamed
from emdn_models.spec import spec_of
from emdn_train.simulate.dataset import first_specimens

_OPSET, _IR_VERSION = 17, 8  # what the onnxruntime of Fiji's plugins reads
_CELL = 16  # side, in pixels, of the windows that noise is measured in
_INSIDE = 0.25  # cycles per pixel: below, structure
_LEAST_SIDE = 64
_SPECIMEN, _LEVEL = "dichalcogenide", 0.4  # of the test tensors; signal to noise of a pixel
_MOST_FRAMES, _DELAY_US = 8, 2000  # that a server joins to one run, and waits for at most

_DOCUMENTATION = """# {name}

{description} Made by emdn {version}.

- Input: {frames} channel(s), the frame in the middle; whole frames of raw intensities, linear in
  electrons, whose noise is independent from pixel to pixel, without dead or hot pixels and NaN.
- Output: the denoised frame, with the mean and in the units of the input.

## Validation
The test tensors are a simulated frame and its result. Gains on the fit's test frames, in dB by
signal to noise: {gains}.
"""


def _waves() -> TensorProto:
    """Return windowed waves of high frequency, (m, 1, _CELL, _CELL), of unit norm."""
    places, steps = np.arange(_CELL) + 0.5, np.arange(0, _CELL, 2)
    window = np.sin(np.pi * places / _CELL) ** 2
    lines = window * np.cos(np.pi * places * steps[:, None] / _CELL)
    high = np.hypot(steps[:, None], steps) >= 2 * _CELL * _INSIDE
    found = np.einsum("uy,vx->uvyx", lines, lines)[high][:, None]
    found /= np.linalg.norm(found, axis=(2, 3), keepdims=True)
    return numpy_helper.from_array(found.astype(np.float32), "waves")


_WAVES = _waves()


@script()
@no_type_check
def _measure(frames: FLOAT[...]):
    """Measure scale, offset and gain, (n, 1, 1, 1), of (n, F, h, w), as `emdn_deploy.dose` does.

    The noise is the median amplitude of high frequencies (Donoho and Johnstone, Biometrika 81
    (1994) 425), where a lattice is a few spots and hot pixels are few. Also returned are the
    frames, and the mean of the middle one.
    """
    level = op.ReduceMean(frames, axes=[1, 2, 3])
    shape = op.Concat(op.Constant(value_ints=[-1, 1]), op.Shape(frames, start=2), axis=0)
    rows = op.Concat(op.Shape(frames, start=0, end=1), op.Constant(value_ints=[-1]), axis=0)
    column = op.Constant(value_ints=[-1, 1, 1, 1])

    waves = op.Constant(value=_WAVES)
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
    middle = op.Gather(frames, op.Shape(frames, start=1, end=2) / 2, axis=1)
    mean = op.ReduceMean(middle, axes=[2, 3])
    return op.Identity(frames), scale, offset, gain, mean


def one_tensor(model: ModelProto) -> ModelProto:
    """Return a graph (n, F, h, w) -> (n, 1, h, w) that measures scale, offset and gain itself.

    ``model``: as ``emdn-train export`` writes it. Raises ModelError if it has operators that ONNX's
    set 17 does not have.
    """
    head = optimizer.optimize(_measure.to_model_proto()).graph
    *measured, mean = (one.name for one in head.output)
    pairs = list(zip(measured, (one.name for one in model.graph.input), strict=True))
    graph = compose.merge_graphs(head, _lowered(model.graph), pairs, prefix2="net.")
    shift = [
        helper.make_node("ReduceMean", ["net.denoised"], ["after"], axes=[2, 3]),
        helper.make_node("Sub", [mean, "after"], ["shift"]),
        helper.make_node("Add", ["net.denoised", "shift"], ["denoised"]),
    ]
    name, used = model.graph.name, {one for node in graph.node for one in node.input}
    made = helper.make_model(
        helper.make_graph(
            [*graph.node, *shift], name, model.graph.input[:1],
            [helper.make_tensor_value_info("denoised", TensorProto.FLOAT, ["n", 1, "h", "w"])],
            [one for one in graph.initializer if one.name in used],
        ),
        ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)],
    )  # fmt: skip
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{name}: not in ONNX's operator set {_OPSET} ({error})") from error
    return made


def _lowered(graph: GraphProto) -> GraphProto:
    """Return a copy in operator set 17, in which the axes of means were an attribute."""
    made = GraphProto()
    made.CopyFrom(graph)
    constants = {one.name: one for one in made.initializer}
    later = ("num_outputs", "antialias", "keep_aspect_ratio_policy", "noop_with_empty_axes")
    for node in made.node:
        left = [one for one in node.attribute if one.name not in later]
        if node.op_type in ("ReduceMean", "ReduceMax", "ReduceMin") and node.input[1:]:
            axes = numpy_helper.to_array(constants[node.input.pop()])
            left.append(helper.make_attribute("axes", axes.tolist()))
        del node.attribute[:]
        node.attribute.extend(left)
    return made


def bioimage_io(source: Path) -> Path:
    """Write a package of an exported model, ``NAME.bioimageio.zip`` beside its ``NAME.onnx``.

    Raises ModelError if the specification refuses what is known of the model, MissingExtraError
    without bioimageio.spec.
    """
    spec = library("bioimageio.spec", "bioimageio", "--bioimage-io")
    session, target = open_session(source, "cpu"), source.with_suffix(".bioimageio.zip")
    with tempfile.TemporaryDirectory() as scratch, renamed(target) as partial:
        folder = Path(scratch)
        onnx.save(one_tensor(onnx.load(source)), folder / "weights.onnx")
        clean = {one.row["part"]: one.clean for one in first_specimens([_LEVEL])}[_SPECIMEN]
        shape = (1, session.info.frames, *clean.shape)
        frames = np.random.default_rng(0).poisson(clean, shape).astype(np.float32)
        runner = InferenceSession(folder / "weights.onnx", providers=["CPUExecutionProvider"])
        denoised = runner.run(None, {"frames": frames})[0]
        for name, array in (("input", frames), ("output", denoised)):
            np.save(folder / f"{name}.npy", array)
            tifffile.imwrite(folder / f"{name}.tif", array.squeeze(), photometric="minisblack")
        content = _described(session, folder, spec.ModelDescr.implemented_format_version)
        described = spec.build_description(content, context=spec.ValidationContext(root=folder))
        if not isinstance(described, spec.ModelDescr):
            raise ModelError(f"{source}: {described.validation_summary.format()}")
        described.covers = described.covers  # drawn from the tensors, else left out as a default
        spec.save_bioimageio_package(described, output_path=partial)
    return target


def _described(session: Session, folder: Path, version: str) -> dict[str, Any]:
    """Return the description of a package, and write its documentation into ``folder``."""
    info, source = session.info, spec_of(session.info.name).source
    half = info.frames // 2
    name = f"emdn {info.name.replace('@', ' ')} (electron microscopy denoising)"
    movie = f", each amid {2 * half} neighbours" if half else ""
    description = f"Removes noise from electron micrographs{movie}. Network: {source}."
    gains = [f"{gain} at {level}" for level, gain in info.quality.get("gain_db", {}).items()]
    text = _DOCUMENTATION.format(
        name=name, description=description, version=__version__, frames=info.frames,
        gains=", ".join(gains) or "unknown",
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")
    channels = [f"frame {step:+d}" if step else "frame" for step in range(-half, half + 1)]
    sizes = {axis: {"min": _LEAST_SIDE, "step": 1} for axis in "yx"}
    of_input = {axis: {"tensor_id": "input", "axis_id": axis} for axis in "yx"}
    cited = re.search(r"(arXiv|doi):([\w./]+\w)", source)
    prefix = "10.48550/arXiv." if cited and cited[1] == "arXiv" else ""
    return {
        "type": "model",
        "format_version": version,
        "name": name,
        "description": description,
        "authors": [{"name": "The emdn developers"}],
        "cite": [{"text": source, "doi": prefix + cited[2]}] if cited else [],
        "license": "MIT",
        "version": __version__,
        "tags": ["denoising", "electron-microscopy", "in-situ", "low-dose", "2d"],
        "documentation": {"source": "README.md"},
        "inputs": [
            _tensor("input", channels, sizes)
            | {"preprocessing": [{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}]}
        ],
        "outputs": [_tensor("output", ["frame"], of_input)],
        "weights": {"onnx": {"source": "weights.onnx", "opset_version": _OPSET}},
    }


def _tensor(name: str, channels: list[str], sizes: dict[str, Any]) -> dict[str, Any]:
    """Describe a tensor, (n, channels, y, x)."""
    axes: list[dict[str, Any]] = [{"type": "batch"}, {"type": "channel", "channel_names": channels}]
    axes += [{"type": "space", "id": axis, "size": size} for axis, size in sizes.items()]
    files = {f"{kind}_tensor": {"source": f"{name}.{end}"}
             for kind, end in (("test", "npy"), ("sample", "tif"))}  # fmt: skip
    return {"id": name, "axes": axes, "data": {"type": "float32"}, **files}


def triton(source: Path, repository: Path) -> Path:
    """Add ``NAME.onnx`` to a model repository, or replace it there; an ``@`` becomes a ``-``.

    A request holds ``frames`` (n, F, H, W), as they are, and ``scale``, ``offset`` and ``gain``
    (n, 1, 1, 1), as `emdn_deploy.dose` measures them. Returned is the path of the configuration.
    """
    graph, folder = onnx.load(source).graph, repository / source.stem.replace("@", "-")
    lines = [f'name: "{folder.name}" backend: "onnxruntime" max_batch_size: {_MOST_FRAMES}']
    for kind, tensors in (("input", graph.input), ("output", graph.output)):
        for one in tensors:
            axes = [axis.dim_value or -1 for axis in one.type.tensor_type.shape.dim[1:]]
            lines.append(f'{kind} {{ name: "{one.name}" data_type: TYPE_FP32 dims: {axes} }}')
    lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY_US} }}\n")
    (folder / "1").mkdir(parents=True, exist_ok=True)
    with renamed(folder / "1" / "model.onnx") as partial:
        shutil.copyfile(source, partial)
    with renamed(folder / "config.pbtxt") as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")
    return folder / "config.pbtxt"
