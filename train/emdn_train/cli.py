"""The command ``emdn-train``: it only wires."""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from emdn_deploy.config import takes_options
from emdn_models import MODELS, MissingExtraError, console
from emdn_models.errors import install, library
from emdn_train.config import AdaptConfig, BenchmarkConfig, FitConfig, QualityConfig, SimulateConfig

app = console.app("Simulate data, fit the models and export them to ONNX.")

BENCHMARK_KEYS = {"batch_size": int, "epochs": int, "lr": float, "use_gpu": str}
"""What the SciML-Bench em_denoise benchmark lets its user set with -b KEY VALUE."""

SPELLINGS = ("-b", "--benchmark-specific", "--benchmark_specific")

Specific = Annotated[
    list[str] | None,
    typer.Option(
        *SPELLINGS,
        metavar="KEY VALUE",
        help="batch_size, epochs, lr or use_gpu as SciML-Bench has them, or KEY=VALUE; repeatable.",
    ),
]
Models = Annotated[
    str, typer.Option(metavar="NAME,NAME,...", help="Models of the checkpoint or folder, or all.")
]


def of_config(
    config: type, *, benchmark: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take the annotated fields of a config for its options.

    ``models`` is a list of names by commas, or ``all`` for the default. With ``benchmark`` the
    command also takes SciML-Bench's ``-b KEY VALUE``, which wins. A field ``options`` is left to
    `emdn_deploy.config.takes_options`.
    """
    shown = []
    for one in inspect.signature(config).parameters.values():
        if one.name == "models":
            flag = get_args(one.annotation)[1]
            one = one.replace(annotation=Annotated[str, flag], default="all")
        if one.name == "options" or get_origin(one.annotation) is Annotated:
            shown.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    if benchmark:
        kind = inspect.Parameter.KEYWORD_ONLY
        shown.append(inspect.Parameter("specific", kind, default=None, annotation=Specific))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            need_torch()
            chosen = benchmark_options(values.pop("specific", None))
            names = values.pop("models", "all")
            if names != "all":
                chosen["models"] = names_of(names, config is QualityConfig)
            command(config(**values | chosen))

        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in shown}
        return run

    return decorate


def names_of(text: str, shipped: bool = False) -> tuple[str, ...]:
    """Split a list of models; an unknown one is wrong usage.

    Parameters
    ----------
    shipped
        Whether they are shipped ones or .onnx files, and not names of ``MODELS``.
    """
    from emdn_models import pretrained

    known = list(pretrained.index()["models"] if shipped else MODELS)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    files = [name for name in names if shipped and name.endswith(".onnx")]
    unknown = [name for name in names if name.partition("@")[0] not in [*known, *files]]
    if unknown or not names:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'nothing'}; choose from {', '.join(known)}"
            + (", or give .onnx files" if shipped else ""),
            param_hint="--models",
        )
    return names


def joined(arguments: Sequence[str]) -> list[str]:
    """Write SciML-Bench's ``-b KEY VALUE`` as ``-b KEY=VALUE``, which is read as well."""
    made: list[str] = []
    for argument in arguments:
        if made[-2:-1] and made[-2] in SPELLINGS and made[-1].isidentifier():
            made[-1] += f"={argument}"
        else:
            made.append(argument)
    return made


def benchmark_options(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Read KEY=VALUE pairs; several may stand in one, separated by commas or spaces.

    Returns
    -------
    Fields of `emdn_train.config.FitConfig`; ``use_gpu`` of false is the device ``cpu``.
    """
    options: dict[str, Any] = {}
    for pair in " ".join(pairs or ()).replace(",", " ").split():
        key, _, value = pair.partition("=")
        try:
            options[key] = BENCHMARK_KEYS[key](value)
        except (KeyError, ValueError):
            raise typer.BadParameter(
                f"{pair!r}; expected KEY VALUE or KEY=VALUE with a number and KEY one of "
                f"{', '.join(BENCHMARK_KEYS)}",
                param_hint="-b",
            ) from None
        if key == "use_gpu":
            gpu = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
            if gpu is None:
                raise typer.BadParameter(f"{pair!r}; expected true or false", param_hint="-b")
            del options[key]
            options |= {} if gpu else {"device": "cpu"}
        elif options[key] <= 0:
            raise typer.BadParameter(f"{pair!r}; expected more than 0", param_hint="-b")
    return options


def need_torch() -> None:
    """Say how to get torch where it is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "this command needs torch, which the deploy side does without; "
            f"install it with: {install('train')}"
        ) from error


@app.command()
@of_config(SimulateConfig)
def simulate(config: SimulateConfig) -> None:
    """Simulate micrographs in the layout of em_graphene_sim; continues where it stopped."""
    from emdn_train.simulate import simulate as run

    print(f"saved {run(config)}")


@app.command("testset")
def write_testset(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write test/ in.")],
    multislice: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add the frames of tests/data/multislice.h5."),
    ] = None,
) -> None:
    """Write the fixed test split: every kind of frame at three levels of signal to noise."""
    need_torch()
    from emdn_train.simulate import write_test_split

    print(f"saved {write_test_split(out, multislice)}")


