"""Fit models to a data set: the whole loop, from clean frames to em_denoise_model.h5."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from emdn_models import MODELS, checkpoint, classes
from emdn_models.nets import build
from emdn_models.nets.electrons import middle, noise_map, normalise
from emdn_models.nets.spectral import WithSpectrum
from emdn_train import outputs
from emdn_train.batches import Batch, Specimens
from emdn_train.config import FitConfig, Fitted, judge, learning_rate, mean, same_run, warm_up
from emdn_train.data import Split, open_split
from emdn_train.interrupt import signals_noted
from emdn_train.parallel import Processes, joined
from emdn_train.recipes import (
    RECIPES,
    Recipe,
    loss,
    memory_format,
    moving_average,
    optimizer,
    rate,
    reduced,
)
from emdn_train.resume import FILE_NAME, StateFile, Training
from emdn_train.source import Clips, Reused, Simulated, Source, chance
from emdn_train.specialise import described, source_of
from emdn_train.start import start_from
from emdn_train.validate import LEVELS, SEED, evaluate, validation

log = logging.getLogger(__name__)

LOCK = "fit.lock"


def fit(config: FitConfig) -> list[Fitted]:
    """Fit every model of the config and write the results to its ``out`` folder.

    The folder then holds ``em_denoise_model.h5``, ``arguments.json``,
    ``history.csv``, ``metrics.json``, ``throughput.json`` and ``loss.png``. As long as
    the run is not complete it also holds ``fit_state.h5``, from which the same config
    goes on, to the result of a run that was never stopped. Of several processes
    (`emdn_train.parallel`) the first returns the results and the others nothing.

    Raises
    ------
    KeyboardInterrupt
        On SIGINT or SIGTERM, once the step is finished and the state saved.
    CheckpointError
        If the folder holds an unfinished run of another config.
    OutputError
        If another process fits into the folder, or it cannot be written to.
    """
    out = Path(config.out)
    with (
        joined(config.device) as processes,
        open_split(config.data, "train") as split,
        open_split(config.data, "test") as held_out,
    ):
        log.info("training on %s", outputs.describe(processes))
        out.mkdir(parents=True, exist_ok=True)
        with processes.alone(out / LOCK, out) as alone:
            return _fit(config, processes, split, held_out) if alone else []


def _fit(config: FitConfig, processes: Processes, split: Split, held_out: Split) -> list[Fitted]:
    recipe, out = RECIPES[config.recipe], Path(config.out)
    results: list[Fitted] = []
    state = StateFile(
        out / FILE_NAME, same_run(config, recipe, processes, split, held_out), processes.first
    )
    kept = outputs.existing(out)
    seen = max(frames_of(name, config.preset) for name in config.models)
    recorded = Simulated if seen == 1 else Clips
    everything = recorded(Specimens.of(split), recipe, config.patch, processes.device)
    unseen = Specimens.of(held_out)
    todo = list(dict.fromkeys(config.models))
    kinds = {name: classes.split(name)[1] for name in todo}
    sources = {kind: source_of(kind, everything) for kind in kinds.values()}
    tests = {kind: validation(unseen, LEVELS, 16, 256, SEED, kind, seen) for kind in sources}
    for earlier in (Fitted(**result) for result in state.done.values()):
        if earlier.name in kept or earlier.status == "diverged":
            todo.remove(earlier.name)
            results.append(earlier)
            log.info("%s: %s before, not fitted again", earlier.name, earlier.status)
    processes.wait()  # all have read the state before the first one changes it
    if processes.first and todo:
        frames = {name: len(sources[kinds[name]]) for name in todo}
        seconds = forecast(frames, config, recipe, processes)
        log.info("about %s min in all, by a timed step of each net", _clock(seconds))
    with signals_noted() as signals:
        for name in todo:
            source, held = sources[kinds[name]], tests[kinds[name]]
            t = begin(name, config, recipe, processes, state)
            if config.start is not None and isinstance(t.net, WithSpectrum):
                t.net.shrinkages.requires_grad_(False)
                source = Reused(source, t.net)
            if processes.first and not t.step:
                t.start_db, _ = evaluate(t.net, held, processes.device)
                log.info("%s: gain %.2f dB before the first step", name, mean(t.start_db))
            finite = train(t, config, recipe, source, held, processes, state, signals)
            if not processes.first:
                continue
            result = measure(t, recipe, held, processes.device) if finite else failed(t)
            results.append(result)
            kept.pop(name, None)
            if result.status != "diverged":
                data = described(kinds[name], outputs.describe_data(split))
                kept[name] = outputs.weights(result, t, config, recipe, data, processes)
                checkpoint.save(out / checkpoint.FILE_NAME, kept)
            outputs.write_results(out, config, results, processes)
            state.finish(name, asdict(result))
    state.remove()
    return results


def begin(
    name: str,
    config: FitConfig,
    recipe: Recipe,
    processes: Processes,
    state: StateFile,
) -> Training:
    """Build a net, its average and its optimiser, where the state file says or at the start."""
    torch.manual_seed(config.seed)
    net = processes.synchronised(build(name, config.preset)).to(processes.device)
    net = net.to(memory_format=memory_format(recipe, processes.device))  # type: ignore[call-overload]
    average = moving_average(recipe, net)
    training = Training(name, net, average, optimizer(recipe, net, learning_rate(config, recipe)))
    if state.restore(training):
        log.info("%s: continuing after step %d", name, training.step)
        return training
    if config.start is not None:
        training.start = start_from(net, name, config)
    training.first = {key: value.clone() for key, value in net.state_dict().items()}
    return training


def train(
    t: Training,
    config: FitConfig,
    recipe: Recipe,
    source: Source,
    held: list[Batch],
    processes: Processes,
    state: StateFile,
    signals: Sequence[int],
) -> bool:
    """Fit one model from where it stands, and say whether its loss is finite; the loop itself."""
    device = processes.device
    size = config.batch_size * processes.count
    per_epoch = math.ceil(len(source) / size)
    total = config.epochs * per_epoch
    micro = micro_batch(config.patch, device)
    lr = learning_rate(config, recipe)
    half = reduced(recipe, device)
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
        batch, place, patches = processes.share(order[number * size : (number + 1) * size])
        for group in t.optimizer.param_groups:
            group["lr"] = lr * rate(recipe, progress) * warm_up(recipe, t.step)
        summed = torch.zeros((), device=device)
        for first in range(0, len(batch), micro):
            indices = batch[first : first + micro]
            generator = chance(config.seed, t.step, place + first)
            torch.manual_seed(generator.initial_seed())  # for nets that draw, as in dropout
            noisy, target, scale, spectra = source.batch(indices, generator)
            # A user's dose is never exactly known: the map is off by up to 10 %.
            off = 0.9 + 0.2 * torch.rand(scale.shape, generator=generator).to(device)
            x, y = normalise(noisy, scale), normalise(target, scale)
            noise = noise_map(middle(noisy), scale) * off
            part = loss(recipe, t.net, x, y, noise, half, spectra) * (len(indices) / patches)
            part.backward()
            summed += part.detach()
        processes.add_gradients(t.net)
        if recipe.clip:
            nn.utils.clip_grad_norm_(t.net.parameters(), recipe.clip)
        t.optimizer.step()
        t.optimizer.zero_grad(set_to_none=True)
        t.average.update_parameters(t.net)
        # All processes go by the clock of the first, and stop if any one is told to.
        clock = time.perf_counter() - began if processes.first else 0.0
        step_loss, clock, stop = processes.add(float(summed), clock, float(bool(signals)))
        now = time.perf_counter()
        t.step, t.seen = t.step + 1, t.seen + patches
        t.loss, t.losses = t.loss + step_loss, t.losses + 1
        t.elapsed, t.trained = clock, t.trained + now - started
        if not math.isfinite(step_loss):
            log.warning("%s: diverged at step %d (loss %s)", t.name, t.step, step_loss)
            return False
        if now - shown > 5:
            shown = now
            done = max(t.step / total, t.elapsed / limit)
            log.info(
                "%s  epoch %d/%d  step %d/%d  loss %.4f  %.0f images/s  ETA %s",
                t.name, epoch + 1, config.epochs, t.step, total, step_loss,
                t.seen / t.trained, _clock(t.elapsed * (1 / done - 1)),
            )  # fmt: skip
        validated = False
        if t.step % per_epoch == 0:
            t.end_epoch(per_epoch)
            # A run of many short epochs is validated some twenty times, its end always.
            validated = (epoch + 1) % max(1, config.epochs // 20) == 0 and t.step < total
        validated = validated and bool(held)
        if validated and processes.first:
            gains, _ = evaluate(t.average.module, held, device)
            t.history[-1]["gain_db"] = mean(gains)
            log.info("%s  epoch %d  loss %.4f  gain %.2f dB", t.name, epoch + 1,
                     t.history[-1]["loss"], mean(gains))  # fmt: skip
        if stop or validated or state.due():
            state.save(t)
        if stop:
            processes.wait()  # none ends before it is saved
            log.info("%s: stopped after step %d and saved; repeat the command to continue",
                     t.name, t.step)  # fmt: skip
            raise KeyboardInterrupt

    if t.losses:
        t.end_epoch(per_epoch)
    state.save(t)
    return True


def measure(t: Training, recipe: Recipe, held: list[Batch], device: torch.device) -> Fitted:
    """Validate a model at its end and name the outcome."""
    gains, mean_ratio = evaluate(t.average.module, held, device)
    t.history[-1]["gain_db"] = mean(gains)
    log.info("%s  loss %.4f  gain %.2f dB", t.name, t.history[-1]["loss"], mean(gains))
    status = judge(mean(gains), mean(t.start_db) if t.start_db else -math.inf)
    if status == "start kept":
        t.average.module.load_state_dict(t.first)
        _, mean_ratio = evaluate(t.average.module, held, device)
    rate = t.seen / t.trained
    return Fitted(t.name, status, t.history, gains, mean_ratio, rate, t.start_db)


def failed(t: Training) -> Fitted:
    """Say of a model that it diverged on the way."""
    return Fitted(t.name, "diverged", t.history, {}, math.nan, t.seen / t.trained, t.start_db)


def forecast(
    frames: Mapping[str, int], config: FitConfig, recipe: Recipe, processes: Processes
) -> float:
    """Return about how many seconds a fit takes, by timing part of a step of each net.

    Parameters
    ----------
    frames
        Model to the number of frames that it is trained on.
    """
    seconds, device = 0.0, processes.device
    for name, number in frames.items():
        net = build(name, config.preset).to(device)
        net = net.to(memory_format=memory_format(recipe, device))  # type: ignore[call-overload]
        own = min(config.batch_size, math.ceil(number / processes.count))
        steps = config.epochs * math.ceil(number / (config.batch_size * processes.count))
        shown = min(micro_batch(config.patch, device), own), frames_of(name, config.preset)
        shape = *shown, config.patch, config.patch
        x = torch.randn(shape, device=device)
        y = middle(x)
        for _ in range(2):  # the first one also sets things up
            began = time.perf_counter()
            loss(recipe, net, x, y, torch.ones_like(y), reduced(recipe, device)).backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            took = time.perf_counter() - began
        needed = steps * took * own / len(x)
        seconds += min(needed, config.max_minutes * 60) if config.max_minutes else needed
    return seconds


def frames_of(name: str, preset: str) -> int:
    """Return how many consecutive frames a net sees, 1 of an unknown preset."""
    chosen = MODELS[classes.split(name)[0]].presets.get(preset)
    return 1 if chosen is None else chosen.frames


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
