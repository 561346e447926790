"""Report of measured quality: tables as Markdown, and the picture of gain against time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from emdn_models import pretrained
from emdn_models.files import renamed
from emdn_models.metrics import roc
from emdn_train.movies import summary as movie_summary

_LEVEL = 0.4
_ROC = ("AUC", "0.1 false", "1 false")
_SHORT = ("model", "mean", "multislice", "worst", "dose", "AUC", "recall", "ms/frame")
_MULTISLICE = pl.col("part").str.starts_with("multislice")
_EVERY = pl.lit(True)


def gain(digits: int = 2, where: pl.Expr = _EVERY) -> pl.Expr:
    """Average the gain in dB over the frames of a condition."""
    return pl.col("gain_db").filter(where).mean().round(digits)


def dose(where: pl.Expr = _EVERY) -> pl.Expr:
    """Say how many times the dose a raw frame would need: the geometric mean over frames."""
    return (10 ** (pl.col("gain_db").filter(where).mean() / 10)).round(1)


def off() -> pl.Expr:
    """By how many per cent the mean of a frame is off."""
    return 100 * (pl.col("mean_ratio") - 1).abs()


def shared(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep the frames on which every method was measured."""
    return rows.filter(pl.col("model").n_unique().over("frame") == rows["model"].n_unique())