@app.command()
@of_config(FitConfig, benchmark=True)
def fit(config: FitConfig) -> None:
    """Fit models and save them in OUT/em_denoise_model.h5; continues where it was stopped."""
    from emdn_train import results
    from emdn_train.fit import fit as run

    found = run(config)
    if not found:  # a process that torchrun started, not the first
        return
    print(console.table(*results.table(found)))
    for result in found:
        if text := str(result):
            print(text)
    if any(result.status != "diverged" for result in found):
        print(f"saved {config.out / 'em_denoise_model.h5'}")
    if any(result.failed for result in found):
        raise typer.Exit(1)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint written by fit, or shipped.")
    ] = Path("outputs/em_denoise_model.h5"),
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Default: onnx/ beside the checkpoint, or here."),
    ] = None,
    models: Models = "all",
    half: Annotated[
        bool, typer.Option("--half", help="Round the weights to 16 bits, for smaller files.")
    ] = False,
    precision: Annotated[
        Literal["int8", "fp16"] | None,
        typer.Option(help="Write NAME.int8.onnx (CPUs) or NAME.fp16.onnx (GPUs) too, if as good."),
    ] = None,
    bioimage_io: Annotated[
        bool,
        typer.Option("--bioimage-io", help="Write NAME.bioimageio.zip too: Fiji, QuPath, napari."),
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Add them to the model repository of a Triton server."),
    ] = None,
) -> None:
    """Convert fitted models to ONNX and prove that they compute the same."""
    need_torch()
    from emdn_models import pretrained
    from emdn_train import packages
    from emdn_train.export import export as run

    if bioimage_io:
        library("bioimageio.spec", "bioimageio", "--bioimage-io")
    folder = out or checkpoint.parent / "onnx"
    if checkpoint == Path("shipped"):
        checkpoint = pretrained.CHECKPOINT
    exported = run(checkpoint, folder, None if models == "all" else names_of(models), half=half)
    for done in exported:
        print(
            f"{done.path}  {done.path.stat().st_size / 1e6:.2f} MB  {done.nodes} nodes  "
            f"{done.gflop_256:.2f} GFLOP  within {done.error:.1e} of torch"
        )
        if bioimage_io:
            print(f"saved {packages.bioimage_io(done.path)}")
        if triton is not None:
            print(f"saved {packages.triton(done.path, triton)}")
    if precision is None:
        return
    from emdn_train.precision import add

    made = {done.name: add(folder, done.name, precision) for done in exported}
    for name, one in made.items():
        if one.path is None:
            print(f"{name}: {precision} refused: {one.refusal}")
        else:
            print(f"{one.path}  {one.path.stat().st_size / 1e6:.2f} MB  loses "
                  f"{one.loss_db:.3f} dB, mean off by {100 * one.mean_shift:.3f} %")  # fmt: skip
    if any(one.path is None for one in made.values()):
        raise typer.Exit(1)


@app.command()
@takes_options(
    "dataset", "axes", "frames", "gain", "offset", "dark", "gain_map", "defects", "keep_bad_pixels"
)
@of_config(AdaptConfig)
def adapt(config: AdaptConfig) -> None:
    """Fine-tune a model on a stack without clean frames; continues where it was stopped."""
    from emdn_train.adapt import adapt as run

    done = run(config)
    if (found := done.verdict) is not None:
        for name, one in (("start", found.before), ("tuned", found.after)):
            print(
                f"{name}  uMSE {one.error.value:.4g} +- {one.error.se:.2g} e^2/px on frames held "
                f"out, {one.gain_db.value:.2f} +- {one.gain_db.se:.2f} dB over raw"
            )
        print(f"fell   {found.fell.value:.3g} +- {found.fell.se:.2g} e^2/px")
    start = "" if done.outcome == "gained" else ": the starting weights are saved"
    print(f"{done.outcome}{start} ({done.steps} steps)")
    print(f"saved {done.path}")


@app.command()
def calibrate(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="What export has written; default: what is shipped."),
    ] = None,
    models: Models = "all",
    frames: Annotated[int, typer.Option(min=8, help="Simulated frames to measure on.")] = 64,
) -> None:
    """Measure how errors follow from spread and noise; emdn-deploy denoise --sigma uses it."""
    need_torch()
    from emdn_models import pretrained
    from emdn_train.calibrate import calibrate as run

    place = folder or pretrained.WEIGHTS
    found = run(place, None if models == "all" else names_of(models), frames)
    rows = [
        [
            name,
            *(f"{one[key]:g}" for key in ("spread", "noise")),
            *map("{:.2%}".format, one["inside"]),
        ]
        for name, one in found.items()
    ]
    print("factors, and the share of the pixels within one and two sigma on these frames")
    print(console.table(["model", "spread", "noise", "within 1", "within 2"], rows))
    print(f"saved {place / 'index.json'}")


@app.command()
@of_config(QualityConfig)
def quality(config: QualityConfig) -> None:
    """Measure exported models on the fixed test split and on movies, beside baselines."""
    from emdn_deploy import Denoiser
    from emdn_train import hops, quality_report
    from emdn_train.quality import measure, names_of, note

    rows = measure(config)
    models = {name: Denoiser(name, threads=config.threads) for name in names_of(config)}
    movies = hops.measure(models)
    print(quality_report.report(rows, movies))
    written = [] if config.save is None else quality_report.save(rows, config.save, movies)
    for path in written + note(rows, config):
        print(f"saved {path}")


@app.command()
@of_config(BenchmarkConfig, benchmark=True)
def benchmark(config: BenchmarkConfig) -> None:
    """Run the em_denoise benchmark, which compares machines; prints one line."""
    from emdn_train.benchmark import FILE_NAME, line
    from emdn_train.benchmark import benchmark as run

    if config.model not in MODELS:
        raise typer.BadParameter(
            f"{config.model!r}; expected one model of {', '.join(MODELS)}", param_hint="--model"
        )
    found = run(config)
    if found is not None:
        print(line(found))
        print(f"saved {config.out / FILE_NAME}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see `emdn_models.console.run` for how it leaves."""
    console.run(app, joined(sys.argv[1:] if argv is None else argv))
