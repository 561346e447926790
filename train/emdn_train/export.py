"""From a checkpoint to self-contained ONNX files that are proven to compute the same."""

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from emdn_models import MODELS, ModelError, __version__, checkpoint, pretrained
from emdn_models.files import unwritable
from emdn_models.nets import build, load_state
from emdn_models.nets.electrons import BLUR
from emdn_models.spec import Preset, spec_of
from emdn_train import manifest
from emdn_train.onnx_graph import Graph, describe, pack, to_onnx
from emdn_train.onnx_rewrites import rewritten
from emdn_train.verify import check_field, compare

log = logging.getLogger(__name__)


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
    source: str | PathLike[str],
    out: str | PathLike[str],
    names: tuple[str, ...] | None = None,
    *,
    half: bool = False,
) -> list[Exported]:
    """Convert models of a checkpoint; write the index and the checkpoint beside them.

    A model whose training diverged is passed over with a message. What the folder
    holds of other models stays, and the calibration of models whose weights are the same.
    The index names as default the model with the largest mean gain, never one that was fitted to
    a class of frames (``MODEL@CLASS``); these come last.

    Parameters
    ----------
    names
        Models of the checkpoint; None for all.
    half
        Whether to round the weights to float16 first, and to store them so, in half the space.
        The models compute in float32 all the same.

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
    if half:
        chosen = {name: _rounded(one) for name, one in chosen.items()}
    done: list[Exported] = []
    entries: dict[str, Any] = {}
    for name in _ordered(chosen):
        status = chosen[name].metadata.get("status")
        if status not in ("fitted", "best kept", "no gain"):
            log.warning("%s: not exported, its training ended as %r", name, status)
            continue
        if status == "no gain":
            log.warning("%s: worse than the noisy frame when it was fitted", name)
        elif status == "best kept":
            step = chosen[name].metadata["recipe"]["kept_step"]
            log.warning("%s: as it was after step %d, since its fit ended worse", name, step)
        exported = export_one(name, chosen[name], folder / f"{name}.onnx")
        done.append(exported)
        entries[name] = {
            "file": exported.path.name,
            "sha256": pretrained.sha256(exported.path),
            "preset": exported.preset,
            "parameters": exported.parameters,
            "gflop_256": round(exported.gflop_256, 3),
            "validation": _validation(chosen[name]),
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
    _write_index(folder, entries, copied, chosen)
    return done


def export_one(name: str, weights: checkpoint.Weights, path: Path) -> Exported:
    """Export one model to ``path``, compare it with torch and by tiles, and only then keep it.

    Raises
    ------
    ParityError
        If the graph does not compute what the net does.
    ModelError
        If the weights do not fit, or the graph sees more than `emdn_models.spec` declares.
    """
    preset = spec_of(name).presets.get(weights.preset)
    net = build(name, weights.preset)
    load_state(net, name, weights)
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert preset is not None  # build has looked it up
        net(torch.zeros(1, preset.frames, 256, 256))
    gflop = counter.get_total_flops() / 1e9
    program = to_onnx(rewritten(Graph(net)), preset.frames)
    pack(program)
    describe(
        program,
        {
            "emdn_schema": "1",
            "model": name,
            "preset": weights.preset,
            "weights_sha256": weights_sha256(weights.state),
            "frames": str(preset.frames),
            "multiple": str(preset.multiple),
            **_field(net, preset),
            "parameters": str(preset.parameters),
            "gflop_256": f"{gflop:.4f}",
            "recipe": json.dumps(weights.metadata.get("recipe", {})),
            "quality": json.dumps(_validation(weights)),
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
        check_field(partial)
        os.replace(partial, path)
    except OSError as failed:
        raise unwritable(path, failed) from failed
    finally:
        partial.unlink(missing_ok=True)
    return Exported(
        name, path, weights.preset, len(program.graph.node), preset.parameters, gflop,
        error, float32_error,
    )  # fmt: skip


def _rounded(weights: checkpoint.Weights) -> checkpoint.Weights:
    """Round the kernels and matrices of a model to float16; biases stay as they are."""
    state = {
        name: array.astype(np.float16) if array.dtype == np.float32 and array.ndim > 1 else array
        for name, array in weights.state.items()
    }
    return replace(weights, state=state)


def weights_sha256(state: Mapping[str, NDArray[Any]]) -> str:
    """Hash names and values of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()


def _field(net: nn.Module, preset: Preset) -> dict[str, str]:
    """Return the metadata that tiles are cut by: the graph sees the noise map's window too."""
    window = BLUR - 1 if getattr(net, "uses_noise", False) else 0
    return {
        "receptive_field": str(preset.receptive_field[1] + window),
        "tiling_exact": "false" if preset.whole_frame else "true",
        **({"whole_frame": preset.whole_frame} if preset.whole_frame else {}),
        **({"halo": str(preset.halo)} if preset.halo is not None else {}),
    }


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


def _validation(weights: checkpoint.Weights) -> Mapping[str, Any]:
    """Return what the fit measured on its own test frames; older checkpoints call it quality."""
    found: Mapping[str, Any] = weights.metadata.get(
        "validation", weights.metadata.get("quality", {})
    )
    return found


def _ordered(names: Iterable[str]) -> list[str]:
    """Sort names as ``MODELS`` has them, those of models for a class of frames last."""
    models = list(MODELS)
    return sorted(names, key=lambda name: ("@" in name, models.index(spec_of(name).name), name))


def _mean_gain(entry: Mapping[str, Any]) -> float:
    gains = entry.get("validation", {}).get("gain_db", {})
    return sum(gains.values()) / len(gains) if gains else float("-inf")


def _variants(folder: Path, earlier: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Return the variants of other precisions that are of these weights; the others go."""
    kept = {}
    for precision, entry in earlier.get("variants", {}).items():
        if entry["weights_sha256"] == weights:
            kept[precision] = entry
        else:
            (folder / entry["file"]).unlink(missing_ok=True)
            log.info("%s: was of other weights, removed", entry["file"])
    return kept


def _write_index(
    folder: Path,
    entries: dict[str, Any],
    copied: Path,
    chosen: Mapping[str, checkpoint.Weights],
) -> None:
    path = folder / manifest.NAME
    earlier = pretrained.read_index(path)["models"] if path.exists() else {}
    for name, entry in entries.items():
        # A calibration, measured quality and variants belong to weights, and outlive no others.
        weights = weights_sha256(chosen[name].state)
        for key, missing in (
            ("sigma", "has no calibration of --sigma; run emdn-train calibrate"),
            ("quality", "not measured on the fixed test split; run emdn-train quality"),
        ):
            known = earlier.get(name, {}).get(key)
            if known and known["weights_sha256"] == weights:
                entry[key] = known
            else:
                log.info("%s: %s", name, missing)
        if kept := _variants(folder, earlier.get(name, {}), weights):
            entry["variants"] = kept
    entries = earlier | entries
    known = [name for name in entries if name.partition("@")[0] in MODELS]
    entries = {name: entries[name] for name in _ordered(known)}
    models = [name for name in entries if "@" not in name]
    made = {
        # None where all were fitted to a class of frames.
        "default": max(models, key=lambda name: _mean_gain(entries[name]), default=None),
        "checkpoint": {"file": copied.name, "sha256": pretrained.sha256(copied)},
        "models": entries,
    }
    manifest.write(path, made)
