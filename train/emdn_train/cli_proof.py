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
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Where rows are kept as movies are finished, so that the same command continues; "
            "and the tables.",
        ),
    ] = Path("outputs/proof"),
) -> None:
    """Plant faults in denoised simulated movies, and see which emdn-deploy check finds."""
    need_torch()
    from emdn_train import proof as proving
    from emdn_train.cli_quality import chosen
    from emdn_train.proof_config import ProofConfig, small
    from emdn_train.proof_rows import Saved, identity
    from emdn_train.proof_table import report
    from emdn_train.remaining import Remaining

    config = ProofConfig(chosen(models) if models else None, seed=seed, workers=workers)
    config = small(config) if quick else config
    saved = Saved(out, identity(config))
    note = Remaining(lambda text: typer.echo(text, err=True))
    if saved.done:
        typer.echo(f"continuing {saved.path}: {len(saved.done)} movies are done", err=True)
    text = report(proving.measure(config, saved, note), config)
    typer.echo(text)
    tables = saved.path.with_suffix(".md")
    tables.write_text(text + "\n", encoding="utf-8")
    typer.echo(f"saved {tables} and {saved.path}")
