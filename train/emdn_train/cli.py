"""The command ``emdn-train``: it only wires."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from emdn_models import console
from emdn_train import cli_adapt, cli_quality, cli_record, cli_sigma
from emdn_train.flags import Specific, benchmark_options, joined, names_of, need_torch

app = typer.Typer(
    help="Simulate data, fit the models and export them to ONNX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class DeviceName(StrEnum):
    """Devices as the command line spells them."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class KindName(StrEnum):
    """Kinds of simulated data."""

    graphene = "graphene"
    mixed = "mixed"
    stem = "stem"
    movie = "movie"


class DetectorName(StrEnum):
    """Cameras of simulated TEM frames."""

    counting = "counting"
    ccd = "ccd"


class ClassName(StrEnum):
    """Classes of frames, by the detector that recorded them."""

    stem = "stem"
    tem = "tem"


class PrecisionName(StrEnum):
    """Precisions besides float32."""

    int8 = "int8"
    fp16 = "fp16"


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    frames: Annotated[int, typer.Option(min=1, help="Training pairs, or frames of a movie.")] = (
        1000
    ),
    kind: Annotated[KindName, typer.Option(help="Specimens and imaging mode.")] = (
        KindName.graphene
    ),
    size: Annotated[int, typer.Option(min=32, help="Side of a frame in pixels.")] = 256,
    dose_e_per_a2: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="MIN MAX", help="Electrons per square angstrom, instead of --snr."),
    ] = None,
    snr: Annotated[
        tuple[float, float],
        typer.Option(metavar="MIN MAX", help="Signal to noise per pixel, drawn log-uniformly."),
    ] = (0.05, 3.0),
    pixel_size_nm: Annotated[
        tuple[float, float],
        typer.Option(metavar="MIN MAX", help="Pixel size, drawn uniformly."),
    ] = (0.008, 0.025),
    detector: Annotated[DetectorName, typer.Option(help="Camera of TEM frames.")] = (
        DetectorName.counting
    ),
    images_per_structure: Annotated[
        int, typer.Option(min=1, help="Frames of one specimen, each at its own optics and dose.")
    ] = 4,
    defects: Annotated[
        tuple[float, float],
        typer.Option(metavar="MIN MAX", help="Point defects per site, drawn log-uniformly."),
    ] = (5e-4, 0.05),
    states: Annotated[
        int, typer.Option(min=1, help="Arrangements of the defects that each specimen is seen in.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The whole data set follows from it.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result is the same.")] = 1,
) -> None:
    """Simulate micrographs in the layout of em_graphene_sim; continues where it stopped."""
    need_torch()
    from emdn_train.simulate import SimulateConfig
    from emdn_train.simulate import simulate as run

    config = SimulateConfig(
        out=out, frames=frames, kind=kind.value, size=size, snr=snr,
        dose_e_per_a2=dose_e_per_a2, pixel_size_nm=pixel_size_nm, detector=detector.value,
        images_per_structure=images_per_structure, defects=defects, states=states,
        seed=seed, workers=workers,
    )  # fmt: skip
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
def gallery(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="PNG to write.")] = Path(
        "gallery.png"
    ),
) -> None:
    """Draw specimens, doses and detectors of the simulator in one picture."""
    need_torch()
    from emdn_train.simulate.gallery import draw_gallery

    print(f"saved {draw_gallery(out)}")


