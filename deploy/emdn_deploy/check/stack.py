"""The check of a denoised stack from beginning to end, and its verdict in plain words."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special

from emdn_deploy import batching, preprocess
from emdn_deploy.check.bootstrap import LEVEL, Limits, Thresholds, share
from emdn_deploy.check.heldout import Comparison, Correlations, HeldOutError, Neighbours
from emdn_deploy.check.quick import Smallest, allowed
from emdn_deploy.check.residual import (
    ADDED,
    CHANGED,
    NOISE,
    REMOVED,
    RUNS,
    SINGLE,
    SMOOTHED,
    STATISTICS,
    Floats,
    Frame,
    Mask,
    Spot,
    measure,
    spots_of,
)
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.model_file import ModelInfo, stored
from emdn_deploy.page import RunPage, Verdicts
from emdn_deploy.preprocess import Prepared
from emdn_deploy.provenance import recorded
from emdn_deploy.readers import Choice, Frames, open_frames, open_selected
from emdn_deploy.readers.frames import WHITE, Axis, SeveralStacks
from emdn_models import pretrained
from emdn_models.errors import EmdnError, FormatError, ModelError

LEAST = 16  # pixels a side

PASSED, OUTSIDE = "within noise", "outside training"
MEANINGS = {
    SMOOTHED: "the residual holds a pattern of which the denoised frame holds too little",
    REMOVED: "at one place or line the denoised frame is darker than the raw one allows",
    ADDED: "at one place or line the denoised frame is brighter than the raw one allows, or it has "
    "a lattice that the raw one does not have",
    NOISE: "less was taken away than there is noise",
    CHANGED: "the mean is not what it was",
    OUTSIDE: "the noise is not what the models were trained on: nothing is vouched for",
}
"""What a microscopist should take a verdict for, in one line each."""

_MOST = 4  # pieces of evidence that are shown
_CLEAR = 5.0  # standard errors
_PAIRS = 8  # fewer do not tell the scatter of a correlation
_ERROR = 1.5  # squared error, over that of replicates, that is not worth one


class Shown(NamedTuple):
    """A frame (H, W) of a report."""

    number: int
    before: Frame
    after: Frame
    residual: Frame  # before - after, in units of the noise expected


@dataclass(frozen=True)
class CheckResult:
    """All that a check found.

    ``table`` has one row a frame: ``frame``, ``verdict`` (of `MEANINGS`, joined by ``; ``, or
    ``within noise``), ``evidence`` in words; ``y``, ``x``, ``scale_px`` and ``z`` of the blob that
    stands out most, in the frame or in the average over its run; then for every statistic its value
    and, as ``<name>_low`` and ``<name>_high``, its limits.
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


@dataclass
class Found:
    """The statistics of one frame, of each the panel's where it is farthest."""

    number: int
    values: dict[str, float] = field(default_factory=dict)
    spots: dict[str, Spot] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)  # of which the denoised frame has more
    noise: set[str] = field(default_factory=set)  # bands in which both hold noise
    peak: tuple[float, float] = (0.0, 0.0)


