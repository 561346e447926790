"""Denoise one file into another: the whole of ``emdn-deploy denoise``."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import (
    correction,
    pipeline,
    provenance,
    routing,
    selection,
    sigma,
    targets,
    writers,
)
from emdn_deploy.calibration import dose
from emdn_deploy.checking.quick import Quick
from emdn_deploy.correction import Prepared, Recipe
from emdn_deploy.denoiser import Answer, Denoiser
from emdn_deploy.filling import partial_of
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.outcome import Plan, Report
from emdn_deploy.output import Output, check_target
from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_deploy.writers import Layout, Storage

# A mean that moves by more than this is worth a warning.
RATIO_TOLERANCE = 0.01

Block = NDArray[np.float32]
Progress = Callable[[int, int], None]
_log = logging.getLogger(__name__)


def open_selected(source: Path, options: DenoiseOptions) -> Frames:
    """Open an input and take the frames that ``options`` select."""
    frames = open_frames(source, Choice(options.dataset, options.axes))
    if options.frames is None:
        return frames
    try:
        return selection.select(frames, options.frames)
    except BaseException:
        frames.release()
        raise


def plan(source: Path, options: DenoiseOptions) -> Plan:
    """Say what `run` would do, and raise what it would raise before reading pixels."""
    target, module = targets.target_of(source, options)
    with open_selected(source, options) as frames:
        _check(source, target, module, frames, options)
        size = np.dtype(options.dtype).itemsize + 4 * options.sigma
        return Plan(
            source, target, frames.format, frames.dataset, frames.why, frames.shape,
            str(frames.dtype), size * int(np.prod(frames.shape)),
            writers.sigma_place(target, module, frames) if options.sigma else None,
        )  # fmt: skip


def _check(
    source: Path, target: Path, module: str, frames: Frames, options: DenoiseOptions
) -> Path | None:
    """Refuse what would destroy something; return the file for standard deviations, if any."""
    check_target(target, source, overwrite=options.overwrite)
    beside = writers.sigma_file(target, module)
    if options.sigma:
        writers.check_sigma(module, frames)
        if beside is not None:
            check_target(beside, source, overwrite=options.overwrite)
        return beside
    if beside is not None and beside.exists():
        _log.warning("warning: %s: is of an earlier run and will not fit the new frames", beside)
    return None


def run(
    source: Path,
    options: DenoiseOptions,
    progress: Progress = lambda done, count: None,
    denoiser: Denoiser | None = None,
    recipe: Recipe | None = None,
) -> Report:
    """Denoise a file of frames.

    Parameters
    ----------
    denoiser
        An open model, to be used for several inputs; None to open one.
    recipe
        Scale and corrections of a longer stack that this file is a part of; None to
        find its own.

    Raises
    ------
    EmdnError
        One of its kinds, naming the file and the remedy.
    """
    target, module = targets.target_of(source, options)
    with open_selected(source, options) as frames:
        beside = _check(source, target, module, frames, options)
        denoiser = denoiser or Denoiser.of(options)
        ready = correction.prepare(frames, options, recipe)
        if not ready.scale.sigma:
            _log.warning("warning: %s: %s", source, ready.scale.note)
        route = routing.route(denoiser, options, frames, ready.scale)
        denoiser = route.denoiser
        if route.warning:
            _log.warning("warning: %s: %s", source, route.warning)
        note = sigma.note(denoiser.session.info, denoiser.calibration) if options.sigma else None
        if note and denoiser.calibration is None:
            _log.warning("warning: %s: sigma is %s", source, note)
        count, size = frames.shape[0], frames.shape[1:]
        _, batch = _cut(denoiser, count, size, options)
        facts = provenance.facts_of(frames, options, route, ready, batch)
        storage = Storage(options.dtype, options.compress, options.sigma)

        def make(partial: Path) -> Layout:
            own = partial_of(beside) if beside else None
            return writers.lay_out(module, partial, frames, facts, storage, own)

        key = provenance.key_of(source, frames, facts)
        over = options.overwrite
        with Output(target, module, make, key, beside=beside, overwrite=over) as output:
            resumed = output.done
            if resumed:
                _log.info("%s: continuing after frame %d", output.partial, resumed - 1)
            began = time.perf_counter()
            quick = Quick(ready.scale.pixel_gain, ready.scale.offset, bad=ready.recipe.bad)
            _stream(denoiser, ready, options, output, quick, count, progress)
            seconds = time.perf_counter() - began
            checked = quick.result() if ready.scale.sigma else None
            late = {**output.sums.facts(ready.scale.offset), **provenance.checked(checked)}
            late |= provenance.memory(denoiser)
            saturated = output.sums.saturated
            output.complete(late)
        if options.preview is not None or options.movie is not None:
            _draw(options, frames, ready, target, module, denoiser.session.info.name)
    ratio, net = float(late["intensity_ratio"]), float(late["net_intensity_ratio"])
    _warn(source, ratio, net, ready)
    info = denoiser.session.info
    return Report(
        source, target, frames.dataset, frames.shape[0], resumed, seconds,
        info.name, denoiser.session.precision, denoiser.session.device, ready.scale,
        ratio, ready.bad_pixels, options.dtype, saturated, options.preview,
        options.movie, writers.sigma_place(target, module, frames) if note else None, note,
        route.reason or None, checked.line if checked else None,
        checked.failing if checked else (), net, float(late["largest_shift"]),
    )  # fmt: skip


def _stream(
    denoiser: Denoiser,
    ready: Prepared,
    options: DenoiseOptions,
    output: Output,
    quick: Quick,
    count: int,
    progress: Progress,
) -> None:
    """Denoise the frames that are not done yet."""
    lanes, batch = _cut(denoiser, count, ready.recipe.bad.shape, options)

    def read(start: int, stop: int) -> tuple[int, Block]:
        return start, ready.read(start, stop)

    def compute(item: tuple[int, Block]) -> Answer:
        start, block = item
        made = denoiser.answer(
            block, ready.scale, with_sigma=options.sigma, batch=batch, alone=lanes > 1
        )
        # Here, and not where it is written, so that every lane does its own.
        quick.add(start, block, made.frames, made.shifts)
        return made

    def write(start: int, item: tuple[int, Block], made: Answer) -> None:
        _, before = item
        output.sums.add_shifts(made.shifts, before[0].size)
        output.write(start, before, made.frames, made.sigma)
        progress(start + len(before), count)

    pipeline.stream(read, compute, write, pipeline.blocks(output.done, count, batch), lanes)


def _cut(
    denoiser: Denoiser, count: int, size: tuple[int, ...], options: DenoiseOptions
) -> tuple[int, int]:
    """Return how many runs go side by side, and how many frames of (H, W) each has."""
    lanes = denoiser.lanes(count, size)
    return lanes, options.batch or denoiser.batch_for(size, alone=lanes > 1)


def _draw(
    options: DenoiseOptions, frames: Frames, ready: Prepared, target: Path, module: str, model: str
) -> None:
    """Draw what was asked for, from the finished output."""
    mirrored = module == "mirror"
    choice = Choice(frames.dataset, frames.order) if mirrored else Choice()
    count = frames.shape[0]
    with open_frames(target, choice) as denoised:
        if options.preview is not None:
            from emdn_deploy import preview  # matplotlib takes half a second to import

            number = count // 2
            before, after = (read(number, number + 1)[0] for read in (ready.read, denoised.read))
            title = f"{frames.path.name}, frame {number} of {count}, {model}"
            if ready.scale.sigma:
                title += f", {ready.scale.scale:.3g} e/px"
            if known := dose(frames.axis("y"), frames.axis("x"), ready.scale.scale):
                title += f", {known:.4g} e/Å²"
            preview.draw(options.preview, before, after, ready.scale, frames.axis("x"), title)
        if options.movie is not None:
            from emdn_deploy import movie

            time = next((axis for axis in frames.axes if axis.units in ("s", "ms", "µs")), None)
            movie.write(options.movie, ready.read, denoised.read, count, time, frames.axis("x"))


def _warn(source: Path, ratio: float, net: float, ready: Prepared) -> None:
    if ready.lost:
        _log.warning(
            "warning: %s: %d pixels were not finite in some frames; filled from their neighbours",
            source, sum(ready.lost.values()),
        )  # fmt: skip
    if abs(ratio - 1) > RATIO_TOLERANCE:
        _log.warning(
            "warning: %s: the mean intensity changed by %.1f %%; do not use these frames for "
            "quantitative work before you know why",
            source, 100 * (ratio - 1),
        )  # fmt: skip
    if abs(net - 1) > RATIO_TOLERANCE:
        _log.warning(
            "warning: %s: the model changed the mean intensity by %.1f %%; frames were shifted "
            "back, but it may not fit them: see emdn-deploy check",
            source, 100 * (net - 1),
        )  # fmt: skip
