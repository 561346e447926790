"""What a training run is asked for, and what comes of it."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch

from emdn_models import MODELS, ModelError, classes
from emdn_train.data import Split
from emdn_train.recipes import RECIPES, Recipe
from emdn_train.source import fingerprint

if TYPE_CHECKING:
    from emdn_train.parallel import Processes

Device = Literal["auto", "cpu", "cuda"]

WARM_UP = 100
"""Steps over which the learning rate rises, where the recipe does not say."""

Status = Literal["fitted", "start kept", "no gain", "diverged"]


@dataclass(frozen=True)
class FitConfig:
    """One training run; the defaults are the SciML-Bench benchmark's.

    Attributes
    ----------
    data
        Folder with ``train/`` and ``test/`` (`emdn_train.data`).
    out
        Folder for the results. Models that its checkpoint holds already and that
        are not fitted again stay in it.
    models
        Names of ``MODELS``, or of their copies (`emdn_models.classes`), which need ``start``.
    preset
        Size of the nets.
    recipe
        ``benchmark`` or ``quality``.
    epochs
        Passes over the data; each takes one random patch of every frame.
    batch_size
        Patches per optimiser step, of each process.
    lr
        Learning rate; the recipe's own if None.
    patch
        Side of a patch in pixels.
    device
        ``auto`` takes a GPU if there is one.
    seed
        Start of every random number.
    start
        Checkpoint whose weights are the start of each model, instead of chance
        (`emdn_train.start`); spectral estimates then stay as they are. A copy that it does
        not hold starts from its model.
    max_minutes
        Time for each model, all parts of a stopped run together, after which it ends
        with its schedule completed; 0 for as long as the epochs take.
    """

    data: str | PathLike[str] = "data"
    out: str | PathLike[str] = "outputs"
    models: tuple[str, ...] = tuple(MODELS)
    preset: str = "shipped"
    recipe: str = "benchmark"
    epochs: int = 2
    batch_size: int = 128
    lr: float | None = None
    patch: int = 64
    device: Device = "auto"
    seed: int = 0
    start: str | PathLike[str] | None = None
    max_minutes: float = 0.0

    def __post_init__(self) -> None:
        """Refuse names that do not exist before any time is spent."""
        for name in self.models:
            model, kind = classes.split(name)
            if kind is not None and self.start is None:
                raise ModelError(
                    f"{name}: a copy is fine-tuned from {model}; "
                    f"give a checkpoint that holds {model}, or this copy, by --from"
                )
        if self.recipe not in RECIPES:
            raise ModelError(f"no recipe is called {self.recipe!r}; there are {', '.join(RECIPES)}")


@dataclass(frozen=True)
class Fitted:
    """What became of one model.

    Attributes
    ----------
    name
        The model.
    status
        ``fitted``; ``start kept``, the result is more than 0.05 dB worse than the start, which
        was better than the noisy frame and is what is saved; ``no gain``, the result is worse than
        the noisy frame, as after too few steps; or ``diverged``, the loss is not finite or
        the result more than 20 dB worse. What diverged is not saved.
    history
        One row an epoch: loss, learning rate, validation gain, seconds.
    gain_db
        Mean over frames of 10 log10(MSE noisy / MSE denoised), a value a level, at the end.
    start_db
        The same before the first step; empty where it was not measured.
    images_per_s
        Patches a second through whole training steps, noise included.
    """

    name: str
    status: Status
    history: list[dict[str, Any]]
    gain_db: dict[str, float]
    mean_ratio: float
    images_per_s: float
    start_db: dict[str, float] = field(default_factory=dict)


def judge(gain_db: float, start_db: float = -math.inf) -> Status:
    """Name the outcome of a run by its mean gain and that of its start; see `Fitted`."""
    if not gain_db > -20:
        return "diverged"
    if gain_db < start_db - 0.05 and start_db > 0:
        return "start kept"
    return "fitted" if gain_db > 0 else "no gain"


def mean(gains: Mapping[str, float]) -> float:
    """Return the mean gain over the levels of signal to noise."""
    return sum(gains.values()) / len(gains)


def learning_rate(config: FitConfig, recipe: Recipe) -> float:
    """Return the learning rate asked for, or else the recipe's."""
    return config.lr if config.lr is not None else recipe.lr


def warm_up(recipe: Recipe, step: int) -> float:
    """Return the share of the learning rate at a step, for recipes that have no rise themselves.

    It rises from a thousandth by an equal factor a step. A first step of 0.01 in every weight
    would throw away a start that denoises by a spectrum already.
    """
    return 1.0 if recipe.warmup else 1e-3 ** max(0.0, 1 - step / WARM_UP)


def same_run(
    config: FitConfig, recipe: Recipe, processes: "Processes", split: Split, held_out: Split
) -> dict[str, Any]:
    """Name all that a result follows from, and a run is continued with; folders may move."""
    options = asdict(config)
    del options["data"], options["out"]
    return {
        **asdict(recipe),
        **options,
        "lr": learning_rate(config, recipe),
        "device": processes.device.type,
        "processes": processes.count,
        "start": None if config.start is None else os.fspath(config.start),
        "training data": fingerprint(split),
        "test data": fingerprint(held_out),
        "torch": torch.__version__,
    }
