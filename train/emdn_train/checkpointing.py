"""What a fit leaves behind: the state that it is resumed from, weights and metrics.

``fit_state.h5`` is written by `emdn_models.checkpoint`: groups of tensors net, average, best and
optimizer.N, and text, JSON of what must stay the same, results so far and counters. No generator is
saved: all chance follows from the seed and the step (`emdn_train.dataset.chance`).
"""

import json
import logging
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from emdn_deploy.bench import machine
from emdn_models import checkpoint
from emdn_models.errors import CheckpointError
from emdn_models.files import renamed
from emdn_train.config import WARM_UP, FitConfig, Recipe
from emdn_train.loss import hardware

log = logging.getLogger(__name__)

EVERY_S = 60.0
"""Seconds between two saves."""


@dataclass(kw_only=True)
class Fitted:
    """What is known of a model that is being or has been fitted.

    In the end its status is ``fitted``; ``best kept``, earlier weights, which were clearly better
    than the last ones; ``no gain``, worse than the noisy frame, as after too few steps; or
    ``diverged``, which is not saved. Gains are means over frames of 10 log10(MSE noisy / MSE
    denoised) by level of signal to noise, empty where not measured.
    """

    name: str
    status: Literal["unfinished", "fitted", "best kept", "no gain", "diverged"] = "unfinished"
    start: dict[str, Any] | None = None  # how the weights were fitted that it started from
    step: int = 0
    seen: int = 0  # patches so far
    loss: float = 0.0  # sum, and number, of the losses of the epoch so far
    losses: int = 0
    elapsed: float = 0.0  # seconds of all parts of the run, and those in steps
    trained: float = 0.0
    # A row an epoch: loss, learning rate, validation gain, seconds.
    history: list[dict[str, Any]] = field(default_factory=list)
    start_db: dict[str, float] = field(default_factory=dict)  # before the first step
    gain_db: dict[str, float] = field(default_factory=dict)  # at the end
    best_db: dict[str, float] = field(default_factory=dict)  # of the weights validated best
    best_step: int = 0  # after how many steps; 0: the start
    mean_ratio: float = math.nan  # of the denoised to the noisy frames

    @property
    def images_per_s(self) -> float:
        """Patches through full training steps, noise included."""
        return self.seen / self.trained

    def known(self) -> dict[str, Any]:
        """Return all but the tensors."""
        return {one.name: getattr(self, one.name) for one in fields(Fitted)}

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.name}: {self.status}, {mean(self.gain_db):.2f} dB over the noisy frame (at the "
            f"start {mean(self.start_db):.2f}), mean out/in {self.mean_ratio:.4f}, "
            f"{self.images_per_s:.1f} images/s"
        )

    def end_epoch(self, epoch: int, lr: float) -> None:
        """Add a row to the history and begin the next epoch's mean."""
        self.history.append({
            "epoch": epoch, "step": self.step, "loss": self.loss / self.losses, "lr": lr,
            "seconds": self.elapsed,
        })  # fmt: skip
        self.loss, self.losses = 0.0, 0


@dataclass(kw_only=True)
class Training(Fitted):
    """One model while it is being fitted; it changes with every step."""

    net: nn.Module
    average: nn.Module  # moving average of the net
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor] = field(default_factory=dict)  # the average that was validated best

    def note(self, gains: dict[str, float]) -> None:
        """Remember the average as it is if it is the best so far, by its ``gains``."""
        if not self.best_db or mean(gains) > mean(self.best_db):
            self.best = {key: value.clone() for key, value in self.average.state_dict().items()}
            self.best_db, self.best_step = gains, self.step


