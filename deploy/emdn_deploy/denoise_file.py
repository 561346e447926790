"""Denoise one file into another: the whole of ``emdn-deploy denoise``."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emdn_deploy import preprocess, writers
from emdn_deploy.batching import Block, blocks, reader, stream
from emdn_deploy.check.quick import Quick
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import MOVIE_FRAMES, Denoiser, is_movie
from emdn_deploy.output import Output, Stamps, State, check_targets, claimed, key_of, stamps
from emdn_deploy.preprocess import Answer, Prepared, Recipe, Stack
from emdn_deploy.readers import Choice, Frames, open_frames, open_list, open_selected
from emdn_deploy.report import PICTURES, REFERENCES, Report, facts_of, findings, late_facts, summary
from emdn_deploy.writers import Layout, Provenance, Storage, partial_of
from emdn_models import pretrained
from emdn_models.errors import EmdnError, FormatError, OutputError
from emdn_models.files import renamed

if TYPE_CHECKING:  # only a run with --report, or by workers, needs it
    from emdn_deploy.cluster import Cluster

Progress = Callable[[int, int], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """A stack to be denoised. ``given``: the files that decide the pixels, as they are now."""

    target: Path
    module: str
    options: DenoiseOptions
    ready: Prepared
    denoiser: Denoiser
    facts: Provenance
    given: Stamps


def plan(source: Path, options: DenoiseOptions) -> dict[str, Any]:
    """Say what `run` would do, and raise what it would raise before reading pixels."""
    target, module = writers.target_of(source, options)
    with open_selected(source, Choice(options.dataset, options.axes), options.frames) as frames:
        files = writers.files_of(target, module, sigma=options.sigma)
        inputs = _inputs(frames, options)
        check_targets([*files, *_pictures(options).values()], inputs, overwrite=options.overwrite)
        storage = _storage(module, frames, options)
        writers.check_room(target, frames.shape, storage)
        sigma = writers.sigma_place(target, module, frames) if options.sigma else None
        return {
            "source": source, "output": target, "format": frames.format, "dataset": frames.dataset,
            "why": frames.why, "shape": frames.shape, "dtype": str(frames.dtype), "sigma": sigma,
            "size_bytes": storage.total(frames.shape), "compress": storage.compress,
        }  # fmt: skip


def _storage(module: str, frames: Frames, options: DenoiseOptions) -> Storage:
    """Compress an output as asked, or as the input is, where that can be."""
    compress = options.compress
    if compress is None:
        compress = frames.compressed and module in writers.COMPRESS
    return Storage(options.dtype, compress, options.sigma)


def _pictures(options: DenoiseOptions) -> dict[str, Path]:
    return {name: path for name in PICTURES if (path := getattr(options, name)) is not None}


def _inputs(frames: Frames, options: DenoiseOptions) -> list[Path]:
    """List every file that a run reads."""
    paths = list(frames.files) or [frames.path]
    for path in filter(None, (getattr(options, name) for name in REFERENCES)):
        with open_frames(path) as reference:
            paths += list(reference.files) or [path]
    model = Path(options.model or "")
    return [*paths, model] if model.is_file() else paths


def run(
    source: Path,
    options: DenoiseOptions,
    progress: Progress = lambda done, count: None,
    opened: dict[str | None, Denoiser] | None = None,
    recipe: Recipe | None = None,
    elsewhere: "Cluster | None" = None,
    between: tuple[list[Path], list[Path]] = ([], []),
) -> Report:
    """Denoise a file of frames; EmdnError names the file and the remedy.

    ``opened``: open models by name, to which missing ones are added. ``recipe``: scale and
    corrections of a longer stack, if this is a part of one. ``elsewhere``: denoises in other
    processes. ``between``: files whose last frames come before this one's, and whose first come
    after them, for models that see several frames; those that do not fit are left out.
    """
    target, module = writers.target_of(source, options)
    with contextlib.ExitStack() as stack:
        frames = stack.enter_context(
            open_selected(source, Choice(options.dataset, options.axes), options.frames)
        )
        inputs = _inputs(frames, options)
        given = stamps(inputs)
        files, pictures = writers.files_of(target, module, sigma=options.sigma), _pictures(options)
        others = [*pictures.values()]
        stack.enter_context(claimed(files, others, inputs, overwrite=options.overwrite))
        storage = _storage(module, frames, options)
        options = replace(options, compress=storage.compress)
        for said in frames.notes:
            _log.warning("warning: %s: %s", source, said)
        if module in ("tiff", "mrc") and len(frames.lead) > 1:
            grid = " x ".join(map(str, frames.lead))
            said = f"its {grid} frames become one row; --to h5 keeps the axes"
            _log.warning("warning: %s: %s", source, said)
        ready = preprocess.prepare(frames, options, recipe)
        denoiser, seen = choose(
            ready, options, {} if opened is None else opened, beside=any(between)
        )
        scale, batching = ready.scale, denoiser.batching
        if not scale.sigma:
            _log.warning("warning: %s: %s", source, scale.note)
        _, batch = batching.plan(frames.shape[0], frames.shape[1:], options.batch)
        facts = facts_of(ready, options, denoiser, batch, seen)
        work = Work(target, module, options, ready, denoiser, facts, given)
        if elsewhere:
            facts, storage = elsewhere.plan(work, storage)
        else:
            _log.info("%s: writes %s", target, writers.check_room(target, frames.shape, storage))
        beside = writers.sigma_file(target, module) if options.sigma else None

        def make(partial: Path) -> Layout:
            own = partial_of(beside) if beside else None
            return writers.lay_out(module, partial, frames, facts, storage, own)

        with open_output(work, files, make, key_of(facts, given), beside=beside) as (output, quick):
            resumed = output.done
            if resumed:
                _log.info("%s: continuing after frame %d", output.partial, resumed - 1)
            began = time.perf_counter()
            if elsewhere:
                resumed = elsewhere.fill(work, output, quick, progress)
            else:
                with _amid(work, between) as (longer, some):
                    denoise_frames(longer, output, quick, progress, some)
            seconds = time.perf_counter() - began
            checked = quick.result() if scale.sigma else None
            late = late_facts(output.sums, scale.offset, checked, denoiser)
            output.complete(late, given)
        if elsewhere:
            elsewhere.tidy(work)
        report = Report(
            source, target, frames.shape[0], resumed, seconds, scale, {**facts, **late},
            output.sums, writers.sigma_place(target, module, frames) if options.sigma else None,
            checked, ready.recipe.notes, pictures,
        )  # fmt: skip
        for said in findings(report).values():
            _log.warning("warning: %s: %s", source, said)
        try:
            _draw(work, report)
        except (EmdnError, OSError) as error:
            raise OutputError(f"{error}; {target} itself is complete") from error
    return report


@contextlib.contextmanager
def open_output(
    work: Work,
    files: list[Path],
    make: Callable[[Path], Layout],
    key: str,
    *,
    beside: Path | None = None,
) -> Iterator[tuple[Output, Quick]]:
    """Open an output, begun or continued, and the quick check of its frames (see `Output`)."""
    ready, batching = work.ready, work.denoiser.batching
    quick = Quick(ready.scale.pixel_gain, ready.scale.offset, bad=ready.recipe.bad)

    def state() -> State:
        return {**quick.state(), "note": np.array(batching.note)}

    over = work.options.overwrite
    with Output(
        files, work.module, make, key, beside=beside, state=state, overwrite=over
    ) as output:
        if (earlier := output.earlier) and output.done:
            quick.restore(earlier, ready.frames.shape[1] * ready.frames.shape[2])
            batching.note = batching.note or str(earlier["note"])
        yield output, quick


@contextlib.contextmanager
def _amid(work: Work, between: tuple[list[Path], list[Path]]) -> Iterator[tuple[Work, slice]]:
    """Give a stack amid the files before and after it, and its place in that longer stack."""
    frames, half = work.ready.frames, work.denoiser.session.info.frames // 2
    choice = Choice(work.options.dataset, work.options.axes)
    before, after = dict[Path, int](), dict[Path, int]()
    for paths, found, end in ((between[0], before, -half), (between[1], after, 0)):
        for path in paths if half else ():
            with contextlib.suppress(EmdnError), open_frames(path, choice) as other:
                count, *size = other.shape
                start = max(0, count + end) if end else 0
                other.read(start, min(count, start + half))  # or it is damaged
                if (count == 1, *size) == (frames.shape[0] == 1, *frames.shape[1:]):
                    found[path] = count
    first = sum(before.values())
    if not (before or after):
        yield work, slice(None)
        return
    with open_list(frames.path, [*before, frames.path, *after], choice) as longer:
        ready = Prepared(longer, work.ready.recipe)
        yield replace(work, ready=ready), slice(first, first + frames.shape[0])


def choose(
    ready: Prepared,
    options: DenoiseOptions,
    opened: dict[str | None, Denoiser],
    *,
    beside: bool = False,
) -> tuple[Denoiser, str]:
    """Open the model that was asked for; without one, a movie gets the model for movies.

    Models that ``opened`` lacks are added. ``beside``: whether other files hold neighbours.
    Returned is also what the model sees of a stack and why, for people. FormatError if frames along
    several axes, or a frame without neighbours, are to be denoised by a model that sees several.
    """

    def seen(name: str | None, why: str) -> tuple[Denoiser, str]:
        if name not in opened:
            opened[name] = Denoiser.of(replace(options, model=name))
        half = opened[name].session.info.frames // 2
        how = f"each frame with {half} on either side" if half else "each frame by itself"
        return opened[name], f"{how} ({why})" if why else how

    frames, movie = ready.frames, pretrained.movie_model(options.precision)
    lead = len(frames.lead)
    if options.model is not None:
        asked = seen(options.model, "")
        if asked[0].session.info.frames > 1 and (lead > 1 or (lead == 0 and not beside)):
            what = f"frames along {lead} axes ({frames.order})" if lead else "one frame"
            raise FormatError(
                f"{frames.path}: holds {what}, and {options.model} sees neighbours in time; choose "
                "an axis by --axes, give the folder of all frames, or take another --model"
            )
        return asked
    if movie is None:
        return seen(None, "no model for movies is there")
    if lead > 1:
        return seen(None, f"no movie: frames along {lead} axes")
    if frames.shape[0] < MOVIE_FRAMES:
        return seen(None, f"no movie: fewer than {MOVIE_FRAMES} frames")
    if not ready.scale.sigma:
        return seen(None, "no noise to compare them by")
    single, _ = seen(None, "")
    alike, why = is_movie(
        lambda number: ready.read(number, number + 1)[0],
        lambda some: single.run(some, ready.scale),
        frames.shape[0],
        ready.scale.offset,
    )
    return seen(movie if alike else None, why)


def denoise_frames(
    work: Work,
    output: Output,
    quick: Quick,
    progress: Progress = lambda done, count: None,
    some: slice = slice(None),
) -> None:
    """Denoise those frames of a stack, or of ``some`` in a row, that are not done yet."""
    denoiser, ready, options = work.denoiser, work.ready, work.options
    total, *size = ready.frames.shape
    first, last, _ = some.indices(total)
    parallel, batch = denoiser.batching.plan(last - first, tuple(size), options.batch)
    whole = np.dtype(options.dtype).kind != "f"

    def compute(block: Block) -> Answer:
        part = block.part
        made = denoiser.answer(
            block.frames, ready.scale, around=block.around, usable=block.usable,
            with_sigma=options.sigma, batch=batch, alone=parallel > 1,
        )  # fmt: skip
        # Here, and not where it is written, so that every thread does its own.
        for index in np.flatnonzero(part.judged(ready.recipe.bad)):
            one, number = slice(index, index + 1), block.start - first + int(index)
            quick.add(number, part.frames[one], made.frames[one], made.shifts[one])
        return part.finish(made, whole=whole)

    def write(start: int, block: Block, made: Answer) -> None:
        output.write(start - first, block.part, made)
        progress(start - first + len(made.frames), last - first)

    progress(output.done, last - first)
    spans = blocks(first + output.done, last, batch)
    half = denoiser.session.info.frames // 2
    read = reader(ready.take, spans, half, total)
    stream(read, compute, write, spans, parallel)


def _draw(work: Work, report: Report) -> None:
    """Draw what was asked for, from the finished output."""
    if not report.pictures:
        return
    from emdn_deploy import figures

    frames, ready, scale = work.ready.frames, work.ready, work.ready.scale
    count, axis = frames.shape[0], frames.axis("x")
    choice = Choice(frames.dataset, frames.order) if work.module == "mirror" else Choice()
    with open_frames(work.target, choice) as denoised, contextlib.ExitStack() as stack:
        shown = ready.shown(denoised.read)

        def both(number: int) -> tuple[Stack, Stack]:
            return ready.read(number, number + 1)[0], shown(number, number + 1)[0]

        for name, path in report.pictures.items():
            place = stack.enter_context(renamed(path))
            if name == "preview":
                before, after = both(count // 2)
                title = f"{frames.path.name}, frame {count // 2} of {count}"
                title += f", {report.record['model']}, {scale.scale:.3g} e/px"
                kind = path.suffix[1:].lower()
                figures.draw(place, before, after, scale, axis, title, kind)
            elif name == "movie":
                figures.movie(place, ready.read, shown, count, frames.time(), axis)
            else:
                checked = report.check
                unjudged = set(range(count)).difference(checked.numbers if checked else ())
                flagged = checked.flagged if checked else {}
                page = figures.RunPage(frames, scale, both, flagged, unjudged)
                line = checked.line if checked else ""
                text = page.html(report.source.name, line, summary(report))
                place.write_text(text, encoding="utf-8")
