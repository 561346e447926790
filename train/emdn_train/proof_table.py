"""The rows of `emdn_train.proof` as tables: what is found, and what is flagged for nothing."""

import polars as pl

from emdn_deploy.checking.grounds import LEVEL, RUN
from emdn_deploy.session import open_session
from emdn_models import __version__
from emdn_train.kept import DRAWS, KINDS, PLACE, SEEN, TOLERATED
from emdn_train.proof import NONE
from emdn_train.proof_config import FAINT, RIGHTED, ProofConfig
from emdn_train.proof_summary import CLEAR, crystals, detected, false_alarms, interval
from emdn_train.quality_tables import markdown


def report(rows: pl.DataFrame, config: ProofConfig) -> str:
    """Put all tables in Markdown, with what they were measured on.

    Parameters
    ----------
    rows
        As `emdn_train.proof.measure` gives them.
    """
    table = found(rows)
    return "\n\n".join(
        [
            caption(rows, config),
            false_alarms(rows),
            f"Faults planted in results of the first model, and which are found: in {CLEAR} % of "
            "the faulty frames, or of the stacks, at every level. Only movies whose honest result "
            f"passes are counted, {_passing(rows)}: in the others there is something to find "
            "without a fault. `error` is the squared error from the truth over that of the honest "
            "result, in the median.",
            markdown(detected(table)),
            "The same in full. Per cent of the faulty frames that are flagged, by signal to noise "
            "per pixel; of stacks that fail; what most of the flagged frames are called, and how "
            "many of them; the same of the quick check; and the error.",
            markdown(table),
            "Honest results: per cent of frames that are flagged and of stacks that fail, of "
            "movies without faults; `alone` leaves out frames that are flagged for the run they "
            "are in only. The lower rows are stacks that a user may come with; nothing was "
            "planted. `gain` is that of the squared error over the raw frames, in dB.",
            markdown(flagged(rows)),
            "The same by the truth, which the check does not know. `sound`: at no spatial "
            f"frequency are the frames together off by {SEEN:g} standard deviations of a frame's "
            f"noise, and on average over {RUN} frames and {DRAWS} draws of their noise at no place "
            f"by {PLACE:g} of such an average's; `slight`: at some frequency they are, but within "
            f"the {100 * TOLERATED:g} % of a lattice's peak that the check lets a denoiser take; "
            "`wrong`: by more, so that what is flagged is a true finding. What is flagged of sound "
            "results are the false alarms. `failed` counts stacks, `95 %` is the interval in which "
            "their share in per cent lies (binomial, Clopper and Pearson). "
            f"`{RIGHTED}`: the results of the models less what these are wrong by on average, "
            f"of {config.small_size} x {config.small_size} pixels and specimens that stand still, "
            f"also at {FAINT:g} in signal to noise; sound by construction.",
            markdown(by_truth(rows)),
        ]
    )


def caption(rows: pl.DataFrame, config: ProofConfig) -> str:
    """Say which movies, models and seed."""
    stacks = rows.unique("result").filter(pl.col("label") != RIGHTED)
    models = ", ".join(f"{name} ({_sha(name)})" for name in config.names)
    levels = " and ".join(f"{one:g}" for one in config.levels)
    return (
        f"`emdn-train proof`, emdn {__version__}, seed {config.seed}: simulated movies of "
        f"{config.frames} frames of {config.size} x {config.size} on a counting camera at "
        f"{levels} in signal to noise; {stacks.filter('faults')['seed'].n_unique()} movies with "
        f"faults, {stacks.filter(~pl.col('faults'))['seed'].n_unique()} without, of each "
        f"specimen and level; {100 * LEVEL:g} % of honest frames are aimed at. Models: {models}."
    )


def found(rows: pl.DataFrame) -> pl.DataFrame:
    """Say of every fault, strength and place what share is found, and how much it harms."""
    by, same = ["fault", "strength", "place"], ["specimen", "snr", "seed", "frame"]
    passing = _honest(rows).filter(~pl.col("stack")).select("specimen", "snr", "seed")
    faulty = rows.filter("faults", "planted").join(passing, on=passing.columns, how="semi")
    honest = faulty.filter(pl.col("fault") == NONE).select(*same, before="error")
    harm = (
        faulty.join(honest, on=same)
        .group_by(by)
        .agg((pl.col("error") / pl.col("before")).median().round(2))
    )
    return _shares(faulty, by).join(harm, on=by, how="left", maintain_order="left")