class StateFile:
    """The file that a run is continued from; it is there while the run is not complete.

    ``run`` is what must be the same for the run to be continued, else a `CheckpointError` says what
    differs; ``done`` are the results of models that are finished, by name.
    """

    def __init__(self, out: Path, run: Mapping[str, Any]) -> None:
        self.path = out / "fit_state.h5"
        self.done: dict[str, dict[str, Any]] = {}
        self._run = json.loads(json.dumps(dict(run), default=os.fspath))
        self._known: dict[str, Any] = {}
        self._saved = time.perf_counter()
        if not self.path.exists():
            return
        try:
            self._groups = {name: one.state for name, one in checkpoint.load(self.path).items()}
            text = json.loads(self._groups["text"]["json"].tobytes())
            saved, self.done, self._known = text["run"], text["done"], text["training"]
        except (CheckpointError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: no run can be continued from it ({error}); delete it to start over"
            ) from error
        if other := [
            f"{key} {saved.get(key)!r} and not {self._run.get(key)!r}"
            for key in {**saved, **self._run}
            if saved.get(key) != self._run.get(key)
        ]:
            raise CheckpointError(
                f"{self.path}: the unfinished run in this folder has {', '.join(other)}; repeat "
                "its options to continue it, choose another --out, or delete the file to start over"
            )

    def restore(self, training: Training) -> None:
        """Put a model where it was, if the file holds it."""
        if self._known.get("name") != training.name:
            return
        groups = {
            name: {key: torch.as_tensor(array) for key, array in arrays.items()}
            for name, arrays in self._groups.items()
        }
        training.net.load_state_dict(groups["net"])
        training.average.load_state_dict(groups["average"])
        training.best = groups["best"]
        state = training.optimizer.state_dict()
        state["state"] = {
            int(name.partition(".")[2]): moments
            for name, moments in groups.items()
            if name.startswith("optimizer.")
        }
        training.optimizer.load_state_dict(state)
        # A fused optimiser walks through memory: its moments must lie as the weights do.
        for parameter, values in training.optimizer.state.items():
            for key, value in values.items():
                if value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter).copy_(value)
        for key, value in self._known.items():
            setattr(training, key, value)
        log.info("%s: continuing after step %d", training.name, training.step)

    def due(self) -> bool:
        """Say whether it is time to save."""
        return time.perf_counter() - self._saved > EVERY_S

    def save(self, training: Training | None = None) -> None:
        """Write results and, if given, a model under way; the old file stays until it is whole."""
        known = training.known() if training else {}
        text = json.dumps({"run": self._run, "done": self.done, "training": known})
        # No attribute, which may not exceed 64 kB, as a history does.
        groups = {"text": checkpoint.Weights("", {"json": np.frombuffer(text.encode(), "u1")})}
        if training:
            moments = training.optimizer.state_dict()["state"]
            states = {
                "net": training.net.state_dict(),
                "average": training.average.state_dict(),
                "best": training.best,
                **{f"optimizer.{key}": values for key, values in moments.items()},
            }
            for name, tensors in states.items():
                arrays = {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
                groups[name] = checkpoint.Weights("", arrays)
        checkpoint.save(self.path, groups)
        self._saved = time.perf_counter()


def save_weights(
    out: Path, t: Training, config: FitConfig, recipe: Recipe, data: str, **facts: Any
) -> None:
    """Save a net's averaged tensors with how it was fitted and what it was measured to do.

    ``data`` says in words what it was fitted to, and ``facts`` go with the recipe. Other models of
    the folder's checkpoint stay in it.
    """
    best = t.status == "best kept"
    names = ("recipe", "epochs", "batch_size", "patch", "seed")
    trained = {name: getattr(config, name) for name in names} | {
        "recipe_details": asdict(recipe),
        "data": data,
        "start": t.start,
        "steps": t.step,
        "kept_step": t.best_step if best else None,
        "warm_up_steps": 0 if recipe.warmup else WARM_UP,
        "minutes": round(t.elapsed / 60, 2),
        "hardware": hardware(next(t.net.parameters()).device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    }
    gains = t.best_db if best else t.gain_db
    validation = {
        "gain_db": {level: round(gain, 2) for level, gain in gains.items()},
        "mean_ratio": round(t.mean_ratio, 5),
    }
    state = {
        key: tensor.cpu().contiguous().numpy() for key, tensor in t.average.state_dict().items()
    }
    metadata = {"status": t.status, "recipe": trained, "validation": validation}
    path = out / checkpoint.FILE_NAME
    models = checkpoint.load(path) if path.exists() else {}
    new = {t.name: checkpoint.Weights(config.preset, state, metadata)}
    checkpoint.save(path, models | new)


def write_results(
    out: Path, config: FitConfig, results: Sequence[Fitted], device: torch.device
) -> None:
    """Write all that is known of each model to ``metrics.json``; earlier ones stay in it."""
    path = out / "metrics.json"
    where = {"machine": platform.node(), "hardware": hardware(device)} | machine("torch")
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for one in results:
        known = one.known() | {"images_per_s": one.images_per_s, "where": where}
        entries[one.name] = known | {"arguments": asdict(config)}
    with renamed(path) as partial:
        text = json.dumps(entries, indent=2, default=os.fspath)
        partial.write_text(text + "\n", encoding="utf-8")


def mean(gains: Mapping[str, float]) -> float:
    """Return the mean gain over the levels of signal to noise, NaN of none."""
    return sum(gains.values()) / len(gains) if gains else math.nan
