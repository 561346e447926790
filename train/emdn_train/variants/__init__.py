"""Variants of exported models that compute with other numbers, where that costs next to nothing.

An exported graph is taken as it is. ``fp16`` computes its net in halves, for GPUs (`halves`),
``int8`` some of its convolutions in integers, for CPUs (`integers`, `insertion`, `ranges`). Each
stands beside its model only if it is as good on simulated frames (`gate`).
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from emdn_deploy.bench.rounds import Ratio
from emdn_deploy.session import open_session
from emdn_models import pretrained
from emdn_train import index
from emdn_train.simulate.threads import one_thread
from emdn_train.uncertainty import SNR, recordings
from emdn_train.variants import gate, speed
from emdn_train.variants.gate import Sample, Verdict
from emdn_train.variants.halves import emulated, halved
from emdn_train.variants.insertion import convolutions
from emdn_train.variants.integers import quantised

log = logging.getLogger(__name__)

PRECISIONS = ("int8", "fp16")
FRAMES, SIZE = 64, 128
"""Simulated frames that integers are fitted to, and their side in pixels."""


@dataclass(frozen=True)
class Result:
    """What came of one variant.

    Attributes
    ----------
    path
        Where it lies; None if it was refused.
    refusal
        Why it was refused; empty if it was not.
    convolutions
        How many compute with other numbers, of how many.
    verdict
        None if there was nothing to compare.
    speed
        Its model's time over its own; None for fp16, which is not for a CPU.
    """

    name: str
    precision: str
    path: Path | None
    refusal: str
    convolutions: tuple[int, int]
    verdict: Verdict | None = None
    speed: Ratio | None = None


@dataclass(frozen=True)
class Frames:
    """Simulated frames that integers are fitted to, and others that variants are judged by."""

    fitted: Sequence[Sample]
    judged: Sequence[Sample]


def make(
    folder: str | PathLike[str],
    precisions: Sequence[str] = PRECISIONS,
    names: tuple[str, ...] | None = None,
) -> Iterator[Result]:
    """Make ``NAME.PRECISION.onnx`` beside each exported model that stands it; tell the index.

    Nothing is written for a variant that is refused, and what an earlier run has made of it goes.

    Parameters
    ----------
    folder
        What ``emdn-train export`` has written.
    names
        Models of the index; None for all.

    Raises
    ------
    ModelError
        If there is no index, or it lacks a model.
    """
    path = Path(folder) / index.NAME
    chosen = index.chosen(path, names)
    frames = simulated()
    for name in chosen:
        for precision in precisions:
            result = make_one(path, name, precision, frames)
            log.info("%s in %s: %s", name, precision, result.refusal or "accepted")
            yield result


@one_thread()
def simulated() -> Frames:
    """Simulate the frames that `make` needs."""
    # Their levels are drawn, and not averaged over.
    fitted = [gate.sample(one, 0.0) for one in recordings(FRAMES, SIZE)]
    return Frames(fitted, gate.samples())


@one_thread()
def make_one(path: Path, name: str, precision: str, frames: Frames) -> Result:
    """Make one variant of one model of the index ``path``, judge it, and only then keep it."""
    entry = index.chosen(path, (name,))[name]
    source = path.parent / entry["file"]
    target = source.with_name(f"{source.stem}.{precision}.onnx")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".variants-") as scratch:
        # onnxruntime names a model after its file.
        made = Path(scratch) / target.name
        result = _judged(name, precision, source, made, frames)
        known = index.chosen(path, (name,))[name].get("variants", {})
        variants = {key: one for key, one in known.items() if key != precision}
        if result.refusal:
            target.unlink(missing_ok=True)
        else:
            variants[precision] = _entry(made, target.name, result)
            os.replace(made, target)
    index.add(path, name, entry["sha256"], {"variants": variants})
    return result if result.refusal else replace(result, path=target)


def _judged(name: str, precision: str, source: Path, made: Path, frames: Frames) -> Result:
    """Write a variant to ``made``, unless no convolution is in it, and compare it."""
    model = onnx.load(source)
    told = {one.key: one.value for one in model.metadata_props}
    told |= {"precision": precision, "fp32_sha256": pretrained.sha256(source)}
    tried = made
    if precision == "fp16":
        total = len(convolutions(model))
        variant, counts = halved(model), (total, total)
        tried = made.with_name("emulated.onnx")
        onnx.save(emulated(variant), tried)
    else:
        found = quantised(model, frames.fitted, made.parent)
        variant, counts = found.model, (found.integers, len(convolutions(model)))
        if not found.integers:
            return Result(name, precision, None, "no convolution stands it", counts)
        told["calibration"] = (
            f"{len(frames.fitted)} simulated frames of {SIZE} x {SIZE}, "
            f"signal to noise {SNR[0]:g} to {SNR[1]:g}"
        )
    helper.set_model_props(variant, told)
    onnx.save(variant, made)
    sessions = [open_session(one, "cpu", 1) for one in (source, made, tried)]
    whole, other = (gate.answers(sessions[at], frames.judged) for at in (0, 2))
    verdict = gate.verdict(whole, other)
    faster = speed.measure(source, made, frames.judged[0]) if precision == "int8" else None
    return Result(name, precision, None, verdict.refusal, counts, verdict, faster)


def _entry(made: Path, file: str, result: Result) -> dict[str, Any]:
    verdict = result.verdict
    assert verdict is not None  # or it is refused
    props = {one.key: one.value for one in onnx.load(made).metadata_props}
    return {
        "file": file,
        "sha256": pretrained.sha256(made),
        "weights_sha256": props["weights_sha256"],
        "loss_db": {f"{level:g}": round(loss, 4) for level, loss in verdict.loss_db.items()},
        "mean_loss_db": round(verdict.mean_loss_db, 4),
        "mean_shift": round(verdict.mean_shift, 6),
        **({} if result.speed is None else {
            "times_as_fast": round(result.speed.median, 2), "by": speed.instructions(),
        }),
    }  # fmt: skip
