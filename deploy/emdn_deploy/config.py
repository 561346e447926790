"""The command line: options with defaults and help, how commands start and fail, and tables."""

import functools
import inspect
import io
import logging
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from emdn_models import __version__
from emdn_models.errors import EmdnError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "fp16", "int8"]
Kind = Literal["h5", "hspy", "tif", "mrc", "npy", "zarr"]
Dtype = Literal["float32", "uint8", "int8", "uint16", "int16", "uint32", "int32"]

_log = logging.getLogger(__name__)

On = Annotated[Device, typer.Option(help="auto: CUDA if it works; the others never fall back.")]


@dataclass(frozen=True)
class DenoiseOptions:
    """What to do with an input; None leaves a choice to emdn.

    Frames become (frames - dark) * gain_map before anything else. ``sigma`` denoises in eight
    orientations. ``dataset`` and ``axes`` are those of `emdn_deploy.readers.frames.Choice`.
    """

    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Default: <stem>_denoised beside IN."),
    ] = None
    to: Annotated[
        Kind | None,
        typer.Option(
            help="Kind of output; by default that of the input, hspy for DM, SER and folders."
        ),
    ] = None
    dtype: Annotated[
        Dtype, typer.Option(help="Integers are rounded; pixels that saturate are counted.")
    ] = "float32"
    compress: Annotated[
        bool | None,
        typer.Option(
            "--compress/--no-compress",
            help="Compress without loss (HDF5: gzip, TIFF: zlib); default: as the input.",
        ),
    ] = None
    sigma: Annotated[
        bool, typer.Option("--sigma", help="Add every pixel's standard deviation; 8 x the time.")
    ] = False
    out_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the outputs.")] = (
        None
    )
    suffix: Annotated[str, typer.Option(help="What output names end in.")] = "_denoised"
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.onnx",
            help="Default: chosen by the frames; emdn-deploy models lists them.",
        ),
    ] = None
    device: On = "auto"
    precision: Annotated[
        Precision, typer.Option(help="Variant of the model; emdn-deploy models lists them.")
    ] = "fp32"
    batch: Annotated[
        int | None, typer.Option(min=1, help="Frames per run; chosen if not given.")
    ] = None
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: all that are allowed.")
    ] = None
    dataset: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The frames inside the file (TIFF, DM: a number)."),
    ] = None
    axes: Annotated[
        str | None,
        typer.Option(metavar="LETTERS", help="One letter for each stored axis, such as tyx."),
    ] = None
    frames: Annotated[
        str | None, typer.Option(metavar="A:B:STEP,...", help="Only these frames, counted from 0.")
    ] = None
    gain: Annotated[
        float | None, typer.Option(help="Units per electron; measured if not given.")
    ] = None
    offset: Annotated[
        float | None, typer.Option(help="Reading without electrons; measured if not given.")
    ] = None
    dark: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Dark reference, subtracted.")
    ] = None
    gain_map: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Gain reference, multiplied.")
    ] = None
    defects: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Mask of bad pixels, not zero where bad.")
    ] = None
    keep_bad_pixels: Annotated[
        bool, typer.Option("--keep-bad-pixels", help="Do not look for hot and dead pixels.")
    ] = False
    preview: Annotated[
        Path | None, typer.Option(metavar="PNG|DIR", help="Draw the middle frame before and after.")
    ] = None
    movie: Annotated[
        Path | None, typer.Option(metavar="GIF|DIR", help="Draw the stack before and after.")
    ] = None
    report: Annotated[
        Path | None,
        typer.Option(metavar="HTML|DIR", help="Write a page: frames, spectra, time, verdicts."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = (
        False
    )


def takes_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's parameter ``options`` by fields of `DenoiseOptions`, as flags.

    ``names`` are those of the fields; all where none is given.
    """
    known = {field.name: field for field in fields(DenoiseOptions)}
    taken = names or tuple(known)
    kind = inspect.Parameter.KEYWORD_ONLY

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            options = DenoiseOptions(**{name: given.pop(name) for name in taken if name in given})
            command(options=options, **given)

        shown = list[inspect.Parameter]()
        for one in inspect.signature(command).parameters.values():
            shown += [one.replace(kind=kind)] if one.name != "options" else [
                inspect.Parameter(
                    name, kind, default=known[name].default, annotation=known[name].type
                )
                for name in taken
            ]  # fmt: skip
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in shown}
        return run

    return decorate


def new_app(about: str) -> typer.Typer:
    """Make a command line with ``--version``, ``-v``, ``-q`` and the completion of shells."""
    made = typer.Typer(
        help=about, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    made.callback()(_every)
    return made


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"emdn {__version__}")
        raise typer.Exit


def _every(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Show where an error arose, for a bug report."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show only results and warnings.")
    ] = False,
) -> None:
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    for package in ("emdn_models", "emdn_deploy", "emdn_train"):
        logging.getLogger(package).setLevel(level)


def run_app(app: typer.Typer, argv: Sequence[str] | None = None) -> None:
    """Run a command line to its end and leave the process by SystemExit.

    0 when all went well, 1 on an error that emdn or the system names, 2 on wrong usage,
    130 when the user interrupts.
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=None if argv is None else list(argv))
    except SystemExit as end:
        if end.code == 130:
            typer.echo("interrupted; run the same command to go on", err=True)
        raise
    except (EmdnError, OSError, MemoryError) as error:
        if _log.isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        typer.echo(f"error: {' '.join((str(error) or 'out of memory').split())}", err=True)
        sys.exit(1)


def text_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table for people, numbers to the right."""
    columns = []
    for name, *cells in zip(names, *rows, strict=True):
        number = all(re.fullmatch(r"[-+\d.,%]*( \(.*\))?", cell) for cell in cells)
        width = max(map(len, (name, *cells)))
        column = (name, "-" * width, *cells)
        columns.append([one.rjust(width) if number else one.ljust(width) for one in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))
