"""Report of measured quality: tables as Markdown."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from emdn_models.files import renamed
from emdn_models.metrics import roc
from emdn_train import hops

_LEVEL = 0.4
_ROC = ("AUC", "0.1 false", "1 false")
_SHORT = ("mean", "multislice", "worst", "dose", "AUC", "recall", "ms/frame")


def shared(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep the frames on which every method was measured."""
    return rows.filter(pl.col("model").n_unique().over("frame") == rows["model"].n_unique())


def answers(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep what models and filters have answered."""
    return rows.filter(~pl.col("model").is_in(["noisy", "clean"]))


def summary(rows: pl.DataFrame) -> pl.DataFrame:
    """Average over frames: a row a method.

    Columns are the gain in dB by level, its mean, that of ``multislice``, the part that
    another simulator made, and the ``worst`` frame's; ``dose``, how many times the dose a raw
    frame would need, of the mean dB; by how much the mean is off in the worst frame; how many
    pixels' errors are ``within`` one and two sigma, on the frames where that was measured; the
    median time of a frame; and ``AUC`` and ``recall``, how well vacancies are distinguished from
    full sites at a signal to noise of 0.4 and how many are found at 0.1 false sites a frame
    (`defects`).
    """
    tested = rows.filter(pl.col("model") != "clean")
    gain = pl.col("gain_db")
    multislice = gain.filter(pl.col("part").str.starts_with("multislice"))
    off = 100 * (pl.col("mean_ratio") - 1).abs()
    table = _by_model(
        tested,
        {f"{level:g}": gain.filter(at).mean().round(2) for level, at in _levels(rows)}
        | {
            "mean": gain.mean().round(2),
            "multislice": multislice.mean().round(2),
            "worst": gain.min().round(2),
            "dose": (10 ** (gain.mean() / 10)).round(1),
            "mean off by %, worst": off.max().round(2),
            "within 1 sigma, %": (100 * pl.col("inside_1").mean()).round(1),
            "within 2 sigma, %": (100 * pl.col("inside_2").mean()).round(1),
            "ms/frame": pl.col("ms").median().round(1),
        },
    )
    seen = defects(tested.filter(pl.col("level") == _LEVEL), "vacant").select(
        "model", AUC=f"AUC {_LEVEL:g}", recall=f"0.1 false {_LEVEL:g}"
    )
    return table.join(seen, on="model", how="left", maintain_order="left")


def likeness(rows: pl.DataFrame) -> pl.DataFrame:
    """Average PSNR in dB and SSIM: a row a method, the noisy frame among them."""
    columns = {
        f"{name.upper()}{title}": pl.col(name).filter(at).mean().round(digits)
        for name, digits in (("psnr", 2), ("ssim", 3))
        for title, at in [(f" {level:g}", at) for level, at in _levels(rows)] + [("", pl.lit(True))]
    }
    return _by_model(rows.filter(pl.col("model") != "clean"), columns)


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


def by_part(rows: pl.DataFrame) -> pl.DataFrame:
    """Average the gain in dB over frames: a row a kind of frame, a column a method."""
    long = answers(rows).group_by("part", "model", maintain_order=True)
    return long.agg(pl.col("gain_db").mean().round(1)).pivot(
        "model", index="part", values="gain_db"
    )


def _by_model(rows: pl.DataFrame, columns: dict[str, pl.Expr]) -> pl.DataFrame:
    return rows.group_by("model", maintain_order=True).agg(**columns)


def _levels(rows: pl.DataFrame) -> list[tuple[float, pl.Expr]]:
    return [(level, pl.col("level") == level) for level in sorted(rows["level"].unique())]


def markdown(table: pl.DataFrame) -> str:
    """Lay a table out as Markdown; what is unknown is ``-``, digits as a column needs them."""
    rules = ("---:" if dtype.is_numeric() else "---" for dtype in table.dtypes)
    lines = [table.columns, rules, *zip(*(_texts(one.to_list()) for one in table), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _texts(values: Sequence[Any]) -> list[str]:
    known = [one for one in values if isinstance(one, float) and math.isfinite(one)]
    digits = max((len(f"{one:.10g}".partition(".")[2]) for one in known), default=0)
    texts = (f"{one:.{digits}f}" if isinstance(one, float) else str(one) for one in values)
    return ["-" if text in ("None", "nan", "inf", "-inf") else text for text in texts]


def report(rows: pl.DataFrame, movies: pl.DataFrame | None = None) -> str:
    """Put all that `emdn_train.quality` and `emdn_train.hops` measured in Markdown."""
    methods = pl.col("frame").n_unique().over("model")
    complete = rows.filter(methods == rows["frame"].n_unique())
    table = summary(complete)
    levels = [f"{level:g}" for level, _ in _levels(rows)]
    frames = rows["frame"].n_unique()
    scored = complete.filter(pl.col("model") == "clean", pl.col("sites").is_not_null())
    parts = [
        "# Quality on the fixed test split",
        f"{frames} frames. Gains in dB of the squared error in expected counts, over the noisy "
        "frame, by signal to noise per pixel; `dose` is how many times the dose a raw frame "
        "would need, of the mean dB; `AUC` and `recall` how well vacancies are distinguished "
        "from full sites at 0.4: area under the curve, share found at 0.1 false sites a frame.",
        markdown(table.select("model", *levels, *_SHORT)),
        "## All columns",
        "`within`: of the pixels of the first specimen of each part, with `--sigma`; Gaussian "
        "errors have 68.3 and 95.4.",
        markdown(table),
        "## PSNR (dB) and SSIM, range that of each clean frame",
        markdown(likeness(complete)),
    ]
    if len(scored):
        parts += [
            "## Vacancies",
            f"In {len(scored)} frames whose defects the truth shows: area under the receiver "
            "operating characteristic of vacant against full sites, and share found at 0.1 and "
            "at 1 false site a frame, by signal to noise. A full site that looks like a vacancy in "
            "the truth itself is no false site. `noisy` is a matched filter on the raw frame: a "
            "method below it has destroyed information.",
            markdown(defects(complete, "vacant")),
            "## Vacancies by sublattice",
            markdown(defects(complete, "vacant", "kind")),
            "## Atoms of another element",
            markdown(defects(complete, "foreign")),
        ]
    parts += ["## Gain in dB by kind of frame", markdown(by_part(complete))]
    same = shared(rows.filter(pl.col("model") != "clean"))
    if same["frame"].n_unique() < frames:
        parts += [
            f"## Beside other programs, on the {same['frame'].n_unique()} frames that they did",
            markdown(summary(same)),
            markdown(by_part(same)),
        ]
    if movies is not None:
        parts += [
            "## Movies in which a vacancy hops",
            f"{movies['movie'].n_unique()} movies a signal to noise, {movies['frame'].n_unique()} "
            "frames each, drifting by up to 1.5 pixels a frame; averages are along the true drift, "
            "which a user does not know. Gain in dB; how well the vacancy is distinguished from "
            "full sites; how many frames off its hop is found.",
            markdown(hops.summary(movies)),
        ]
    return "\n\n".join(parts) + "\n"


def save(rows: pl.DataFrame, folder: Path, movies: pl.DataFrame | None = None) -> list[Path]:
    """Write ``quality.parquet``, a row a method and frame, and ``quality.md``.

    Rows of movies, if any, go to ``movies.parquet``. Returns the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Callable[[Path], Any]] = {
        "quality.parquet": rows.write_parquet,
        "quality.md": lambda path: path.write_text(report(rows, movies), encoding="utf-8"),
    }
    if movies is not None:
        files["movies.parquet"] = movies.write_parquet
    for name, write in files.items():
        with renamed(folder / name) as partial:
            write(partial)
    return [folder / name for name in files]
