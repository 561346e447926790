"""The check of a denoised stack from beginning to end, and what it found."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy import batching, preprocess
from emdn_deploy.check.bootstrap import LEVEL, Thresholds
from emdn_deploy.check.heldout import Comparison, Correlations, HeldOutError, Neighbours
from emdn_deploy.check.quick import Smallest, allowed
from emdn_deploy.check.residual import Floats, Frame
from emdn_deploy.check.verdict import OUTSIDE, PASSED, Judge, judge, judge_neighbours
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.page import RunPage, Verdicts
from emdn_deploy.preprocess import Prepared
from emdn_deploy.readers import Choice, Frames, open_frames, open_selected
from emdn_deploy.readers.frames import WHITE, Axis, SeveralStacks
from emdn_deploy.session import ModelInfo, stored
from emdn_deploy.writers import recorded
from emdn_models import pretrained
from emdn_models.errors import EmdnError, FormatError, ModelError

LEAST = 16  # pixels a side


class Shown(NamedTuple):
    """A frame (H, W) of a report."""

    number: int
    before: Frame
    after: Frame
    residual: Frame  # before - after, in units of the noise expected


@dataclass(frozen=True)
class CheckResult:
    """All that a check found.

    ``table`` has one row a frame: ``frame``, ``verdict`` (of `verdict.MEANINGS`, joined by ``; ``,
    or ``within noise``), ``evidence`` in words; ``y``, ``x``, ``scale_px`` and ``z`` of the blob
    that stands out most, in the frame or in the average over its run; then for every statistic its
    value and, as ``<name>_low`` and ``<name>_high``, its limits.
    """

    source: Path
    denoised: Path | None  # None where the frames were denoised for the check
    shape: tuple[int, int, int]  # (N, H, W)
    model: str  # whose replicates gave the thresholds
    sha256: str
    device: str
    table: pl.DataFrame
    thresholds: Thresholds
    ratio: float  # mean out / mean in above the offset, over all frames
    heldout: HeldOutError | None  # None for a single frame, as are the correlations
    correlations: Correlations | None
    power: Floats  # (R,) mean power of the residual on rings, in units of the expected noise
    comparison: Comparison
    smallest: Smallest
    by_chance: int  # frames that may be flagged for themselves in a sound stack of as many
    findings: tuple[str, ...]  # why the stack fails as a whole; empty if it passes
    warnings: tuple[str, ...]  # what speaks against the stack and does not fail it
    notes: tuple[str, ...]  # what was assumed, and what cannot be said
    shown: Shown  # the frame that stands out most, or that in the middle
    axis: Axis  # calibration along x
    page: RunPage | None  # for a report as .html, if asked for

    @property
    def failing(self) -> list[int]:
        """Return the numbers of the frames that are not within noise."""
        return self.table.filter(pl.col("verdict") != PASSED)["frame"].to_list()

    @property
    def flagged(self) -> dict[int, str]:
        """Return, by frame, what was found in it, and not in the noise alone, with evidence."""
        bad = self.table.filter(~pl.col("verdict").is_in([PASSED, OUTSIDE]))
        return {
            number: f"{verdict} ({evidence})"
            for number, verdict, evidence in bad.select("frame", "verdict", "evidence").rows()
        }

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
    *,
    page: bool = False,
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
    page
        Whether frames are collected for a web page.

    Raises
    ------
    EmdnError
        If the two stacks do not have the same shape, hold no noise, or cannot be read.
    """
    path = None if denoised is None else Path(denoised)
    facts = recorded(path) if path else {}
    options = completed(options, facts)
    with ExitStack() as opened:
        choice = Choice(options.dataset, options.axes)
        frames = opened.enter_context(open_selected(Path(source), choice, options.frames))
        clean = None
        if path:
            try:
                clean = opened.enter_context(open_frames(path))
            except SeveralStacks:
                again = Choice(frames.dataset, frames.order)
                clean = opened.enter_context(open_frames(path, again))
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
        return _check(frames, clean, ready, make, options, seed, page)


