"""Denoise one file into another: the whole of ``emdn-deploy denoise``."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import correction, pipeline, provenance, selection, targets, writers
from emdn_deploy.correction import Prepared, Recipe
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.intensity import Intensity
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.output import Output, check_target
from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_deploy.writers import Layout, Storage

# A mean that moves by more than this is worth a warning.
RATIO_TOLERANCE = 0.01

Progress = Callable[[int, int], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a run would do (``--dry-run``).

    Attributes
    ----------
    shape
        (N, H, W).
    dtype
        Of the input's pixels.
    size_bytes
        Of the output's pixels, before any compression.
    """

    source: Path
    output: Path
    format: str
    dataset: str
    why: str
    shape: tuple[int, int, int]
    dtype: str
    size_bytes: int


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes
    ----------
    frames
        In the output.
    resumed
        How many of them an earlier, interrupted run had made.
    seconds
        From the first frame read to the last written, in this run.
    ratio
        mean(output) / mean(input), both above the offset.
    bad_pixels
        Pixels that were filled in from their neighbours, in every frame.
    dtype
        Of the output's pixels.
    saturated
        Pixels of the output that lay outside the range of an integer ``dtype``.
    """

    source: Path
    output: Path
    dataset: str
    frames: int
    resumed: int
    seconds: float
    model: str
    device: str
    intensity: Intensity
    ratio: float
    bad_pixels: int
    dtype: str
    saturated: int
    preview: Path | None
    movie: Path | None

    @property
    def frames_per_s(self) -> float:
        """Return the rate from file to file."""
        return (self.frames - self.resumed) / max(self.seconds, 1e-9)


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
    target, _ = targets.target_of(source, options)
    with open_selected(source, options) as frames:
        check_target(target, source, overwrite=options.overwrite)
        size = np.dtype(options.dtype).itemsize * int(np.prod(frames.shape))
        return Plan(
            source, target, frames.format, frames.dataset, frames.why, frames.shape,
            str(frames.dtype), size,
        )  # fmt: skip


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
        check_target(target, source, overwrite=options.overwrite)
        denoiser = denoiser or Denoiser(options.model, options.device, options.threads)
        ready = correction.prepare(frames, options, recipe)
        if not ready.scale.sigma:
            _log.warning("warning: %s: %s", source, ready.scale.note)
        batch = options.batch or denoiser.batch_for(frames.shape[1:])
        facts = provenance.facts_of(frames, options, denoiser, ready, batch)
        storage = Storage(options.dtype, options.compress)

        def make(partial: Path) -> Layout:
            return writers.lay_out(module, partial, frames, facts, storage)

        key = provenance.key_of(source, frames, facts)
        with Output(target, module, make, key, overwrite=options.overwrite) as output:
            resumed = output.done
            if resumed:
                _log.info("%s: continuing after frame %d", output.partial, resumed - 1)
            began = time.perf_counter()
            _stream(frames.shape[0], ready, denoiser, output, batch, progress)
            seconds = time.perf_counter() - began
            late = output.sums.facts(ready.scale.offset)
            saturated = output.sums.saturated
            output.complete(late)
        if options.preview is not None or options.movie is not None:
            _draw(options, frames, ready, target, module)
    _warn(source, late["intensity_ratio"], ready)
    return Report(
        source, target, frames.dataset, frames.shape[0], resumed, seconds,
        denoiser.session.info.name, denoiser.session.device, ready.scale,
        late["intensity_ratio"], ready.bad_pixels, options.dtype, saturated, options.preview,
        options.movie,
    )  # fmt: skip


def _stream(
    count: int, ready: Prepared, denoiser: Denoiser, output: Output, batch: int, progress: Progress
) -> None:
    def compute(block: NDArray[np.float32]) -> NDArray[np.float32]:
        return denoiser.run(block, ready.scale)

    def write(start: int, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
        output.write(start, before, after)
        progress(start + len(after), count)

    pipeline.stream(ready.read, compute, write, pipeline.blocks(output.done, count, batch))


def _draw(
    options: DenoiseOptions, frames: Frames, ready: Prepared, target: Path, module: str
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
            title = f"{frames.path.name}, frame {number}"
            preview.draw(options.preview, before, after, ready.scale, frames.axis("x"), title)
        if options.movie is not None:
            from emdn_deploy import movie

            movie.write(options.movie, ready.read, denoised.read, count)


def _warn(source: Path, ratio: float, ready: Prepared) -> None:
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