def flagged(rows: pl.DataFrame) -> pl.DataFrame:
    """Say of every model and kind of stack what share is flagged though nothing is planted."""
    by = ["label", "model"]
    honest = rows.filter(~pl.col("faults"), pl.col("fault") == NONE)
    gain = 10 * (pl.col("noise") / pl.col("error")).log10().mean()
    more = honest.group_by(by).agg(_percent("own").alias("alone"), gain.round(1).alias("gain"))
    table = _shares(honest, by).join(more, on=by, how="left", maintain_order="left")
    return table.rename({"label": "stack"})


def by_truth(rows: pl.DataFrame) -> pl.DataFrame:
    """Say how often sound, slightly wrong and wrong results are flagged."""
    honest = crystals(rows)
    by = ["label", "truth"]
    stacks = honest.unique("result", keep="first", maintain_order=True)
    table = stacks.group_by(by).agg(
        pl.len().alias("results"),
        pl.col("stack").sum().alias("failed"),
        _percent("quick_stack").alias("quick stacks"),
    )
    bounds = [interval(failed, count) for failed, count in table["failed", "results"].iter_rows()]
    table = table.with_columns(
        pl.Series("95 %", [f"{low:.0f} to {high:.0f}" for low, high in bounds], pl.String)
    )
    frames = honest.group_by(by).agg(_percent("flagged").alias("frames flagged"))
    order = {
        name: number for number, name in enumerate(honest["label"].unique(maintain_order=True))
    }
    return (
        table.join(frames, on=by)
        .sort(
            pl.col("label").replace_strict(order, return_dtype=pl.Int64),
            pl.col("truth").replace_strict(
                {name: n for n, name in enumerate(KINDS)}, return_dtype=pl.Int64
            ),
        )
        .select("label", "truth", "results", "frames flagged", "failed", "95 %", "quick stacks")
        .rename({"label": "stack"})
    )


def _passing(rows: pl.DataFrame) -> str:
    honest = _honest(rows)
    return f"{honest.filter(~pl.col('stack')).height} of {honest.height}"


def _honest(rows: pl.DataFrame) -> pl.DataFrame:
    """Return a row for the honest result of every movie with faults."""
    honest = rows.filter("faults", pl.col("fault") == NONE)
    return honest.unique("result", keep="first", maintain_order=True)


def _shares(rows: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    levels = sorted(rows["snr"].unique())
    stacks = rows.unique("result", keep="first", maintain_order=True)
    table = rows.group_by(by, maintain_order=True).agg(
        *(_percent("flagged", level).alias(f"frames {level:g}") for level in levels)
    )
    parts = [
        stacks.group_by(by, maintain_order=True).agg(
            *(_percent("stack", level).alias(f"stacks {level:g}") for level in levels)
        ),
        called(rows, by),
        rows.group_by(by).agg(_percent("quick").alias("quick frames")),
        stacks.group_by(by).agg(_percent("quick_stack").alias("quick stacks")),
    ]
    for part in parts:
        table = table.join(part, on=by, how="left", maintain_order="left")
    return table


def called(rows: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Say what flagged frames are called first: the commonest, and its share in per cent."""
    first = rows.filter("flagged").with_columns(
        pl.col("verdict").str.split("; ").list.first().alias("called")
    )
    counts = first.group_by(*by, "called").len().sort("len", "called", descending=[True, False])
    share = (100 * pl.col("len") / pl.col("len").sum()).round().cast(pl.Int64)
    named = counts.group_by(by, maintain_order=True).agg(
        pl.col("called").first(), share.first().alias("share")
    )
    return named.select(
        *by, (pl.col("called") + " " + pl.col("share").cast(pl.String) + " %").alias("called")
    )


def _percent(name: str, level: float | None = None) -> pl.Expr:
    values = pl.col(name) if level is None else pl.col(name).filter(pl.col("snr") == level)
    return (100 * values.mean()).round().cast(pl.Int64)


def _sha(name: str) -> str:
    return open_session(name, "cpu", 1).info.sha256[:8]
