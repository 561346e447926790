"""Fit models to a data set: the training loop, from clean frames to em_denoise_model.h5."""

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from emdn_models import ModelError, checkpoint, pretrained
from emdn_models.files import locked
from emdn_models.nets import build, load_state
from emdn_models.nets.scaling import middle, noise_map, normalise
from emdn_models.nets.spectral import WithSpectrum
from emdn_models.spec import frames_of
from emdn_train.checkpointing import Fitted, StateFile, Training, mean, save_weights, write_results
from emdn_train.config import RECIPES, FitConfig, Recipe
from emdn_train.dataset import Batch, CleanFrames, Source, Split, chance
from emdn_train.loss import evaluate, follow, hardware, loss, pick_device, rate, reduced, validation

log = logging.getLogger(__name__)

LOCK = "fit.lock"

Draw = Callable[[Tensor, torch.Generator], Batch]
"""Draws a patch of each of the frames with the numbers given, (n,), by the generator's chance."""


def fit(config: FitConfig) -> list[Fitted]:
    """Fit every model of the config and write the results to its ``out`` folder.

    The folder then holds ``em_denoise_model.h5`` and ``metrics.json``; while the run is not
    complete also ``fit_state.h5``, from which the same config goes on, to the result of a run that
    was never stopped.

    A `CheckpointError` says that the folder holds an unfinished run of another config, an
    `OutputError` that another process fits into it or that it cannot be written to.
    """
    out, device = Path(config.out), pick_device(config.device)
    recipe = RECIPES[config.recipe]
    recipe = recipe if config.lr is None else replace(recipe, lr=config.lr)
    if config.defect_weight is not None:
        recipe = replace(recipe, defects=config.defect_weight)
    with Split(config.data, "train") as split, Split(config.data, "test") as test:
        log.info("training on %s", hardware(device))
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / LOCK, out):
            data = {"training data": split.fingerprint(), "test data": test.fingerprint()}
            state = StateFile(out, identity(config, recipe, device) | data)
            seen = max(frames_of(name, config.preset) for name in config.models)
            frames = CleanFrames(split, recipe.defects > 0)
            source = Source(frames, recipe, config.patch, device)
            draw = source.clips if seen > 1 else source.patches
            batches = validation(CleanFrames(test), seen)
            for name in config.names:
                if name in state.done:
                    log.info("%s: done before, not fitted again", name)
                    continue
                t = begin(name, config, recipe, device)
                state.restore(t)
                if config.start is not None and isinstance(t.net, WithSpectrum):
                    t.net.shrinkages.requires_grad_(False)
                if not t.step:
                    t.start_db, _ = evaluate(t.average, batches, device)
                    t.note(t.start_db)
                    log.info("%s: gain %.2f dB before the first step", name, mean(t.start_db))
                finite = train(t, config, recipe, draw, len(frames), batches, state)
                judge(t, recipe, batches, finite)
                if t.status != "diverged":
                    save_weights(out, t, config, recipe, str(split))
                state.done[name] = t.known()
                results = [Fitted(**known) for known in state.done.values()]
                write_results(out, config, results, device)
                state.save()
            state.path.unlink()
    return results


def identity(config: FitConfig, recipe: Recipe, device: torch.device) -> dict[str, object]:
    """Name what a result follows from, besides the data; folders may move."""
    options = asdict(config) | asdict(recipe)
    del options["data"], options["out"]
    return options | {"device": device.type, "torch": torch.__version__}


def begin(name: str, config: FitConfig, recipe: Recipe, device: torch.device) -> Training:
    """Build a net, its average and its optimiser.

    Weights that are given to start from are those of the same model and preset, else `ModelError`.
    """
    torch.manual_seed(config.seed)
    net = build(name, config.preset)
    start = None
    if config.start is not None:
        shipped = Path(config.start) == Path("shipped")
        path = pretrained.CHECKPOINT if shipped else config.start
        weights = checkpoint.pick(path, checkpoint.load(path), name)
        if weights.preset != config.preset:
            raise ModelError(
                f"{path}: {name} has preset {weights.preset!r}, this run asks for {config.preset!r}"
            )
        load_state(net, name, weights)
        start = weights.metadata.get("recipe")
    # Channels last is faster on CPUs, and on GPUs for bfloat16.
    last = device.type == "cpu" or recipe.mixed
    layout = torch.channels_last if last else torch.contiguous_format
    net = net.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        net.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    average = copy.deepcopy(net)
    return Training(name=name, net=net, average=average, optimizer=optimizer, start=start)


