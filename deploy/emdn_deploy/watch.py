"""Denoise frames while an acquisition writes them: new files of a folder, or a growing dataset.

The first frames give scale, bad pixels and model of the whole acquisition. Each file of a folder
becomes one output, as soon as it is complete and every file before it is done; a model that sees
several frames also waits for the files after it. What cannot be denoised is said and skipped, and
tried again when it changes. The frames of an HDF5 dataset that grows (SWMR) become one output; it
appears when nothing has come for a time, or when the user says so.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import h5py

from emdn_deploy import denoise_file, preprocess, writers
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoise_file import Work
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.output import claimed, key_of
from emdn_deploy.preprocess import Prepared, Recipe
from emdn_deploy.readers import Choice, Frames, list_files, open_frames, open_list, split_pattern
from emdn_deploy.readers.frames import default_order, select
from emdn_deploy.readers.hdf5 import choose, frames_of
from emdn_deploy.report import REFERENCES, facts_of, late_facts
from emdn_deploy.writers import Layout, Pixels, Storage
from emdn_models.errors import EmdnError, FormatError

# Frames that the scale is taken from, if there are so many before the first wait ends.
FIRST_FRAMES = 16

_T = TypeVar("_T")
# Size and time of the last change (ns) of a file at a look: one that keeps them is complete.
_Seen = tuple[int, int]
_log = logging.getLogger(__name__)


class Arrival(NamedTuple):
    """One denoised piece of an acquisition.

    ``lag_s``: from the moment the input was last written to the moment its output was there.
    """

    source: Path
    output: Path
    frames: int
    lag_s: float


def _looks(
    look: Callable[[], _T], now: _T, idle_s: float, poll_s: float, sleep: Callable[[float], None]
) -> Iterator[tuple[_T, _T, bool]]:
    """Look until nothing has changed for ``idle_s``; give this look, the one before, is it last?"""
    idle = 0.0
    while idle <= idle_s:
        before, now = now, look()
        idle = 0.0 if now != before else idle + poll_s
        yield now, before, idle > idle_s
        sleep(poll_s)


def folder(
    source: Path,
    options: DenoiseOptions,
    idle_s: float,
    poll_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Arrival, None, None]:
    """Denoise each new file of a folder, or of a pattern, until none comes for ``idle_s``.

    Outputs go to ``out_dir``, or ``<folder>_denoised`` beside it. FormatError if the folder does
    not exist; at the end, if files were left out.
    """
    place, pattern = (source, "") if source.is_dir() else split_pattern(source)
    if not place.is_dir():
        raise FormatError(f"{place}: no such folder to watch")
    place = place.resolve()
    out = (options.out_dir or place.with_name(place.name + options.suffix)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    opened = {options.model: Denoiser.of(options)}  # before any file is waited for
    watched = _Watched(place / pattern, place, out, options, opened)
    now, none, complete = dict[Path, _Seen](), dict[Path, _Seen](), list[Path]()
    try:
        for now, before, last in _looks(watched.look, none, idle_s, poll_s, sleep):
            # Those that did not change, up to the first that did: order is kept.
            changed = (number for number, path in enumerate(now) if before.get(path) != now[path])
            complete = list(now)[: next(changed, len(now))]
            ready = [one for one in complete if watched.wants(one, now[one])]
            if watched.recipe is None and (len(ready) >= FIRST_FRAMES or now == before):
                watched.find_recipe(ready, now)
            yield from watched.denoise_all(complete, now, last=last)
    except (GeneratorExit, KeyboardInterrupt):
        list(islice(watched.denoise_all(complete, now, last=True), watched.half))
        raise
    if left := [str(path) for path in now if path not in watched.done]:
        raise FormatError(
            f"{source}: {len(left)} of {len(now)} files were not denoised: {', '.join(left[:3])}"
            f"{'...' * (len(left) > 3)}; mend or remove them and repeat the command"
        )


@dataclass
class _Watched:
    """A folder that is watched, and what has become of its files.

    ``half``: how many frames before and after one the model sees. ``dealt``: files as they were
    when they were denoised, or could not be; ``done``: by any run, ``own``: by this run.
    """

    source: Path
    place: Path
    out: Path
    options: DenoiseOptions
    opened: dict[str | None, Denoiser]
    recipe: Recipe | None = None
    half: int = 0
    dealt: dict[Path, _Seen] = field(default_factory=dict)
    done: set[Path] = field(default_factory=set)
    own: set[Path] = field(default_factory=set)

    def look(self) -> dict[Path, _Seen]:
        """List the files, in natural order, as they are now; outputs among them are left out."""
        seen, suffix = dict[Path, _Seen](), self.options.suffix
        for path in list_files(self.source):
            ours = self.out in path.parents
            if self.out == self.place:
                ours = bool(suffix) and path.stem.endswith(suffix)
            with contextlib.suppress(OSError):  # gone again
                stat = path.stat()
                seen |= {} if ours else {path: (stat.st_size, stat.st_mtime_ns)}
        return seen

    def wants(self, path: Path, seen: _Seen) -> bool:
        """Say whether a complete file is to be denoised, for the first time or again."""
        return bool(seen[0]) and self.dealt.get(path) != seen

    def find_recipe(self, ready: list[Path], now: dict[Path, _Seen]) -> None:
        """Take scale, bad pixels and model from the first files, but for those that do not fit."""
        shapes: dict[Path, tuple[int, int, int]] = {}
        choice = Choice(self.options.dataset, self.options.axes)
        for path in ready[:FIRST_FRAMES]:
            try:
                with open_frames(path, choice) as frames:
                    frames.read(frames.shape[0] - 1, frames.shape[0])
                    shapes[path] = frames.shape
            except Exception as error:
                self._skip(path, now[path], error)
        common = Counter(shape[1:] for shape in shapes.values()).most_common(1)
        paths = [path for path in shapes if shapes[path][1:] == common[0][0]]
        try:
            if paths:
                with open_list(self.source, paths, choice) as frames:
                    stack = _prepared(frames, self.options)
                    denoiser, seen = denoise_file.choose(stack, self.options, self.opened)
                model = next(name for name, one in self.opened.items() if one is denoiser)
                self.options, self.recipe = replace(self.options, model=model), stack.recipe
                self.half = denoiser.session.info.frames // 2
                _log.info("%s: %s, %s", self.source, denoiser.session.info.name, seen)
        except Exception as error:
            for path in paths:
                self._skip(path, now[path], error)

    def denoise_all(
        self, complete: list[Path], now: dict[Path, _Seen], *, last: bool
    ) -> Iterator[Arrival]:
        """Denoise wanted files in order, and unless ``last`` only those that others follow."""
        good = [one for one in complete if one in self.done or self.wants(one, now[one])]
        for at, path in enumerate(good if self.recipe else ()):
            if not self.wants(path, now[path]):
                continue
            before, after = good[max(0, at - self.half) : at], good[at + 1 : at + 1 + self.half]
            if len(after) < self.half and not last:
                return
            try:
                made = self._denoise(path, now[path], (before, after))
            except Exception as error:
                self._skip(path, now[path], error)
                continue
            if made:
                yield made

    def _denoise(
        self, path: Path, seen: _Seen, between: tuple[list[Path], list[Path]]
    ) -> Arrival | None:
        """Denoise a file between its neighbours, unless an earlier run did."""
        place = self.out / path.parent.relative_to(self.place)
        place.mkdir(parents=True, exist_ok=True)
        own = replace(self.options, out_dir=place)
        target, _ = writers.target_of(path, own)
        made = None
        if path in self.own:
            _log.warning("%s: has changed since it was denoised; denoised again", path)
        if path in self.own or own.overwrite or not target.exists():
            own = replace(own, overwrite=True)  # also what a watch with another scale began
            report = denoise_file.run(
                path, own, opened=self.opened, recipe=self.recipe, between=between
            )
            self.own.add(path)
            lag = time.time() - seen[1] / 1e9
            made = Arrival(path, report.output, report.frames, lag)
        elif seen[1] > target.stat().st_mtime_ns:
            _log.warning("warning: %s: is newer than its output; add --overwrite", path)
        else:
            _log.info("%s: was denoised before", path)
        self.dealt[path] = seen
        self.done.add(path)
        return made

    def _skip(self, path: Path, seen: _Seen, error: Exception) -> None:
        self.dealt[path] = seen
        self.done.discard(path)
        text = str(error) if isinstance(error, EmdnError) else f"{type(error).__name__}: {error}"
        text = text if str(path) in text else f"{path}: {text}"
        _log.warning("warning: %s; skipped, and tried again when it changes", text)


def _prepared(frames: Frames, options: DenoiseOptions) -> Prepared:
    """Find the recipe of an acquisition by its first frames."""
    recipe = preprocess.find_recipe(frames, options)
    note = f"{recipe.scale.note}; from the first {frames.shape[0]} frames"
    return Prepared(frames, replace(recipe, scale=replace(recipe.scale, note=note)))


def dataset(
    source: Path,
    options: DenoiseOptions,
    idle_s: float,
    poll_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Arrival, None, None]:
    """Denoise what is appended to a dataset until nothing comes for ``idle_s``.

    Closing the iterator completes the output with what there is. After an error, the same command
    goes on. EmdnError: as `emdn_deploy.denoise_file.run`, and if the file cannot be followed.
    """
    target, module = writers.target_of(source, options)
    module = "hdf5" if module == "mirror" else module  # a tree that is written to is not copied
    files = writers.files_of(target, module, sigma=False)
    given = [Path(path) for name in (*REFERENCES, "model") if (path := getattr(options, name))]
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(files, [], [source, *given], overwrite=options.overwrite))
        opened = {options.model: Denoiser.of(options)}  # before any frame is waited for
        count, read = _followed(source, options, stack)
        there, before, last = 0, 0, False
        looks = _looks(count, 0, idle_s, poll_s, sleep)
        for there, before, last in looks:
            if there >= FIRST_FRAMES or (there and there == before):
                break
            if last:
                raise FormatError(f"{source}: stayed empty for {idle_s:g} s")
        ready = _prepared(select(read(), f"0:{min(there, FIRST_FRAMES)}"), options)
        denoiser, seen = denoise_file.choose(ready, options, opened)
        size, half = ready.frames.shape[1:], denoiser.session.info.frames // 2
        _, batch = denoiser.batching.plan(FIRST_FRAMES, size, options.batch)
        facts = facts_of(ready, options, denoiser, batch, seen)
        work = Work(target, module, options, ready, denoiser, facts, {})

        def make(partial: Path) -> Layout:
            def fill(pixels: Pixels) -> None:
                """Lay the file out for as many frames as there are by then."""
                frames = select(read(), f"0:{output.done}")
                layout = writers.lay_out(module, partial, frames, facts, Storage())
                with (partial / layout.inside).open("r+b") as file:
                    file.seek(layout.start)
                    for _ in range(output.done):
                        file.write(pixels(size[0] * size[1]).data)

            partial.touch()
            return Layout(Storage().kind.str, fill=fill)

        output, quick = stack.enter_context(
            denoise_file.open_output(work, files, make, key_of(facts, {}))
        )

        def denoise(there: int, stop: int) -> Iterator[Arrival]:
            """Denoise frames up to ``stop`` of those that are there."""
            begun, arrived = output.done, time.time()
            if stop > begun:
                now = replace(work, ready=Prepared(select(read(), f"0:{there}"), ready.recipe))
                denoise_file.denoise_frames(now, output, quick, some=slice(0, stop))
                yield Arrival(source, target, output.done - begun, time.time() - arrived)

        def complete() -> None:
            checked = quick.result() if ready.scale.sigma else None
            output.complete(late_facts(output.sums, ready.scale.offset, checked, denoiser))

        try:
            while True:
                # The last frames wait for those that come after them.
                yield from denoise(there, there if last else there - half)
                if last:
                    break
                there, before, last = next(looks)
        except (GeneratorExit, KeyboardInterrupt):
            list(denoise(there := count(), min(there, output.done + half)))
            complete()
            raise
        complete()


def _followed(
    source: Path, options: DenoiseOptions, stack: contextlib.ExitStack
) -> tuple[Callable[[], int], Callable[[], Frames]]:
    """Open a dataset that grows; return what counts its frames and gives them as they are now."""
    try:
        file = stack.enter_context(h5py.File(source, "r", libver="latest", swmr=True))
    except OSError as error:
        raise FormatError(
            f"{source}: cannot be followed ({error}); the acquisition must write it in SWMR mode"
        ) from error
    choice = Choice(options.dataset, options.axes)
    chosen, why = choose(source, file, choice)
    order = choice.axes or chosen.order or default_order(chosen.dataset.shape)
    if chosen.parts or order[0] in "yx" or order[1:3] != "yx":
        raise FormatError(
            f"{source}: {chosen.path} is no single dataset of axes (frame, y, x), but {order}; "
            "denoise the file when it is complete"
        )

    def count() -> int:
        chosen.dataset.refresh()
        return int(chosen.dataset.shape[0])

    said = replace(choice, axes=order)  # the shape of what grows is not judged
    return count, lambda: frames_of(source, file, chosen, said, why)
