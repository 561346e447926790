"""What a stopped run needs to go on, in ``fit_state.h5``.

Layout (format version 1)::

    /                      attributes: format, format_version
    /run, /done, /training     JSON text: what must stay the same, results so far, counters
    /net/<tensor>, /average/<tensor>, /first/<tensor>, /optimizer/<parameter>/<tensor>

HDF5 and not torch.save, which is a pickle however it is read; any other reader opens this.
No generator is kept: all chance follows from the seed and the step (`emdn_train.source`).
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from emdn_models.errors import CheckpointError
from emdn_models.files import renamed
from emdn_models.hdf5 import written

FILE_NAME = "fit_state.h5"
FORMAT = "emdn-fit-state"
FORMAT_VERSION = 1

EVERY_S = 60.0
"""Seconds between two saves; more where a save takes over a fiftieth of that."""


@dataclass
class Training:
    """One model while it is being fitted; it changes with every step.

    Attributes
    ----------
    net, average, optimizer
        The weights, their moving average and the optimiser of the former.
    start
        How the weights came about that the net started from, if not by chance.
    first, start_db
        The weights before the first step, and their gain by level of signal to noise.
    step, seen
        Optimiser steps and patches so far.
    loss, losses
        Sum and number of the losses of the epoch so far.
    elapsed, trained
        Seconds in all, and those in steps, of all parts of the run.
    history
        A row an epoch.
    """

    name: str
    net: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    start: dict[str, Any] | None = None
    step: int = 0
    seen: int = 0
    loss: float = 0.0
    losses: int = 0
    elapsed: float = 0.0
    trained: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    start_db: dict[str, float] = field(default_factory=dict)
    first: dict[str, Tensor] = field(default_factory=dict)

    def end_epoch(self, steps: int) -> None:
        """Add a row to the history and begin the next epoch's mean; ``steps`` are an epoch's."""
        row = {
            "model": self.name,
            "epoch": -(-self.step // steps),
            "step": self.step,
            "loss": self.loss / self.losses,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": self.elapsed,
        }
        self.history.append(row)
        self.loss, self.losses = 0.0, 0


COUNTERS = (
    "name",
    "start",
    "step",
    "seen",
    "loss",
    "losses",
    "elapsed",
    "trained",
    "history",
    "start_db",
)


class StateFile:
    """The file that a run is continued from; it is there while the run is not complete.

    Parameters
    ----------
    path
        The file. If it is there, its run is taken up.
    run
        What must be the same for the run to be continued, as JSON holds it.
    writes
        Whether this process writes the file, or only reads it.

    Attributes
    ----------
    done
        Results of the models that are finished, by name.

    Raises
    ------
    CheckpointError
        If the file is of another run, or cannot be read.
    """

    def __init__(
        self, path: str | PathLike[str], run: Mapping[str, Any], writes: bool = True
    ) -> None:
        self.path = Path(path)
        self.done: dict[str, dict[str, Any]] = {}
        self._writes = writes
        self._run = json.loads(json.dumps(dict(run), default=os.fspath))
        self._counters: dict[str, Any] = {}
        self._saved, self._cost = time.perf_counter(), 0.0
        if self.path.exists():
            with _reading(self.path) as file:
                self._compare(json.loads(file["run"].asstr()[()]))
                self.done = json.loads(file["done"].asstr()[()])
                self._counters = json.loads(file["training"].asstr()[()])

    def restore(self, training: Training) -> bool:
        """Put a model where it was, and say whether the file holds it."""
        if self._counters.get("name") != training.name:
            return False
        with _reading(self.path) as file:
            training.net.load_state_dict(_tensors(file["net"]))
            training.average.load_state_dict(_tensors(file["average"]))
            state = {int(key): _tensors(group) for key, group in file["optimizer"].items()}
            training.first = _tensors(file["first"]) if "first" in file else {}
        groups = training.optimizer.state_dict()["param_groups"]
        training.optimizer.load_state_dict({"state": state, "param_groups": groups})
        # A fused optimiser walks through memory: its moments must lie as the weights do.
        for parameter, values in training.optimizer.state.items():
            for key, value in values.items():
                if value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter).copy_(value)
        for counter in COUNTERS:
            if counter in self._counters:  # files of before have no start_db
                setattr(training, counter, self._counters[counter])
        return True

    def due(self) -> bool:
        """Say whether it is time to save: saving takes less than 2 % of the time."""
        return self._writes and time.perf_counter() - self._saved > max(EVERY_S, 50 * self._cost)

    def save(self, training: Training | None = None) -> None:
        """Write results and, if given, a model under way; the old file stays until it is whole."""
        if not self._writes:
            return
        began = time.perf_counter()
        counters = {key: getattr(training, key) for key in COUNTERS} if training else {}
        with renamed(self.path) as partial, written(partial) as out:
            file = out.file
            file.attrs["format"] = FORMAT
            file.attrs["format_version"] = FORMAT_VERSION
            # Datasets, since an attribute may not exceed 64 kB and a history does.
            file["run"] = json.dumps(self._run)
            file["done"] = json.dumps(self.done)
            file["training"] = json.dumps(counters)
            if training:
                state = training.optimizer.state_dict()["state"]
                groups = {f"optimizer/{key}": values for key, values in state.items()}
                groups["net"] = training.net.state_dict()
                groups["average"] = training.average.state_dict()
                groups["first"] = training.first
                file.create_group("optimizer")
                for group, tensors in groups.items():
                    for key, tensor in tensors.items():
                        file[f"{group}/{key}"] = tensor.cpu().numpy()
        self._saved = time.perf_counter()
        self._cost = self._saved - began

    def finish(self, name: str, result: dict[str, Any]) -> None:
        """Note the result of a model, which is then not fitted again."""
        self.done[name] = result
        self.save()

    def remove(self) -> None:
        """Delete the file: the run is complete, and the same command starts a new one."""
        if not self._writes:
            return
        self.path.with_name(self.path.name + ".partial").unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _compare(self, saved: dict[str, Any]) -> None:
        found = [
            f"{key} {saved.get(key)!r} and not {self._run.get(key)!r}"
            for key in {**saved, **self._run}
            if saved.get(key) != self._run.get(key)
        ]
        if found:
            raise CheckpointError(
                f"{self.path}: the unfinished run in this folder has {', '.join(found)}; "
                "repeat its options to continue it, choose another --out, or delete the "
                "file to start over"
            )


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """Open a state file, and name what is wrong with it."""
    try:
        with h5py.File(path, "r") as file:
            found = (file.attrs.get("format"), int(file.attrs.get("format_version", 0)))
            if found != (FORMAT, FORMAT_VERSION):
                raise ValueError(f"format {found}, expected {(FORMAT, FORMAT_VERSION)}")
            yield file
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: no run can be continued from it ({error}); delete it to start over"
        ) from error


def _tensors(group: h5py.Group) -> dict[str, Tensor]:
    return {key: torch.as_tensor(dataset[()]) for key, dataset in group.items()}
