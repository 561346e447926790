"""The commands of ``emdn-train`` for standard deviations: they only wire."""

from pathlib import Path
from typing import Annotated

import typer

from emdn_train.flags import names_of, need_torch


def calibrate(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="What export has written; default: what is shipped."),
    ] = None,
    models: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Models of the folder, or all.")
    ] = "all",
    frames: Annotated[int, typer.Option(min=8, help="Simulated frames to measure on.")] = 64,
) -> None:
    """Measure how errors follow from spread and noise; emdn-deploy denoise --sigma uses it."""
    need_torch()
    import polars as pl

    from emdn_models import pretrained
    from emdn_train import outputs, uncertainty

    place = folder or pretrained.WEIGHTS
    names = None if models == "all" else names_of(models)
    found = uncertainty.calibrate(place, names, frames)
    rows = [
        {
            "model": name, "spread": entry["spread"], "noise": entry["noise"],
            "inside 1": 100 * entry["inside"][0], "inside 2": 100 * entry["inside"][1],
        }
        for name, entry in found.items()
    ]  # fmt: skip
    typer.echo("factors, and per cent of the pixels within one and two sigma on these frames")
    typer.echo(outputs.show(pl.DataFrame(rows)))
    typer.echo(f"saved {place / 'index.json'}")


def reliability(
    testset: Annotated[
        Path, typer.Argument(metavar="DIR", help="What emdn-train testset has written.")
    ],
    models: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Shipped models to measure, or all.")
    ] = "all",
    out: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Also write a row a model and frame.")
    ] = None,
) -> None:
    """Compare standard deviations with errors on the fixed test split, beside simpler ones."""
    need_torch()
    from emdn_train import outputs
    from emdn_train.reliability import measure, summary

    rows = measure(testset, names_of(models))
    for by in (None, "level", "part"):
        typer.echo(outputs.show(summary(rows, by)))
    if out is not None:
        rows.write_csv(out)
        typer.echo(f"saved {out}")
