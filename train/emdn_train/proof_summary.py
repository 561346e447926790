"""What `emdn_train.proof` comes to: the faults that are found, and false alarms of stacks."""

import polars as pl
from scipy import stats

from emdn_train.kept import KINDS
from emdn_train.proof import NONE, PLACES
from emdn_train.proof_config import RIGHTED
from emdn_train.proof_movies import CRYSTALS

CLEAR = 95
"""Per cent from which a fault counts as found."""


def detected(found: pl.DataFrame) -> pl.DataFrame:
    """Name of every fault the strengths that are found and those that are not.

    Parameters
    ----------
    found
        Of `emdn_train.proof_table.found`.
    """
    levels = [name.removeprefix("frames ") for name in found.columns if name.startswith("frames ")]
    worst = pl.min_horizontal(
        pl.max_horizontal(f"frames {level}", f"stacks {level}") for level in levels
    )
    faults = found.filter(pl.col("fault") != NONE).with_columns(clear=worst >= CLEAR)
    by = faults.group_by("fault", "strength", maintain_order=True).agg(
        *(pl.col("clear").filter(pl.col("place") == place).any().alias(place) for place in PLACES),
        pl.col("error").median(),
    )
    missed = pl.col("strength") + " (error x " + pl.col("error").round(2).cast(pl.String) + ")"
    return by.group_by("fault", maintain_order=True).agg(
        *(_listed(pl.col("strength").filter(place)).alias(f"found, {place}") for place in PLACES),
        _listed(missed.filter(~pl.any_horizontal(*PLACES))).alias("not found"),
    )


def _listed(values: pl.Expr) -> pl.Expr:
    return pl.when(values.len() > 0).then(values.str.join(", ")).otherwise(pl.lit("-"))


def false_alarms(rows: pl.DataFrame) -> str:
    """Say how many sound stacks fail, and for what."""
    honest = crystals(rows).filter(pl.col("truth") == KINDS[0])
    said = []
    for label in ("crystals", RIGHTED):
        stacks = honest.filter(pl.col("label") == label).unique("result")
        failed, count = int(stacks["stack"].sum()), stacks.height
        if count:
            low, high = interval(failed, count)
            said.append(f"{failed} of {count} fail ({low:.0f} to {high:.0f} %) of {label}")
    why = honest.filter("stack").unique("result", maintain_order=True)["why"]
    causes = "".join(f"\n- {one}" for one in why)
    return f"False alarms of sound stacks: {'; '.join(said) or 'none is sound'}.{causes}"


def interval(failed: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, per cent (Clopper, Pearson, Biometrika 26, 1934)."""
    found = stats.binomtest(failed, count).proportion_ci()
    return 100 * float(found.low), 100 * float(found.high)


def crystals(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of honest results without faults beside them, all crystals together."""
    honest = rows.filter(~pl.col("faults"), pl.col("fault") == NONE)
    label = pl.when(pl.col("label").is_in(list(CRYSTALS))).then(pl.lit("crystals"))
    return honest.with_columns(label.otherwise("label").alias("label"))
