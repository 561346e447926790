"""The commands of ``emdn-deploy``: their options, and what they print."""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from emdn_deploy.config import DenoiseOptions, new_app, run_app, takes_options
from emdn_models.errors import EmdnError, OutputError

FAILED = 3  # exit status of a check that the stack does not pass
TABLES = (".csv", ".parquet")

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of text.")]

app = new_app("Denoise electron-microscopy frames.")


@app.command()
@takes_options()
def denoise(
    context: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN...", help="Files; a folder or a quoted pattern is one stack of its files."
        ),
    ],
    options: DenoiseOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    as_json: Json = False,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Use the workers of this dask scheduler.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Use this many processes on this machine.")
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Join the workers' parts into one plain file.")
    ] = False,
) -> None:
    """Denoise files of frames into files of the same shape and units."""
    from emdn_deploy import denoise_file, report, writers
    from emdn_deploy.denoiser import Denoiser

    wanted = (getattr(options, name) for name in report.PICTURES)
    if len(sources) > 1 and (options.output or any(one and not one.is_dir() for one in wanted)):
        raise typer.BadParameter(
            "-o, --preview, --movie and --report take a single input; give folders for several: "
            "--out-dir, --preview, --movie, --report"
        )
    if (scheduler and workers) or (join and not (scheduler or workers)):
        raise typer.BadParameter("give one of --scheduler and --workers; --join is for these")
    opened: dict[str | None, Denoiser] = {}
    elsewhere = None
    if (scheduler or workers) and not dry_run:
        from emdn_deploy import cluster

        found = cluster.connected(scheduler, workers, options.threads, join=join)
        elsewhere = context.with_resource(found)
    pairs = writers.targets_of(sources, options)
    failed, alone = [], 0
    for source, own in pairs:
        own = _in_folders(own, report.PICTURES)
        try:
            drawn = {getattr(own, name): kinds for name, kinds in report.PICTURES.items()}
            _check(drawn, [], own)
            if dry_run:
                plan = denoise_file.plan(source, own)
                print(report.as_json(plan) if as_json else report.planned(plan))
                continue
            done = denoise_file.run(source, own, _progress(), opened, elsewhere=elsewhere)
            print(report.as_json(done) if as_json else report.summary(done))
            alone += done.frames == 1
        except EmdnError as error:
            if len(pairs) == 1:
                raise
            failed.append(str(source))
            print(f"error: {error}", file=sys.stderr)
    if alone > 1 and not as_json:
        print(
            f"note       {alone} files of one frame each, denoised one by one; those of one movie "
            "are better denoised together: give the folder, or the pattern in quotes"
        )
    if failed:
        raise EmdnError(f"{len(failed)} of {len(pairs)} inputs failed: {', '.join(failed)}")


@app.command()
@takes_options(
    *("output", "out_dir", "to", "model", "device", "precision", "threads"),
    *("dataset", "axes", "gain", "offset", "overwrite"),
)
def watch(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="A folder, a quoted pattern, or a growing HDF5 file."),
    ],
    options: DenoiseOptions,
    idle: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Stop after so long without new frames.")
    ] = 60.0,
    poll: Annotated[
        float, typer.Option(min=0.01, metavar="SECONDS", help="Look for new frames this often.")
    ] = 0.5,
) -> None:
    """Denoise frames while an acquisition writes them; Ctrl-C, or --idle, ends it."""
    from emdn_deploy import watch as watching

    look = watching.dataset if source.is_file() else watching.folder
    arrivals = look(source, options, idle, poll)
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
    from emdn_deploy import report

    print(report.shipped_models())


@app.command()
@takes_options("dataset", "axes")
def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A model, or frames: also a folder or a pattern.")
    ],
    options: DenoiseOptions,
) -> None:
    """Say what a file holds: a model, or frames and which would be taken."""
    from emdn_deploy import report
    from emdn_deploy.readers import Choice

    for line in report.describe(file, Choice(options.dataset, options.axes)):
        print(line)


