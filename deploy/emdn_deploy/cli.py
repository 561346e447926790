"""The command ``emdn-deploy``: it only wires."""

import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from emdn_deploy.options import DenoiseOptions
from emdn_models import console

app = typer.Typer(
    help="Denoise electron-microscopy frames.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_DEFAULT = DenoiseOptions()


class DeviceName(StrEnum):
    """Devices as the command line spells them."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Dataset = Annotated[
    str | None, typer.Option(metavar="PATH", help="Path of the frames inside the file.")
]
Axes = Annotated[
    str | None,
    typer.Option(metavar="LETTERS", help="One letter per stored axis, y and x the frame: tyx."),
]


@app.command()
def denoise(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A file of frames.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Default: <stem>_denoised beside IN."),
    ] = _DEFAULT.output,
    model: Annotated[
        str | None, typer.Option(metavar="NAME|FILE.onnx", help="See: emdn-deploy models.")
    ] = _DEFAULT.model,
    device: Annotated[
        DeviceName, typer.Option(help="auto says what it took; cuda never falls back.")
    ] = DeviceName(_DEFAULT.device),
    batch: Annotated[
        int | None, typer.Option(min=1, help="Frames per run; chosen if not given.")
    ] = _DEFAULT.batch,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: all that are allowed.")
    ] = _DEFAULT.threads,
    dataset: Dataset = _DEFAULT.dataset,
    axes: Axes = _DEFAULT.axes,
    gain: Annotated[
        float | None, typer.Option(help="Units per electron; measured if not given.")
    ] = _DEFAULT.gain,
    offset: Annotated[
        float | None, typer.Option(help="Reading without electrons; measured if not given.")
    ] = _DEFAULT.offset,
    preview: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw the middle frame before and after.")
    ] = _DEFAULT.preview,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output.")
    ] = _DEFAULT.overwrite,
) -> None:
    """Denoise a file of frames into a file of the same shape and units."""
    from emdn_deploy import job

    options = DenoiseOptions(
        output=output, model=model, device=device.value, batch=batch, threads=threads,
        dataset=dataset, axes=axes, gain=gain, offset=offset, preview=preview,
        overwrite=overwrite,
    )  # fmt: skip
    report = job.run(source, options, _progress())
    scale = report.intensity
    print(f"frames     {report.frames} from {source} {report.dataset}".rstrip())
    print(f"speed      {report.frames_per_s:.1f} frames/s, file to file")
    print(f"model      {report.model} on {report.device}")
    print(
        f"intensity  {scale.scale:.4g} e/px, gain {scale.gain:.4g}, offset {scale.offset:.4g} "
        f"({scale.note})"
    )
    print(f"ratio      {report.ratio:.5f}, mean(out) / mean(in)")
    print(f"output     {report.output}")
    if preview is not None:
        print(f"preview    {preview}")


@app.command()
def models() -> None:
    """List the shipped models: size, cost and measured quality."""
    from emdn_deploy import listing

    print(listing.text())


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    dataset: Dataset = None,
    axes: Axes = None,
) -> None:
    """Say what a file holds: a model, a checkpoint, or frames and which would be taken."""
    from emdn_deploy import inspection
    from emdn_deploy.readers import Choice

    for line in inspection.describe(file, Choice(dataset, axes)):
        print(line)


def _progress() -> Callable[[int, int], None]:
    """Return a function that rewrites one line of stderr, where that is a terminal."""
    began = time.perf_counter()
    live = sys.stderr.isatty()

    def show(done: int, count: int) -> None:
        if not live:
            return
        rate = done / max(time.perf_counter() - began, 1e-9)
        line = f"\r{done}/{count} frames, {rate:.1f}/s, {(count - done) / rate:.0f} s left "
        print(line, end="\n" if done == count else "", file=sys.stderr, flush=True)

    return show


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see `emdn_models.console.run` for how it leaves."""
    console.run(app, argv)
