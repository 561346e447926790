"""Fine-tune a model on one stack without clean frames, and keep it only if that has helped."""

import logging
import os
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from emdn_deploy.readers import Choice, open_frames
from emdn_deploy.readers.frames import select
from emdn_models import FormatError, checkpoint
from emdn_models.lock import locked
from emdn_models.metrics import Estimate
from emdn_models.nets import build
from emdn_train import outputs
from emdn_train.adapt_config import RECIPE, AdaptConfig
from emdn_train.config import Fitted
from emdn_train.export import weights_sha256
from emdn_train.fit import LOCK, begin, train
from emdn_train.held_out import Verdict, compare, motion
from emdn_train.interrupt import signals_noted
from emdn_train.neighbours import Movie, Neighbours
from emdn_train.parallel import Processes, pick_device
from emdn_train.resume import FILE_NAME, StateFile
from emdn_train.start import start_from

log = logging.getLogger(__name__)

HELD_OUT = (0.15, 6, 32)
"""Share of the frames, the last ones, that the result is judged on; least and most of them."""

MOTION = 0.005
"""What motion may add to the difference of neighbours, as a share of the noise's variance:
a tenth of the error that is left by a denoiser of 13 dB."""


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes
    ----------
    outcome
        ``gained``; or, with the starting weights kept, ``nothing gained`` or ``diverged``.
    verdict
        The start and the tuned net on the frames held out; None if it diverged.
    drift
        How much the frames trained on move (`emdn_train.held_out.motion`).
    path
        The checkpoint.
    """

    outcome: Literal["gained", "nothing gained", "diverged"]
    verdict: Verdict | None
    drift: Estimate | None
    steps: int
    path: Path


def adapt(config: AdaptConfig) -> Adapted:
    """Fit a model to a stack of raw frames, from weights that it has, and judge the result.

    The last frames (`HELD_OUT`) are not trained on. If on these the error of the tuned net
    is not less than the start's by more than the standard error of the difference, the
    checkpoint holds the start. A run that was stopped is continued by the same config.

    Raises
    ------
    FormatError
        If the stack has fewer than 12 frames, or cannot be read or corrected.
    KeyboardInterrupt
        On SIGINT or SIGTERM, once the step is finished and the state saved.
    CheckpointError
        If the folder holds an unfinished run of another config.
    OutputError
        If another process works on the folder, or it cannot be written to.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / LOCK, out):
        return _adapt(config, out)


def _adapt(config: AdaptConfig, out: Path) -> Adapted:
    fit, options = config.as_fit(), config.as_deployment()
    processes = Processes(pick_device(config.device))
    with open_frames(config.stack, Choice(config.dataset, config.axes)) as opened:
        stack = opened if config.frames is None else select(opened, config.frames)
        training, held = parts(stack.shape[0], stack.path)
        movie = Movie.of(stack, options)
        start = build(config.model, config.preset)
        start_from(start, config.model, fit)
        start.to(processes.device)
        drift = motion(movie, training[:32])
        warn_of_motion(drift, movie)
        state = StateFile(out / FILE_NAME, identity(config, movie, start))
        t = begin(config.model, fit, RECIPE, processes, state)
        source = Neighbours(movie, len(training), config.patch, processes.device)
        with signals_noted() as signals:
            finite = train(t, fit, RECIPE, source, [], processes, state, signals)
        tuned = t.average.module
        verdict = compare(movie, held, start, tuned) if finite else None
    if verdict is None:
        outcome: Literal["gained", "nothing gained", "diverged"] = "diverged"
    else:
        outcome = "gained" if verdict.better else "nothing gained"
    if outcome != "gained":
        log.warning("%s: %s: kept the starting weights", config.model, outcome)
        t.average.module.load_state_dict(start.state_dict())
    result = Fitted(
        config.model, "fitted", t.history, {}, verdict.mean_ratio if verdict else 1.0,
        t.seen / t.trained,
    )  # fmt: skip
    data = f"{len(training)} frames of {movie.path}, neighbours as each other's target"
    weights = outputs.weights(result, t, fit, RECIPE, data, processes)
    told = {
        "outcome": outcome,
        "stack": described(config, movie, start, len(held)),
        "held_out": None if verdict is None else numbers(verdict),
        "drift": None if drift is None else asdict(drift),
    }
    recipe = {**weights.metadata["recipe"], "adapted": told}
    weights = replace(weights, metadata={**weights.metadata, "recipe": recipe})
    path = out / checkpoint.FILE_NAME
    checkpoint.save(path, {**outputs.existing(out), config.model: weights})
    outputs.write_results(out, fit, [result], processes)
    state.remove()
    return Adapted(outcome, verdict, drift, t.step, path)


def parts(count: int, path: Path) -> tuple[range, range]:
    """Return the frames to train on, and those to judge by, which are the last.

    Raises
    ------
    FormatError
        If there are too few.
    """
    share, least, most = HELD_OUT
    if count < 2 * least:
        raise FormatError(
            f"{path}: has {count} frames, expected {2 * least} or more: neighbours to learn "
            f"from, and {least} to judge by; without them use the shipped weights"
        )
    held = min(max(round(share * count), least), most)
    return range(count - held), range(count - held, count)


def warn_of_motion(drift: Estimate | None, movie: Movie) -> None:
    """Say so if neighbours differ by motion as well as by noise."""
    if drift is None or not drift.value > 3 * drift.se:
        return
    # Steady motion: neighbours differ by a third of it (`emdn_models.metrics.umse`).
    share = drift.value / 3 / movie.scale.scale
    if share < MOTION:
        return
    log.warning(
        "%s: moves: between neighbours by %.2g %% of the noise's variance; details that move by "
        "a pixel or more a frame are learned blurred, align the stack or record faster",
        movie.path, 100 * share,
    )  # fmt: skip


def identity(config: AdaptConfig, movie: Movie, start: nn.Module) -> dict[str, Any]:
    """Name all that the result follows from; the folder and the stack may move."""
    options = {
        key: None if value is None else os.fspath(value) if isinstance(value, PathLike) else value
        for key, value in asdict(config).items()
        if key not in ("stack", "out")
    }
    return {
        **asdict(RECIPE), **options, "device": pick_device(config.device).type,
        "frames": movie.digest, "start": sha256(start), "torch": torch.__version__,
    }  # fmt: skip


def described(config: AdaptConfig, movie: Movie, start: nn.Module, held: int) -> dict[str, Any]:
    """Describe, for the checkpoint, what was adapted to what."""
    return {
        "path": os.fspath(movie.path), "shape": movie.shape, "digest": movie.digest,
        "selected": config.frames, "held_out": held, "intensity": asdict(movie.scale),
        "start": os.fspath(config.start), "start_sha256": sha256(start),
    }  # fmt: skip


def numbers(verdict: Verdict) -> dict[str, float]:
    """Return uMSE before and after and the fall, each with its standard error."""
    return {
        f"{name}{ending}": number
        for name, found in (
            ("umse_before", verdict.before.error),
            ("umse_after", verdict.after.error),
            ("fell", verdict.fell),
        )
        for ending, number in (("", found.value), ("_se", found.se))
    }


def sha256(net: nn.Module) -> str:
    """Hash a net's weights as an exported graph names them."""
    state = deepcopy(net).cpu().state_dict()
    return weights_sha256({key: tensor.contiguous().numpy() for key, tensor in state.items()})
