"""Fit models to a data set: the whole loop, from clean frames to em_denoise_model.h5."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from emdn_models import MODELS, DeviceError, ModelError, checkpoint
from emdn_models.nets import build, load_state
from emdn_models.nets.electrons import noise_map, normalise
from emdn_train import outputs
from emdn_train.batches import Batch, Specimens, crops, log_uniform, record, stretch
from emdn_train.data import open_split
from emdn_train.recipes import RECIPES, Recipe, loss, optimizer, rate
from emdn_train.validate import LEVELS, evaluate, validation

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]


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
        Names of ``MODELS``.
    preset
        Size of the nets.
    recipe
        ``benchmark`` or ``quality``.
    epochs
        Passes over the data; each takes one random patch of every frame.
    batch_size
        Patches per optimiser step.
    lr
        Learning rate; the recipe's own if None.
    patch
        Side of a patch in pixels.
    device
        ``auto`` takes a GPU if there is one.
    seed
        Start of every random number.
    start
        Checkpoint whose weights are the start of each model, instead of chance.
    max_minutes
        Time for each model, after which it ends with its schedule completed; 0 for
        as long as the epochs take.
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
            if name not in MODELS:
                raise ModelError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
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
        ``fitted``; ``no gain``, the result is worse than the noisy frame, as after too
        few steps; or ``diverged``, the loss is not finite or the result more than
        20 dB worse. What diverged is not saved.
    history
        One row an epoch: loss, learning rate, validation gain, seconds.
    gain_db
        Mean over frames of 10 log10(MSE noisy / MSE denoised), a value a level.
    images_per_s
        Patches a second through whole training steps, noise included.
    """

    name: str
    status: Literal["fitted", "diverged", "no gain"]
    history: list[dict[str, Any]]
    gain_db: dict[str, float]
    mean_ratio: float
    images_per_s: float


