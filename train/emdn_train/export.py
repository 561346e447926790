"""From a checkpoint to ONNX files that are proven to compute the same, and their ``index.json``."""

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
from torch.utils.flop_counter import FlopCounterMode

from emdn_models import MODELS, ModelError, __version__, checkpoint, pretrained
from emdn_models.files import renamed, unwritable
from emdn_models.nets import build, load_state
from emdn_models.nets.scaling import BLUR
from emdn_models.spec import spec_of
from emdn_train.onnx_graph import Graph, check_field, compare, describe, pack, rewritten, to_onnx

log = logging.getLogger(__name__)

INDEX = "index.json"


@dataclass(frozen=True)
class Exported:
    """One exported model."""

    name: str
    path: Path
    nodes: int
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
    with the largest mean gain, never one that was fitted to a class of frames (``MODEL@CLASS``);
    these come last. With ``half`` the weights are rounded to float16, and stored in half the space;
    the models compute in float32 all the same.

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
    for name in _ordered(chosen):
        status = chosen[name].metadata.get("status")
        if status not in ("fitted", "best kept", "no gain"):
            log.warning("%s: not exported, its training ended as %r", name, status)
            continue
        if status != "fitted":
            log.warning("%s: its training ended as %r", name, status)
        if half:
            chosen[name] = _rounded(chosen[name])
        exported = export_one(name, chosen[name], folder / f"{name}.onnx")
        done.append(exported)
        log.info("%s: %d nodes, within %.1e of torch", name, exported.nodes, exported.error)
    if not done:
        raise ModelError(f"{os.fspath(source)}: no model to export; fit one with emdn-train fit")
    copied = folder / checkpoint.FILE_NAME
    earlier = checkpoint.load(copied) if copied.exists() else {}
    checkpoint.save(copied, earlier | {one.name: chosen[one.name] for one in done})
    _write_index(folder, {one.name: _entry(one, chosen[one.name]) for one in done})
    return done


def export_one(name: str, weights: checkpoint.Weights, path: Path) -> Exported:
    """Export one model to ``path``, compare it with torch and by tiles, and only then keep it.

    A `ParityError` says that the graph does not compute what the net does, a `ModelError` that
    the weights do not fit, or that the graph sees more than `emdn_models.spec` declares.
    """
    net = build(name, weights.preset)
    preset = spec_of(name).presets[weights.preset]
    load_state(net, name, weights)
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, preset.frames, 256, 256))
    gflop = counter.get_total_flops() / 1e9
    program = to_onnx(rewritten(Graph(net)), preset.frames)
    pack(program)
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
        "quality": json.dumps(_validation(weights)),
        "emdn_version": __version__,
        "git_revision": _revision(),
        "torch_version": version("torch"),
        "onnx_version": version("onnx"),
        "input_units": "any, linear in electrons: frames = gain * electrons + offset",
        "normalisation": "x = (electrons - scale) / sqrt(scale), scale the stack's mean",
        "licence": "MIT",
    }
    describe(program, {key: text for key, text in facts.items() if text})
    # onnxruntime names the model after the file, so the partial keeps the suffix.
    partial = path.with_name(f".partial-{path.name}")
    try:
        onnx.save(program, partial)
        error = compare(net, partial)
        check_field(partial)
        os.replace(partial, path)
    except OSError as failed:
        raise unwritable(path, failed) from failed
    finally:
        partial.unlink(missing_ok=True)
    return Exported(name, path, len(program.graph.node), gflop, error)


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


def _revision() -> str:
    """Name the commit that the code comes from, if it lies in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _validation(weights: checkpoint.Weights) -> Mapping[str, Any]:
    """Return what the fit measured on its own test frames; older checkpoints call it quality."""
    known = weights.metadata
    found: Mapping[str, Any] = known.get("validation", known.get("quality", {}))
    return found


def _ordered(names: Iterable[str]) -> list[str]:
    """Sort names as ``MODELS`` has them, those of models for a class of frames last."""
    models = list(MODELS)
    return sorted(names, key=lambda name: ("@" in name, models.index(spec_of(name).name), name))


def _entry(exported: Exported, weights: checkpoint.Weights) -> dict[str, Any]:
    """Describe an exported file as ``index.json`` does, and its weights."""
    return {
        "file": exported.path.name,
        "sha256": pretrained.sha256(exported.path),
        "preset": weights.preset,
        "parameters": spec_of(exported.name).presets[weights.preset].parameters,
        "gflop_256": round(exported.gflop_256, 3),
        "validation": _validation(weights),
        "recipe": weights.metadata.get("recipe", {}),
        "weights_sha256": weights_sha256(weights.state),
    }


def _write_index(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Enter exported models; what was measured of others, and of the same weights, stays."""
    path, copied = folder / INDEX, folder / checkpoint.FILE_NAME
    earlier = pretrained.read_index(path)["models"] if path.exists() else {}
    for name, entry in entries.items():
        weights, known = entry.pop("weights_sha256"), earlier.get(name, {})
        for key, command in (("sigma", "calibrate"), ("quality", "quality")):
            if known.get(key, {}).get("weights_sha256") == weights:
                entry[key] = known[key]
            else:
                log.info("%s: %s of these weights is not known; emdn-train %s", name, key, command)
        variants = known.get("variants", {}).items()
        entry["variants"] = {key: one for key, one in variants if one["weights_sha256"] == weights}
    entries = earlier | entries
    known_names = [name for name in entries if name.partition("@")[0] in MODELS]
    entries = {name: entries[name] for name in _ordered(known_names)}

    def mean_gain(name: str) -> float:
        gains = entries[name].get("validation", {}).get("gain_db", {})
        return sum(gains.values()) / len(gains) if gains else float("-inf")

    models = [name for name in entries if "@" not in name]
    made = {
        # None where all were fitted to a class of frames.
        "default": max(models, key=mean_gain, default=None),
        "checkpoint": {"file": copied.name, "sha256": pretrained.sha256(copied)},
        "models": entries,
    }
    _write(path, made)


def entries_of(folder: Path, names: tuple[str, ...] | None) -> dict[str, dict[str, Any]]:
    """Return what ``index.json`` says of some models, of all if None."""
    path = folder / INDEX
    models = pretrained.read_index(path)["models"]
    if missing := [name for name in names or () if name not in models]:
        raise ModelError(f"{path}: has no {', '.join(missing)}; it has {', '.join(models)}")
    return {name: models[name] for name in names or models}


def add_facts(folder: Path, name: str, sha256: str, facts: dict[str, Any]) -> None:
    """Add facts to one model's entry; ``sha256`` is that of the file they were measured on."""
    path = folder / INDEX
    index = pretrained.read_index(path)
    if index["models"][name]["sha256"] != sha256:
        raise ModelError(f"{path}: {name} was exported anew meanwhile; repeat this for it")
    index["models"][name] |= facts
    _write(path, index)


def _write(path: Path, index: dict[str, Any]) -> None:
    with renamed(path) as partial:
        partial.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