def answers(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep what models and filters have answered."""
    return rows.filter(~pl.col("model").is_in(["noisy", "clean"]))


def summary(rows: pl.DataFrame) -> pl.DataFrame:
    """Average over frames: a row a method.

    Columns are the gain in dB by level, its mean, that of ``multislice``, the part that
    another simulator made, and the ``worst`` frame's; ``dose``, the dose gain of the mean dB;
    by how much the mean is off in the worst frame; how many pixels' errors are ``within`` one and
    two sigma, on the frames where that was measured; the median time of a frame; and ``AUC`` and
    ``recall``, how well vacancies are distinguished from full sites at a signal to noise of 0.4
    and how many are found at 0.1 false sites a frame (`defects`).
    """
    tested = rows.filter(pl.col("model") != "clean")
    table = _by_model(
        tested,
        {f"{level:g}": gain(where=at) for level, at in _levels(rows)}
        | {
            "mean": gain(),
            "multislice": gain(where=_MULTISLICE),
            "worst": pl.col("gain_db").min().round(2),
            "dose": dose(),
            "mean off by %, worst": off().max().round(2),
            "within 1 sigma, %": (100 * pl.col("inside_1").mean()).round(1),
            "within 2 sigma, %": (100 * pl.col("inside_2").mean()).round(1),
            "ms/frame": pl.col("ms").median().round(1),
        },
    )
    seen = defects(tested.filter(pl.col("level") == _LEVEL), "vacant").select(
        "model", AUC=f"AUC {_LEVEL:g}", recall=f"0.1 false {_LEVEL:g}"
    )
    return table.join(seen, on="model", how="left", maintain_order="left")


def dose_gain(rows: pl.DataFrame) -> pl.DataFrame:
    """Say how many times the dose a raw frame would need: a row a method, a column a level."""
    by_level = {f"{level:g}": dose(at) for level, at in _levels(rows)}
    return _by_model(answers(rows), by_level | {"all": dose(), "multislice": dose(_MULTISLICE)})


def likeness(rows: pl.DataFrame) -> pl.DataFrame:
    """Average PSNR in dB and SSIM: a row a method, the noisy frame among them."""
    columns = {}
    for name, digits in (("psnr", 2), ("ssim", 3)):
        value, title = pl.col(name), name.upper()
        for level, at in _levels(rows):
            columns[f"{title} {level:g}"] = value.filter(at).mean().round(digits)
        columns[title] = value.mean().round(digits)
    return _by_model(rows.filter(pl.col("model") != "clean"), columns)


def intensities(rows: pl.DataFrame) -> pl.DataFrame:
    """Say by how many per cent the mean is off: by level, on average and in the worst frame."""
    by_level = {f"{level:g}": off().filter(at).mean().round(2) for level, at in _levels(rows)}
    overall = {"mean": off().mean().round(2), "worst": off().max().round(2)}
    return _by_model(answers(rows), by_level | overall)


def defects(rows: pl.DataFrame, what: str, *keys: str) -> pl.DataFrame:
    """Say how well sites are distinguished from full ones, by level: a row a method (and the keys).

    Columns are, for each level, the area under the receiver operating characteristic and the
    share found at 0.1 and at 1 false site a frame (`emdn_models.metrics.vacancies`), at the
    width that serves a method best; and how many ``sites`` there were.

    ``what`` is ``vacant`` or ``foreign``, which may be brighter or darker; ``keys`` are ``kind``,
    to tell sublattices apart, or ``part``.
    """
    judged = rows.filter(pl.col("sites").is_not_null()).explode("sites").unnest("sites")
    order = ["model", *keys]
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (level, *name), part in judged.group_by("level", *order, maintain_order=True):
        found, full = (
            np.array(part.filter(pl.col("what") == one)["scores"].to_list()).reshape(-1, 5)
            for one in (what, "full")
        )
        if not len(found):
            continue
        if what == "foreign":
            found, full = np.abs(found), np.abs(full)
        frames = part["frame"].n_unique()
        curves = [roc(*scores, frames) for scores in zip(found.T, full.T, strict=True)]
        best = max(curves, key=lambda one: (one.auc, one.recall))
        row = table.setdefault(tuple(name), dict(zip(order, name, strict=True)))
        row |= {
            f"AUC {level:g}": round(best.auc, 3),
            f"0.1 false {level:g}": round(best.recall[0], 2),
            f"1 false {level:g}": round(best.recall[1], 2),
            "sites": best.sites,
        }
    columns = [f"{name} {one:g}" for one in sorted(rows["level"].unique()) for name in _ROC]
    schema = dict.fromkeys(order, pl.String) | dict.fromkeys(columns, pl.Float64)
    return pl.DataFrame(list(table.values()), schema | {"sites": pl.Int64})


def by_part(rows: pl.DataFrame, value: pl.Expr, *keys: str) -> pl.DataFrame:
    """Average over frames: a row a kind of frame (and a level, if a key), a column a method."""
    long = answers(rows).group_by("part", *keys, "model", maintain_order=True)
    return long.agg(value.alias("value")).pivot("model", index=["part", *keys], values="value")


def _by_model(rows: pl.DataFrame, columns: dict[str, pl.Expr]) -> pl.DataFrame:
    return rows.group_by("model", maintain_order=True).agg(**columns)


def _levels(rows: pl.DataFrame) -> list[tuple[float, pl.Expr]]:
    return [(level, pl.col("level") == level) for level in sorted(rows["level"].unique())]


def markdown(table: pl.DataFrame) -> str:
    """Lay a table out as Markdown; what is unknown is ``-``, whole columns have like digits."""
    columns = [[name, *_texts(table[name].to_list())] for name in table.columns]
    numeric = [dtype.is_numeric() for dtype in table.dtypes]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        lines.append(f"| {' | '.join(cells)} |")
    rule = (
        "-" * (width + 1) + (":" if right else "-")
        for width, right in zip(widths, numeric, strict=True)
    )
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _texts(values: Sequence[Any]) -> list[str]:
    known = [one for one in values if isinstance(one, float) and math.isfinite(one)]
    digits = max((len(f"{one:.10g}".partition(".")[2]) for one in known), default=0)
    return [
        "-"
        if one is None or (isinstance(one, float) and not math.isfinite(one))
        else f"{one:.{digits}f}"
        if isinstance(one, float)
        else str(one)
        for one in values
    ]


def report(rows: pl.DataFrame, movies: pl.DataFrame | None = None) -> str:
    """Put all that `emdn_train.quality` and `emdn_train.movies` measured in Markdown."""
    methods = pl.col("frame").n_unique().over("model")
    complete = rows.filter(methods == rows["frame"].n_unique())
    table = summary(complete)
    levels = [name for name in table.columns if name.replace(".", "").isdigit()]
    frames = rows["frame"].n_unique()
    scored = complete.filter(pl.col("model") == "clean", pl.col("sites").is_not_null())
    parts = [
        "# Quality on the fixed test split",
        f"{frames} frames. Gains in dB of the squared error in expected counts, over the noisy "
        "frame, by signal to noise per pixel; `dose` is how many times the dose a raw frame "
        "would need, of the mean dB; `AUC` and `recall` how well vacancies are distinguished "
        "from full sites at 0.4: area under the curve, share found at 0.1 false sites a frame.",
        markdown(table.select("model", *levels, *_SHORT[1:])),
        "## All columns",
        "`within`: of the pixels of the first specimen of each part, with `--sigma`; Gaussian "
        "errors have 68.3 and 95.4.",
        markdown(table),
        "## Dose gain by signal to noise",
        markdown(dose_gain(complete)),
        "## PSNR (dB) and SSIM, range that of each clean frame",
        markdown(likeness(complete)),
        "## Mean of a frame off by %",
        markdown(intensities(complete)),
    ]
    if len(scored):
        parts += [
            "## Vacancies",
            f"In {len(scored)} frames whose defects the truth shows: area under the receiver "
            "operating characteristic of vacant against full sites, and share found at 0.1 and "
            "at 1 false site a frame, by signal to noise. `noisy` is a matched filter on the raw "
            "frame: a method below it has destroyed information.",
            markdown(defects(complete, "vacant")),
            "## Vacancies by sublattice",
            markdown(defects(complete, "vacant", "kind")),
            "## Atoms of another element",
            markdown(defects(complete, "foreign")),
        ]
    parts += [
        "## Gain in dB by kind of frame",
        markdown(by_part(complete, gain(1))),
        "## Dose gain by kind of frame and signal to noise",
        markdown(by_part(complete, dose(), "level")),
    ]
    same = shared(rows.filter(pl.col("model") != "clean"))
    if same["frame"].n_unique() < frames:
        parts += [
            f"## Beside other programs, on the {same['frame'].n_unique()} frames that they did",
            markdown(summary(same)),
            markdown(by_part(same, gain(1))),
        ]
    if movies is not None:
        parts += [
            "## Movies in which a vacancy hops",
            f"{movies['movie'].n_unique()} movies a signal to noise, {movies['frame'].n_unique()} "
            "frames each, drifting by up to 1.5 pixels a frame; averages are along the true drift, "
            "which a user does not know. Gain in dB; how well the vacancy is distinguished from "
            "full sites; how many frames off its hop is found.",
            markdown(movie_summary(movies)),
        ]
    return "\n\n".join(parts) + "\n"


def save(rows: pl.DataFrame, folder: Path, movies: pl.DataFrame | None = None) -> list[Path]:
    """Write ``quality.parquet``, a row a method and frame, ``quality.md`` and ``frontier.png``.

    Rows of movies, if any, go to ``movies.parquet``. Returns the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("quality.parquet", "quality.md", "frontier.png")]
    with renamed(paths[0]) as partial:
        rows.write_parquet(partial)
    with renamed(paths[1]) as partial:
        partial.write_text(report(rows, movies), encoding="utf-8")
    draw_frontier(rows, paths[2])
    if movies is not None:
        paths.append(folder / "movies.parquet")
        with renamed(paths[-1]) as partial:
            movies.write_parquet(partial)
    return paths


def draw_frontier(rows: pl.DataFrame, path: Path) -> None:
    """Draw the mean gain of every method against its time a frame, as PNG.

    Where a method was measured on some frames only, all are drawn on those: nothing else can be
    compared.
    """
    from matplotlib.figure import Figure

    drawn, shipped = shared(answers(rows)), pretrained.index()["models"]
    points = drawn.group_by("model").agg(pl.col("gain_db").mean(), pl.col("ms").median())
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    front: list[tuple[float, float]] = []
    for name, decibels, ms in points.sort("ms").iter_rows():
        label, mark = name, "s"
        if name in shipped:
            label, mark = f"{name}, {shipped[name]['parameters'] / 1e3:.0f}k parameters", "o"
            if not front or decibels > front[-1][1]:
                front.append((ms, decibels))
        axes.plot(ms, decibels, mark, label=label)
    axes.plot(*zip(*front, strict=True), color="0.45", linewidth=0.8, zorder=0)
    axes.set(
        xscale="log",
        xlabel="ms a frame, array to array",
        ylabel=f"gain over the noisy frame (dB), {drawn['frame'].n_unique()} frames",
    )
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper")
    with renamed(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
