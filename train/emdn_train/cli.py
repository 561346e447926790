"""The commands of ``emdn-train``: their options, and what they print."""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from emdn_deploy.config import new_app, run_app, takes_options, text_table
from emdn_models import ModelError
from emdn_models.errors import library
from emdn_train.config import AdaptConfig, BenchmarkConfig, FitConfig, QualityConfig, SimulateConfig

app = new_app("Simulate data, fit the models and export them to ONNX.")

SPELLINGS = ("-b", "--benchmark-specific", "--benchmark_specific")

Models = Annotated[
    str, typer.Option(metavar="NAME,NAME,...", help="Models of the checkpoint or folder, or all.")
]


def translated(arguments: Sequence[str]) -> list[str]:
    """Write SciML-Bench's ``-b KEY VALUE`` and ``-b KEY=VALUE,...`` as options, last: they win.

    ``use_gpu`` of false is ``--device cpu``.
    """
    own, added, words = list[str](), list[str](), iter(arguments)
    for word in words:
        if word not in SPELLINGS:
            own.append(word)
            continue
        pairs = next(words, "")
        if pairs.isidentifier():
            pairs += f"={next(words, '')}"
        for pair in pairs.replace(",", " ").split():
            key, _, value = pair.partition("=")
            if key != "use_gpu":
                added += [f"--{key.replace('_', '-')}", value]
            elif value.lower() in ("false", "0"):
                added += ["--device", "cpu"]
    return own + added


def of_config(config: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take the annotated fields of a config for its options.

    ``models`` is a list of names by commas, or ``all`` for the default; a field ``options`` is
    left to `emdn_deploy.config.takes_options`.
    """
    shown = []
    for one in inspect.signature(config).parameters.values():
        if one.name == "models":
            one = one.replace(annotation=Annotated[str, get_args(one.annotation)[1]], default="all")
        if one.name == "options" or get_origin(one.annotation) is Annotated:
            shown.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            library("torch", "train", "emdn-train")
            if (names := names_of(values.pop("models", "all"))) is not None:
                values["models"] = names
            command(config(**values))

        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in shown}
        return run

    return decorate


def names_of(text: str) -> tuple[str, ...] | None:
    """Split a list of models; None for ``all``."""
    names = tuple(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    if not names:
        raise typer.BadParameter("names no model", param_hint="--models")
    return None if names == ("all",) else names


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
    library("torch", "train", "emdn-train")
    from emdn_train.simulate import write_test_split

    print(f"saved {write_test_split(out, multislice)}")


@app.command()
@of_config(FitConfig)
def fit(config: FitConfig) -> None:
    """Fit models and save them in OUT/em_denoise_model.h5; continues where it was stopped.

    SciML-Bench's -b KEY VALUE works too, for batch_size, epochs, lr and use_gpu.
    """
    from emdn_train.fit import fit as run

    results = run(config)
    for one in results:
        print(one)
    if any(one.status == "diverged" for one in results):
        raise typer.Exit(1)
    print(f"saved {config.out / 'em_denoise_model.h5'}")


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint written by fit, or shipped.")
    ] = Path("outputs/em_denoise_model.h5"),
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Default: onnx/ beside the checkpoint; here for shipped."),
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
        typer.Option(metavar="DIR", help="Add them to a Triton server's model repository."),
    ] = None,
) -> None:
    """Convert fitted models to ONNX and prove that they compute the same."""
    library("torch", "train", "emdn-train")
    from emdn_models import pretrained
    from emdn_train import packages
    from emdn_train.export import add_precision
    from emdn_train.export import export as run

    if bioimage_io:
        library("bioimageio.spec", "bioimageio", "--bioimage-io")
    folder = out or checkpoint.parent / "onnx"
    if checkpoint == Path("shipped"):
        checkpoint = pretrained.CHECKPOINT
    refused = False
    for done in run(checkpoint, folder, names_of(models), half=half):
        print(
            f"{done.path}  {done.path.stat().st_size / 1e6:.2f} MB  "
            f"{done.gflop_256:.2f} GFLOP  within {done.error:.1e} of torch"
        )
        if bioimage_io:
            print(f"saved {packages.bioimage_io(done.path)}")
        if triton is not None:
            print(f"saved {packages.triton(done.path, triton)}")
        if precision is not None:
            try:
                print(f"saved {add_precision(done.path, precision)}")
            except ModelError as error:
                print(error)
                refused = True
    if refused:
        raise typer.Exit(1)


@app.command()
@takes_options(
    "dataset", "axes", "frames", "gain", "offset", "dark", "gain_map", "defects", "keep_bad_pixels"
)
@of_config(AdaptConfig)
def adapt(config: AdaptConfig) -> None:
    """Fine-tune a model on a stack without clean frames; continues where it was stopped."""
    from emdn_train.adapt import adapt as run

    print(run(config))
    print(f"saved {config.out / 'em_denoise_model.h5'}")


@app.command()
def calibrate(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder that export wrote; default: shipped models."),
    ] = None,
    models: Models = "all",
    frames: Annotated[int, typer.Option(min=8, help="Simulated frames to measure on.")] = 64,
) -> None:
    """Measure how errors follow from spread and noise; emdn-deploy denoise --sigma uses it."""
    library("torch", "train", "emdn-train")
    from emdn_models import pretrained
    from emdn_train.calibrate import calibrate as run

    place = folder or pretrained.WEIGHTS
    rows = [
        [name, f"{one['spread']:g}", f"{one['noise']:g}", *map("{:.2%}".format, one["inside"])]
        for name, one in run(place, names_of(models), frames).items()
    ]
    print("factors, and the share of the pixels within one and two sigma on these frames")
    print(text_table(["model", "spread", "noise", "within 1", "within 2"], rows))
    print(f"saved {place / 'index.json'}")


@app.command()
@of_config(QualityConfig)
def quality(config: QualityConfig) -> None:
    """Measure exported models on the fixed test split and on movies, beside baselines."""
    from emdn_train import hops
    from emdn_train.quality import measure, models_of, note, report, save

    rows, movies = measure(config), hops.measure(models_of(config))
    print(report(rows, movies))
    written = [] if config.save is None else save(rows, movies, config.save)
    for path in written + note(rows, config):
        print(f"saved {path}")


@app.command()
@of_config(BenchmarkConfig)
def benchmark(config: BenchmarkConfig) -> None:
    """Run the em_denoise benchmark, which compares machines; prints one line.

    SciML-Bench's -b KEY VALUE works too, for batch_size, epochs, lr and use_gpu.
    """
    from emdn_train.benchmark import FILE_NAME, line
    from emdn_train.benchmark import benchmark as run

    found = run(config)
    print(line(found))
    print(f"saved {config.out / FILE_NAME}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see `emdn_deploy.config.run_app` for how it leaves."""
    run_app(app, translated(sys.argv[1:] if argv is None else argv))
