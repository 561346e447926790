"""The command ``emdn-train variants``: it only wires."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from emdn_train.flags import names_of, need_torch


class PrecisionName(StrEnum):
    """Precisions that variants are made in."""

    int8 = "int8"
    fp16 = "fp16"
    both = "all"


def variants(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="What export has written; default: what is shipped."),
    ] = None,
    models: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Models of the folder, or all.")
    ] = "all",
    precision: Annotated[
        PrecisionName, typer.Option(help="int8 is for CPUs, fp16 for GPUs.")
    ] = PrecisionName.both,
) -> None:
    """Make variants of other precisions that lose next to nothing; the others are refused."""
    need_torch()
    from emdn_models import pretrained
    from emdn_train import index, outputs
    from emdn_train.variants import PRECISIONS, make, speed
    from emdn_train.variants.table import table

    place = folder or pretrained.WEIGHTS
    asked = PRECISIONS if precision is PrecisionName.both else (precision.value,)
    names = None if models == "all" else names_of(models)
    found = list(make(place, asked, names))
    typer.echo("loss of gain in dB by signal to noise per pixel, beside fp32")
    typer.echo(outputs.show(table(found)))
    typer.echo(f"integers by {speed.instructions()}, one thread")
    for result in found:
        if result.path is not None:
            typer.echo(f"saved {result.path}")
    typer.echo(f"saved {place / index.NAME}")
    if any(result.refusal for result in found):
        raise typer.Exit(1)