def completed(options: DenoiseOptions, facts: Mapping[str, Any]) -> DenoiseOptions:
    """Take from a record what the options leave open: model and precision, references, selection.

    Raises
    ------
    ModelError
        If the model that it names is not the one that is shipped under this name, and none
        is given.
    """
    if not facts:
        return options
    changes: dict[str, Any] = {}
    if options.model is None:
        precision = stored(facts.get("precision", "fp32"))
        name = str(facts["model"])
        if "model_sha256" not in facts:  # of MRC, the name is all that is known
            return replace(options, model=name.removesuffix("@movie"))
        shipped = pretrained.index()["models"].get(name, {})
        if precision != "fp32":
            shipped = shipped.get("variants", {}).get(precision, {})
        if shipped.get("sha256") != facts["model_sha256"]:
            raise ModelError(
                f"{name}: found no shipped model {name} with the sha256 of the record, "
                f"{str(facts['model_sha256'])[:12]}..., with which the frames were denoised; "
                "give its file, or another sound model, by --model"
            )
        # Its replicates are of single frames.
        changes |= {"precision": precision, "model": name.removesuffix("@movie")}
    selected = str(facts.get("input_frames", "all"))
    if options.frames is None and selected != "all":
        changes["frames"] = selected
    for name in ("dark", "gain_map", "defects"):
        if getattr(options, name) is None and name in facts:
            changes[name] = Path(str(facts[name]))
    return replace(options, **changes)


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
    with_page: bool,
) -> CheckResult:
    count, size = frames.shape[0], frames.shape[1:]
    own = Thresholds.of(frames, ready, make, seed, options.offset)
    good, camera = own.good, own.camera
    # How far apart frames are that a denoised frame owes nothing to.
    apart = int(make.facts.get("model_frames", 1)) // 2 + 1
    judged, neighbours = Judge(own), Neighbours(frames.shape, good, apart)
    page = RunPage(frames, ready.scale) if with_page else None
    sums = np.zeros(2)

    def write(start: int, before: Frame, after: Frame) -> None:
        for number, (one, two) in enumerate(zip(before, after, strict=True), start):
            if page and number in page.numbers:
                page.add(number, one, two)
            if ready.recipe.blank and one.min() == one.max():
                continue  # blank, or without a value: not denoised
            judged.add(number, one, two)
            neighbours.add(number, one, two)
            sums[:] += [float(part.mean(where=good)) - camera.offset for part in (two, one)]

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
    table, session = judged.finish(), make.denoiser.session
    error, curves = neighbours.error(own.error), neighbours.correlations()
    compared = neighbours.compare(make.denoiser, make.scale, camera, here=clean is None)
    worse = (compared.words,)
    number = chosen(table)
    before, after = read(number)
    residual = np.where(good, (before - after) / camera.noise(after), 0)
    result = CheckResult(
        source=frames.path,
        denoised=clean.path if clean else None,
        shape=frames.shape,
        model=session.info.name,
        sha256=session.info.sha256,
        device=session.device,
        table=table,
        thresholds=own,
        ratio=float(sums[0] / sums[1]),
        heldout=error,
        correlations=curves,
        power=judged.power / table.height,
        comparison=compared,
        smallest=own.smallest(*read(count // 2)),
        by_chance=allowed(count, LEVEL),
        findings=(
            *judge(table, own),
            *judge_neighbours(error, curves),
            *(worse if compared.verdict == "far worse" else ()),
        ),
        warnings=worse if compared.verdict == "worse" else (),
        notes=notes(own, error, make.facts, session.info),
        shown=Shown(number, before, after, residual),
        axis=frames.axis("x"),
        page=page,
    )
    if page:
        for number in page.more(Verdicts(flagged=result.flagged)):
            page.add(number, *read(number))
    return result


def notes(
    own: Thresholds, error: HeldOutError | None, facts: Mapping[str, Any], info: ModelInfo
) -> tuple[str, ...]:
    """Say what was assumed and what cannot be said.

    ``facts`` is the record of the denoised file, ``info`` of the model that made the replicates.
    """
    said = []
    if error is None:
        said.append(
            "one frame: no squared error, no FRC and no average over neighbours can be had, and "
            "the size of the noise is told from structure by assumption"
        )
    elif error.moves:
        said.append(
            "neighbouring frames differ by more than noise, as the specimen moves or they show "
            "different areas: squared error and FRC hold that, and runs of frames average over it"
        )
    elif not own.noise.moves:
        said.append(f"faint blobs are looked for in runs of {own.length} frames as well")
    key, own_model = "model_sha256", info.sha256
    if "model_sha256" not in facts:  # of MRC
        key, own_model = "model", info.name
    if facts and facts[key] != own_model:
        said.append(
            f"the frames were denoised by {facts['model']}, the thresholds are those of {info.name}"
        )
    if own.noise.correlated:
        said.append(
            "the noise is correlated from pixel to pixel: residuals cannot be judged, only means"
        )
    return (*said, *own.noise.not_identifiable)


def chosen(table: pl.DataFrame) -> int:
    """Choose the frame that is shown: what is flagged by its size, or else that in the middle."""
    failing = table.filter(pl.col("verdict") != PASSED)
    if failing.height:
        return int(failing["frame"][int(failing["z"].abs().arg_max() or 0)])
    return int(table["frame"][table.height // 2])
