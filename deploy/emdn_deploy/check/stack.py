"""The check of a denoised stack from beginning to end, and what it found."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from emdn_deploy import batching, preprocess
from emdn_deploy.check.bootstrap import LEVEL, Smallest, Thresholds
from emdn_deploy.check.heldout import Comparison, Neighbours, moves
from emdn_deploy.check.quick import allowed
from emdn_deploy.check.residual import Frame
from emdn_deploy.check.verdict import OUTSIDE, PASSED, Judge, judge
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.figures import RunPage
from emdn_deploy.preprocess import Prepared
from emdn_deploy.readers import Choice, Frames, open_frames, open_selected
from emdn_deploy.readers.frames import SeveralStacks
from emdn_deploy.writers import recorded
from emdn_models import pretrained
from emdn_models.errors import EmdnError, FormatError, ModelError
from emdn_models.metrics import HeldOut

LEAST = 16  # pixels a side


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
    seed: int  # of the noise that was drawn
    table: pl.DataFrame
    thresholds: Thresholds
    ratio: float  # mean out / mean in above the offset, over all frames
    heldout: HeldOut | None  # None for too few frames
    comparison: Comparison
    smallest: Smallest
    findings: tuple[str, ...]  # why the stack fails as a whole; empty if it passes
    warnings: tuple[str, ...]  # what speaks against the stack and does not fail it
    notes: tuple[str, ...]  # what was assumed, and what cannot be said
    page: RunPage | None  # for a report as .html, if asked for

    @property
    def by_chance(self) -> int:
        """Return how many frames may be flagged for themselves in a sound stack of as many."""
        return allowed(self.table.height, LEVEL)

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
        return ("WARN" if self.warnings else "PASS") if self.passed else "FAIL"


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
        ready = preprocess.prepare(frames, options)
        if not ready.scale.sigma:
            raise EmdnError(f"{frames.path}: {ready.scale.note}; there is nothing to check against")
        denoiser = Denoiser.of(options)
        if denoiser.session.info.frames > 1:
            raise EmdnError(
                f"{options.model}: sees several frames; give the file that it has denoised, "
                "which is judged by a model that sees one"
            )
        return _check(
            frames, clean, ready, _Maker(denoiser, ready, facts, clean), options, seed, page
        )


def completed(options: DenoiseOptions, facts: Mapping[str, Any]) -> DenoiseOptions:
    """Take from a record what the options leave open: model and precision, references, selection.

    ModelError if the model that it names is not the one that is shipped under this name, and none
    is given.
    """
    if not facts:
        return options
    changes: dict[str, Any] = {}
    if options.model is None:
        # The replicates are of single frames.
        name = str(facts["model"])
        changes["model"] = name.removesuffix("@movie")
        if "model_sha256" not in facts:  # of MRC, the name is all that is known
            return replace(options, **changes)
        changes["precision"] = precision = facts.get("precision", "fp32")
        shipped = pretrained.index()["models"].get(name, {})
        if precision != "fp32":
            shipped = shipped.get("variants", {}).get(precision, {})
        if shipped.get("sha256") != facts["model_sha256"]:
            raise ModelError(
                f"{name}: found no shipped model {name} with the sha256 of the record, "
                f"{str(facts['model_sha256'])[:12]}..., with which the frames were denoised; "
                "give its file, or another sound model, by --model"
            )
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
        made = self.denoiser.answer(wide, self.scale, with_sigma="ensemble" in self.facts).frames
        if self._bounds is not None:
            made = np.clip(np.rint(made), self._bounds.min, self._bounds.max).astype(np.float32)
        return made


def _refuse(frames: Frames, clean: Frames | None) -> None:
    if clean is not None and clean.shape != frames.shape:
        found, wanted = ("{} frames of {} x {}".format(*one.shape) for one in (clean, frames))
        raise FormatError(
            f"{clean.path}: found {found}, expected {wanted} as in {frames.path}; "
            "take the frames that were denoised with --frames"
        )
    if min(frames.shape[1:]) < LEAST:
        raise FormatError(
            f"{frames.path}: found frames of {frames.shape[1]} x {frames.shape[2]}, "
            f"expected {LEAST} x {LEAST} or more for a check"
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
    own = Thresholds.of(frames, ready, make, seed)
    good, camera = own.good, own.camera
    # How far apart frames are that a denoised frame owes nothing to.
    apart = int(make.facts.get("model_frames", 1)) // 2 + 1
    judged, neighbours = Judge(own), Neighbours(frames.shape, good, apart)
    sums = np.zeros(2)
    # Gaps and saturated areas keep their value in an output: no residual of theirs counts.
    shown = ready.shown(clean.read) if clean else None

    def read(start: int, stop: int) -> tuple[Frame, Frame]:
        """Read frames (k, H, W) before and after."""
        before = ready.read(start, stop)
        if clean is None or shown is None:
            return before, make(before)
        after = shown(start, stop)
        if not np.isfinite(after).all():
            raise FormatError(
                f"{clean.path}: frames {start} to {stop - 1} hold pixels that are not finite, "
                "expected numbers; denoise again, or leave these frames out"
            )
        return before, after

    batch = options.batch or make.denoiser.batching.frames_per_run(size)
    for span in batching.blocks(0, count, batch):
        for number, before, after in zip(range(*span), *read(*span), strict=True):
            if before.min() == before.max():
                continue  # blank, or without a value: not denoised
            judged.add(number, before, after)
            neighbours.add(number, before, after)
            sums += [float(part.mean(where=good)) - camera.offset for part in (after, before)]
    table, session, error = judged.finish(), make.denoiser.session, neighbours.error()
    compared = neighbours.compare(make.denoiser, make.scale, camera, here=clean is None)

    def one(number: int) -> tuple[Frame, Frame]:
        before, after = read(number, number + 1)
        return before[0], after[0]

    result = CheckResult(
        source=frames.path,
        denoised=clean.path if clean else None,
        shape=frames.shape,
        model=session.info.name,
        sha256=session.info.sha256,
        device=session.device,
        seed=seed,
        table=table,
        thresholds=own,
        ratio=float(sums[0] / sums[1]),
        heldout=error,
        comparison=compared,
        smallest=own.smallest(*one(int(table["frame"][table.height // 2]))),
        findings=(
            *judge(table, own, error), *[compared.words] * (compared.verdict == "far worse")
        ),
        warnings=(compared.words,) * (compared.verdict == "worse"),
        notes=_notes(own, error, make),
        page=None,
    )  # fmt: skip
    if not with_page:
        return result
    unjudged = set(range(count)).difference(table["frame"])
    return replace(result, page=RunPage(frames, ready.scale, one, result.flagged, unjudged))


def _notes(own: Thresholds, error: HeldOut | None, make: _Maker) -> tuple[str, ...]:
    """Say what was assumed and what cannot be said."""
    said, facts, info = list[str](), make.facts, make.denoiser.session.info
    if error is None:
        said.append(
            "too few frames for a squared error; of a single one, the size of the noise is told "
            "from structure by assumption"
        )
    elif moves(error):
        said.append(
            "neighbouring frames differ by more than noise, as the specimen moves or they show "
            "different areas: the squared error holds that, and runs of frames average over it"
        )
    named = facts.get("model_sha256", facts.get("model"))  # of MRC, the name is all that is known
    if named not in (None, info.sha256, info.name):
        said.append(
            f"the frames were denoised by {facts['model']}, the thresholds are those of {info.name}"
        )
    if own.noise.correlated:
        said.append(
            "the noise is correlated from pixel to pixel: residuals cannot be judged, only means"
        )
    return tuple(said)
