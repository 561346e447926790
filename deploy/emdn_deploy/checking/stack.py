"""Check a stack: ``emdn-deploy check`` from beginning to end."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import correction, job, pipeline
from emdn_deploy.checking import null, record, smallest, summary
from emdn_deploy.checking.chance import allowed
from emdn_deploy.checking.compare import Sample
from emdn_deploy.checking.exhibits import Slices
from emdn_deploy.checking.grounds import grounds_of
from emdn_deploy.checking.held import Held
from emdn_deploy.checking.result import CheckResult, Spectrum, StackFacts
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.correction import Prepared
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.intensity import Intensity
from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_deploy.readers.frames import WHITE, SeveralStacks
from emdn_models.errors import EmdnError, FormatError
from emdn_models.metrics.rings import rings

LEAST = 16  # pixels a side

Frame = NDArray[np.float32]
Progress = Callable[[int, int], None]


def check(
    source: str | PathLike[str],
    denoised: str | PathLike[str] | None = None,
    options: DenoiseOptions = DenoiseOptions(),  # noqa: B008
    seed: int = 0,
    progress: Progress = lambda done, count: None,
) -> CheckResult:
    """Say of every frame of a denoised stack whether its residual is that of an honest one.

    Parameters
    ----------
    source
        The stack before.
    denoised
        The same frames after; None to denoise them here, in memory, a few at a time.
    options
        What the stack is read and denoised with. What a record in ``denoised`` says of
        the model, scale, references and selection of frames stands in for None.
    seed
        Of the noise of the honest denoisings.

    Raises
    ------
    EmdnError
        If the two stacks do not have the same shape, hold no noise, or cannot be read.
    """
    path = None if denoised is None else Path(denoised)
    facts = record.of(path) if path else {}
    options = record.completed(options, facts)
    with ExitStack() as opened:
        frames = opened.enter_context(job.open_selected(Path(source), options))
        clean = opened.enter_context(_open_denoised(path, frames)) if path else None
        _refuse(frames, clean)
        if (white := frames.metadata.get(WHITE)) is not None:
            # Judged as counted from white; a negative stays one in the files.
            level = float(white)
            frames, clean = _upright(frames, level), clean and _upright(clean, level)
            facts = _upright_scale(facts, level)
            if options.offset is not None:
                options = replace(options, offset=level - options.offset)
        ready = correction.prepare(frames, options)
        if not ready.scale.sigma:
            raise EmdnError(f"{frames.path}: {ready.scale.note}; there is nothing to check against")
        make = _Maker(Denoiser.of(options), ready, facts, clean)
        return _check(frames, clean, ready, make, options, seed, progress)


class _Maker:
    """Denoises as the denoised file was: model, scale, orientations, rounding."""

    def __init__(
        self, denoiser: Denoiser, ready: Prepared, facts: dict[str, Any], clean: Frames | None
    ) -> None:
        self.denoiser, self.facts = denoiser, facts
        self.scale = _scale(ready, facts)
        self._sigma = "ensemble" in facts
        whole = clean is not None and clean.dtype.kind in "iu"
        self._kind = clean.dtype if clean is not None and whole else None

    def __call__(self, frames: Frame) -> Frame:
        wide = np.ascontiguousarray(frames, dtype=np.float32)
        if self._sigma:
            made = self.denoiser.run_with_sigma(wide, self.scale)[0]
        else:
            made = self.denoiser.run(wide, self.scale)
        if self._kind is not None:
            bounds = np.iinfo(self._kind)
            made = np.clip(np.rint(made), bounds.min, bounds.max).astype(np.float32)
        return made


def _upright(frames: Frames, white: float) -> Frames:
    """Count electrons up from white, in a stack in which white is their least."""

    def read(start: int, stop: int) -> NDArray[Any]:
        block = frames.read_block(start, stop)
        return np.asarray(white - block, block.dtype)

    metadata = {key: text for key, text in frames.metadata.items() if key != WHITE}
    return replace(frames, read_block=read, metadata=metadata)


def _upright_scale(facts: dict[str, Any], white: float) -> dict[str, Any]:
    if not {"gain", "offset"} <= facts.keys():
        return facts
    return facts | {"gain": -float(facts["gain"]), "offset": white - float(facts["offset"])}


def _scale(ready: Prepared, facts: dict[str, Any]) -> Intensity:
    if not {"scale_e_per_px", "gain", "offset"} <= facts.keys():
        return ready.scale
    scale, gain, offset = (float(facts[key]) for key in ("scale_e_per_px", "gain", "offset"))
    return replace(ready.scale, scale=scale, gain=gain, offset=offset)


def _open_denoised(path: Path, frames: Frames) -> Frames:
    try:
        return open_frames(path)
    except SeveralStacks:
        return open_frames(path, Choice(frames.dataset, frames.order))


def _refuse(frames: Frames, clean: Frames | None) -> None:
    if clean is not None and clean.shape != frames.shape:
        found, wanted = ("{} frames of {} x {}".format(*one.shape) for one in (clean, frames))
        raise FormatError(
            f"{clean.path}: found {found}, expected {wanted} as in {frames.path}; "
            "take the frames that were denoised with --frames"
        )
    if min(frames.shape[1:]) < LEAST:
        raise FormatError(
            f"{frames.path}: found frames of {frames.shape[1]} x {frames.shape[2]}, expected "
            f"{LEAST} x {LEAST} or more for a check"
        )


def _check(
    frames: Frames,
    clean: Frames | None,
    ready: Prepared,
    make: _Maker,
    options: DenoiseOptions,
    seed: int,
    progress: Progress,
) -> CheckResult:
    count, size = frames.shape[0], frames.shape[1:]
    grounds = grounds_of(frames, ready, make, seed, options.offset)
    good, noise, camera = grounds.good, grounds.noise, grounds.camera
    rows = grounds.rows()
    held, slices, sums = Held(frames.shape, good), Slices(frames.shape), np.zeros(2)
    sample = Sample(frames.shape, good)

    def write(start: int, before: Frame, after: Frame) -> None:
        for number, (one, two) in enumerate(zip(before, after, strict=True), start):
            if ready.recipe.blank and one.min() == one.max():
                continue  # blank, or without a value: not denoised
            rows.add(number, one, two)
            held.add(number, one, two)
            slices.add(number, one, two)
            sample.add(number, one, two)
            sums[:] += [float(part.mean(where=good)) - camera.offset for part in (two, one)]
        progress(start + len(before), count)

    position = [0]
    # Gaps and saturated areas keep their value in an output: no residual of theirs counts.
    denoised = ready.shown(clean.read) if clean else ready.read

    def compute(block: Frame) -> Frame:
        position[0] += len(block)
        if clean is None:
            return make(block)
        return _finite(clean.path, denoised, position[0] - len(block), position[0])

    def after(start: int, stop: int) -> Frame:
        return denoised(start, stop) if clean else make(ready.read(start, stop))

    batch = options.batch or make.denoiser.batch_for(size)
    pipeline.stream(ready.read, compute, write, pipeline.blocks(0, count, batch))
    table = rows.finish()
    error, curves, line = held.error(grounds.honest.error), held.correlations(), held.line()
    line = line if summary.tells(grounds.honest.line) else None
    info = make.denoiser.session.info
    notes = summary.notes(noise, error, grounds.length, make.facts, info)
    compared = sample.compare(make.denoiser, make.scale, camera, here=clean is None)
    worse = {compared.verdict: (summary.compared(compared),)}
    middle = count // 2, count // 2 + 1
    seen = smallest.of_check(
        ready.read(*middle)[0], after(*middle)[0], camera, grounds.ranges, grounds.length,
        noise.correlated,
    )  # fmt: skip
    return CheckResult(
        table,
        StackFacts(
            frames.path, clean.path if clean else None, frames.shape, info.name, info.sha256,
            make.denoiser.session.device, float(sums[0] / sums[1]), line,
            allowed(count, grounds.rate),
            (*grounds.judge(rows, table, held), *worse.get("far worse", ())),
            worse.get("worse", ()), tuple(notes),
        ),
        noise,
        grounds.thresholds(),
        _spectrum(grounds.honest, rows.mean_power, grounds.panel),
        rows.maps(), error, curves, compared, seen,
        slices.exhibits(table, ready.read, after, camera, frames.axis("x")),
    )  # fmt: skip


def _finite(path: Path, read: correction.Read, start: int, stop: int) -> Frame:
    block = read(start, stop)
    if not np.isfinite(block).all():
        raise FormatError(
            f"{path}: frames {start} to {stop - 1} hold pixels that are not finite, expected "
            "numbers; denoise again, or leave these frames out"
        )
    return block


def _spectrum(honest: null.Honest, power: NDArray[np.float64], size: tuple[int, int]) -> Spectrum:
    drawn = np.stack([one.spectrum for one in honest.panels])
    return Spectrum(
        rings(*size).frequency, power, drawn.mean(axis=0), drawn.min(axis=0), drawn.max(axis=0)
    )
