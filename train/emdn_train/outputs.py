"""What a training run leaves behind: arguments, history, metrics, throughput, a picture."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch

from emdn_deploy.bench.rows import processor
from emdn_models import __version__, checkpoint
from emdn_models.files import renamed
from emdn_train.config import WARM_UP, FitConfig, Fitted, mean
from emdn_train.data import Split

if TYPE_CHECKING:
    from emdn_train.parallel import Processes
    from emdn_train.recipes import Recipe
    from emdn_train.resume import Training


def describe(processes: "Processes") -> str:
    """Name the hardware and how much of it is used."""
    if processes.device.type == "cuda":
        text = torch.cuda.get_device_name(processes.device)
    else:
        text = f"{processor()}, {torch.get_num_threads()} threads"
    return text if processes.count == 1 else f"{text}, {processes.count} processes"


def describe_data(split: Split) -> str:
    """Say in a few words what a split holds."""
    height, width = split.shape
    text = f"{split.frames} frames of {height} x {width}"
    if split.table is None:
        return text
    kinds = ", ".join(sorted(split.table["kind"].unique().to_list()))
    text += f", simulated ({kinds})"
    return text if split.frame_class is None else f"{text}, of class {split.frame_class} alone"


def existing(out: Path) -> dict[str, checkpoint.Weights]:
    """Load the models that an earlier run left in the folder."""
    path = out / checkpoint.FILE_NAME
    return checkpoint.load(path) if path.exists() else {}


def weights(
    result: Fitted,
    training: "Training",
    config: FitConfig,
    recipe: "Recipe",
    data: str,
    processes: "Processes",
) -> checkpoint.Weights:
    """Gather a net's averaged tensors, how it was fitted and what it was measured to do.

    ``data`` says in words what it was fitted to. A net that started from a checkpoint
    carries the recipe of that one in ``start``.
    """
    trained = {
        "recipe": config.recipe,
        "recipe_details": dataclasses.asdict(
            dataclasses.replace(recipe, lr=config.lr or recipe.lr)
        ),
        "data": data,
        "start": training.start,
        "epochs": config.epochs,
        "steps": result.history[-1]["step"] if result.history else 0,
        "kept_step": result.best_step if result.status == "best kept" else None,
        "batch_size": config.batch_size,
        "processes": processes.count,
        "patch": config.patch,
        "warm_up_steps": 0 if recipe.warmup else WARM_UP,
        "seed": config.seed,
        "minutes": round(result.history[-1]["seconds"] / 60, 2) if result.history else 0,
        "hardware": describe(processes),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    gains = result.best_db if result.status == "best kept" else result.gain_db
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
    out: Path, config: FitConfig, results: Sequence[Fitted], processes: "Processes"
) -> None:
    """Write what is known of each model; models of earlier runs keep their entries.

    ``arguments.json``, ``metrics.json`` and ``throughput.json`` hold one entry a
    model, ``history.csv`` one row a model and epoch; ``loss.png`` draws all of them.
    """
    names = [result.name for result in results]
    arguments = dataclasses.asdict(config)
    _merge(out / "arguments.json", dict.fromkeys(names, arguments))
    _merge(
        out / "metrics.json",
        {
            result.name: {
                "status": result.status,
                "start_db": result.start_db,
                "gain_db": result.gain_db,
                "mean_ratio": result.mean_ratio,
            }
            for result in results
        },
    )
    where = {
        "machine": platform.node(),
        "hardware": describe(processes),
        "system": platform.platform(),
        "versions": {
            "emdn": __version__,
            "python": platform.python_version(),
            "torch": version("torch"),
        },
    }
    _merge(
        out / "throughput.json",
        {result.name: {"images_per_s": result.images_per_s, **where} for result in results},
    )
    path = out / "history.csv"
    rows = pl.read_csv(path).to_dicts() if path.exists() else []
    rows = [row for row in rows if row["model"] not in names]
    rows += [row for result in results for row in result.history]
    if rows:
        _replace(path, pl.DataFrame(rows, infer_schema_length=None).write_csv())
        draw_losses(out / "loss.png", rows)


def text(results: Sequence[Fitted]) -> str:
    """Put the results in a table, a row a model."""
    rows = [
        {
            "model": result.name,
            "status": result.status,
            "dB at the start": round(mean(result.start_db), 2) if result.start_db else None,
            **{f"dB at {level}": round(gain, 2) for level, gain in result.gain_db.items()},
            "mean out/in": round(result.mean_ratio, 4),
            "images/s": round(result.images_per_s, 1),
        }
        for result in results
    ]
    return show(pl.DataFrame(rows, infer_schema_length=None))


def show(table: pl.DataFrame) -> str:
    """Lay out a whole table as text, in a form that Markdown takes as it is."""
    with pl.Config(
        tbl_formatting="MARKDOWN",
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=1000,
        fmt_str_lengths=100,
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
    ):
        return str(table)


def draw_losses(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw loss and validation gain against time, a line a model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        checked = [row for row in own if row.get("gain_db") is not None]
        left.plot([row["step"] for row in own], [row["loss"] for row in own], ".-", label=name)
        right.plot(
            [row["seconds"] / 60 for row in checked], [row["gain_db"] for row in checked], ".-"
        )
    left.set(xlabel="optimiser step", ylabel="training loss (mean over the epoch)")
    right.set(xlabel="minutes", ylabel="gain over the noisy frame (dB)")
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with renamed(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def _merge(path: Path, entries: dict[str, Any]) -> None:
    """Add entries to a JSON object, replacing those of the same name."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    _replace(path, json.dumps(earlier | entries, indent=2, default=os.fspath) + "\n")


def _replace(path: Path, text: str) -> None:
    with renamed(path) as partial:
        partial.write_text(text, encoding="utf-8")
