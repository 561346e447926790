"""Denoise one file into another: the whole of ``emdn-deploy denoise``."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import (
    neighbours,
    output_paths,
    preprocess,
    provenance,
    uncertainty,
    writers,
)
from emdn_deploy.batching import blocks, stream
from emdn_deploy.check.quick import BOUNDS, Quick, QuickResult
from emdn_deploy.check.quick import spans as ranges
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.output import Output, State, Sums, check_targets, claimed
from emdn_deploy.preprocess import Part, Prepared, Recipe
from emdn_deploy.readers import Choice, Frames, open_frames, open_selected
from emdn_deploy.readers.frames import check_one_scale
from emdn_deploy.report import Plan, Report, lines
from emdn_deploy.stacks import Answer
from emdn_deploy.writers import Layout, Provenance, Storage, partial_of
from emdn_models import pretrained
from emdn_models.errors import EmdnError, FormatError, OutputError
from emdn_models.files import renamed

if TYPE_CHECKING:  # only a run with --report, or by workers, needs it
    from emdn_deploy.cluster import Cluster
    from emdn_deploy.page import RunPage, Verdicts

# A mean that moves by more than this is worth a warning.
RATIO_TOLERANCE = 0.01
# Inputs of so many files are compared with what they were after every block, others at the end.
FEW_FILES = 16
# What a preview may be.
PICTURES = (".png", ".gif", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Work:
    """A stack to be denoised, for the processes that do it elsewhere.

    ``given``: the files that decide the pixels, as they are now.
    """

    target: Path
    module: str
    options: DenoiseOptions
    ready: Prepared
    denoiser: Denoiser
    facts: Provenance
    given: provenance.Stamps


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
                f"{path}: unknown kind of file {path.suffix!r}; expected a name that ends in "
                f"{' or '.join(kinds)}"
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
    elsewhere: "Cluster | None" = None,
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
    elsewhere
        Denoises in other processes; None for this one.

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
        count, size = frames.shape[0], frames.shape[1:]
        given = provenance.stamps(provenance.inputs_of(frames, options))
        files, pictures = _outputs(target, module, frames, options)
        over = options.overwrite or bool(elsewhere and elsewhere.mends(target))
        stack.enter_context(claimed(files, pictures, _inputs(frames, options), overwrite=over))
        options = replace(options, compress=writers.compressed(module, frames, options.compress))
        for said in frames.notes:
            _log.warning("warning: %s: %s", source, said)
        if options.axes is None:
            check_one_scale(frames)
        ready = preprocess.prepare(frames, options, recipe)
        denoiser, seen = choose(ready, options, {} if opened is None else opened, any(between))
        info, scale = denoiser.session.info, ready.scale
        if not scale.sigma:
            _log.warning("warning: %s: %s", source, scale.note)
        note = uncertainty.note(info, denoiser.calibration) if options.sigma else None
        if note and denoiser.calibration is None:
            _log.warning("warning: %s: sigma is %s", source, note)
        _, batch = denoiser.batching.plan(count, size, options.batch)
        facts = provenance.facts_of(frames, options, denoiser, ready, batch, seen)
        storage = Storage(options.dtype, bool(options.compress), options.sigma)
        work = Work(target, module, options, ready, denoiser, facts, given)
        if elsewhere:
            facts, storage = elsewhere.plan(work, storage)
        else:
            _log.info("%s: writes %s", target, writers.check_room(target, frames.shape, storage))
        beside = writers.sigma_file(target, module) if options.sigma else None
        quick = Quick(scale.pixel_gain, scale.offset, bad=ready.recipe.bad)

        def make(partial: Path) -> Layout:
            own = partial_of(beside) if beside else None
            return writers.lay_out(module, partial, frames, facts, storage, own)

        def state() -> State:
            return {**quick.state(), "note": np.array(denoiser.batching.note)}

        with Output(
            files, module, make, provenance.key_of(facts, given), pixels=size[0] * size[1],
            beside=beside, state=state, overwrite=over,
        ) as output:  # fmt: skip
            resumed, earlier = output.done, output.earlier
            if resumed:
                _log.info("%s: continuing after frame %d", output.partial, resumed - 1)
            if "quick" in earlier:
                quick.restore(earlier, size[0] * size[1])
                denoiser.batching.note = denoiser.batching.note or str(earlier["note"])
            began = time.perf_counter()
            if elsewhere:
                resumed = elsewhere.fill(work, output, quick, progress)
            else:
                progress(resumed, count)
                context = _context(between, ready, options, info.frames // 2)
                denoise_frames(denoiser, ready, options, output, quick, progress, given, context)
            seconds = time.perf_counter() - began
            checked = quick.result() if scale.sigma else None
            sums = output.sums
            late = {
                **sums.facts(scale.offset), **provenance.checked(checked),
                **provenance.memory(denoiser),
            }  # fmt: skip
            try:
                provenance.check_unchanged(given)
            except FormatError:
                output.spoil()
                raise
            output.complete(late)
        if elsewhere:
            elsewhere.tidy(work)
        try:
            drawn = _draw(options, ready, target, module, info.name, checked)
        except (EmdnError, OSError) as error:
            raise OutputError(f"{error}; {target} itself is complete") from error
    report = Report(
        source=source,
        output=target,
        dataset=frames.dataset,
        frames=count,
        resumed=resumed,
        seconds=seconds,
        model=info.name,
        precision=denoiser.session.precision,
        device=str(facts["device"]),
        neighbours=seen,
        intensity=scale,
        ratio=float(late["intensity_ratio"]),
        net_ratio=float(late["net_intensity_ratio"]),
        largest_shift=float(late["largest_shift"]),
        bad_pixels=ready.bad_pixels,
        gap_pixels=ready.gap_pixels,
        saturated_input=sums.kept,
        saturated_from=ready.recipe.flags.limit,
        filled=sums.filled,
        missing=sums.missing,
        empty=tuple(sums.empty),
        notes=ready.recipe.notes,
        dtype=options.dtype,
        saturated=sums.saturated,
        sigma=writers.sigma_place(target, module, frames) if note else None,
        sigma_note=note,
        check=checked.line if checked else None,
        standing_out=checked.failing if checked else (),
        preview=options.preview,
        movie=options.movie,
        page=options.report,
    )
    _warn(report)
    if drawn is not None and options.report is not None:
        page, verdicts = drawn
        with renamed(options.report) as place:
            place.write_text(page.html(source.name, verdicts, lines(report)), encoding="utf-8")
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

    frames, movie = ready.frames, pretrained.movie_model(options.precision)
    count = frames.shape[0]
    axes = zip(frames.order, frames.stored_shape, strict=True)
    lead = sum(letter not in "yx" and length > 1 for letter, length in axes)
    if options.model is not None:
        if open_model(options.model).session.info.frames > 1:
            if lead > 1:
                raise FormatError(
                    f"{frames.path}: has frames along {lead} axes ({frames.order}), and "
                    f"{options.model} sees neighbours in time; choose one by --axes, or another "
                    "--model"
                )
            if count == 1 and not beside:
                raise FormatError(
                    f"{frames.path}: holds one frame, and {options.model} sees its neighbours; "
                    "take a --model that sees one, such as the default"
                )
        return seen(options.model, "")
    if movie is None:
        return seen(None, "no model for movies is there")
    if lead > 1:
        return seen(None, f"no movie: frames along {lead} axes")
    if count < neighbours.LEAST:
        return seen(None, f"no movie: fewer than {neighbours.LEAST} frames")
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


def _context(
    between: tuple[Sequence[Path], Sequence[Path]],
    ready: Prepared,
    options: DenoiseOptions,
    half: int,
) -> tuple[list[Part], list[Part]]:
    """Read the last frames of the files before, and the first of those after, where they fit."""
    parts: tuple[list[Part], list[Part]] = [], []
    for paths, found, some in zip(between, parts, (slice(-half, None), slice(half)), strict=True):
        for path in paths if half else ():
            with (
                contextlib.suppress(EmdnError),
                open_frames(path, Choice(options.dataset, options.axes)) as frames,
            ):
                near = preprocess.prepare(frames, options, ready.recipe)
                found += [near.take(n, n + 1) for n in range(frames.shape[0])[some]]
    return parts


def with_neighbours(
    take: Callable[[int, int], Part],
    spans: list[tuple[int, int]],
    half: int,
    context: tuple[list[Part], list[Part]] = ([], []),
) -> Callable[[int, int], _Block]:
    """Return a reader of the spans of a stack, each with ``half`` frames before and after it.

    Where the stack ends there are fewer. Each frame is read once, and a few are remembered.

    Parameters
    ----------
    take
        ``take(start, stop)`` gives corrected frames.
    context
        Parts before the stack, and after it.
    """
    first = spans[0][0] if spans else 0
    # After a pause the frames before the first part are needed once more.
    again = [(first - min(first, half), first)] if first and half else []
    sources: list[Part | tuple[int, int]] = [*context[0], *again, *spans, *context[1]]
    places = {span: index for index, span in enumerate(spans, len(context[0]) + len(again))}

    @lru_cache(maxsize=2 * half + 1)
    def part(index: int) -> Part:
        source = sources[index]
        return source if isinstance(source, Part) else take(*source)

    def reach(indices: Iterable[int]) -> tuple[list[Part], int]:
        """Return parts until they have ``half`` frames, and how many frames are taken."""
        near, count = list[Part](), 0
        for index in indices:
            if count >= half:
                break
            near.append(part(index))
            count += len(near[-1].frames)
        return near, min(count, half)

    def read(start: int, stop: int) -> _Block:
        index = places[start, stop]
        before, earlier = reach(range(index - 1, -1, -1))
        own = part(index)
        after, later = reach(range(index + 1, len(sources)))
        parts = [*reversed(before), own, *after]
        skipped = sum(len(one.frames) for one in before) - earlier
        some = slice(skipped, skipped + earlier + stop - start + later)
        frames = np.concatenate([one.frames for one in parts])[some] if half else own.frames
        empty = np.concatenate([one.empty for one in parts])[some]
        return _Block(start, own, frames, (earlier, later), ~empty)

    return read


def tally(sums: Sums, start: int, part: Part, shifts: NDArray[np.float64]) -> None:
    """Count in what a block from frame ``start`` on keeps, and what its means were shifted by."""
    empty = (start + np.flatnonzero(part.empty)).tolist()
    sums.add_kept(part.saturated, part.filled, part.missing, empty)
    sums.add_shifts(shifts, part.frames[0].size)


def denoise_frames(
    denoiser: Denoiser,
    ready: Prepared,
    options: DenoiseOptions,
    output: Output,
    quick: Quick,
    progress: Progress,
    given: provenance.Stamps,
    context: tuple[list[Part], list[Part]],
) -> None:
    """Denoise the frames that are not done yet."""
    count, size = ready.frames.shape[0], ready.frames.shape[1:]
    parallel, batch = denoiser.batching.plan(count, size, options.batch)
    whole = np.dtype(options.dtype).kind != "f"

    def take(start: int, stop: int) -> Part:
        part = ready.take(start, stop)
        if len(given) <= FEW_FILES:  # HDF5 reads zeros where a file was cut off
            provenance.check_unchanged(given)
        return part

    def compute(item: _Block) -> Answer:
        part = item.part
        made = denoiser.answer(
            item.frames, ready.scale, around=item.around, usable=item.usable,
            with_sigma=options.sigma, batch=batch, alone=parallel > 1,
        )  # fmt: skip
        # Here, and not where it is written, so that every thread does its own.
        for index in np.flatnonzero(part.judged(ready.recipe.bad)):
            one = slice(index, index + 1)
            quick.add(item.start + int(index), part.frames[one], made.frames[one], made.shifts[one])
        return part.finish(made, whole=whole)

    def write(start: int, item: _Block, made: Answer) -> None:
        part = item.part
        output.write(
            start, part.counted(), made.frames, made.sigma,
            lambda sums: tally(sums, start, part, made.shifts),
        )  # fmt: skip
        progress(start + len(part.frames), count)

    spans = blocks(output.done, count, batch)
    read = with_neighbours(take, spans, denoiser.session.info.frames // 2, context)
    stream(read, compute, write, spans, parallel)


def _draw(
    options: DenoiseOptions,
    ready: Prepared,
    target: Path,
    module: str,
    model: str,
    checked: QuickResult | None,
) -> "tuple[RunPage, Verdicts] | None":
    """Draw what was asked for, from the finished output; return what a page shows of it."""
    if options.preview is None and options.movie is None and options.report is None:
        return None
    from emdn_deploy import figures

    frames, scale = ready.frames, ready.scale
    count = frames.shape[0]
    choice = Choice(frames.dataset, frames.order) if module == "mirror" else Choice()
    with open_frames(target, choice) as denoised:
        shown = ready.shown(denoised.read)
        if options.preview is not None:
            number = count // 2
            # Pictures are drawn in a unit whose square float32 holds.
            before, after = (
                read(number, number + 1)[0] / np.float32(scale.unit) for read in (ready.read, shown)
            )
            title = f"{frames.path.name}, frame {number} of {count}, {model}"
            if scale.sigma:
                title += f", {scale.scale:.3g} e/px"
            if known := frames.dose(scale.scale):
                title += f", {known:.4g} e/Å²"
            kind, unit = options.preview.suffix[1:].lower(), scale.scaled(1 / scale.unit)
            with renamed(options.preview) as place:
                figures.draw(place, before, after, unit, frames.axis("x"), title, kind)
        if options.movie is not None:
            with renamed(options.movie) as place:
                figures.movie(place, ready.read, shown, count, frames.time(), frames.axis("x"))
        if options.report is None:
            return None
        from emdn_deploy.page import RunPage

        page, verdicts = RunPage(frames, scale), _verdicts(checked, count)
        page.take(page.numbers, ready.read, shown)
        page.take(page.more(verdicts), ready.read, shown)
        return page, verdicts


def _verdicts(checked: QuickResult | None, count: int) -> "Verdicts":
    """Say what the quick check found in each frame."""
    from emdn_deploy.page import Verdicts

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


def _warn(report: Report) -> None:
    """Say what makes a result less than it seems."""
    said = list(report.notes)
    if report.filled:
        said.append(
            f"{report.filled} pixels were not finite in some frames; filled from their neighbours"
        )
    if report.missing:
        become = "stay so" if np.dtype(report.dtype).kind == "f" else "were filled in"
        said.append(
            f"{report.missing} pixels have no value in some frames, over areas, and {become}"
        )
    if report.empty:
        become = "NaN as 0 " * (np.dtype(report.dtype).kind != "f")
        said.append(
            f"{len(report.empty)} frames are blank or hold no value, and are left as they are "
            f"{become}({', '.join(ranges(report.empty))})"
        )
    if abs(report.ratio - 1) > RATIO_TOLERANCE:
        said.append(
            f"the mean intensity changed by {100 * (report.ratio - 1):.1f} %; do not use these "
            "frames for quantitative work before you know why"
        )
    if abs(report.net_ratio - 1) > RATIO_TOLERANCE:
        said.append(
            f"the model changed the mean intensity by {100 * (report.net_ratio - 1):.1f} %; frames "
            "were shifted back, but it may not fit them: see emdn-deploy check"
        )
    for one in said:
        _log.warning("warning: %s: %s", report.source, one)
