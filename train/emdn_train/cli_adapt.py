"""The command ``emdn-train adapt``: it only wires."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from emdn_deploy.config import Axes, Dataset, Gain, Offset, Selected
from emdn_train.flags import need_torch


def adapt(
    stack: Annotated[
        Path, typer.Argument(metavar="STACK", help="Raw frames, any file that emdn-deploy reads.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = (
        Path("outputs")
    ),
    model: Annotated[str, typer.Option(metavar="NAME", help="Model to fine-tune.")] = "unet",
    preset: Annotated[str, typer.Option(help="Its size: shipped or paper.")] = "shipped",
    start: Annotated[
        Path, typer.Option("--from", metavar="FILE", help="Checkpoint; shipped: the package's.")
    ] = Path("shipped"),
    max_minutes: Annotated[
        float, typer.Option(min=0, help="Time, all parts of a run; 0: as the epochs take.")
    ] = 10.0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the stack; as time allows if not given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Patches a step.")] = 8,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 2e-4,
    patch: Annotated[int, typer.Option(min=8, help="Side of a patch in pixels.")] = 128,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="auto takes a GPU if there is one; cuda insists."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Start of every random number.")] = 0,
    dataset: Dataset = None,
    axes: Axes = None,
    frames: Selected = None,
    gain: Gain = None,
    offset: Offset = None,
    dark: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Dark reference, subtracted.")
    ] = None,
    gain_map: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Gain reference, multiplied.")
    ] = None,
    defects: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Mask of bad pixels, not zero where bad.")
    ] = None,
    keep_bad_pixels: Annotated[
        bool, typer.Option("--keep-bad-pixels", help="Do not look for hot and dead pixels.")
    ] = False,
) -> None:
    """Fine-tune a model on a stack without clean frames; continues where it was stopped."""
    need_torch()
    from emdn_train.adapt import adapt as run
    from emdn_train.adapt_config import AdaptConfig

    done = run(
        AdaptConfig(
            stack, out, model, preset, start, max_minutes, epochs, batch_size, lr, patch, device,
            seed, dataset, axes, frames, gain, offset, dark, gain_map, defects, keep_bad_pixels,
        )
    )  # fmt: skip
    found = done.verdict
    if found is not None:
        rows = (("start", found.before), ("tuned", found.after))
        for name, one in rows:
            typer.echo(
                f"{name}  uMSE {one.error.value:.4g} +- {one.error.se:.2g} e^2/px on frames held "
                f"out, {one.gain_db.value:.2f} +- {one.gain_db.se:.2f} dB over raw"
            )
        typer.echo(f"fell   {found.fell.value:.3g} +- {found.fell.se:.2g} e^2/px")
    kept = "" if done.outcome == "gained" else ": kept the starting weights"
    typer.echo(f"{done.outcome}{kept} ({done.steps} steps)")
    typer.echo(f"saved {done.path}")