def pick_device(device: Device) -> torch.device:
    """Return the device to use, and never another one than was asked for by name."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise DeviceError(
            "--device cuda: torch finds no CUDA GPU; use --device cpu, or install a CUDA "
            "build of torch and a driver that fits it"
        )
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def fit(config: FitConfig) -> list[Fitted]:
    """Fit every model of the config and write the results to its ``out`` folder.

    The folder then holds ``em_denoise_model.h5``, ``arguments.json``,
    ``history.csv``, ``metrics.json``, ``throughput.json`` and ``loss.png``.
    """
    device = pick_device(config.device)
    recipe = RECIPES[config.recipe]
    log.info("training on %s", outputs.describe(device))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    kept = outputs.existing(out)
    results: list[Fitted] = []
    with open_split(config.data, "train") as split, open_split(config.data, "test") as held_out:
        specimens = Specimens.of(split)
        held = validation(Specimens.of(held_out), LEVELS, 16, 256, config.seed)
        for name in config.models:
            result, net = fit_one(name, config, recipe, specimens, held, device)
            results.append(result)
            kept.pop(name, None)
            if result.status != "diverged":
                kept[name] = outputs.weights(result, net, config, recipe, specimens.split, device)
                checkpoint.save(out / checkpoint.FILE_NAME, kept)
            outputs.write_results(out, config, results, device)
    return results


def fit_one(
    name: str,
    config: FitConfig,
    recipe: Recipe,
    specimens: Specimens,
    held: list[Batch],
    device: torch.device,
) -> tuple[Fitted, nn.Module]:
    """Fit one model; the loop itself."""
    torch.manual_seed(config.seed)
    chance = torch.Generator().manual_seed(config.seed)
    device_chance = torch.Generator(device).manual_seed(config.seed)
    net = build(name, config.preset).to(device)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.start is not None:
        start_from(net, name, config)
    average = AveragedModel(net, multi_avg_fn=_ema(recipe.ema), use_buffers=True)
    lr = config.lr if config.lr is not None else recipe.lr
    steps = optimizer(recipe, net, lr)
    frames = specimens.split.frames
    per_epoch = math.ceil(frames / config.batch_size)
    total = config.epochs * per_epoch
    micro = micro_batch(config.patch, device)
    limit = config.max_minutes * 60 or math.inf
    began = shown = time.perf_counter()
    step = seen = 0
    trained = 0.0  # seconds in steps: validation is not counted in images/s
    history: list[dict[str, Any]] = []

    for epoch in range(1, config.epochs + 1):
        net.train()
        losses = []
        for indices in torch.randperm(frames, generator=chance).split(config.batch_size):
            started = time.perf_counter()
            progress = max(step / total, (started - began) / limit)
            if progress >= 1:
                break
            for group in steps.param_groups:
                group["lr"] = lr * rate(recipe, progress)
            clean = crops(specimens.relative(indices), config.patch, chance, recipe.augmented)
            snr = log_uniform(recipe.snr, len(indices), chance)
            if recipe.augmented:
                clean, contrast = stretch(clean, recipe.augmented, chance)
                snr = snr / contrast
            batch = record(specimens, indices, clean, snr, device_chance, device, recipe.ccd)
            x, y = normalise(batch.noisy, batch.scale), normalise(batch.target, batch.scale)
            noise = noise_map(batch.noisy, batch.scale)
            # A user's dose is never exactly known: the map is off by up to 25 %.
            noise = noise * (0.75 + 0.5 * torch.rand_like(batch.scale))
            total_loss = 0.0
            for part in zip(x.split(micro), y.split(micro), noise.split(micro), strict=True):
                part_loss = loss(recipe, net, *part) * (len(part[0]) / len(x))
                part_loss.backward()
                total_loss += float(part_loss.detach())
            if recipe.clip:
                nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
            steps.step()
            steps.zero_grad(set_to_none=True)
            average.update_parameters(net)
            losses.append(total_loss)
            step, seen = step + 1, seen + len(indices)
            now = time.perf_counter()
            trained += now - started
            if not math.isfinite(total_loss):
                log.warning("%s: diverged at step %d (loss %s)", name, step, total_loss)
                return Fitted(name, "diverged", history, {}, math.nan, seen / trained), net
            if now - shown > 5:
                shown = now
                done = max(step / total, (now - began) / limit)
                log.info(
                    "%s  epoch %d/%d  step %d/%d  loss %.4f  %.0f images/s  ETA %s",
                    name, epoch, config.epochs, step, total, total_loss,
                    seen / trained, _clock((now - began) * (1 / done - 1)),
                )  # fmt: skip
        if not losses:  # out of time
            break
        row = {
            "model": name,
            "epoch": epoch,
            "step": step,
            "loss": sum(losses) / len(losses),
            "lr": steps.param_groups[0]["lr"],
            "seconds": now - began,
        }
        history.append(row)
        # A run of many short epochs is validated some twenty times, its end always.
        if epoch % max(1, config.epochs // 20) == 0 and epoch < config.epochs:
            gains, _ = evaluate(average.module, held, device)
            row["gain_db"] = _mean(gains)
            log.info(
                "%s  epoch %d  loss %.4f  gain %.2f dB", name, epoch, row["loss"], _mean(gains)
            )

    gains, mean_ratio = evaluate(average.module, held, device)
    history[-1]["gain_db"] = _mean(gains)
    log.info("%s  loss %.4f  gain %.2f dB", name, history[-1]["loss"], _mean(gains))
    return Fitted(
        name, judge(_mean(gains)), history, gains, mean_ratio, seen / trained
    ), average.module


def judge(gain_db: float) -> Literal["fitted", "no gain", "diverged"]:
    """Name the outcome of a run by its mean gain; see `Fitted`."""
    if gain_db > 0:
        return "fitted"
    return "no gain" if gain_db > -20 else "diverged"


def start_from(net: nn.Module, name: str, config: FitConfig) -> None:
    """Load a model's weights from the checkpoint that the config starts from."""
    path = config.start or ""
    weights = checkpoint.pick(path, checkpoint.load(path), name)
    if weights.preset != config.preset:
        raise ModelError(
            f"{path}: {name} has preset {weights.preset!r}, this run asks for {config.preset!r}"
        )
    load_state(net, name, weights)


def micro_batch(patch: int, device: torch.device) -> int:
    """Return how many patches go through a net at once.

    On a CPU about two 256 x 256 frames' worth, which stays in cache and under a
    gigabyte of activations for every net; on a GPU sixteen times as many.
    """
    pixels = (2 if device.type == "cpu" else 32) * 256 * 256
    return max(1, pixels // patch**2)


def _mean(gains: dict[str, float]) -> float:
    return sum(gains.values()) / len(gains)


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """Average weights with a decay that grows from 0.1, so that a short run is no slower."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], number: Tensor | int) -> None:
        kept = min(decay, (1 + float(number)) / (10 + float(number))) if decay else 0.0
        for mean, new in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(new, 1 - kept)
            else:
                mean.copy_(new)

    return update


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
