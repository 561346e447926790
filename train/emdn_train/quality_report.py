"""What ``emdn-train quality --save`` leaves: rows, tables as Markdown, and the picture."""

import os
from pathlib import Path

import polars as pl

from emdn_train.frontier import draw_frontier
from emdn_train.movies import summary as hops
from emdn_train.quality_tables import (
    DOSE,
    GAIN,
    by_part,
    complete,
    defects,
    dose_gain,
    intensities,
    likeness,
    markdown,
    shared,
    summary,
)

_SHORT = ("model", "mean", "multislice", "worst", "dose", "AUC", "recall", "ms/frame")


def report(rows: pl.DataFrame, movies: pl.DataFrame | None = None) -> str:
    """Put all that was measured in Markdown.

    Parameters
    ----------
    rows
        As `emdn_train.quality.measure` gives them.
    movies
        As `emdn_train.movies.measure` gives them; None if none were measured.
    """
    whole = complete(rows)
    table = summary(whole)
    levels = [name for name in table.columns if name.replace(".", "").isdigit()]
    frames = rows["frame"].n_unique()
    scored = whole.filter(pl.col("model") == "clean", pl.col("sites").is_not_null())
    parts = [
        "# Quality on the fixed test split",
        f"{frames} frames. Gains in dB of the squared error in expected counts, over the noisy "
        "frame, by signal to noise per pixel; `dose` is how many times the dose a raw frame "
        "would need, of the mean dB; `AUC` and `recall` how well vacancies are told from full "
        "sites at 0.4: area under the curve, share found at 0.1 false sites a frame.",
        markdown(table.select("model", *levels, *_SHORT[1:])),
        "## All columns",
        "`within`: of the pixels of the first specimen of each part, with `--sigma`; Gaussian "
        "errors have 68.3 and 95.4.",
        markdown(table),
        "## Dose gain by signal to noise",
        markdown(dose_gain(whole)),
        "## PSNR (dB) and SSIM, range that of each clean frame",
        markdown(likeness(whole)),
        "## Mean of a frame off by %",
        markdown(intensities(whole)),
    ]
    if len(scored):
        parts += [
            "## Vacancies",
            f"In {len(scored)} frames whose defects the truth shows: area under the receiver "
            "operating characteristic of vacant against full sites, and share found at 0.1 and "
            "at 1 false site a frame, by signal to noise. `noisy` is a matched filter on the raw "
            "frame: a method below it has destroyed information.",
            markdown(defects(whole, "vacant")),
            "## Vacancies by sublattice",
            markdown(defects(whole, "vacant", "kind")),
            "## Atoms of another element",
            markdown(defects(whole, "foreign")),
        ]
    parts += [
        "## Gain in dB by kind of frame",
        markdown(by_part(whole, GAIN.round(1))),
        "## Dose gain by kind of frame and signal to noise",
        markdown(by_part(whole, DOSE, "level")),
    ]
    same = shared(rows.filter(~pl.col("model").is_in(["clean"])))
    if same["frame"].n_unique() < frames:
        parts += [
            f"## Beside other programs, on the {same['frame'].n_unique()} frames that they did",
            markdown(summary(same)),
            markdown(by_part(same, GAIN.round(1))),
        ]
    if movies is not None:
        parts += [
            "## Movies in which a vacancy hops",
            f"{movies['movie'].n_unique()} movies a signal to noise, {movies['frame'].n_unique()} "
            "frames each, drifting by up to 1.5 pixels a frame; averages are along the true drift, "
            "which a user does not know. Gain in dB; how well the vacancy is told from full sites; "
            "how many frames off its hop is found.",
            markdown(hops(movies)),
        ]
    return "\n\n".join(parts) + "\n"


def save(rows: pl.DataFrame, folder: Path, movies: pl.DataFrame | None = None) -> list[Path]:
    """Write ``quality.parquet``, a row a method and frame, ``quality.md`` and ``frontier.png``.

    Rows of movies, if any, go to ``movies.parquet``.

    Returns
    -------
    The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("quality.parquet", "quality.md", "frontier.png")]
    partial = [path.with_name(path.name + ".partial") for path in paths[:2]]
    rows.write_parquet(partial[0])
    partial[1].write_text(report(rows, movies), encoding="utf-8")
    for written, path in zip(partial, paths, strict=False):
        os.replace(written, path)
    draw_frontier(rows, paths[2])
    if movies is not None:
        paths.append(folder / "movies.parquet")
        movies.write_parquet(paths[-1])
    return paths
