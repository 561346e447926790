"""The check of a denoised stack from beginning to end, and what it found."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy import batching, preprocess
from emdn_deploy.check import record, smallest_defect
from emdn_deploy.check.heldout import Comparison, Correlations, HeldOutError, Neighbours, Sample
from emdn_deploy.check.quick import allowed
from emdn_deploy.check.residual_tests import Floats, Frame
from emdn_deploy.check.smallest_defect import Smallest
from emdn_deploy.check.thresholds import Thresholds
from emdn_deploy.check.verdict import PASSED, Rows, judge, judge_neighbours, notes, tells
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.preprocess import Prepared
from emdn_deploy.readers import Choice, Frames, open_frames, open_selected
from emdn_deploy.readers.frames import WHITE, Axis, SeveralStacks
from emdn_models.errors import EmdnError, FormatError
from emdn_models.metrics import Linearity

LEAST = 16  # pixels a side
SHOWN = 3  # frames of a report
LINES = 512  # of its slice through time

Progress = Callable[[int, int], None]


class Shown(NamedTuple):
    """One frame of a report: (H, W) each."""

    number: int
    before: Frame
    after: Frame
    residual: Frame  # before - after, in units of the noise expected


@dataclass(frozen=True)
class CheckResult:
    """All that a check found.

    Attributes
    ----------
    source, denoised
        The files; ``denoised`` is None where the frames were denoised for the check.
    shape
        (N, H, W).
    model, sha256, device
        Of the model whose replicates gave the thresholds.
    table
        One row a frame: ``frame``, ``verdict`` (of `emdn_deploy.check.verdict.MEANINGS`, joined
        by ``; ``, or ``within noise``), ``evidence`` in words; ``y``, ``x``, ``scale_px`` and ``z``
        of the place that stands out most, and the same of the average over a run of frames as
        ``run_y`` and so on; then for every statistic its value and, as ``<name>_low`` and
        ``<name>_high``, its limits.
    ratio
        Mean out / mean in above the offset, over all frames.
    linearity
        Local means out against those in; None where the frames hold too few blocks, or
        no structure as large as one.
    heldout, correlations
        None for a single frame.
    by_chance
        Frames that may be flagged for themselves in a sound stack of as many.
    findings
        Why the stack fails as a whole; empty if it passes.
    warnings
        What speaks against the stack and does not fail it.
    notes
        What was assumed, and what cannot be said.
    power
        (R,) mean power of the residual on rings, in units of the expected noise.
    shown
        Frames for pictures: those that fail first, then others spread over the stack.
    lines, step
        (K, W) each, the middle row of every ``step``-th frame, before and after.
    axis
        Calibration along x.
    """

    source: Path
    denoised: Path | None
    shape: tuple[int, int, int]
    model: str
    sha256: str
    device: str
    table: pl.DataFrame
    thresholds: Thresholds
    ratio: float
    linearity: Linearity | None
    heldout: HeldOutError | None
    correlations: Correlations | None
    power: Floats
    comparison: Comparison
    smallest: Smallest
    by_chance: int
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    shown: tuple[Shown, ...]
    lines: tuple[Frame, Frame]
    step: int
    axis: Axis

    @property
    def failing(self) -> list[int]:
        """Return the numbers of the frames that are not within noise."""
        bad = self.table.filter(pl.col("verdict") != PASSED)
        return [int(number) for number in bad["frame"]]

    @property
    def passed(self) -> bool:
        """Whether the stack shows no more than sound ones do; single frames may stand out."""
        return not self.findings

    @property
    def word(self) -> str:
        """Return ``PASS``, ``WARN`` or ``FAIL``; what warns does not fail."""
        if not self.passed:
            return "FAIL"
        return "WARN" if self.warnings else "PASS"


def check(
    source: str | PathLike[str],
    denoised: str | PathLike[str] | None = None,
    options: DenoiseOptions = DenoiseOptions(),  # noqa: B008
    seed: int = 0,
    progress: Progress = lambda done, count: None,
) -> CheckResult:
    """Say of every frame of a denoised stack whether its residual is that of a sound one.

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
        Of the noise of the bootstrap.

    Raises
    ------
    EmdnError
        If the two stacks do not have the same shape, hold no noise, or cannot be read.
    """
    path = None if denoised is None else Path(denoised)
    facts = record.of(path) if path else {}
    options = record.completed(options, facts)
    with ExitStack() as opened:
        choice = Choice(options.dataset, options.axes)
        frames = opened.enter_context(open_selected(Path(source), choice, options.frames))
        clean = opened.enter_context(_open_denoised(path, frames)) if path else None
        _refuse(frames, clean)
        if (white := frames.metadata.get(WHITE)) is not None:
            # Judged as counted from white; a negative stays one in the files.
            level = float(white)
            frames, clean = _upright(frames, level), clean and _upright(clean, level)
            if {"gain", "offset"} <= facts.keys():
                offset = level - float(facts["offset"])
                facts = facts | {"gain": -float(facts["gain"]), "offset": offset}
            if options.offset is not None:
                options = replace(options, offset=level - options.offset)
        ready = preprocess.prepare(frames, options)
        if not ready.scale.sigma:
            raise EmdnError(f"{frames.path}: {ready.scale.note}; there is nothing to check against")
        denoiser = Denoiser.of(options)
        if denoiser.session.info.frames > 1:
            raise EmdnError(
                f"{options.model}: sees several frames; give the file that it has denoised, "
                "which is judged by a model that sees one"
            )
        make = _Maker(denoiser, ready, facts, clean)
        return _check(frames, clean, ready, make, options, seed, progress)


class _Maker:
    """Denoises as the denoised file was: model, scale, orientations, rounding."""

    def __init__(
        self, denoiser: Denoiser, ready: Prepared, facts: Mapping[str, Any], clean: Frames | None
    ) -> None:
        self.denoiser, self.facts, self.scale = denoiser, facts, ready.scale
        if {"scale_e_per_px", "gain", "offset"} <= facts.keys():
            scale, gain, offset = (float(facts[k]) for k in ("scale_e_per_px", "gain", "offset"))
            self.scale = replace(ready.scale, scale=scale, gain=gain, offset=offset)
        integers = clean is not None and clean.dtype.kind in "iu"
        self._bounds = np.iinfo(clean.dtype) if clean is not None and integers else None

    def __call__(self, frames: Frame) -> Frame:
        wide = np.ascontiguousarray(frames, dtype=np.float32)
        if "ensemble" in self.facts:
            made = self.denoiser.answer(wide, self.scale, with_sigma=True).frames
        else:
            made = self.denoiser.run(wide, self.scale)
        if self._bounds is not None:
            made = np.clip(np.rint(made), self._bounds.min, self._bounds.max).astype(np.float32)
        return made


def _upright(frames: Frames, white: float) -> Frames:
    """Count electrons up from white, in a stack in which white is their least."""

    def read(start: int, stop: int) -> NDArray[Any]:
        block = frames.read_block(start, stop)
        return np.asarray(white - block, block.dtype)

    metadata = {key: text for key, text in frames.metadata.items() if key != WHITE}
    return replace(frames, read_block=read, metadata=metadata)


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
    own = Thresholds.of(frames, ready, make, seed, options.offset)
    good, camera = own.good, own.camera
    rows, apart = Rows(own), record.apart(make.facts)
    neighbours, sample = Neighbours(frames.shape, good, apart), Sample(frames.shape, good, apart)
    sums, step = np.zeros(2), -(-count // LINES)
    lines: list[tuple[Frame, Frame]] = []

    def write(start: int, before: Frame, after: Frame) -> None:
        for number, (one, two) in enumerate(zip(before, after, strict=True), start):
            if ready.recipe.blank and one.min() == one.max():
                continue  # blank, or without a value: not denoised
            for part in (rows, neighbours, sample):
                part.add(number, one, two)
            if number % step == 0:
                lines.append((one[len(one) // 2].copy(), two[len(two) // 2].copy()))
            sums[:] += [float(part.mean(where=good)) - camera.offset for part in (two, one)]
        progress(start + len(before), count)

    position = [0]
    # Gaps and saturated areas keep their value in an output: no residual of theirs counts.
    denoised = ready.shown(clean.read) if clean else ready.read

    def compute(block: Frame) -> Frame:
        position[0] += len(block)
        if clean is None:
            return make(block)
        start, stop = position[0] - len(block), position[0]
        found = denoised(start, stop)
        if not np.isfinite(found).all():
            raise FormatError(
                f"{clean.path}: frames {start} to {stop - 1} hold pixels that are not finite, "
                "expected numbers; denoise again, or leave these frames out"
            )
        return found

    def read(number: int) -> tuple[Frame, Frame]:
        """Read one frame before and after."""
        raw = ready.read(number, number + 1)
        return raw[0], (denoised(number, number + 1) if clean else make(raw))[0]

    batch = options.batch or make.denoiser.batching.frames_per_run(size)
    batching.stream(ready.read, compute, write, batching.blocks(0, count, batch))
    table, session = rows.finish(), make.denoiser.session
    error, curves = neighbours.error(own.bootstrap.error), neighbours.correlations()
    line, expected = neighbours.line(), own.bootstrap.line
    compared = sample.compare(make.denoiser, make.scale, camera, here=clean is None)
    worse = (compared.words,)
    shown = []
    for number in chosen(table):
        before, after = read(number)
        residual = np.where(good, (before - after) / camera.noise(after), 0)
        shown.append(Shown(number, before, after, residual))
    slices = [np.stack(part) for part in zip(*lines, strict=True)]
    return CheckResult(
        source=frames.path,
        denoised=clean.path if clean else None,
        shape=frames.shape,
        model=session.info.name,
        sha256=session.info.sha256,
        device=session.device,
        table=table,
        thresholds=own,
        ratio=float(sums[0] / sums[1]),
        linearity=line if tells(expected) else None,
        heldout=error,
        correlations=curves,
        power=rows.mean_power,
        comparison=compared,
        smallest=smallest_defect.of_check(*read(count // 2), own),
        by_chance=allowed(count, own.rate),
        findings=(
            *judge(table, own),
            *judge_neighbours(error, curves, line, expected),
            *(worse if compared.verdict == "far worse" else ()),
        ),
        warnings=worse if compared.verdict == "worse" else (),
        notes=notes(own, error, make.facts, session.info),
        shown=tuple(shown),
        lines=(slices[0], slices[1]),
        step=step,
        axis=frames.axis("x"),
    )


def chosen(table: pl.DataFrame) -> list[int]:
    """Choose at most `SHOWN` frames: what fails by its size, then the middle, first and last."""
    failing = table.filter(pl.col("verdict") != PASSED)
    by_size = failing.sort(pl.col("z").abs(), descending=True, nulls_last=True)["frame"].to_list()
    numbers = table["frame"].to_list()
    spread = [numbers[len(numbers) // 2], numbers[0], numbers[-1]]
    return list(dict.fromkeys(int(one) for one in (*by_size[:SHOWN], *spread)))[:SHOWN]