@app.command()
def fit(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Data set with train/ and test/.")] = (
        Path("data")
    ),
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = (
        Path("outputs")
    ),
    models: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Models to fit, or all.")
    ] = "all",
    frame_class: Annotated[
        ClassName | None,
        typer.Option(
            "--class", help="Fit to these frames of DATA alone, and save as NAME@stem or NAME@tem."
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="Size of the nets: shipped, paper; of unet also wide and movie (five frames)."
        ),
    ] = "shipped",
    recipe: Annotated[
        str, typer.Option(help="benchmark (SciML-Bench's defaults) or quality.")
    ] = "benchmark",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Patches a step, of each process.")] = 128,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Learning rate; the recipe's own if not given.")
    ] = None,
    patch: Annotated[int, typer.Option(min=8, help="Side of a patch in pixels.")] = 64,
    device: Annotated[
        DeviceName, typer.Option(help="auto takes a GPU if there is one; cuda insists.")
    ] = DeviceName.auto,
    seed: Annotated[int, typer.Option(help="Start of every random number.")] = 0,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Start from the model's weights there; shipped: the package's.",
        ),
    ] = None,
    max_minutes: Annotated[
        float,
        typer.Option(
            min=0, help="Time a model, all parts of a run, schedule completed; 0: no limit."
        ),
    ] = 0.0,
    benchmark: Specific = None,
) -> None:
    """Fit models and save them in OUT/em_denoise_model.h5; continues where it was stopped."""
    need_torch()
    from emdn_train import outputs
    from emdn_train.config import FitConfig, mean
    from emdn_train.fit import fit as run

    values: dict[str, Any] = {
        "data": data, "out": out, "models": names_of(models), "preset": preset, "recipe": recipe,
        "frame_class": frame_class.value if frame_class else None,
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "patch": patch,
        "device": device.value, "seed": seed, "start": start, "max_minutes": max_minutes,
    }  # fmt: skip
    assert values.keys() == {field.name for field in fields(FitConfig)}
    results = run(FitConfig(**(values | benchmark_options(benchmark))))
    if not results:  # a process that torchrun started, not the first
        return
    print(outputs.text(results))
    for result in results:
        if result.status == "no gain":
            print(f"{result.name}: worse than the noisy frame so far; train it longer")
        elif result.status == "best kept":
            step = f"after step {result.best_step}" if result.best_step else "before the first step"
            print(
                f"{result.name}: ended at {mean(result.gain_db):.2f} dB: saved is what it was "
                f"{step}, at {mean(result.best_db):.2f} dB; train it with a smaller --lr"
            )
        elif result.status == "diverged":
            print(f"{result.name}: diverged; it is not saved and will not be exported")
    if any(result.status != "diverged" for result in results):
        print(f"saved {out / 'em_denoise_model.h5'}")
    started = [one for one in results if one.status == "best kept" and not one.best_step]
    if started or any(result.status == "diverged" for result in results):
        raise typer.Exit(1)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint written by fit.")
    ] = Path("outputs/em_denoise_model.h5"),
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: onnx/ beside the checkpoint.")
    ] = None,
    models: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Models to export, or all.")
    ] = "all",
    precision: Annotated[
        PrecisionName | None,
        typer.Option(help="Write NAME.int8.onnx (CPUs) or NAME.fp16.onnx (GPUs) too, if as good."),
    ] = None,
) -> None:
    """Convert fitted models to ONNX and prove that they compute the same."""
    need_torch()
    from emdn_train.export import export as run

    folder = out or checkpoint.parent / "onnx"
    names = None if models == "all" else names_of(models)
    exported = []
    for done in run(checkpoint, folder, names):
        print(
            f"{done.path}  {done.path.stat().st_size / 1e6:.2f} MB  {done.nodes} nodes  "
            f"{done.gflop_256:.2f} GFLOP  within {done.error:.1e} of torch"
        )
        exported.append(done.name)
    if precision is None:
        return
    from emdn_train.precision import add

    refused = False
    for name in exported:
        made = add(folder, name, precision.value)
        refused |= made.path is None
        if made.path is None:
            print(f"{name}: {precision.value} refused: {made.refusal}")
        else:
            print(f"{made.path}  {made.path.stat().st_size / 1e6:.2f} MB  loses "
                  f"{made.loss_db:.3f} dB, mean off by {100 * made.mean_shift:.3f} %")  # fmt: skip
    if refused:
        raise typer.Exit(1)


app.command()(cli_adapt.adapt)
app.command()(cli_sigma.calibrate)
app.command()(cli_sigma.reliability)
app.command()(cli_quality.quality)
app.command()(cli_record.benchmark)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see `emdn_models.console.run` for how it leaves."""
    console.run(app, joined(sys.argv[1:] if argv is None else argv))
