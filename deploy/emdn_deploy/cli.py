"""The command ``emdn-deploy``: it only wires."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from emdn_deploy.bench import commands as timing
from emdn_deploy.check import commands
from emdn_deploy.flags import (
    Axes,
    Dataset,
    Gain,
    Model,
    Numbers,
    Offset,
    On,
    Selected,
    Threads,
)
from emdn_deploy.options import DenoiseOptions, Dtype, Kind
from emdn_models import console
from emdn_models.errors import EmdnError

app = typer.Typer(
    help="Denoise electron-microscopy frames.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_DEFAULT = DenoiseOptions()


@app.command()
def denoise(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN...", help="Files; a folder or a quoted pattern is one stack of its files."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Default: <stem>_denoised beside IN."),
    ] = _DEFAULT.output,
    to: Annotated[
        Kind | None,
        typer.Option(
            help="Kind of output; by default that of the input, hspy for DM, SER and folders."
        ),
    ] = _DEFAULT.to,
    dtype: Annotated[
        Dtype, typer.Option(help="Integers are rounded; pixels that saturate are counted.")
    ] = _DEFAULT.dtype,
    compress: Annotated[
        bool | None,
        typer.Option(
            "--compress/--no-compress",
            help="Without loss: gzip in HDF5, zlib in TIFF. Default: if the input is.",
        ),
    ] = _DEFAULT.compress,
    sigma: Annotated[
        bool, typer.Option("--sigma", help="Add every pixel's standard deviation; 8 x the time.")
    ] = _DEFAULT.sigma,
    out_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the outputs.")
    ] = _DEFAULT.out_dir,
    suffix: Annotated[str, typer.Option(help="What output names end in.")] = _DEFAULT.suffix,
    model: Model = _DEFAULT.model,
    device: On = _DEFAULT.device,
    precision: Numbers = _DEFAULT.precision,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Frames per run; chosen if not given.")
    ] = _DEFAULT.batch,
    threads: Threads = _DEFAULT.threads,
    dataset: Dataset = _DEFAULT.dataset,
    axes: Axes = _DEFAULT.axes,
    frames: Selected = _DEFAULT.frames,
    gain: Gain = _DEFAULT.gain,
    offset: Offset = _DEFAULT.offset,
    dark: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Dark reference, subtracted.")
    ] = _DEFAULT.dark,
    gain_map: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Gain reference, multiplied.")
    ] = _DEFAULT.gain_map,
    defects: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Mask of bad pixels, not zero where bad.")
    ] = _DEFAULT.defects,
    keep_bad_pixels: Annotated[
        bool, typer.Option("--keep-bad-pixels", help="Do not look for hot and dead pixels.")
    ] = _DEFAULT.keep_bad_pixels,
    preview: Annotated[
        Path | None, typer.Option(metavar="PNG|DIR", help="Draw the middle frame before and after.")
    ] = _DEFAULT.preview,
    movie: Annotated[
        Path | None, typer.Option(metavar="GIF|DIR", help="Draw the stack before and after.")
    ] = _DEFAULT.movie,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output.")
    ] = _DEFAULT.overwrite,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per input instead of text.")
    ] = False,
) -> None:
    """Denoise files of frames into files of the same shape and units."""
    single = (output, *(one for one in (preview, movie) if one is not None and not one.is_dir()))
    if len(sources) > 1 and any(one is not None for one in single):
        raise typer.BadParameter(
            "-o, --preview and --movie take a single input; give folders for several: --out-dir, "
            "--preview, --movie"
        )
    options = DenoiseOptions(
        output=output, to=to, dtype=dtype, compress=compress, sigma=sigma, out_dir=out_dir,
        suffix=suffix, model=model, device=device, precision=precision, batch=batch,
        threads=threads, dataset=dataset, axes=axes, frames=frames, gain=gain, offset=offset,
        dark=dark, gain_map=gain_map, defects=defects, keep_bad_pixels=keep_bad_pixels,
        preview=preview, movie=movie, overwrite=overwrite,
    )  # fmt: skip
    from emdn_deploy import job, reporting, targets
    from emdn_deploy.denoiser import Denoiser

    pairs = [(source, _pictured(own)) for source, own in targets.each(sources, options)]
    opened = None
    failed, alone = [], 0
    for source, own in pairs:
        try:
            if dry_run:
                plan = job.plan(source, own)
                _show(reporting.as_json(plan) if as_json else reporting.planned(plan))
                continue
            if len(pairs) > 1:
                opened = opened or Denoiser.of(own)
            report = job.run(source, own, _progress(), opened)
            _show(reporting.as_json(report) if as_json else reporting.lines(report))
            alone += report.frames == 1
        except EmdnError as error:
            if len(pairs) == 1:
                raise
            failed.append(str(source))
            print(f"error: {error}", file=sys.stderr)
    if alone > 1 and not as_json:
        console.say(
            f"note       {alone} files of one frame each, denoised one by one; those of one movie "
            "are better denoised together: give the folder, or the pattern in quotes"
        )
    if failed:
        raise EmdnError(f"{len(failed)} of {len(pairs)} inputs failed: {', '.join(failed)}")


@app.command()
def watch(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="A folder, a quoted pattern, or a growing HDF5 file."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Of an HDF5 file; see --out-dir."),
    ] = _DEFAULT.output,
    out_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: <folder>_denoised.")
    ] = _DEFAULT.out_dir,
    to: Annotated[Kind | None, typer.Option(help="Kind of output for a folder.")] = _DEFAULT.to,
    model: Model = _DEFAULT.model,
    device: On = _DEFAULT.device,
    precision: Numbers = _DEFAULT.precision,
    threads: Threads = _DEFAULT.threads,
    dataset: Dataset = _DEFAULT.dataset,
    axes: Axes = _DEFAULT.axes,
    gain: Gain = _DEFAULT.gain,
    offset: Offset = _DEFAULT.offset,
    idle: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Stop when nothing came for so long.")
    ] = 60.0,
    poll: Annotated[
        float, typer.Option(min=0.01, metavar="SECONDS", help="Time between two looks.")
    ] = 0.5,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing outputs.")
    ] = _DEFAULT.overwrite,
) -> None:
    """Denoise frames while an acquisition writes them; Ctrl-C, or --idle, ends it."""
    options = DenoiseOptions(
        output=output, out_dir=out_dir, to=to, model=model, device=device, precision=precision,
        threads=threads, dataset=dataset, axes=axes, gain=gain, offset=offset, overwrite=overwrite,
    )  # fmt: skip
    from emdn_deploy import growing, targets
    from emdn_deploy import watch as watching

    arrivals = (
        growing.dataset(source, targets.target_of(source, options)[0], options, idle, poll)
        if source.is_file()
        else watching.folder(source, options, idle, poll)
    )
    frames, worst = 0, 0.0
    try:
        for arrival in arrivals:
            frames, worst = frames + arrival.frames, max(worst, arrival.lag_s)
            print(f"{frames} {arrival.source} -> {arrival.output}, lag {arrival.lag_s:.2f} s")
    except KeyboardInterrupt:
        arrivals.close()
    except BaseException as error:
        arrivals.throw(error)  # so that what is not finished does not look finished
    finally:
        print(f"frames     {frames}, largest lag {worst:.2f} s")


@app.command()
def models() -> None:
    """List the shipped models: size, cost and measured quality."""
    from emdn_deploy import listing

    console.say(listing.text())


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
        console.say(line)


commands.add_to(app)
timing.add_to(app)


def _pictured(options: DenoiseOptions) -> DenoiseOptions:
    """Name pictures that are to go into a folder after the output."""

    def named(picture: Path | None, suffix: str) -> Path | None:
        if picture is None or options.output is None or not picture.is_dir():
            return picture
        return picture / f"{options.output.stem}{suffix}"

    preview, movie = named(options.preview, ".png"), named(options.movie, ".gif")
    return replace(options, preview=preview, movie=movie)


def _show(result: str | list[str]) -> None:
    """Print one line of JSON as it is, lines for people in the terminal's width."""
    if isinstance(result, str):
        print(result)
    else:
        console.say("\n".join(result))


def _progress() -> Callable[[int, int], None]:
    """Return a function that rewrites one line of stderr, where that is a terminal."""
    began, first = time.perf_counter(), -1
    live = sys.stderr.isatty()

    def show(done: int, count: int) -> None:
        nonlocal began, first
        if first < 0:  # before the first frame; those of an earlier run took no time of this one
            began, first = time.perf_counter(), done
        if not live or done == first:
            return
        rate = (done - first) / max(time.perf_counter() - began, 1e-9)
        line = f"\r{done}/{count} frames, {rate:.1f}/s, {(count - done) / rate:.0f} s left "
        print(line, end="\n" if done == count else "", file=sys.stderr, flush=True)

    return show


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see `emdn_models.console.run` for how it leaves."""
    console.run(app, argv)
