"""The command of ``emdn-train`` that proves ``emdn-deploy check``: it only wires."""

from pathlib import Path
from typing import Annotated

import typer

from emdn_train.flags import need_torch


def proof(
    models: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help="Shipped names or .onnx files: faults are planted in results of the first; "
            "default: the default model and two more.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller frames, fewer movies.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result is the same.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Everything follows from it.")] = 0,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the tables, as Markdown.")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Also write a row a frame that was checked.")
    ] = None,
) -> None:
    """Plant faults in denoised simulated movies, and see which emdn-deploy check finds."""
    need_torch()
    from rich.console import Console
    from rich.progress import Progress

    from emdn_train import proof as proving
    from emdn_train.cli_quality import chosen
    from emdn_train.proof_config import ProofConfig, small
    from emdn_train.proof_table import report

    config = ProofConfig(chosen(models) if models else None, seed=seed, workers=workers)
    config = small(config) if quick else config
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("checking", total=None)
        table = proving.measure(config, lambda a, b: bar.update(task, completed=a, total=b))
    text = report(table, config)
    typer.echo(text)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(text + "\n", encoding="utf-8")
        typer.echo(f"saved {save}")
    if rows is not None:
        table.write_csv(rows)
        typer.echo(f"saved {rows}")
