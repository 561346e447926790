"""The command ``emdn-train benchmark``: it only wires."""

from pathlib import Path
from typing import Annotated, Any

import typer

from emdn_deploy.config import On
from emdn_train.flags import Specific, benchmark_options, names_of, need_torch


def benchmark(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Data set; simulated if there is none.")
    ] = Path("data/record"),
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the weights and record.json.")
    ] = Path("outputs/record"),
    frames: Annotated[
        int, typer.Option(min=16, help="Training pairs, if they are simulated.")
    ] = 512,
    model: Annotated[str, typer.Option(metavar="NAME", help="The net.")] = "unet",
    preset: Annotated[
        str, typer.Option(help="Its size; unet as paper is the benchmark's net.")
    ] = "paper",
    device: On = "auto",
    seed: Annotated[int, typer.Option(help="Start of every random number.")] = 0,
    specific: Specific = None,
) -> None:
    """Run the em_denoise benchmark: the record that machines are compared by, in one line."""
    need_torch()
    from emdn_train.record import FILE_NAME, RecordConfig, line, record

    names = names_of(model)
    if len(names) > 1:
        raise typer.BadParameter("a record is of one model", param_hint="--model")
    values: dict[str, Any] = {
        "data": data, "out": out, "frames": frames, "model": names[0], "preset": preset,
        "device": device, "seed": seed,
    }  # fmt: skip
    found = record(RecordConfig(**(values | benchmark_options(specific))))
    if found is not None:
        typer.echo(line(found))
        typer.echo(f"saved {out / FILE_NAME}")