class Judge:
    """Measures the frames of a stack and judges them, as they pass."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.power: Floats = np.zeros(1)  # sum of the residuals' power on rings
        self._own = thresholds
        self._rows: list[tuple[Any, ...]] = []
        self._values: list[Floats] = []
        self._waiting: list[Found] = []  # for the run that they belong to
        self._sums: list[Frame] = []

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Measure the next frame."""
        own = self._own
        panels = [measure(raw[at], denoised[at], own.camera, own.good[at]) for at in own.panels]
        self.power = self.power + np.mean([one.spectrum for one in panels], axis=0)
        found = Found(number)
        for name in SINGLE:
            low, _, typical = own.limits[name]
            each = np.array([one.values[name] for one in panels])
            at = int((np.abs(each - typical) if isfinite(low) else each).argmax())
            found.values[name] = float(each[at])
            if name in panels[at].added:
                found.added.add(name)
            if name in panels[at].spots:
                found.spots[name] = self._moved(panels[at].spots[name], at)
            elif name.startswith("match") and own.is_noise(name, panels[at].strength):
                found.noise.add(name)
            elif name == "peak":
                found.peak = panels[at].peak
        self._waiting.append(found)
        if own.length:
            parts = [share(one.fields) for one in panels]
            earlier = self._sums or [np.float32(0)] * len(parts)
            self._sums = [a + b for a, b in zip(earlier, parts, strict=True)]
        if len(self._waiting) >= max(1, own.length):
            self._complete()

    def _moved(self, spot: Spot, panel: int) -> Spot:
        rows, columns = self._own.panels[panel]
        return spot._replace(y=spot.y + rows.start, x=spot.x + columns.start)

    def _complete(self) -> None:
        """Judge the frames that wait, with the average residual of all of them."""
        own, run = self._own, dict[str, Spot]()
        root = np.float32(np.sqrt(len(self._waiting)))
        for at, total in enumerate(self._sums):
            for name, spot in spots_of(total / root, "run_blob").items():
                if name not in run or spot.contrast > run[name].contrast:
                    run[name] = self._moved(spot, at)
        for found in self._waiting:
            found.spots |= run
            found.values |= {name: spot.contrast for name, spot in run.items()}
            found.added |= {name for name, spot in run.items() if spot.z < 0}
            farthest = max(
                found.spots, key=lambda name: found.spots[name].contrast / own.limits[name].high
            )
            place = found.spots[farthest][:4]
            self._rows.append((found.number, *verdict_of(found, own), *place))
            self._values.append(np.array([found.values[name] for name in own.limits]))
        self._waiting.clear()
        self._sums = []

    def finish(self) -> pl.DataFrame:
        """Judge the frames of a last, shorter run, and return the table of `CheckResult`."""
        if self._waiting:
            self._complete()
        schema = ["frame", "verdict", "evidence", "y", "x", "scale_px", "z"]
        table = pl.DataFrame(self._rows, schema, orient="row")
        columns: list[pl.Series | pl.Expr] = []
        for (name, limit), values in zip(
            self._own.limits.items(), np.array(self._values).T, strict=True
        ):
            low = [pl.lit(limit.low).alias(f"{name}_low")] if isfinite(limit.low) else []
            columns += [pl.Series(name, values), *low, pl.lit(limit.high).alias(f"{name}_high")]
        return table.with_columns(columns)


def verdict_of(found: Found, own: Thresholds) -> tuple[str, str]:
    """Return the verdict on a frame, its kinds joined by ``; ``, and the evidence."""
    beyond = []
    for name in own.judged:
        value, limit = found.values[name], own.limits[name]
        if not limit.holds(value):
            bound = limit.high if value > limit.high else limit.low
            reach = (value - limit.typical) / (bound - limit.typical)
            beyond.append((reach, name, value, bound))
    kinds: dict[str, str] = {}
    evidence: list[str] = []
    for _, name, value, bound in sorted(beyond, reverse=True):
        # What stands out at one scale or in one band does so in others: the farthest will do.
        group, statistic = name.rstrip("0123456789_"), STATISTICS[name]
        if group in kinds:
            continue
        kinds[group], side = statistic.above, "at most"
        if value < bound:
            kinds[group], side = statistic.below, "at least"
        elif name in found.noise:
            kinds[group] = NOISE
        elif name in found.added:
            kinds[group] = ADDED
        words = f"{statistic.words}: {statistic.written(value)}, expected {side} "
        words += statistic.written(bound)
        if spot := found.spots.get(name):
            than = "brighter" if spot.z < 0 else "darker"
            words += f", denoised {than} than raw at row {spot.y}, column {spot.x}"
        if name == "peak":
            words += ", at ({:.3f}, {:.3f}) cycles/pixel".format(*found.peak)
        evidence.append(words)
    # More residual than there should be is of the kind that something else says it is.
    structure = (SMOOTHED, REMOVED, ADDED)
    vague = [one for one in ("std", "radial") if kinds.get(one) in structure]
    clear = [kind for one, kind in kinds.items() if one not in vague and kind in structure]
    kinds |= dict.fromkeys(vague, clear[0]) if clear else {}
    verdicts = list(dict.fromkeys(kinds.values())) + ([OUTSIDE] if own.outside else [])
    # What the noise has is said of the stack, once, where a frame has more to say.
    return "; ".join(verdicts) or PASSED, "; ".join(evidence[:_MOST] or own.outside)


