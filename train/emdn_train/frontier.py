"""Draw quality against time: which model to take for how much of either."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from emdn_models import pretrained
from emdn_train.quality_tables import answers, shared

# Points from a mark to its label: tried in turn until the label covers nothing.
_OFFSETS = [(dx, dy) for dy in (4, -11, 16, -23, 28, -35, 40, -47) for dx in (7, -7)]


def draw_frontier(rows: pl.DataFrame, path: Path) -> None:
    """Draw the mean gain of every method against its time a frame, as PNG.

    Parameters
    ----------
    rows
        As `emdn_train.quality.measure` gives them. Where a method was measured on some frames
        only, all are drawn on those: nothing else can be compared.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    drawn = shared(answers(rows))
    points = drawn.group_by("model").agg(pl.col("gain_db").mean(), pl.col("ms").median())
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    decades = np.ptp(np.log10(points["ms"].drop_nulls().to_numpy()))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    axes.set(
        xlabel="ms a frame, array to array",
        ylabel=f"gain over the noisy frame (dB), {drawn['frame'].n_unique()} frames",
    )
    front: list[tuple[float, float]] = []
    labels = []
    for name, gain, ms in points.sort("ms").iter_rows():
        size = parameters(name)
        labels.append((name if size is None else f"{name}, {_short(size)}", ms, gain))
        mark, colour = ("s", "0.45") if size is None else ("o", "tab:blue")
        axes.plot(ms, gain, mark, color=colour)
        if size is None:
            axes.axhline(gain, color="0.45", linewidth=0.6, linestyle="--")
        elif not front or gain > front[-1][1]:
            front.append((ms, gain))
    if front:
        axes.plot(*zip(*front, strict=True), color="tab:blue", linewidth=0.8)
    _label(figure, axes, labels)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=120, format="png")
    os.replace(partial, path)


def parameters(name: str) -> int | None:
    """Return how many trainable numbers a shipped model has, None for anything else."""
    entry = pretrained.index()["models"].get(name)
    return None if entry is None else int(entry["parameters"])


def _label(figure: Any, axes: Any, labels: list[tuple[str, float, float]]) -> None:
    """Write labels beside their marks, in the axes, where they cover nothing."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    marks = [axes.transData.transform((x, y)) for _, x, y in labels]
    taken: list[Any] = []
    for text, x, y in labels:
        for dx, dy in _OFFSETS:
            label = axes.annotate(
                text, (x, y), (dx, dy), textcoords="offset points", fontsize=9,
                ha="left" if dx > 0 else "right",
            )  # fmt: skip
            box = label.get_window_extent().padded(1)
            free = not any(box.overlaps(one) for one in taken) and not box.count_contains(marks)
            if free and axes.bbox.count_contains(box.corners()) == 4:
                break
            if (dx, dy) != _OFFSETS[-1]:
                label.remove()
        taken.append(box)


def _short(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"
