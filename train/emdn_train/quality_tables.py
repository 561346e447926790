"""Tables of measured quality: averages over frames, and Markdown of them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from emdn_models.metrics import roc

MULTISLICE = pl.col("part").str.starts_with("multislice")
GAIN = pl.col("gain_db").mean().round(2)
# The geometric mean over the frames: that of the mean dB.
DOSE = (10 ** (pl.col("gain_db").mean() / 10)).round(1)
WITHIN = {
    f"within {times} sigma, %": (100 * pl.col(f"inside_{times}").mean()).round(1)
    for times in (1, 2)
}
_LEVEL = 0.4
_ROC = ("AUC", "0.1 false", "1 false")
OFF = (pl.col("mean_ratio") - 1).abs() * 100

Columns = dict[str, tuple[pl.DataFrame, pl.Expr]]


def complete(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep the methods that were measured on every frame."""
    frames = rows["frame"].n_unique()
    return rows.filter(pl.col("frame").n_unique().over("model") == frames)


def shared(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep the frames on which every method was measured."""
    methods = rows["model"].n_unique()
    return rows.filter(pl.col("model").n_unique().over("frame") == methods)


def summary(rows: pl.DataFrame) -> pl.DataFrame:
    """Average over frames: a row a method.

    Columns are the gain in dB by level, its mean, that of ``multislice``, the part that
    another simulator made, and the ``worst`` frame's; ``dose``, the dose gain of the mean dB;
    ``AUC`` and ``recall``, how well vacancies are told from full sites at a signal to noise of
    0.4 and how many are found at 0.1 false sites a frame (`defects`); by how much the mean
    is off in the worst frame; how many pixels' errors are ``within`` one and two sigma, on the
    frames where that was measured; and the median time of a frame.
    """
    tested = rows.filter(pl.col("model") != "clean")
    table = _table(
        _levels(tested, GAIN)
        | {
            "mean": (tested, GAIN),
            "multislice": (tested.filter(MULTISLICE), GAIN),
            "worst": (tested, pl.col("gain_db").min().round(2)),
            "dose": (tested, DOSE),
            "mean off by %, worst": (tested, OFF.max().round(2)),
            **{name: (tested, value) for name, value in WITHIN.items()},
            "ms/frame": (tested, pl.col("ms").median().round(1)),
        }
    )
    seen = defects(tested.filter(pl.col("level") == _LEVEL), "vacant").select(
        "model", AUC=f"AUC {_LEVEL:g}", recall=f"0.1 false {_LEVEL:g}"
    )
    return table.join(seen, on="model", how="left", maintain_order="left")


def dose_gain(rows: pl.DataFrame) -> pl.DataFrame:
    """Say how many times the dose a raw frame would need: a row a method, a column a level."""
    tested = answers(rows)
    return _table(
        _levels(tested, DOSE)
        | {"all": (tested, DOSE), "multislice": (tested.filter(MULTISLICE), DOSE)}
    )


def likeness(rows: pl.DataFrame) -> pl.DataFrame:
    """Average PSNR in dB and SSIM: a row a method, the noisy frame among them."""
    tested = rows.filter(pl.col("model") != "clean")
    psnr, ssim = pl.col("psnr").mean().round(2), pl.col("ssim").mean().round(3)
    return _table(
        _levels(tested, psnr, "PSNR ")
        | {"PSNR": (tested, psnr)}
        | _levels(tested, ssim, "SSIM ")
        | {"SSIM": (tested, ssim)}
    )


def intensities(rows: pl.DataFrame) -> pl.DataFrame:
    """Say by how many per cent the mean is off: by level, on average and in the worst frame."""
    tested, mean = answers(rows), OFF.mean().round(2)
    return _table(
        _levels(tested, mean) | {"mean": (tested, mean), "worst": (tested, OFF.max().round(2))}
    )


def defects(rows: pl.DataFrame, what: str, *keys: str) -> pl.DataFrame:
    """Say how well sites are told from full ones, by level: a row a method (and the keys).

    Columns are, for each level, the area under the receiver operating characteristic and the
    share found at 0.1 and at 1 false site a frame (`emdn_models.metrics.vacancies`), at the
    width that serves a method best; and how many ``sites`` there were.

    Parameters
    ----------
    what
        ``vacant`` or ``foreign`` sites; the latter may be brighter or darker.
    keys
        ``kind``, to tell sublattices apart, or ``part``.
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


def _table(columns: Columns) -> pl.DataFrame:
    """Put averages over different rows side by side: a row a method."""
    whole: pl.DataFrame | None = None
    for name, (rows, value) in columns.items():
        one = rows.group_by("model", maintain_order=True).agg(value.alias(name))
        whole = (
            one if whole is None else whole.join(one, on="model", how="left", maintain_order="left")
        )
    assert whole is not None
    return whole


def _levels(rows: pl.DataFrame, value: pl.Expr, before: str = "") -> Columns:
    levels = sorted(rows["level"].unique())
    return {f"{before}{one:g}": (rows.filter(pl.col("level") == one), value) for one in levels}


def answers(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep what models and filters have answered."""
    return rows.filter(~pl.col("model").is_in(["noisy", "clean"]))
