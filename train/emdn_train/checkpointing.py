"""How a run starts, stops and resumes: initial weights, signals, and the file of its state.

``fit_state.h5`` holds what a stopped run needs to go on, as `emdn_models.checkpoint` writes it: the
groups net, average, best and optimizer.N of tensors, and text, JSON of what must stay the same,
results so far and counters. No generator is saved: all chance follows from the seed and the step
(`emdn_train.patches`).
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from emdn_models import ModelError, checkpoint, pretrained
from emdn_models.errors import CheckpointError
from emdn_models.nets import load_state
from emdn_models.spec import spec_of
from emdn_train.config import FitConfig

log = logging.getLogger(__name__)

FILE_NAME = "fit_state.h5"

EVERY_S = 60.0
"""Seconds between two saves."""


@dataclass
class Training:
    """One model while it is being fitted; it changes with every step."""

    name: str
    net: nn.Module
    average: AveragedModel  # moving average of the net
    optimizer: torch.optim.Optimizer
    start: dict[str, Any] | None = None  # how the weights were fitted that it started from
    step: int = 0
    seen: int = 0  # patches so far
    loss: float = 0.0  # sum, and number, of the losses of the epoch so far
    losses: int = 0
    elapsed: float = 0.0  # seconds of all parts of the run, and those in steps
    trained: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)  # a row an epoch
    start_db: dict[str, float] = field(default_factory=dict)  # gain before the first step, by level
    # The average that did best when it was validated, its gain, and after which step.
    best: dict[str, Tensor] = field(default_factory=dict)
    best_db: dict[str, float] = field(default_factory=dict)
    best_step: int = 0

    def note(self, gains: dict[str, float]) -> None:
        """Remember the average as it is if it is the best so far, by its ``gains``."""
        if not self.best_db or sum(gains.values()) > sum(self.best_db.values()):
            state = self.average.module.state_dict()
            self.best = {key: value.clone() for key, value in state.items()}
            self.best_db, self.best_step = gains, self.step

    def end_epoch(self, steps: int) -> None:
        """Add a row to the history and begin the next epoch's mean; ``steps`` are an epoch's."""
        self.history.append({
            "model": self.name, "epoch": -(-self.step // steps), "step": self.step,
            "loss": self.loss / self.losses, "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": self.elapsed,
        })  # fmt: skip
        self.loss, self.losses = 0.0, 0


_TENSORS = {"net", "average", "optimizer", "best"}
_COUNTERS = [key for key in Training.__dataclass_fields__ if key not in _TENSORS]


class StateFile:
    """The file that a run is continued from; it is there while the run is not complete.

    ``run`` is what must be the same for the run to be continued, else a `CheckpointError` says what
    differs; ``done`` are the results of models that are finished, by name.
    """

    def __init__(self, path: str | PathLike[str], run: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.done: dict[str, dict[str, Any]] = {}
        self._run = json.loads(json.dumps(dict(run), default=os.fspath))
        self._counters: dict[str, Any] = {}
        self._saved = time.perf_counter()
        if not self.path.exists():
            return
        try:
            self._groups = {name: one.state for name, one in checkpoint.load(self.path).items()}
            text = self._groups["text"]
            saved, self.done, self._counters = (
                json.loads(text[key].tobytes()) for key in ("run", "done", "training")
            )
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

    def restore(self, training: Training) -> bool:
        """Put a model where it was, and say whether the file holds it."""
        if self._counters.get("name") != training.name:
            return False

        def tensors(group: str) -> dict[str, Tensor]:
            arrays = self._groups.pop(group, {})
            return {key: torch.as_tensor(array) for key, array in arrays.items()}

        training.net.load_state_dict(tensors("net"))
        training.average.load_state_dict(tensors("average"))
        training.best = tensors("best")
        moments = [name for name in self._groups if name.startswith("optimizer.")]
        state = {int(name.partition(".")[2]): tensors(name) for name in moments}
        groups = training.optimizer.state_dict()["param_groups"]
        training.optimizer.load_state_dict({"state": state, "param_groups": groups})
        # A fused optimiser walks through memory: its moments must lie as the weights do.
        for parameter, values in training.optimizer.state.items():
            for key, value in values.items():
                if value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter).copy_(value)
        for counter, value in self._counters.items():
            setattr(training, counter, value)
        return True

    def due(self) -> bool:
        """Say whether it is time to save."""
        return time.perf_counter() - self._saved > EVERY_S

    def save(self, training: Training | None = None) -> None:
        """Write results and, if given, a model under way; the old file stays until it is whole."""
        counters = {key: getattr(training, key) for key in _COUNTERS} if training else {}
        texts = {"run": self._run, "done": self.done, "training": counters}
        # No attributes, which may not exceed 64 kB, as a history does.
        text = {k: np.frombuffer(json.dumps(one).encode(), "u1") for k, one in texts.items()}
        groups = {"text": checkpoint.Weights("", text)}
        if training:
            states = {
                "net": training.net.state_dict(),
                "average": training.average.state_dict(),
                "best": training.best,
            }
            moments = training.optimizer.state_dict()["state"]
            states |= {f"optimizer.{key}": values for key, values in moments.items()}
            for name, tensors in states.items():
                arrays = {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
                groups[name] = checkpoint.Weights("", arrays)
        checkpoint.save(self.path, groups)
        self._saved = time.perf_counter()

    def remove(self) -> None:
        """Delete the file: the run is complete, and the same command starts a new one."""
        self.path.with_name(self.path.name + ".partial").unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def start_from(net: nn.Module, name: str, config: FitConfig) -> dict[str, Any] | None:
    """Load the weights that the config starts from; return how they were fitted, if known.

    A file of ``shipped`` is the packaged checkpoint. A model for a class of frames starts from
    itself where the file has it, else from the model of all frames. A `ModelError` says that the
    file has neither, or of another preset.
    """
    path = os.fspath(config.start or "")
    if path == "shipped" and not Path(path).exists():
        path = os.fspath(pretrained.CHECKPOINT)
    models = checkpoint.load(path)
    own = name if name in models else spec_of(name).name
    weights = checkpoint.pick(path, models, own)
    if weights.preset != config.preset:
        raise ModelError(
            f"{path}: {name} has preset {weights.preset!r}, this run asks for {config.preset!r}"
        )
    load_state(net, name, weights)
    log.info("%s: starts from %s of %s", name, own, path)
    earlier = weights.metadata.get("recipe")
    return earlier if own == name else {**(earlier or {}), "model": own}


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of ending at them.

    A signal that the process was born to ignore stays ignored, and only the main
    thread, which alone may, changes anything.
    """
    noted: list[int] = []
    earlier = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                earlier[number] = signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: was not set from Python
