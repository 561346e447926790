"""The commands ``check`` and ``evaluate``: options, files, exit status."""

from pathlib import Path
from typing import Annotated

import typer

from emdn_deploy.config import Axes, Dataset, DenoiseOptions, takes_options
from emdn_models import console

FAILED = 3  # exit status of a check that the stack does not pass
TABLES = (".csv", ".parquet")
_REFERENCE = "As it was denoised with."

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]


def evaluate(
    denoised: Annotated[Path, typer.Argument(metavar="DENOISED")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="One frame, or as many.")],
    noisy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The frames before, for the gain.")
    ] = None,
    data_range: Annotated[
        float | None,
        typer.Option("--range", help="Of PSNR and SSIM; default: that of each frame of TRUTH."),
    ] = None,
    dataset: Dataset = None,
    axes: Axes = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one row a frame.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare denoised frames with the truth: PSNR, SSIM, gain in dB and in dose."""
    from emdn_deploy import evaluate as evaluation
    from emdn_deploy.readers import Choice

    _check({csv: TABLES}, [denoised, truth, noisy], overwrite=overwrite)
    result = evaluation.evaluate(denoised, truth, noisy, data_range, Choice(dataset, axes))
    if csv is not None:
        evaluation.write_table(result.table, csv)
    console.say("\n".join(evaluation.lines(result)))


@takes_options(
    "model", "device", "threads", "dataset", "axes", "frames", "gain", "offset", "dark",
    "gain_map", "defects", dark=_REFERENCE, gain_map=_REFERENCE, defects=_REFERENCE,
)  # fmt: skip
def check(
    stack: Annotated[Path, typer.Argument(metavar="STACK", help="The frames before.")],
    denoised: Annotated[
        Path | None,
        typer.Argument(metavar="DENOISED", help="The frames after; made here if not given."),
    ] = None,
    options: DenoiseOptions = DenoiseOptions(),  # noqa: B008
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap's noise.")] = 0,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All numbers, .csv or .parquet.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Pictures and words as .html, or one picture as .png."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON instead of text.")
    ] = False,
) -> None:
    """Say, without the truth, which denoised frames can be trusted; status 3 if the stack fails."""
    from emdn_deploy import check as checking
    from emdn_deploy.check import report as reports
    from emdn_deploy.evaluate import write_table

    read = [stack, denoised, options.dark, options.gain_map, options.defects]
    _check({table: TABLES, report: (".html", ".png")}, read, overwrite=overwrite)
    page = report is not None and report.suffix.lower() == ".html"
    result = checking.check(stack, denoised, options, seed, page=page)
    if table is not None:
        write_table(result.table, table)
    if report is not None:
        reports.write(report, result)
    if as_json:
        print(reports.as_json(result))  # noqa: T201
    else:
        console.say("\n".join(reports.checked(result)))
    if not result.passed:
        raise typer.Exit(FAILED)


def _check(
    wanted: dict[Path | None, tuple[str, ...]], read: list[Path | None], *, overwrite: bool
) -> None:
    """Refuse, before the work, files that cannot or must not be written."""
    from emdn_deploy.output import check_targets
    from emdn_models.errors import OutputError

    for path, kinds in wanted.items():
        if path is not None and path.suffix.lower() not in kinds:
            raise OutputError(
                f"{path}: unknown kind of file {path.suffix!r}; give {' or '.join(kinds)}"
            )
    check_targets(list(filter(None, wanted)), list(filter(None, read)), overwrite=overwrite)


def add_to(app: typer.Typer) -> None:
    """Add both commands to a command line."""
    app.command()(evaluate)
    app.command()(check)
