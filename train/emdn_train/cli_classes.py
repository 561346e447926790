"""The command ``emdn-train classes``: it only wires."""

from pathlib import Path
from typing import Annotated

import typer

from emdn_train.flags import need_torch


def classes(
    testset: Annotated[
        Path, typer.Argument(metavar="DIR", help="What emdn-train testset has written.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="The model of the copies.")] = "cafcn",
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What export has written; default: what is shipped."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Also write a row a model and frame.")
    ] = None,
) -> None:
    """Show where a model's copies help, and where the wrong one harms."""
    need_torch()
    from emdn_train import outputs
    from emdn_train.classes import measure, summary

    rows = measure(testset, model, folder)
    typer.echo("agnostic: gain in dB over the noisy frame; others: dB more than that, mean, worst")
    typer.echo(outputs.show(summary(rows, model)))
    if out is not None:
        rows.write_csv(out)
        typer.echo(f"saved {out}")
