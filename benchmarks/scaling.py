"""Draw how speed grows with threads, and how it falls with the size of a frame."""

from pathlib import Path

import polars as pl


def draw(table: pl.DataFrame, path: Path) -> None:
    """Draw the table of test_scaling as PNG, a line a model."""
    from matplotlib.figure import Figure

    table = table.with_columns(
        pl.col("size").str.split(" x ").list.first().cast(pl.Int64).alias("side")
    )
    most = table["threads"].max()
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(table["model"]):
        own = table.filter(pl.col("model") == name)
        threads = own.filter(pl.col("side") == 256).sort("threads")
        sides = own.filter(pl.col("threads") == most).sort("side")
        left.plot(threads["threads"], threads["frames/s"], "o-", label=name)
        right.plot(sides["side"], sides["frames/s"], "o-", label=name)
    left.set(xlabel="threads", ylabel="frames/s", title="256 x 256", ylim=(0, None))
    left.set_xticks(sorted(set(table["threads"])))
    right.set(
        xlabel="side of a frame in pixels", ylabel="frames/s", title=f"{most} threads",
        xscale="log", yscale="log",
    )  # fmt: skip
    sides = sorted(set(table["side"]))
    right.set_xticks(sides, [str(side) for side in sides])
    right.minorticks_off()
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")
