"""What a training run leaves behind: arguments, history, metrics, throughput, a picture."""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch

from emdn_deploy.bench import machine
from emdn_models import checkpoint
from emdn_models.files import renamed
from emdn_train.checkpointing import Training
from emdn_train.config import WARM_UP, FitConfig, Recipe
from emdn_train.loss import hardware

Status = Literal["fitted", "best kept", "no gain", "diverged"]


@dataclass(frozen=True)
class Fitted:
    """What became of one model.

    Its status is ``fitted``; ``best kept``, the result is more than 0.05 dB worse than the weights
    that were validated best, which are saved instead; ``no gain``, worse than the noisy frame, as
    after too few steps; or ``diverged``, the loss is not finite or the result more than 20 dB
    worse: that is not saved. Gains are means over frames of 10 log10(MSE noisy / MSE denoised),
    by level of signal to noise; empty where they were not measured.
    """

    name: str
    status: Status
    history: list[dict[str, Any]]  # a row an epoch: loss, learning rate, validation gain, seconds
    gain_db: dict[str, float]  # at the end
    mean_ratio: float
    images_per_s: float  # patches through full training steps, noise included
    start_db: dict[str, float] = field(default_factory=dict)  # before the first step
    best_db: dict[str, float] = field(default_factory=dict)  # of the weights validated best
    best_step: int = 0  # after how many steps; 0: the start

    @property
    def failed(self) -> bool:
        """Whether the run has brought nothing."""
        kept_start = self.status == "best kept" and not self.best_step
        return self.status == "diverged" or kept_start

    def __str__(self) -> str:
        """Say what a user should know of it; empty if all went well."""
        if self.status == "no gain":
            return f"{self.name}: worse than the noisy frame so far; train it longer"
        if self.status == "diverged":
            return f"{self.name}: diverged; it is not saved and will not be exported"
        if self.status == "fitted":
            return ""
        step = f"after step {self.best_step}" if self.best_step else "before the first step"
        return (
            f"{self.name}: ended at {mean(self.gain_db):.2f} dB: saved is what it was {step}, at "
            f"{mean(self.best_db):.2f} dB; train it with a smaller --lr"
        )


def judge(gain_db: float, best_db: float = -math.inf, margin: float = 0.05) -> Status:
    """Name the outcome of a run by its mean gain and the best before; see `Fitted`.

    The last weights are taken unless they are more than ``margin`` dB below the best.
    """
    if not gain_db > -20:
        return "diverged"
    if gain_db < best_db - margin and best_db > 0:
        return "best kept"
    return "fitted" if gain_db > 0 else "no gain"


def mean(gains: Mapping[str, float]) -> float:
    """Return the mean gain over the levels of signal to noise."""
    return sum(gains.values()) / len(gains)


def existing(out: Path) -> dict[str, checkpoint.Weights]:
    """Load the models that an earlier run left in the folder."""
    path = out / checkpoint.FILE_NAME
    return checkpoint.load(path) if path.exists() else {}


def weights(
    result: Fitted,
    training: Training,
    config: FitConfig,
    recipe: Recipe,
    data: str,
    device: torch.device,
) -> checkpoint.Weights:
    """Gather a net's averaged tensors, how it was fitted and what it was measured to do.

    ``data`` says in words what it was fitted to. A net that started from a checkpoint
    carries the recipe of that one in ``start``.
    """
    last = result.history[-1] if result.history else {"step": 0, "seconds": 0}
    best = result.status == "best kept"
    trained = {
        "recipe": config.recipe,
        "recipe_details": dataclasses.asdict(recipe),
        "data": data,
        "start": training.start,
        "epochs": config.epochs,
        "steps": last["step"],
        "kept_step": result.best_step if best else None,
        "batch_size": config.batch_size,
        "patch": config.patch,
        "warm_up_steps": 0 if recipe.warmup else WARM_UP,
        "seed": config.seed,
        "minutes": round(last["seconds"] / 60, 2),
        "hardware": hardware(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    gains = result.best_db if best else result.gain_db
    validation = {
        "gain_db": {level: round(gain, 2) for level, gain in gains.items()},
        "mean_ratio": round(result.mean_ratio, 5),
    }
    averaged = training.average.module.state_dict()
    state = {key: tensor.cpu().contiguous().numpy() for key, tensor in averaged.items()}
    return checkpoint.Weights(
        config.preset, state, {"status": result.status, "recipe": trained, "validation": validation}
    )


def write_results(
    out: Path, config: FitConfig, results: Sequence[Fitted], device: torch.device
) -> None:
    """Write what is known of each model; models of earlier runs keep their entries.

    ``arguments.json``, ``metrics.json`` and ``throughput.json`` hold one entry a
    model, ``history.csv`` one row a model and epoch; ``loss.png`` draws all of them.
    """
    where = {"machine": platform.node(), "hardware": hardware(device)} | machine("torch")
    measured = ("status", "start_db", "gain_db", "mean_ratio")
    entries = {
        "arguments": {one.name: dataclasses.asdict(config) for one in results},
        "metrics": {one.name: {key: getattr(one, key) for key in measured} for one in results},
        "throughput": {one.name: {"images_per_s": one.images_per_s, **where} for one in results},
    }
    for name, new in entries.items():
        path = out / f"{name}.json"
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        with renamed(path) as partial:
            text = json.dumps(earlier | new, indent=2, default=os.fspath)
            partial.write_text(text + "\n", encoding="utf-8")
    path = out / "history.csv"
    rows = pl.read_csv(path).to_dicts() if path.exists() else []
    rows = [row for row in rows if row["model"] not in entries["metrics"]]
    rows += [row for result in results for row in result.history]
    if rows:
        with renamed(path) as partial:
            pl.DataFrame(rows, infer_schema_length=None).write_csv(partial)
        draw_losses(out / "loss.png", rows)


def table(results: Sequence[Fitted]) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of a table of the results, a row a model."""
    levels = list(dict.fromkeys(level for result in results for level in result.gain_db))
    titles = ["model", "status", "dB at the start", *(f"dB at {level}" for level in levels)]
    rows = [
        [
            result.name, result.status, f"{mean(result.start_db):.2f}" if result.start_db else "-",
            *(f"{result.gain_db[level]:.2f}" if result.gain_db else "-" for level in levels),
            f"{result.mean_ratio:.4f}", f"{result.images_per_s:.1f}",
        ]
        for result in results
    ]  # fmt: skip
    return [*titles, "mean out/in", "images/s"], rows


def draw_losses(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw loss and validation gain against time, a line a model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        checked = [row for row in own if row.get("gain_db") is not None]
        left.plot([row["step"] for row in own], [row["loss"] for row in own], ".-", label=name)
        minutes = [row["seconds"] / 60 for row in checked]
        right.plot(minutes, [row["gain_db"] for row in checked], ".-")
    left.set(xlabel="optimiser step", ylabel="training loss (mean over the epoch)")
    right.set(xlabel="minutes", ylabel="gain over the noisy frame (dB)")
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with renamed(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