def judge(table: pl.DataFrame, own: Thresholds) -> tuple[str, ...]:
    """Say why the residuals of a stack fail it; nothing if they do not.

    Of sound frames `LEVEL` may stand out each for itself, so that of a long stack some do. A stack
    fails for more of them than that, for more runs, and for a frame or run so far out that hardly
    any sound stack has one. Each of these three has `quick.SHARE` of false alarms.
    """
    found = []
    if own.outside:
        found.append("the noise is not what the models were trained on: nothing can be vouched for")
    names, run_rate = own.judged, LEVEL * len(RUNS) / len(own.limits)
    for what, judged, rate, step in (
        ("frames stand out, each for itself", set(names) - set(RUNS), LEVEL, 1),
        ("averages over a run of frames stand out", set(names) & set(RUNS), run_rate, own.length),
    ):
        flags = beyond(table, own.limits, judged)[:: max(1, step)]
        most = allowed(len(flags), rate)
        if flags.sum() > most:
            found.append(
                f"{flags.sum()} of {len(flags)} {what}: in 99 % of sound stacks at most {most} do"
            )
    farthest = own.farthest(table.height)
    for name in names:
        far = table.filter(beyond(table, farthest, [name]))
        if far.height:
            limit, statistic = farthest[name], STATISTICS[name]
            worst = int((far[name] - limit.typical).abs().arg_max() or 0)
            value, number = far[name][worst], far["frame"][worst]
            bound = limit.high if value > limit.high else limit.low
            where = f"{'the run of ' if name in RUNS else ''}frame {number}"
            more = f" (and {far.height - 1} more)" if far.height > 1 else ""
            found.append(
                f"{statistic.words}: {statistic.written(value)} in {where}{more}; in 99 % of sound "
                f"stacks no frame is beyond {statistic.written(bound)}"
            )
    return tuple(found)


def beyond(table: pl.DataFrame, limits: Mapping[str, Limits], names: Iterable[str]) -> Mask:
    """Say of every frame (N,) whether any of these statistics is outside of its range."""
    out = np.zeros(table.height, bool)
    for name in names:
        values = table[name].to_numpy()
        out |= (values < limits[name].low) | (values > limits[name].high)
    return out


def judge_neighbours(error: HeldOutError | None, curves: Correlations | None) -> tuple[str, ...]:
    """Say what neighbouring frames show to be wrong with a stack, beyond chance."""
    found = []
    if error and not error.moves and isfinite(error.error.se):
        least = error.error.value - _CLEAR * error.error.se
        if least > _ERROR * error.expected:
            found.append(
                f"the squared error against neighbouring frames, {error.error.value:.4g} ± "
                f"{error.error.se:.2g}, is above that of replicates, {error.expected:.4g}"
            )
    if curves and curves.pairs >= _PAIRS:
        # As many standard errors as have the same chance in so few pairs (Student).
        clear = -float(special.stdtrit(curves.pairs - 1, special.ndtr(-_CLEAR)))
        chance = np.hypot(curves.raw_se, curves.denoised_se)
        worse = curves.denoised < curves.raw - clear * chance
        if worse.any():
            at = ", ".join(f"{one:.3f}" for one in curves.frequency[worse][:4])
            found.append(
                "denoised frames agree less with the neighbouring raw frame than raw ones do "
                f"(FRC) at {at} cycles/pixel"
            )
    return tuple(found)


def notes(
    own: Thresholds, error: HeldOutError | None, facts: Mapping[str, Any], info: ModelInfo
) -> tuple[str, ...]:
    """Say what was assumed and what cannot be said.

    Parameters
    ----------
    facts
        The record of the denoised file.
    info
        Of the model that made the replicates.
    """
    noise, said = own.noise, []
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
    elif not noise.moves:
        said.append(f"faint blobs are looked for in runs of {own.length} frames as well")
    if facts and facts["model_sha256"] != info.sha256:
        said.append(
            f"the frames were denoised by {facts['model']}, the thresholds are those of {info.name}"
        )
    if noise.correlated:
        said.append(
            "the noise is correlated from pixel to pixel: residuals cannot be judged, only means"
        )
    return (*said, *noise.not_identifiable)


def chosen(table: pl.DataFrame) -> int:
    """Choose the frame that is shown: what is flagged by its size, or else that in the middle."""
    failing = table.filter(pl.col("verdict") != PASSED)
    if failing.height:
        return int(failing["frame"][int(failing["z"].abs().arg_max() or 0)])
    return int(table["frame"][table.height // 2])
