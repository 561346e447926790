"""From a checkpoint to self-contained ONNX files that are proven to compute the same."""

import copy
import hashlib
import json
import logging
import os
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from emdn_deploy.session import open_session
from emdn_models import MODELS, ModelError, ParityError, __version__, checkpoint, pretrained
from emdn_models.nets import build, load_state
from emdn_models.nets.electrons import BLUR, denormalise, noise_map, normalise
from emdn_train.rewrite import rewritten

log = logging.getLogger(__name__)
# It warns of every torchvision operator that is not there.
logging.getLogger("torch.onnx").setLevel(logging.ERROR)

OPSET = 18
INPUTS = ("frames", "scale", "offset", "gain")
TOLERANCE = 1e-5
"""Largest difference from torch that is let through, as a share of the output's range."""

_SIZES = ((1, 256, 256), (3, 97, 131), (2, 64, 48), (1, 5, 3))


class Graph(nn.Module):
    """A net between intensities in and intensities out, as it is exported.

    denoised = ((net((e - scale) / sqrt(scale))) * sqrt(scale) + scale) * gain + offset
    with e = (frames - offset) / gain. ``frames`` is (n, 1, h, w); scale (mean
    electrons per pixel), offset and gain (units per electron) are (n, 1, 1, 1).
    Nothing in it depends on the whole frame, so that it can be tiled and streamed.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, frames: Tensor, scale: Tensor, offset: Tensor, gain: Tensor) -> Tensor:
        """Denoise (n, 1, h, w)."""
        electrons = (frames - offset) / gain
        y = self.net(normalise(electrons, scale), noise_map(electrons, scale))
        return denormalise(y, scale) * gain + offset


@dataclass(frozen=True)
class Exported:
    """One exported model.

    Attributes
    ----------
    error
        Largest difference between onnxruntime and torch, as a share of the range.
    float32_error
        The same between torch in float32 and in float64: what float32 itself costs.
    """

    name: str
    path: Path
    preset: str
    nodes: int
    parameters: int
    gflop_256: float
    error: float
    float32_error: float


def export(
    source: str | PathLike[str], out: str | PathLike[str], names: tuple[str, ...] | None = None
) -> list[Exported]:
    """Convert models of a checkpoint; write the index and the checkpoint beside them.

    A model that its training run calls anything but fitted is passed over with a
    message. What the folder holds of other models stays. The index names as default
    the model with the largest mean gain.

    Raises
    ------
    ParityError
        If a graph does not compute what its net does; nothing is written for it.
    ModelError
        If a model is asked for that the checkpoint does not hold, or none is left.
    """
    weights = checkpoint.load(source)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {name: checkpoint.pick(source, weights, name) for name in names or weights}
    done: list[Exported] = []
    entries: dict[str, Any] = {}
    for name in sorted(chosen, key=list(MODELS).index):
        status = chosen[name].metadata.get("status")
        if status != "fitted":
            log.warning("%s: not exported, its training ended as %r", name, status)
            continue
        exported = export_one(name, chosen[name], folder / f"{name}.onnx")
        done.append(exported)
        entries[name] = {
            "file": exported.path.name,
            "sha256": pretrained.sha256(exported.path),
            "preset": exported.preset,
            "parameters": exported.parameters,
            "gflop_256": round(exported.gflop_256, 3),
            "quality": chosen[name].metadata.get("quality", {}),
            "recipe": chosen[name].metadata.get("recipe", {}),
        }
        log.info(
            "%s: %d nodes, within %.1e of torch (float32 itself: %.1e)",
            name, exported.nodes, exported.error, exported.float32_error,
        )  # fmt: skip
    if not done:
        raise ModelError(f"{os.fspath(source)}: no model to export; fit one with emdn-train fit")
    copied = folder / checkpoint.FILE_NAME
    kept = checkpoint.load(copied) if copied.exists() else {}
    checkpoint.save(copied, kept | {exported.name: chosen[exported.name] for exported in done})
    _write_index(folder, entries, copied)
    return done


def export_one(name: str, weights: checkpoint.Weights, path: Path) -> Exported:
    """Export one model to ``path``, compare it with torch, and only then keep it."""
    net = build(name, weights.preset)
    load_state(net, name, weights)
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 256, 256))
    gflop = counter.get_total_flops() / 1e9
    preset = MODELS[name].presets[weights.preset]
    program = to_onnx(Graph(rewritten(net)))
    _describe(
        program,
        {
            "emdn_schema": "1",
            "model": name,
            "preset": weights.preset,
            "weights_sha256": weights_sha256(weights.state),
            "multiple": str(preset.multiple),
            "receptive_field": str(_field(net, preset.receptive_field[1])),
            "tiling_exact": str(bool(getattr(net, "tiling_exact", True))).lower(),
            "parameters": str(preset.parameters),
            "gflop_256": f"{gflop:.4f}",
            "recipe": json.dumps(weights.metadata.get("recipe", {})),
            "quality": json.dumps(weights.metadata.get("quality", {})),
            "emdn_version": __version__,
            "git_revision": _revision(),
            "torch_version": version("torch"),
            "onnx_version": version("onnx"),
            "input_units": "any, linear in electrons: frames = gain * electrons + offset",
            "normalisation": "x = (electrons - scale) / sqrt(scale), scale the stack's mean",
            "licence": "MIT",
        },
    )
    # onnxruntime names the model after the file, so the partial keeps the suffix.
    partial = path.with_name(f".partial-{path.name}")
    try:
        onnx.save(program, partial)
        error, float32_error = compare(net, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(
        name, path, weights.preset, len(program.graph.node), preset.parameters, gflop,
        error, float32_error,
    )  # fmt: skip


def to_onnx(graph: nn.Module) -> onnx.ModelProto:
    """Convert a graph with dynamic n, h and w to plain ONNX operators of opset 18."""
    # The example is larger than any multiple, so that no size is taken as fixed.
    example = (torch.rand(2, 1, 320, 288) * 50, *(torch.rand(2, 1, 1, 1) + 1 for _ in range(3)))
    n, h, w = (torch.export.Dim(axis, min=1) for axis in "nhw")
    with warnings.catch_warnings():
        # torch's own converter warns of its own deprecations.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=["denoised"],
            dynamic_shapes=({0: n, 2: h, 3: w}, {0: n}, {0: n}, {0: n}),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise ModelError("torch.onnx.export returned no program")
    model: onnx.ModelProto = program.model_proto
    operators = {node.op_type for node in model.graph.node}
    if "BatchNormalization" in operators:
        log.warning("batch norm stays in the graph: it follows a ReLU and cannot be folded")
    foreign = {node.domain for node in model.graph.node} - {""}
    if foreign:
        raise ModelError(f"the graph uses operators outside ONNX: {', '.join(sorted(foreign))}")
    return model


def compare(net: nn.Module, path: Path) -> tuple[float, float]:
    """Hold an exported file against its net over sizes, batches, doses and units.

    Returns
    -------
    Largest difference from torch, and torch's own between float32 and float64, both
    as shares of the output's range.

    Raises
    ------
    ParityError
        If the first exceeds ``TOLERANCE``.
    """
    session = open_session(path, "cpu")
    reference, exact = Graph(net).eval(), Graph(copy.deepcopy(net).double()).eval()
    worst = worst_float = 0.0
    chance = np.random.default_rng(0)
    for scale, offset, gain in ((0.5, 0.0, 1.0), (40.0, 0.0, 1.0), (9.0, 120.0, 28.0)):
        extent = 0.0
        for count, height, width in _SIZES:
            frames = (_scene(chance, count, height, width, scale) * gain + offset).astype("f4")
            column = [torch.full((count, 1, 1, 1), value) for value in (scale, offset, gain)]
            with torch.no_grad():
                tensor = torch.from_numpy(frames)[:, None]
                expected = reference(tensor, *column)[:, 0].numpy()
                truth = exact(tensor.double(), *(c.double() for c in column))[:, 0].numpy()
            found = session.run(frames, scale, offset, gain)
            # A frame of a few pixels has next to no range of its own.
            extent = extent or float(np.ptp(expected))
            worst = max(worst, float(np.abs(found - expected).max()) / extent)
            worst_float = max(worst_float, float(np.abs(expected - truth).max()) / extent)
    if not worst <= TOLERANCE:
        raise ParityError(
            f"{path.name}: onnxruntime differs from torch by {worst:.1e} of the output's range, "
            f"more than {TOLERANCE:.0e}; nothing was written"
        )
    return worst, worst_float


def weights_sha256(state: Mapping[str, NDArray[Any]]) -> str:
    """Hash names and values of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()


