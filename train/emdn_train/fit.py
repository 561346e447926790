"""Fit models to a data set: the training loop, from clean frames to em_denoise_model.h5."""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emdn_models import checkpoint
from emdn_models.files import locked
from emdn_models.nets import build
from emdn_models.nets.scaling import middle, noise_map, normalise
from emdn_models.nets.spectral import WithSpectrum
from emdn_models.spec import frames_of
from emdn_train import results
from emdn_train.checkpointing import FILE_NAME, StateFile, Training, signals_noted, start_from
from emdn_train.config import RECIPES, FitConfig, Recipe
from emdn_train.dataset import CleanFrames, Split
from emdn_train.loss import (
    evaluate,
    hardware,
    loss,
    memory_format,
    moving_average,
    optimizer,
    pick_device,
    rate,
    reduced,
    validation,
)
from emdn_train.patches import Batch, Clips, Reused, Simulated, Source, chance
from emdn_train.results import Fitted, judge, mean

log = logging.getLogger(__name__)

LOCK = "fit.lock"


def fit(config: FitConfig) -> list[Fitted]:
    """Fit every model of the config and write the results to its ``out`` folder.

    The folder then holds ``em_denoise_model.h5``, ``arguments.json``,
    ``history.csv``, ``metrics.json``, ``throughput.json`` and ``loss.png``. As long as
    the run is not complete it also holds ``fit_state.h5``, from which the same config
    goes on, to the result of a run that was never stopped.

    Raises
    ------
    KeyboardInterrupt
        On SIGINT or SIGTERM, once the step is finished and the state saved.
    CheckpointError
        If the folder holds an unfinished run of another config.
    OutputError
        If another process fits into the folder, or it cannot be written to.
    """
    out, kind, device = Path(config.out), config.frame_class, pick_device(config.device)
    with Split(config.data, "train", kind) as split, Split(config.data, "test", kind) as test:
        log.info("training on %s", hardware(device))
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / LOCK, out):
            return _fit(config, device, split, test)


def _fit(config: FitConfig, device: torch.device, split: Split, test: Split) -> list[Fitted]:
    recipe, out = RECIPES[config.recipe], Path(config.out)
    recipe = recipe if config.lr is None else replace(recipe, lr=config.lr)
    if config.defect_weight is not None:
        recipe = replace(recipe, defects=config.defect_weight)
    data = {"training data": split.fingerprint(), "test data": test.fingerprint()}
    state = StateFile(out / FILE_NAME, identity(config, recipe, device) | data)
    saved = results.existing(out)
    seen = max(frames_of(name, config.preset) for name in config.names)
    recorded = Simulated if seen == 1 else Clips
    everything = recorded(CleanFrames.of(split, recipe.defects > 0), recipe, config.patch, device)
    batches = validation(CleanFrames.of(test), seen=seen)
    finished, todo = list[Fitted](), list(config.names)
    for earlier in (Fitted(**result) for result in state.done.values()):
        if earlier.name in saved or earlier.status == "diverged":
            todo.remove(earlier.name)
            finished.append(earlier)
            log.info("%s: %s before, not fitted again", earlier.name, earlier.status)
    with signals_noted() as signals:
        for name in todo:
            source: Source = everything
            t = begin(name, config, recipe, device, state)
            if config.start is not None and isinstance(t.net, WithSpectrum):
                t.net.shrinkages.requires_grad_(False)
                source = Reused(source, t.net)
            if not t.step:
                t.average.module.load_state_dict(t.net.state_dict())
                t.start_db, _ = evaluate(t.average.module, batches, device)
                t.note(t.start_db)
                log.info("%s: gain %.2f dB before the first step", name, mean(t.start_db))
            finite = train(t, config, recipe, source, batches, device, state, signals)
            # A loss that weighs defects gives up some gain on purpose.
            result = measure(t, batches, device, finite, 1.0 if recipe.defects else 0.05)
            finished.append(result)
            saved.pop(name, None)
            if result.status != "diverged":
                saved[name] = results.weights(result, t, config, recipe, str(split), device)
                checkpoint.save(out / checkpoint.FILE_NAME, saved)
            results.write_results(out, config, finished, device)
            state.done[name] = asdict(result)
            state.save()
    state.remove()
    return finished