@app.command()
@takes_options("device", "precision", "threads")
def bench(
    options: DenoiseOptions,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...", help="Shipped names or .onnx files; default: all seven."
        ),
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Side of a frame in pixels.")] = 256,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="FRAMES_PER_S", help="Say which models keep up with it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time the models on this machine, about a minute for frames of 256 x 256."""
    from emdn_deploy import bench

    names = list(filter(None, (models or "").split(",")))
    where = options.device, options.threads, options.precision
    found = bench.bench(names or None, size, rate, *where)
    print(json.dumps(found._asdict()) if as_json else "\n".join(bench.text(found)))


@app.command()
@takes_options("dataset", "axes", "overwrite")
def evaluate(
    denoised: Annotated[Path, typer.Argument(metavar="DENOISED", help="Frames to judge.")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="True frames: one, or as many.")],
    options: DenoiseOptions,
    noisy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Noisy frames, for the gain.")
    ] = None,
    data_range: Annotated[
        float | None,
        typer.Option("--range", help="Data range of PSNR and SSIM; default: each true frame's."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one row a frame.")] = None,
) -> None:
    """Compare denoised frames with the truth: PSNR, SSIM, gain in dB and in dose."""
    from emdn_deploy import evaluate as evaluation
    from emdn_deploy.readers import Choice

    _check({csv: TABLES}, [denoised, truth, noisy], options)
    table = evaluation.evaluate(
        denoised, truth, noisy, data_range, Choice(options.dataset, options.axes)
    )
    if csv is not None:
        evaluation.write_table(table, csv)
    print(evaluation.text(table))


@app.command()
@takes_options(
    "model", "device", "threads", "dataset", "axes", "frames", "gain", "offset", "dark",
    "gain_map", "defects", "overwrite",
)  # fmt: skip
def check(
    stack: Annotated[Path, typer.Argument(metavar="STACK", help="Noisy frames.")],
    denoised: Annotated[
        Path | None,
        typer.Argument(metavar="DENOISED", help="Denoised frames; made here if not given."),
    ] = None,
    options: DenoiseOptions = DenoiseOptions(),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap's noise.")] = 0,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all numbers, .csv or .parquet.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a web page, .html."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say, without the truth, which denoised frames can be trusted; status 3 if the stack fails."""
    from emdn_deploy import check as checking
    from emdn_deploy.evaluate import write_table

    read = [stack, denoised, options.dark, options.gain_map, options.defects]
    _check({table: TABLES, report: (".html",)}, read, options)
    result = checking.check(stack, denoised, options, seed, report=report)
    if table is not None:
        write_table(result.table, table)
    print(result.json() if as_json else result.text())
    if not result.passed:
        raise typer.Exit(FAILED)


def _check(
    wanted: dict[Path | None, tuple[str, ...]], read: list[Path | None], options: DenoiseOptions
) -> None:
    """Refuse, before the work, files that cannot or must not be written."""
    from emdn_deploy.output import check_targets

    for path, kinds in wanted.items():
        if path and path.suffix.lower() not in kinds:
            raise OutputError(f"{path}: unknown kind of file; give {' or '.join(kinds)}")
    check_targets(list(filter(None, wanted)), list(filter(None, read)), overwrite=options.overwrite)


def _in_folders(options: DenoiseOptions, kinds: Mapping[str, Sequence[str]]) -> DenoiseOptions:
    """Name pictures that are to go into a folder after the output."""
    stem = options.output.stem if options.output else ""
    return replace(options, **{
        name: path / f"{stem}{kinds[name][0]}"
        for name in kinds if (path := getattr(options, name)) and path.is_dir()
    })  # fmt: skip


def _progress() -> Callable[[int, int], None]:
    """Return a function that rewrites one line of stderr, where that is a terminal."""
    began, first = time.perf_counter(), -1
    live = sys.stderr.isatty() and logging.getLogger("emdn_deploy").isEnabledFor(logging.INFO)

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
    """Run the command line; see `emdn_deploy.config.run_app` for how it leaves."""
    run_app(app, argv)
