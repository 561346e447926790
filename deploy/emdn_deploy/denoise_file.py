"""Denoise one file into another: the whole of ``emdn-deploy denoise``."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import (
    neighbours,
    output_paths,
    pipeline,
    preprocess,
    provenance,
    uncertainty,
    writers,
)
from emdn_deploy.check.quick import BOUNDS, Quick, QuickResult, spans
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.output import Output, State, Sums, check_targets, claimed
from emdn_deploy.page import RunPage, Verdicts
from emdn_deploy.preprocess import Part, Prepared, Recipe
from emdn_deploy.readers import Choice, Frames, open_frames, open_selected
from emdn_deploy.readers.frames import check_one_scale
from emdn_deploy.report import Plan, Report, lines
from emdn_deploy.stacks import Answer
from emdn_deploy.writers import Layout, Storage, partial_of
from emdn_models import pretrained
from emdn_models.errors import EmdnError, FormatError, OutputError
from emdn_models.files import renamed

# A mean that moves by more than this is worth a warning.
RATIO_TOLERANCE = 0.01
# Inputs of so many files are compared with what they were after every block, others at the end.
FEW_FILES = 16
# What a preview may be.
PICTURES = (".png", ".gif", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff")

Progress = Callable[[int, int], None]
_log = logging.getLogger(__name__)


def plan(source: Path, options: DenoiseOptions) -> Plan:
    """Say what `run` would do, and raise what it would raise before reading pixels."""
    target, module = output_paths.target_of(source, options)
    with open_selected(source, Choice(options.dataset, options.axes), options.frames) as frames:
        files, others = _outputs(target, module, frames, options)
        check_targets([*files, *others], _inputs(frames, options), overwrite=options.overwrite)
        compress = writers.compressed(module, frames, options.compress)
        storage = Storage(options.dtype, compress, options.sigma)
        writers.check_room(target, frames.shape, storage)
        return Plan(
            source, target, frames.format, frames.dataset, frames.why, frames.shape,
            str(frames.dtype), storage.total(frames.shape),
            writers.sigma_place(target, module, frames) if options.sigma else None, compress,
        )  # fmt: skip


def _outputs(
    target: Path, module: str, frames: Frames, options: DenoiseOptions
) -> tuple[list[Path], list[Path]]:
    """List the files of an output, that of the frames last, and the pictures of it."""
    beside = writers.sigma_file(target, module)
    if options.sigma:
        writers.check_sigma(module, frames)
    elif beside is not None and beside.exists():
        _log.warning("warning: %s: is of an earlier run and will not fit the new frames", beside)
    pictures = []
    wanted = (options.preview, PICTURES), (options.movie, (".gif",)), (options.report, (".html",))
    for path, kinds in wanted:
        if path is not None and path.suffix.lower() not in kinds:
            raise OutputError(
                f"{path}: unknown kind of picture {path.suffix!r}; expected {' '.join(kinds)}"
            )
        pictures += [] if path is None else [path]
    return writers.files_of(target, module, sigma=options.sigma), pictures


def _inputs(frames: Frames, options: DenoiseOptions) -> list[Path]:
    """List every file that a run reads."""
    model = [Path(options.model)] if options.model and Path(options.model).is_file() else []
    return [frames.path, *provenance.inputs_of(frames, options), *model]


def run(
    source: Path,
    options: DenoiseOptions,
    progress: Progress = lambda done, count: None,
    opened: dict[str | None, Denoiser] | None = None,
    recipe: Recipe | None = None,
    between: tuple[Sequence[Path], Sequence[Path]] = ((), ()),
) -> Report:
    """Denoise a file of frames.

    Parameters
    ----------
    opened
        Open models by name, to be used for several inputs; those that are missing are added.
    recipe
        Scale and corrections of a longer stack that this file is a part of; None to
        find its own.
    between
        The files before and after it in that stack, for a model that sees neighbours.

    Raises
    ------
    EmdnError
        One of its kinds, naming the file and the remedy.
    """
    target, module = output_paths.target_of(source, options)
    with contextlib.ExitStack() as stack:
        frames = stack.enter_context(
            open_selected(source, Choice(options.dataset, options.axes), options.frames)
        )
        given = provenance.stamps(provenance.inputs_of(frames, options))
        files, pictures = _outputs(target, module, frames, options)
        over = options.overwrite
        stack.enter_context(claimed(files, pictures, _inputs(frames, options), overwrite=over))
        beside = writers.sigma_file(target, module) if options.sigma else None
        compress = writers.compressed(module, frames, options.compress)
        options = replace(options, compress=compress)
        for said in frames.notes:
            _log.warning("warning: %s: %s", source, said)
        if options.axes is None:
            check_one_scale(frames)
        ready = preprocess.prepare(frames, options, recipe)
        denoiser, seen = choose(ready, options, {} if opened is None else opened, any(between))
        half = denoiser.session.info.frames // 2
        ends = slice(-half, None), slice(half)  # of the files before, and of those after
        context = [
            _read_some(paths, ready, options, end) if half else []
            for paths, end in zip(between, ends, strict=True)
        ]
        if not ready.scale.sigma:
            _log.warning("warning: %s: %s", source, ready.scale.note)
        info = denoiser.session.info
        note = uncertainty.note(info, denoiser.calibration) if options.sigma else None
        if note and denoiser.calibration is None:
            _log.warning("warning: %s: sigma is %s", source, note)
        count, size = frames.shape[0], frames.shape[1:]
        _, batch = _cut(denoiser, count, size, options)
        facts = provenance.facts_of(frames, options, denoiser, ready, batch, seen)
        storage = Storage(options.dtype, bool(options.compress), options.sigma)
        _log.info("%s: writes %s", target, writers.check_room(target, frames.shape, storage))

        def make(partial: Path) -> Layout:
            own = partial_of(beside) if beside else None
            return writers.lay_out(module, partial, frames, facts, storage, own)

        quick = Quick(ready.scale.pixel_gain, ready.scale.offset, bad=ready.recipe.bad)

        def state() -> State:
            return {**quick.state(), "note": np.array(denoiser.batching.note)}

        key = provenance.key_of(facts, given)
        with Output(
            files, module, make, key, pixels=size[0] * size[1], beside=beside, state=state,
            overwrite=over,
        ) as output:  # fmt: skip
            resumed = output.done
            if resumed:
                _log.info("%s: continuing after frame %d", output.partial, resumed - 1)
                _take_up(output, quick, denoiser, size)
            began = time.perf_counter()
            progress(resumed, count)
            _stream(denoiser, ready, options, output, quick, count, progress, given, context)
            seconds = time.perf_counter() - began
            checked = quick.result() if ready.scale.sigma else None
            late = {**output.sums.facts(ready.scale.offset), **provenance.checked(checked)}
            late |= provenance.memory(denoiser)
            sums = output.sums
            try:
                provenance.check_unchanged(given)
            except FormatError:
                output.spoil()
                raise
            output.complete(late)
        if options.preview is not None or options.movie is not None:
            try:
                _draw(options, frames, ready, target, module, denoiser.session.info.name)
            except (EmdnError, OSError) as error:
                raise OutputError(f"{error}; {target} itself is complete") from error
        verdicts = _verdicts(checked, count)
        page = _page(ready, target, module, verdicts) if options.report is not None else None
    ratio, net = float(late["intensity_ratio"]), float(late["net_intensity_ratio"])
    _warn(source, ratio, net, ready, sums, options)
    report = Report(
        source, target, frames.dataset, frames.shape[0], resumed, seconds,
        info.name, denoiser.session.precision, denoiser.session.device, ready.scale,
        ratio, ready.bad_pixels, options.dtype, sums.saturated, options.preview,
        options.movie, writers.sigma_place(target, module, frames) if note else None, note,
        checked.line if checked else None, checked.failing if checked else (),
        net, float(late["largest_shift"]), ready.gap_pixels, sums.kept, ready.recipe.flags.limit,
        sums.filled, tuple(sums.empty), ready.recipe.notes,
        smallest_defect=checked.smallest.words if checked and checked.smallest else None,
        neighbours=seen, page=options.report,
    )  # fmt: skip
    if page is not None and options.report is not None:
        with renamed(options.report) as place:
            text = page.html(source.name, verdicts, lines(report))
            place.write_text(text, encoding="utf-8")
    return report


def choose(
    ready: Prepared,
    options: DenoiseOptions,
    opened: dict[str | None, Denoiser],
    beside: bool = False,
) -> tuple[Denoiser, str]:
    """Open the model that was asked for; without one, a movie gets the model for movies.

    That sees each frame with its neighbours, which helps where they show the same scene.

    Parameters
    ----------
    opened
        Models that are open, by name; those that are missing are added.
    beside
        Whether the stack has neighbours besides its own frames.

    Returns
    -------
    Denoiser, str
        The model, and what it sees of a stack and why, for people.

    Raises
    ------
    FormatError
        If frames along several axes, or a single frame, are to be denoised by a model that sees
        neighbours in time.
    """

    def open_model(name: str | None) -> Denoiser:
        if name not in opened:
            opened[name] = Denoiser.of(replace(options, model=name))
        return opened[name]

    def seen(name: str | None, why: str) -> tuple[Denoiser, str]:
        model = open_model(name)
        half = model.session.info.frames // 2
        how = f"each frame with {half} on either side" if half else "each frame by itself"
        return model, f"{how} ({why})" if why else how

    frames = ready.frames
    axes = zip(frames.order, frames.stored_shape, strict=True)
    lead = sum(letter not in "yx" and length > 1 for letter, length in axes)
    if options.model is not None:
        found = seen(options.model, "")
        if lead > 1 and found[0].session.info.frames > 1:
            raise FormatError(
                f"{frames.path}: has frames along {lead} axes ({frames.order}), and "
                f"{options.model} sees neighbours in time; choose one by --axes, or another --model"
            )
        if frames.shape[0] == 1 and not beside and found[0].session.info.frames > 1:
            raise FormatError(
                f"{frames.path}: holds one frame, and {options.model} sees its neighbours; "
                "take a --model that sees one, such as the default"
            )
        return found
    movie, count = pretrained.movie_model(options.precision), frames.shape[0]
    if movie is None:
        return seen(None, "no model for movies is there")
    if count < neighbours.LEAST or lead > 1:
        why = f"frames along {lead} axes" if lead > 1 else f"fewer than {neighbours.LEAST} frames"
        return seen(None, f"no movie: {why}")
    if not ready.scale.sigma:
        return seen(None, "no noise to compare them by")
    single = open_model(None)
    scene = neighbours.compare(
        lambda number: ready.read(number, number + 1)[0],
        lambda some: single.run(some, ready.scale),
        count,
        ready.scale.offset,
    )
    return seen(movie if scene.movie else None, str(scene))


@dataclass(frozen=True)
class _Block:
    """A part of a stack in its context: ``around`` frames before and after it, which only help."""

    start: int
    part: Part
    frames: NDArray[np.float32]
    around: tuple[int, int]
    usable: NDArray[np.bool_]


def _read_some(
    paths: Sequence[Path], ready: Prepared, options: DenoiseOptions, some: slice
) -> list[Part]:
    """Read some frames of each file, corrected as the stack is; none where they do not fit."""
    parts = []
    for path in paths:
        with (
            contextlib.suppress(EmdnError),
            open_frames(path, Choice(options.dataset, options.axes)) as frames,
        ):
            part = preprocess.prepare(frames, options, ready.recipe)
            parts += [part.take(n, n + 1) for n in range(frames.shape[0])[some]]
    return parts


class _Reader:
    """Reads the parts of a stack in order, each with its neighbours and each frame once.

    Parameters
    ----------
    read
        ``read(start, stop)`` gives corrected frames.
    spans
        (start, stop) of the parts, in order.
    half
        How many frames before and after a part go with it, where there are so many.
    context
        Parts before the first and after the last.
    """

    def __init__(
        self,
        read: Callable[[int, int], Part],
        spans: list[tuple[int, int]],
        half: int,
        context: Sequence[list[Part]],
    ) -> None:
        self._read, self._half, self._coming = read, half, deque(spans)
        self._last = spans[-1][1] if spans else 0
        self._ahead: deque[Part] = deque()
        self._before, self._after = context
        first = spans[0][0] if spans else 0
        # After a pause the frames before the first part are needed once more.
        if first and half:
            self._before = [*self._before, read(first - min(first, half), first)]
        self._until = first

    def __call__(self, start: int, stop: int) -> _Block:
        """Return the next part."""
        while self._until < min(self._last, stop + self._half):
            span = self._coming.popleft()
            self._ahead.append(self._read(*span))
            self._until = span[1]
        part = self._ahead.popleft()
        if not self._half:
            return _Block(start, part, part.frames, (0, 0), ~part.empty)
        ahead = [*self._ahead, *([] if self._coming else self._after)]
        parts = [*self._before, part, *ahead]
        earlier, later = (sum(len(one.frames) for one in some) for some in (self._before, ahead))
        around = min(self._half, earlier), min(self._half, later)
        some = slice(earlier - around[0], earlier + stop - start + around[1])
        frames = np.concatenate([one.frames for one in parts])[some]
        usable = ~np.concatenate([one.empty for one in parts])[some]
        self._before.append(part)
        while sum(len(one.frames) for one in self._before[1:]) >= self._half:
            del self._before[0]
        return _Block(start, part, frames, around, usable)


def _stream(
    denoiser: Denoiser,
    ready: Prepared,
    options: DenoiseOptions,
    output: Output,
    quick: Quick,
    count: int,
    progress: Progress,
    given: provenance.Stamps,
    context: Sequence[list[Part]],
) -> None:
    """Denoise the frames that are not done yet."""
    parallel, batch = _cut(denoiser, count, ready.recipe.bad.shape, options)

    whole = np.dtype(options.dtype).kind != "f"

    def take(start: int, stop: int) -> Part:
        part = ready.take(start, stop)
        if len(given) <= FEW_FILES:  # HDF5 reads zeros where a file was cut off
            provenance.check_unchanged(given)
        return part

    def compute(item: _Block) -> Answer:
        start, part = item.start, item.part
        made = denoiser.answer(
            item.frames, ready.scale, around=item.around, usable=item.usable,
            with_sigma=options.sigma, batch=batch, alone=parallel > 1,
        )  # fmt: skip
        # Here, and not where it is written, so that every lane does its own.
        for index in np.flatnonzero(part.judged(ready.recipe.bad)):
            one = slice(index, index + 1)
            quick.add(start + int(index), part.frames[one], made.frames[one], made.shifts[one])
        return part.finish(made, whole=whole)

    def write(start: int, item: _Block, made: Answer) -> None:
        part = item.part

        def tally(sums: Sums) -> None:
            empty = (start + np.flatnonzero(part.empty)).tolist()
            sums.add_kept(part.saturated, part.filled, empty)
            sums.add_shifts(made.shifts, part.frames[0].size)

        output.write(start, part.counted(), made.frames, made.sigma, tally)
        progress(start + len(part.frames), count)

    spans = pipeline.blocks(output.done, count, batch)
    reader = _Reader(take, spans, denoiser.session.info.frames // 2, context)
    pipeline.stream(reader, compute, write, spans, parallel)


def _take_up(output: Output, quick: Quick, denoiser: Denoiser, size: tuple[int, ...]) -> None:
    """Let check and record speak of the frames of an earlier run, too."""
    earlier = output.earlier
    if "quick" in earlier:
        quick.restore(earlier, size[0] * size[1])
        denoiser.batching.note = denoiser.batching.note or str(earlier["note"])


def _cut(
    denoiser: Denoiser, count: int, size: tuple[int, ...], options: DenoiseOptions
) -> tuple[int, int]:
    """Return how many runs go side by side, and how many frames of (H, W) each has."""
    parallel = denoiser.batching.parallel_runs(count, size)
    return parallel, options.batch or denoiser.batch_for(size, alone=parallel > 1)


def _draw(
    options: DenoiseOptions, frames: Frames, ready: Prepared, target: Path, module: str, model: str
) -> None:
    """Draw what was asked for, from the finished output."""
    mirrored = module == "mirror"
    choice = Choice(frames.dataset, frames.order) if mirrored else Choice()
    count = frames.shape[0]
    with open_frames(target, choice) as denoised:
        if options.preview is not None:
            from emdn_deploy import figures

            number = count // 2
            # Pictures are drawn in a unit whose square float32 holds.
            readers, unit = (ready.read, ready.shown(denoised.read)), ready.scale.unit
            before, after = (read(number, number + 1)[0] / np.float32(unit) for read in readers)
            scale = ready.scale.scaled(1 / unit)
            title = f"{frames.path.name}, frame {number} of {count}, {model}"
            if ready.scale.sigma:
                title += f", {ready.scale.scale:.3g} e/px"
            if known := frames.dose(ready.scale.scale):
                title += f", {known:.4g} e/Å²"
            kind = options.preview.suffix[1:].lower()
            with renamed(options.preview) as place:
                figures.draw(place, before, after, scale, frames.axis("x"), title, kind)
        if options.movie is not None:
            from emdn_deploy import figures

            time = next((axis for axis in frames.axes if axis.units in ("s", "ms", "µs")), None)
            with renamed(options.movie) as place:
                read = ready.shown(denoised.read)
                figures.movie(place, ready.read, read, count, time, frames.axis("x"))


def _verdicts(checked: QuickResult | None, count: int) -> Verdicts:
    """Say what the quick check found in each frame."""
    if checked is None:
        return Verdicts()
    flagged = {
        number: "; ".join(
            f"{BOUNDS[name].words} {checked.numbers[name][at]:.4g}" for name in BOUNDS
        )
        for at, number in enumerate(checked.frames)
        if number in checked.failing
    }
    return Verdicts(checked.line, flagged, set(range(count)).difference(checked.frames))


def _page(ready: Prepared, target: Path, module: str, verdicts: Verdicts) -> RunPage:
    """Collect what a page shows of the finished output."""
    frames, page = ready.frames, RunPage(ready.frames, ready.scale)
    choice = Choice(frames.dataset, frames.order) if module == "mirror" else Choice()
    with open_frames(target, choice) as denoised:
        sides = ready.read, ready.shown(denoised.read)
        page.take(page.numbers, *sides)
        page.take(page.more(verdicts), *sides)
    return page


def _warn(
    source: Path, ratio: float, net: float, ready: Prepared, sums: Sums, options: DenoiseOptions
) -> None:
    for note in ready.recipe.notes:
        _log.warning("warning: %s: %s", source, note)
    if sums.filled:
        _log.warning(
            "warning: %s: %d pixels were not finite in some frames; filled from their neighbours",
            source, sums.filled,
        )  # fmt: skip
    if sums.empty:
        shown = ", ".join(spans(sums.empty))
        whole = np.dtype(options.dtype).kind != "f"
        become = "are left as they are" + (", NaN as 0" if whole else "")
        _log.warning(
            "warning: %s: %d frames are blank or hold no value, and %s (%s)",
            source, len(sums.empty), become, shown,
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
