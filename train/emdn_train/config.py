"""Options of the commands of ``emdn-train``, with their defaults, and recipes of training."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from emdn_deploy.config import DenoiseOptions, On
from emdn_models import MODELS, FormatError, ModelError
from emdn_models.spec import frames_of, spec_of

Kind = Literal["graphene", "mixed", "stem", "movie"]

SIMULATION = {"format": "emdn-simulation", "format_version": 1}
"""What files of simulated frames say that they are."""

DEFECTS = (5e-4, 0.05)
"""Least and most point defects per site. With one in a thousand, the best guess from a noisy
frame is that there is none, and a net learns to fill them."""

Out = Annotated[Path, Option(metavar="DIR", help="Folder for the results.")]
Epochs = Annotated[int, Option(min=1, help="Passes over the data.")]
BatchSize = Annotated[int, Option(min=1, help="Patches a step.")]
Patch = Annotated[int, Option(min=8, help="Side of a patch in pixels.")]
Seed = Annotated[int, Option(help="Seed of all random numbers.")]
Rate = Annotated[float | None, Option(min=0, help="Learning rate; the recipe's own if not given.")]


WARM_UP = 100
"""Steps over which the learning rate rises, where the recipe does not say."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that is not the size of the run."""

    lr: float
    weight_decay: float = 0.0  # of AdamW, which is Adam without
    # MSE over the batch, or the mean over patches of log(MSE + 1e-3): proportional to the mean
    # improvement in dB, so that no bright or dim frame dominates.
    loss: Literal["mse", "log-mse"] = "mse"
    # Share of the run over which the learning rate rises, then to fall along a half cosine.
    warmup: float = 0.0
    ema: float = 0.0  # decay of the exponential moving average of the weights; 0 for none
    snr: tuple[float, float] = (0.05, 3.0)  # signal to noise per pixel, drawn log-uniformly
    augmented: float = 0.0  # share of patches that are magnified, and whose contrast is changed
    ccd: float = 0.0  # share of the unscanned patches that a CCD records
    # How much more a pixel at a point defect counts: averaging the lattice over its cells
    # lowers the error most, and fills what interrupts it (`benchmarks/results/defect_weight.md`).
    defects: float = 0.0
    mixed: bool = False  # whether the net computes in bfloat16 where that is faster (`reduced`)


RECIPES: dict[str, Recipe] = {
    "benchmark": Recipe(lr=0.01),
    "quality": Recipe(
        lr=2e-3,
        weight_decay=1e-4,
        loss="log-mse",
        warmup=0.03,
        ema=0.999,
        augmented=0.3,
        ccd=0.12,
        mixed=True,
    ),
}