def train(
    t: Training,
    config: FitConfig,
    recipe: Recipe,
    draw: Draw,
    frames: int,
    batches: dict[float, Batch],
    state: StateFile,
) -> bool:
    """Fit one model from where it stands, and say whether its loss is finite; the loop itself.

    An epoch takes one patch of each of the ``frames``. The model is validated on ``batches``
    (`emdn_train.loss`), not at all if there are none.
    """
    device = next(t.net.parameters()).device
    # So many patches go through a net at once: on a CPU about two 256 x 256 frames' worth, which
    # stays in cache and under a gigabyte of activations for every net.
    micro = max(1, (2 if device.type == "cpu" else 32) * 256**2 // config.patch**2)
    size = config.batch_size
    per_epoch = math.ceil(frames / size)
    total = config.epochs * per_epoch
    half = reduced(recipe, device, t.net)
    limit = config.max_minutes * 60 or math.inf
    shown = time.perf_counter()
    began = shown - t.elapsed
    order = torch.randperm(frames, generator=chance(config.seed, t.step // per_epoch))
    t.net.train()

    while t.step < total:
        started = time.perf_counter()
        progress = max(t.step / total, t.elapsed / limit)
        if progress >= 1 and t.step:  # out of time
            break
        epoch, number = divmod(t.step, per_epoch)
        if number == 0:
            order = torch.randperm(frames, generator=chance(config.seed, epoch))
        batch = order[number * size : (number + 1) * size]
        for group in t.optimizer.param_groups:
            group["lr"] = recipe.lr * rate(recipe, progress, t.step)
        summed = torch.zeros((), device=device)
        for first in range(0, len(batch), micro):
            indices = batch[first : first + micro]
            generator = chance(config.seed, t.step, first)
            torch.manual_seed(generator.initial_seed())  # for nets that draw, as in dropout
            noisy, target, scale, marks = draw(indices, generator)
            # A user's dose is never exactly known: the map is off by up to 10 %.
            off = 0.9 + 0.2 * torch.rand(scale.shape, generator=generator).to(device)
            x, y = normalise(noisy, scale), normalise(target, scale)
            noise = noise_map(middle(noisy), scale) * off
            part = loss(recipe, t.net, x, y, noise, half, marks)
            part = part * (len(indices) / len(batch))
            part.backward()
            summed += part.detach()
        # At 0.01 one bright frame would throw Adam off for good.
        nn.utils.clip_grad_norm_(t.net.parameters(), 1.0)
        t.optimizer.step()
        t.optimizer.zero_grad(set_to_none=True)
        follow(t.average, t.net, t.step, recipe.ema)
        step_loss, now = float(summed), time.perf_counter()
        t.step, t.seen = t.step + 1, t.seen + len(batch)
        t.loss, t.losses = t.loss + step_loss, t.losses + 1
        t.elapsed, t.trained = now - began, t.trained + now - started
        if not math.isfinite(step_loss):
            log.warning("%s: diverged at step %d (loss %s)", t.name, t.step, step_loss)
            return False
        if now - shown > 5:
            shown = now
            left = t.elapsed * (1 / max(t.step / total, t.elapsed / limit) - 1)
            log.info(
                "%s  epoch %d/%d  step %d/%d  loss %.4f  %.0f images/s  %.1f min left", t.name,
                epoch + 1, config.epochs, t.step, total, step_loss, t.images_per_s, left / 60,
            )  # fmt: skip
        validated = False
        if t.step % per_epoch == 0:
            t.end_epoch(epoch + 1, group["lr"])
            # A run of many short epochs is validated some twenty times, its end always.
            often = (epoch + 1) % max(1, config.epochs // 20) == 0
            validated = often and t.step < total and bool(batches)
        if validated:
            gains, _ = evaluate(t.average, batches, device)
            t.note(gains)
            t.history[-1]["gain_db"] = mean(gains)
            log.info("%s  epoch %d  gain %.2f dB", t.name, epoch + 1, mean(gains))
        if validated or state.due():
            state.save(t)

    if t.losses:
        t.end_epoch(-(-t.step // per_epoch), t.optimizer.param_groups[0]["lr"])
    state.save(t)
    return True


def judge(t: Training, recipe: Recipe, batches: dict[float, Batch], finite: bool) -> None:
    """Validate a model at its end, unless its loss is not finite, and name the outcome.

    The last weights are taken unless they are worse by 0.05 dB than the best before.
    """
    t.status = "diverged"
    if not finite:
        return
    device = next(t.net.parameters()).device
    t.gain_db, t.mean_ratio = evaluate(t.average, batches, device)
    gain, best = mean(t.gain_db), mean(t.best_db)
    t.history[-1]["gain_db"] = gain
    log.info("%s  gain %.2f dB", t.name, gain)
    # A loss that weighs defects gives up some gain on purpose.
    margin = 1.0 if recipe.defects else 0.05
    if not gain > -20:
        return
    t.status = "fitted" if gain > 0 else "no gain"
    if gain < best - margin and best > 0:
        t.status = "best kept"
        t.average.load_state_dict(t.best)
        _, t.mean_ratio = evaluate(t.average, batches, device)