def _scene(
    chance: np.random.Generator, count: int, height: int, width: int, scale: float
) -> NDArray[np.float64]:
    """Count electrons of a lattice under a sloping beam: what a camera would give."""
    y, x = np.mgrid[:height, :width]
    lattice = 1 + 0.3 * np.cos(x / 2.3) * np.cos(y / 2.9 + x / 4)
    beam = 0.5 + np.linspace(0, 1, width)
    return chance.poisson(scale * lattice * beam, (count, height, width)).astype(float)


def _field(net: nn.Module, receptive_field: int) -> int:
    """Add the window of the noise map for a net that reads it."""
    return receptive_field + (BLUR - 1 if getattr(net, "uses_noise", False) else 0)


def _describe(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace torch's traces, which hold paths of this machine, by what deploying needs."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for values in (model.graph.value_info, model.graph.input, model.graph.output):
        for value in values:
            del value.metadata_props[:]
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    model.graph.name = metadata["model"]
    model.producer_name, model.producer_version = "emdn", __version__
    onnx.helper.set_model_props(model, dict(metadata))


def _revision() -> str:
    """Name the commit that the code comes from, if it lies in a git checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def _mean_gain(entry: Mapping[str, Any]) -> float:
    gains = entry["quality"].get("gain_db", {})
    return sum(gains.values()) / len(gains) if gains else float("-inf")


def _write_index(folder: Path, entries: dict[str, Any], copied: Path) -> None:
    path = folder / "index.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else {}
    entries = {name: (earlier | entries)[name] for name in MODELS if name in earlier | entries}
    index = {
        "default": max(entries, key=lambda name: _mean_gain(entries[name])),
        "checkpoint": {"file": copied.name, "sha256": pretrained.sha256(copied)},
        "models": entries,
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
