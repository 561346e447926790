"""Report of measured quality: tables as Markdown."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from emdn_models.files import renamed
from emdn_models.vacancies import Roc, roc
from emdn_train import hops

_LEVEL = 0.4


def summary(rows: pl.DataFrame) -> pl.DataFrame:
    """Average over frames: a row a method.

    Columns are the gain in dB by level, its mean, that of ``multislice``, the part that
    another simulator made, and the ``worst`` frame's; ``dose``, how many times the dose a raw
    frame would need, of the mean dB; ``AUC`` and ``recall`` of vacancies at a signal to noise of
    0.4 (`defects`); PSNR and SSIM; by how much the mean is off in the worst frame; the share of
    pixels ``within`` one and two sigma, where that was measured; the median time of a frame.
    """
    tested = rows.filter(pl.col("model") != "clean")
    gain = pl.col("gain_db")
    table = tested.group_by("model", maintain_order=True).agg(
        **{
            f"{level:g}": gain.filter(pl.col("level") == level).mean().round(2)
            for level in _levels(rows)
        },
        mean=gain.mean().round(2),
        multislice=gain.filter(pl.col("part").str.starts_with("multislice")).mean().round(2),
        worst=gain.min().round(2),
        dose=(10 ** (gain.mean() / 10)).round(1),
    )
    found = defects(tested.filter(pl.col("level") == _LEVEL)).select(
        "model", AUC=f"AUC {_LEVEL:g}", recall=f"0.1 false {_LEVEL:g}"
    )
    others = tested.group_by("model").agg(
        pl.col("psnr").mean().round(2).alias("PSNR"),
        pl.col("ssim").mean().round(3).alias("SSIM"),
        (100 * (pl.col("mean_ratio") - 1).abs()).max().round(2).alias("mean off by %, worst"),
        (100 * pl.col("inside_1").mean()).round(1).alias("within 1 sigma, %"),
        (100 * pl.col("inside_2").mean()).round(1).alias("within 2 sigma, %"),
        pl.col("ms").median().round(1).alias("ms/frame"),
    )
    for one in (found, others):
        table = table.join(one, on="model", how="left", maintain_order="left")
    return table


def defects(rows: pl.DataFrame) -> pl.DataFrame:
    """Say how well vacant sites are distinguished from full ones, by level: a row a method.

    Columns are, for each level, the area under the receiver operating characteristic and the
    share found at 0.1 and at 1 false site a frame (`emdn_models.vacancies`), at the
    width that serves a method best; and how many ``sites`` there were.
    """
    table: dict[str, dict[str, Any]] = {}
    for (level, name), part in _sites(rows).group_by("level", "model", maintain_order=True):
        if (curve := _curve(part, "vacant")) is not None:
            table.setdefault(name, {"model": name}).update({
                f"AUC {level:g}": round(curve.auc, 3),
                f"0.1 false {level:g}": round(curve.recall[0], 2),
                f"1 false {level:g}": round(curve.recall[1], 2),
                "sites": curve.sites,
            })  # fmt: skip
    columns = [f"{name} {level:g}" for level in _levels(rows)
               for name in ("AUC", "0.1 false", "1 false")]  # fmt: skip
    schema = {"model": pl.String} | dict.fromkeys(columns, pl.Float64) | {"sites": pl.Int64}
    return pl.DataFrame(list(table.values()), schema)


def by_site(rows: pl.DataFrame) -> pl.DataFrame:
    """Give the area under the curve by sublattice, and of foreign atoms: a column a method."""
    table: dict[tuple[str, float], dict[str, Any]] = {}
    for (kind, level, name), part in _sites(rows).group_by(
        "kind", "level", "model", maintain_order=True
    ):
        for what, site in (("vacant", kind), ("foreign", f"{kind}, another element")):
            if (curve := _curve(part, what)) is not None:
                first = {"site": site, "snr": level, "sites": curve.sites}
                table.setdefault((site, level), first)[name] = round(curve.auc, 3)
    return pl.DataFrame([table[key] for key in sorted(table)], infer_schema_length=None)


def _sites(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("sites").is_not_null()).explode("sites").unnest("sites")


def _curve(part: pl.DataFrame, what: str) -> Roc | None:
    """Return the best curve of the sites that are ``vacant``, or ``foreign``: of either sign."""
    found, full = (
        np.array(part.filter(pl.col("what") == one)["scores"].to_list()).reshape(-1, 5)
        for one in (what, "full")
    )
    if not len(found):
        return None
    if what == "foreign":
        found, full = np.abs(found), np.abs(full)
    frames = part["frame"].n_unique()
    curves = [roc(*scores, frames) for scores in zip(found.T, full.T, strict=True)]
    return max(curves, key=lambda one: (one.auc, one.recall))


def by_part(rows: pl.DataFrame) -> pl.DataFrame:
    """Average the gain in dB over frames: a row a kind of frame, a column a method."""
    answers = rows.filter(~pl.col("model").is_in(["noisy", "clean"]))
    means = answers.group_by("part", "model", maintain_order=True).agg(
        pl.col("gain_db").mean().round(1)
    )
    return means.pivot("model", index="part", values="gain_db")


def _levels(rows: pl.DataFrame) -> list[float]:
    return sorted(rows["level"].unique())


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
    frames, methods = rows["frame"].n_unique(), rows["model"].n_unique()
    complete = rows.filter(pl.col("frame").n_unique().over("model") == frames)
    scored = complete.filter(pl.col("model") == "clean", pl.col("sites").is_not_null())
    parts = [
        "# Quality on the fixed test split",
        f"{frames} frames. Gains in dB of the squared error in expected counts, over the noisy "
        "frame, by signal to noise per pixel; `dose` is how many times the dose a raw frame "
        "would need, of the mean dB; `AUC` and `recall` how well vacancies are distinguished "
        "from full sites at 0.4: area under the curve, share found at 0.1 false sites a frame. "
        "`within`: of the pixels of the first specimen of each part, with `--sigma`; Gaussian "
        "errors have 68.3 and 95.4.",
        markdown(summary(complete)),
        "## Gain in dB by kind of frame",
        markdown(by_part(complete)),
    ]
    if len(scored):
        parts += [
            "## Vacancies",
            f"In {len(scored)} frames whose defects the truth shows: area under the receiver "
            "operating characteristic of vacant against full sites, and share found at 0.1 and "
            "at 1 false site a frame, by signal to noise. A full site that looks like a vacancy in "
            "the truth itself is no false site. `noisy` is a matched filter on the raw frame: a "
            "method below it has destroyed information.",
            markdown(defects(complete)),
            "Area under the curve by sublattice, of vacancies and of atoms of another element:",
            markdown(by_site(complete)),
        ]
    if complete["model"].n_unique() < methods:
        tested = rows.filter(pl.col("model") != "clean")
        same = tested.filter(pl.col("model").n_unique().over("frame") == methods - 1)
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


def save(rows: pl.DataFrame, movies: pl.DataFrame, folder: Path) -> list[Path]:
    """Write ``quality.parquet`` and ``movies.parquet``, a row a method and frame; quality.md."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Callable[[Path], Any]] = {
        "quality.parquet": rows.write_parquet,
        "movies.parquet": movies.write_parquet,
        "quality.md": lambda path: path.write_text(report(rows, movies), encoding="utf-8"),
    }
    for name, write in files.items():
        with renamed(folder / name) as partial:
            write(partial)
    return [folder / name for name in files]