@dataclass(frozen=True)
class SimulateConfig:
    """One data set; it follows from the seed, whatever the number of workers.

    ``test`` gets a tenth of the frames (at least 4), ``inference`` up to 16. The signal to noise
    per pixel is contrast x sqrt(incident electrons per pixel; detected ones for STEM). Three
    specimens in twenty have no point defects. The images of one structure are of each of its
    states in turn, at the same optics: what a movie sees before and after an event.
    """

    out: Annotated[Path, Argument(metavar="OUT", help="Folder to write.")]
    frames: Annotated[int, Option(min=1, help="Training pairs, or frames of a movie.")] = 1000
    kind: Annotated[Kind, Option(help="Specimens and imaging mode.")] = "graphene"
    size: Annotated[int, Option(min=32, help="Side of a frame in pixels.")] = 256
    dose_e_per_a2: Annotated[
        tuple[float, float] | None,
        Option(metavar="MIN MAX", help="Electrons per square angstrom, instead of --snr."),
    ] = None
    snr: Annotated[
        tuple[float, float],
        Option(metavar="MIN MAX", help="Signal to noise per pixel, drawn log-uniformly."),
    ] = (0.05, 3.0)
    pixel_size_nm: Annotated[
        tuple[float, float], Option(metavar="MIN MAX", help="Pixel size, drawn uniformly.")
    ] = (0.008, 0.025)
    detector: Annotated[Literal["counting", "ccd"], Option(help="Camera of TEM frames.")] = (
        "counting"
    )
    images_per_structure: Annotated[
        int, Option(min=1, help="Frames of one specimen, each at its own optics and dose.")
    ] = 4
    defects: Annotated[
        tuple[float, float],
        Option(metavar="MIN MAX", help="Point defects per site, drawn log-uniformly."),
    ] = DEFECTS
    states: Annotated[
        int, Option(min=1, help="Arrangements of the defects that each specimen is seen in.")
    ] = 1
    seed: Annotated[int, Option(min=0, help="Seed; the data set follows from it.")] = 0
    workers: Annotated[int, Option(min=1, help="Processes; they do not change the result.")] = 1

    def __post_init__(self) -> None:
        """Refuse numbers that make no data set."""
        if self.states < 1 or self.images_per_structure % self.states:
            raise FormatError(
                f"states is {self.states}; expected a divisor of images_per_structure, "
                f"{self.images_per_structure}"
            )
        for name in ("snr", "dose_e_per_a2", "pixel_size_nm", "defects"):
            limits = getattr(self, name)
            if limits is not None and not 0 < limits[0] <= limits[1]:
                raise FormatError(f"{name} is {limits}; expected 0 < MIN <= MAX")

    def count(self, split: str) -> int:
        """Return the number of frames of a split."""
        tenth = max(1, self.frames // 10)
        return {"train": self.frames, "test": max(4, tenth), "inference": min(tenth, 16)}[split]

    def identity(self) -> str:
        """Return as JSON all that the frames depend on: not the folder, not the workers."""
        known = asdict(self)
        del known["out"], known["workers"]
        return json.dumps(SIMULATION | known, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """One training run; the defaults are the SciML-Bench benchmark's.

    Models that the checkpoint in ``out`` holds already and that are not fitted again stay in it.
    With ``start``, spectral estimates stay as they are.
    """

    data: Annotated[Path, Option(metavar="DIR", help="Data set with train/ and test/.")] = Path(
        "data"
    )
    out: Out = Path("outputs")
    models: Annotated[
        tuple[str, ...], Option(metavar="NAME,NAME,...", help="Models to fit, or all.")
    ] = tuple(MODELS)
    preset: Annotated[
        str,
        Option(help="Size of the nets: shipped, paper; of unet also movie (five frames)."),
    ] = "shipped"
    recipe: Annotated[str, Option(help="benchmark (SciML-Bench's defaults) or quality.")] = (
        "benchmark"
    )
    epochs: Epochs = 2
    batch_size: BatchSize = 128
    lr: Rate = None
    defect_weight: Annotated[
        float | None,
        Option(
            min=0,
            help="How much more pixels at point defects count; also ranks sites; simulated data.",
            show_default="the recipe's own",
        ),
    ] = None
    patch: Patch = 64
    device: On = "auto"
    seed: Seed = 0
    start: Annotated[
        Path | None, Option("--from", metavar="FILE", help="Checkpoint to start from, or shipped.")
    ] = None
    max_minutes: Annotated[
        float, Option(min=0, help="Time limit a model, resumed parts included; 0: none.")
    ] = 0.0

    def __post_init__(self) -> None:
        """Refuse models and recipes that do not exist before any time is spent."""
        for name in self.models:
            spec_of(name)
        if self.recipe not in RECIPES:
            raise ModelError(f"no recipe is called {self.recipe!r}; there are {', '.join(RECIPES)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names that the models are saved under: ``MODEL@movie`` if they see several frames."""
        return tuple(
            f"{name}@movie" if frames_of(name, self.preset) > 1 else name for name in self.models
        )


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """One fine-tuning on one stack, read and corrected by the options of its deployment."""

    stack: Annotated[
        Path,
        Argument(metavar="STACK", help="Raw frames, any file that emdn-deploy reads."),
    ]
    out: Out = Path("outputs")
    model: Annotated[str, Option(metavar="NAME", help="Model to fine-tune.")] = "unet"
    start: Annotated[
        Path, Option("--from", metavar="FILE", help="Checkpoint to start from, or shipped.")
    ] = Path("shipped")
    max_minutes: Annotated[
        float, Option(min=0, help="Time limit, resumed parts included; 0: --epochs alone.")
    ] = 10.0
    epochs: Annotated[
        int, Option(min=1, help="Passes over the stack.", show_default="as time allows")
    ] = 100_000
    batch_size: BatchSize = 8
    lr: Annotated[float, Option(min=0, help="Learning rate.")] = 2e-4
    patch: Patch = 128
    device: On = "auto"
    seed: Seed = 0
    options: DenoiseOptions = field(default_factory=DenoiseOptions)


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """One run of the em_denoise benchmark; without its ``data`` a small set is simulated."""

    data: Annotated[
        Path, Argument(metavar="DATA", help="Data set; simulated if there is none.")
    ] = Path("data/record")
    out: Annotated[Path, Option(metavar="DIR", help="Folder for the weights and record.json.")] = (
        Path("outputs/record")
    )
    frames: Annotated[int, Option(min=16, help="Training pairs, if they are simulated.")] = 512
    epochs: Epochs = 2
    batch_size: BatchSize = 128
    lr: Rate = None
    device: On = "auto"
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What to measure; ``models`` of None are all that is shipped."""

    testset: Annotated[Path, Argument(metavar="DIR", help="Folder written by emdn-train testset.")]
    models: Annotated[
        tuple[str, ...] | None,
        Option(metavar="NAME,NAME,...", help="Shipped names or .onnx files, or all shipped."),
    ] = None
    peers: Annotated[
        int,
        Option(
            min=0,
            metavar="N",
            help="Also measure non-local means and BM3D, on N specimens of each part.",
        ),
    ] = 0
    threads: Annotated[int | None, Option(min=1, help="CPU threads of a model; default: all.")] = (
        None
    )
    save: Annotated[
        Path | None,
        Option(metavar="DIR", help="Write quality.parquet, movies.parquet and quality.md."),
    ] = None
