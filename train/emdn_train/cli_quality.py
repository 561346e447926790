"""The commands of ``emdn-train`` that measure quality: they only wire."""

from pathlib import Path
from typing import Annotated

import typer

from emdn_train.flags import need_torch


def quality(
    testset: Annotated[
        Path, typer.Argument(metavar="DIR", help="What emdn-train testset has written.")
    ],
    models: Annotated[
        str,
        typer.Option(metavar="NAME,NAME,...", help="Shipped names or .onnx files, or all shipped."),
    ] = "all",
    peers: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Also measure non-local means and BM3D, on N specimens of each part; "
            "kept in DIR for later runs.",
        ),
    ] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of a model; default: all.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write quality.parquet, quality.md and frontier.png."),
    ] = None,
) -> None:
    """Measure exported models on the fixed test split and on movies, beside baselines."""
    need_torch()
    from emdn_deploy import Denoiser
    from emdn_train import movies, quality_report
    from emdn_train.quality import QualityConfig, measure, names_of, note

    config = QualityConfig(testset, chosen(models), peers, threads)
    rows = measure(config)
    hops = movies.measure({name: Denoiser(name, threads=threads) for name in names_of(config)})
    typer.echo(quality_report.report(rows, hops))
    written = [] if save is None else quality_report.save(rows, save, hops)
    for path in written + note(rows, config):
        typer.echo(f"saved {path}")


def chosen(text: str) -> tuple[str, ...] | None:
    """Split a list of shipped names and files; None for all, and an unknown one is wrong usage."""
    from emdn_models import pretrained

    if text == "all":
        return None
    shipped = pretrained.index()["models"]
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in shipped and not name.endswith(".onnx")]
    if unknown or not names:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'nothing'}; choose from {', '.join(shipped)}, "
            "or give .onnx files",
            param_hint="--models",
        )
    return names