def identity(config: FitConfig, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Name what a result follows from, besides the data; folders may move."""
    options = asdict(config)
    del options["data"], options["out"], options["frame_class"], options["defect_weight"]
    return {
        **asdict(recipe), **options, "models": config.names, "lr": recipe.lr,
        "device": device.type, "torch": torch.__version__,
        "start": None if config.start is None else os.fspath(config.start),
    }  # fmt: skip


def begin(
    name: str, config: FitConfig, recipe: Recipe, device: torch.device, state: StateFile
) -> Training:
    """Build a net, its average and its optimiser, where the state file says or at the start."""
    torch.manual_seed(config.seed)
    net = build(name, config.preset).to(device)
    net = net.to(memory_format=memory_format(recipe, device))  # type: ignore[call-overload]
    training = Training(name, net, moving_average(recipe, net), optimizer(recipe, net))
    if state.restore(training):
        log.info("%s: continuing after step %d", name, training.step)
    elif config.start is not None:
        training.start = start_from(net, name, config)
    return training


def train(
    t: Training,
    config: FitConfig,
    recipe: Recipe,
    source: Source,
    batches: dict[float, Batch],
    device: torch.device,
    state: StateFile,
    signals: Sequence[int],
) -> bool:
    """Fit one model from where it stands, and say whether its loss is finite; the loop itself.

    It is validated on ``batches`` (`emdn_train.loss`), not at all if there are none.
    """
    size, micro = config.batch_size, micro_batch(config.patch, device)
    per_epoch = math.ceil(len(source) / size)
    total = config.epochs * per_epoch
    half = reduced(recipe, device, t.net)
    limit = config.max_minutes * 60 or math.inf
    shown = time.perf_counter()
    began = shown - t.elapsed
    order = source.order(config.seed, t.step // per_epoch)
    t.net.train()

    while t.step < total:
        started = time.perf_counter()
        progress = max(t.step / total, t.elapsed / limit)
        if progress >= 1 and t.step:  # out of time
            break
        epoch, number = divmod(t.step, per_epoch)
        if number == 0:
            order = source.order(config.seed, epoch)
        batch = order[number * size : (number + 1) * size]
        for group in t.optimizer.param_groups:
            group["lr"] = recipe.lr * rate(recipe, progress, t.step)
        summed = torch.zeros((), device=device)
        for first in range(0, len(batch), micro):
            indices = batch[first : first + micro]
            generator = chance(config.seed, t.step, first)
            torch.manual_seed(generator.initial_seed())  # for nets that draw, as in dropout
            noisy, target, scale, spectra, defects = source.batch(indices, generator)
            # A user's dose is never exactly known: the map is off by up to 10 %.
            off = 0.9 + 0.2 * torch.rand(scale.shape, generator=generator).to(device)
            x, y = normalise(noisy, scale), normalise(target, scale)
            noise = noise_map(middle(noisy), scale) * off
            part = loss(recipe, t.net, x, y, noise, half, spectra, defects)
            part = part * (len(indices) / len(batch))
            part.backward()
            summed += part.detach()
        if recipe.clip:
            nn.utils.clip_grad_norm_(t.net.parameters(), recipe.clip)
        t.optimizer.step()
        t.optimizer.zero_grad(set_to_none=True)
        t.average.update_parameters(t.net)
        step_loss, now = float(summed), time.perf_counter()
        t.step, t.seen = t.step + 1, t.seen + len(batch)
        t.loss, t.losses = t.loss + step_loss, t.losses + 1
        t.elapsed, t.trained = now - began, t.trained + now - started
        if not math.isfinite(step_loss):
            log.warning("%s: diverged at step %d (loss %s)", t.name, t.step, step_loss)
            return False
        if now - shown > 5:
            shown = now
            done = max(t.step / total, t.elapsed / limit)
            log.info(
                "%s (%d of %d)  epoch %d/%d  step %d/%d  loss %.4f  %.0f images/s  ETA %s",
                t.name, config.names.index(t.name) + 1, len(config.names), epoch + 1,
                config.epochs, t.step, total, step_loss, t.seen / t.trained,
                _clock(t.elapsed * (1 / done - 1)),
            )  # fmt: skip
        stop, validated = bool(signals), False
        if t.step % per_epoch == 0:
            t.end_epoch(per_epoch)
            # A run of many short epochs is validated some twenty times, its end always.
            often = (epoch + 1) % max(1, config.epochs // 20) == 0
            validated = often and t.step < total and bool(batches)
        if validated:
            gains, _ = evaluate(t.average.module, batches, device)
            t.note(gains)
            t.history[-1]["gain_db"] = mean(gains)
            log.info("%s  epoch %d  loss %.4f  gain %.2f dB", t.name, epoch + 1,
                     t.history[-1]["loss"], mean(gains))  # fmt: skip
        if stop or validated or state.due():
            state.save(t)
        if stop:
            log.info("%s: stopped after step %d and saved; repeat the command to continue",
                     t.name, t.step)  # fmt: skip
            raise KeyboardInterrupt

    if t.losses:
        t.end_epoch(per_epoch)
    state.save(t)
    return True


def measure(
    t: Training, batches: dict[float, Batch], device: torch.device, finite: bool, margin: float
) -> Fitted:
    """Validate a model at its end, unless its loss is not finite, and name the outcome."""
    speed = t.seen / t.trained
    if not finite:
        return Fitted(t.name, "diverged", t.history, {}, math.nan, speed, t.start_db)
    gains, mean_ratio = evaluate(t.average.module, batches, device)
    t.history[-1]["gain_db"] = mean(gains)
    log.info("%s  loss %.4f  gain %.2f dB", t.name, t.history[-1]["loss"], mean(gains))
    status = judge(mean(gains), mean(t.best_db) if t.best_db else -math.inf, margin)
    if status == "best kept":
        t.average.module.load_state_dict(t.best)
        _, mean_ratio = evaluate(t.average.module, batches, device)
    return Fitted(
        t.name, status, t.history, gains, mean_ratio, speed, t.start_db, t.best_db, t.best_step
    )


def micro_batch(patch: int, device: torch.device) -> int:
    """Return how many patches go through a net at once.

    On a CPU about two 256 x 256 frames' worth, which stays in cache and under a
    gigabyte of activations for every net; on a GPU sixteen times as many.
    """
    pixels = (2 if device.type == "cpu" else 32) * 256 * 256
    return max(1, pixels // patch**2)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
