"""Denoise frames while an acquisition writes them: new files of a folder, or a growing dataset.

The first frames give the scale and the bad pixels of the whole acquisition (a live run
cannot look ahead). Each file that follows in a folder becomes one output, as soon as it is
complete and every file before it is done; what cannot be denoised is said and skipped, and
tried again when it changes. The output of an HDF5 dataset that grows (SWMR) grows as it does
and can itself be followed; it takes its final name when nothing has come for a time, or when
the user says so. After anything else it stays ``NAME.partial``, which the same command
continues.
"""

import contextlib
import copy
import errno
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy import denoise_file, output, output_paths, preprocess, provenance, writers
from emdn_deploy.batching import blocks
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.output import Sums, disk
from emdn_deploy.preprocess import Part, Recipe
from emdn_deploy.readers import (
    SUFFIXES,
    Choice,
    Frames,
    natural,
    open_frames,
    open_list,
    split_pattern,
)
from emdn_deploy.readers.frames import select
from emdn_deploy.readers.hdf5 import choose, frames_of, order_in
from emdn_deploy.writers import partial_of
from emdn_deploy.writers.hdf5 import MARGIN, finish, record, reserve
from emdn_models.errors import EmdnError, FormatError, OutputError

# Frames that the scale is taken from, if there are so many before the first wait ends.
FIRST_FRAMES = 16

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Arrival(NamedTuple):
    """One denoised piece of an acquisition.

    ``lag_s``: from the moment the input was last written to the moment its output was there.
    """

    source: Path
    output: Path
    frames: int
    lag_s: float


class _Seen(NamedTuple):
    """A file as it was at a look: one that no longer changes is complete."""

    size: int
    changed_ns: int


def _looks(
    look: Callable[[], _T],
    nothing: _T,
    idle_s: float,
    poll_s: float,
    sleep: Callable[[float], None],
) -> Iterator[tuple[_T, _T, bool]]:
    """Look until nothing has changed for ``idle_s``; give this look, the one before, is it last?"""
    now, idle = nothing, 0.0
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

    ``options``: ``out_dir`` is where the outputs go; None for ``<folder>_denoised`` beside it.
    ``poll_s``: time between two looks. Raises FormatError if the folder does not exist; at the end,
    if files were left out.
    """
    place = source if source.is_dir() else split_pattern(source)[0]
    if not place.is_dir():
        raise FormatError(f"{place}: no such folder to watch")
    out = options.out_dir or place.with_name(place.name + options.suffix)
    out.mkdir(parents=True, exist_ok=True)
    opened = {options.model: Denoiser.of(options)}  # before any file is waited for
    watched = _Watched(source, place, out, options, opened)
    none = dict[Path, _Seen]()
    now, complete = none, list[Path]()
    try:
        for now, before, last in _looks(watched.look, none, idle_s, poll_s, sleep):
            complete = _complete(before, now)
            ready = [path for path in complete if watched.wants(path, now[path])]
            if watched.recipe is None and (len(ready) >= FIRST_FRAMES or now == before):
                watched.find_recipe(ready, now)
            # The last files wait for those that come after them.
            yield from watched.denoise_all(complete, now, last=last)
    except (GeneratorExit, KeyboardInterrupt):
        list(islice(watched.denoise_all(complete, now, last=True), watched.half))
        raise
    left = [str(path) for path in now if path not in watched.done]
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise FormatError(
            f"{source}: {len(left)} of {len(now)} files were not denoised: {', '.join(left[:3])}"
            f"{more}; mend or remove them and repeat the command"
        )


def _complete(before: dict[Path, _Seen], now: dict[Path, _Seen]) -> list[Path]:
    """Return the files that did not change, up to the first that did: order is kept."""
    ready = []
    for path, seen in now.items():
        if before.get(path) != seen:
            break
        ready.append(path)
    return ready


@dataclass
class _Watched:
    """A folder that is watched, and what has become of its files.

    ``model``: what is taken for all, and how many files before and after one it sees (``half``).
    ``done``, ``skipped``: files that were denoised, or could not be, as they were then. ``own``:
    those of ``done`` that this run has denoised.
    """

    source: Path
    place: Path
    out: Path
    options: DenoiseOptions
    opened: dict[str | None, Denoiser]
    recipe: Recipe | None = None
    model: str | None = None
    half: int = 0
    done: dict[Path, _Seen] = field(default_factory=dict)
    skipped: dict[Path, _Seen] = field(default_factory=dict)
    own: set[Path] = field(default_factory=set)
    said: set[str] = field(default_factory=set)

    def look(self) -> dict[Path, _Seen]:
        """List the files, in natural order, as they are now; outputs among them are left out."""
        whole, out, suffix = self.source.is_dir(), self.out, self.options.suffix
        pattern = "**/*" if whole else split_pattern(self.source)[1]
        inside = self.place.resolve() in out.resolve().parents
        among = bool(suffix) and self.place.resolve() == out.resolve()
        seen = {}
        for path in sorted(self.place.glob(pattern), key=natural):
            ours = (inside and out in path.parents) or (among and path.stem.endswith(suffix))
            if ours or path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            with contextlib.suppress(OSError):  # gone again
                stat = path.stat()
                if S_ISREG(stat.st_mode):
                    seen[path] = _Seen(stat.st_size, stat.st_mtime_ns)
        return seen

    def wants(self, path: Path, seen: _Seen) -> bool:
        """Say whether a complete file is to be denoised, for the first time or again."""
        if path in self.done and (path not in self.own or self.done[path] == seen):
            return False
        return bool(seen.size) and self.skipped.get(path) != seen

    def find_recipe(self, ready: list[Path], now: dict[Path, _Seen]) -> None:
        """Take scale, bad pixels and model from the first files, but for those that do not fit."""
        sizes: dict[Path, tuple[int, ...]] = {}
        choice = Choice(self.options.dataset, self.options.axes)
        for path in ready[:FIRST_FRAMES]:
            try:
                with open_frames(path, choice) as frames:
                    frames.read(frames.shape[0] - 1, frames.shape[0])
                    sizes[path] = frames.shape[1:]
            except Exception as error:
                self._skip(path, now[path], error)
        common = Counter(sizes.values()).most_common(1)
        paths = [path for path in sizes if sizes[path] == common[0][0]]
        if not paths:
            return
        try:
            with open_list(self.source, paths, choice) as frames:
                recipe = preprocess.find_recipe(frames, self.options)
                note = f"{recipe.scale.note}; from the first {frames.shape[0]} frames"
                recipe = replace(recipe, scale=replace(recipe.scale, note=note))
                stack = preprocess.prepare(frames, self.options, recipe)
                denoiser, seen = denoise_file.choose(stack, self.options, self.opened)
            self.model = next(name for name, one in self.opened.items() if one is denoiser)
            self.half, self.recipe = denoiser.session.info.frames // 2, recipe
            _log.info("%s: %s, %s", self.source, denoiser.session.info.name, seen)
        except Exception as error:
            for path in paths:
                self._skip(path, now[path], error)

    def denoise_all(
        self, complete: list[Path], now: dict[Path, _Seen], *, last: bool
    ) -> Iterator[Arrival]:
        """Denoise wanted files in order, and unless ``last`` only those that others follow."""
        if self.recipe is None:
            return
        good = [one for one in complete if one not in self.skipped or self.wants(one, now[one])]
        for at, path in enumerate(good):
            if not self.wants(path, now[path]):
                continue
            before, after = good[max(0, at - self.half) : at], good[at + 1 : at + 1 + self.half]
            if len(after) < self.half and not last:
                return
            try:
                if made := self._denoise(path, now[path], (before, after)):
                    yield made
            except OutputError as error:
                # Not the file's fault: there may be room, or leave to write, at the next look.
                self._say(path, error, "tried again")
                if getattr(error.__cause__, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
                    return  # the next file would not fit either
            except Exception as error:
                self._skip(path, now[path], error)

    def _denoise(
        self, path: Path, seen: _Seen, between: tuple[list[Path], list[Path]]
    ) -> Arrival | None:
        """Denoise a file between its neighbours; None if that was done by an earlier run."""
        place = self.out / path.parent.relative_to(self.place)
        place.mkdir(parents=True, exist_ok=True)
        own = replace(self.options, out_dir=place, model=self.model)
        target, module = output_paths.target_of(path, own)
        if path in self.own:
            _log.warning("%s: has changed since it was denoised; denoised again", path)
            own = replace(own, overwrite=True)
        elif target.exists() and not own.overwrite:
            if seen.changed_ns > target.stat().st_mtime_ns:
                _log.warning(
                    "warning: %s: is newer than its output, which is left as it is; "
                    "--overwrite denoises it again", path,
                )  # fmt: skip
            _log.info("%s: was denoised before", path)
            self.done[path] = seen
            return None
        elif not any(file.exists() for file in writers.files_of(target, module, sigma=False)):
            own = replace(own, overwrite=True)  # what a watch with another scale began
        report = denoise_file.run(
            path, own, opened=self.opened, recipe=self.recipe, between=between
        )
        self.done[path] = seen
        self.own.add(path)
        return Arrival(path, report.output, report.frames, time.time() - seen.changed_ns / 1e9)

    def _skip(self, path: Path, seen: _Seen, error: Exception) -> None:
        self.skipped[path] = seen
        self._say(path, error, "skipped, and tried again when it changes")

    def _say(self, path: Path, error: Exception, what: str) -> None:
        text = str(error) if isinstance(error, EmdnError) else f"{type(error).__name__}: {error}"
        text = text if str(path) in text else f"{path}: {text}"
        if text not in self.said:
            self.said.add(text)
            _log.warning("warning: %s; %s", text, what)


def dataset(
    source: Path,
    target: Path,
    options: DenoiseOptions,
    idle_s: float,
    poll_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Arrival, None, None]:
    """Denoise what is appended to a dataset until nothing comes for ``idle_s``.

    Closing the iterator completes the output with what there is. Raises EmdnError: as
    `emdn_deploy.denoise_file.run`, and if the file cannot be followed.
    """
    given = [getattr(options, name) for name in provenance.REFERENCES]
    inputs = [source, *(Path(path) for path in (*given, options.model) if path)]
    made: _Growing | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(output.claimed([target], [], inputs, overwrite=options.overwrite))
        opened = {options.model: Denoiser.of(options)}  # before any frame is waited for
        count, read = _followed(source, options, stack)
        try:
            for there, before, last in _looks(count, 0, idle_s, poll_s, sleep):
                arrived = time.time()
                if made is None:
                    if not there and last:
                        raise FormatError(f"{source}: stayed empty for {idle_s:g} s")
                    if not there or (there < FIRST_FRAMES and there > before):
                        continue
                    made = _Growing(target, read, there, options, opened)
                    stack.push(made.end)
                if there < made.done:
                    raise FormatError(
                        f"{source}: has {there} frames, of which {made.done} were denoised: it was "
                        "begun anew; so do with the output, by --overwrite"
                    )
                # The last frames wait for those that come after them.
                for frames in made.denoise(there, there if last else there - made.half):
                    yield Arrival(source, target, frames, time.time() - arrived)
        except (GeneratorExit, KeyboardInterrupt):
            if made is not None:
                list(made.denoise(there := count(), min(there, made.done + made.half)))
            raise


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
    if chosen.parts:
        raise FormatError(
            f"{source}: has its frames in {len(chosen.parts)} parts; watch one of them, or "
            "denoise the file when it is complete"
        )
    order = choice.axes or order_in(file, chosen)
    if order[0] in "yx" or order[1:3] != "yx":
        raise FormatError(
            f"{source}: {chosen.path} has axes {order}; a dataset that grows must be (frame, y, x)"
        )

    def count() -> int:
        try:
            chosen.dataset.refresh()
        except (OSError, RuntimeError) as error:
            raise FormatError(f"{source}: cannot be read any more ({error})") from error
        return int(chosen.dataset.shape[0])

    return count, lambda: frames_of(source, file, chosen, choice, why)


class _Growing:
    """An output to which frames are appended, denoised by what the first of them ask for.

    ``read`` gives the frames that are there now; ``there`` is how many that are at first.
    """

    def __init__(
        self,
        target: Path,
        read: Callable[[], Frames],
        there: int,
        options: DenoiseOptions,
        opened: dict[str | None, Denoiser],
    ) -> None:
        self.target, self.partial = target, partial_of(target)
        saved = output.load_map(target)
        # Frames that the scale was taken from, by which a later run finds it again.
        self._first = int(saved["first"]) if "first" in saved else there
        self._read, frames = read, read()
        begun = select(frames, f"0:{self._first}")
        self._recipe = preprocess.find_recipe(begun, options)
        ready = preprocess.prepare(begun, options, self._recipe)
        self._denoiser, seen = denoise_file.choose(ready, options, opened)
        self.half = self._denoiser.session.info.frames // 2
        size = frames.shape[1:]
        self._batch = options.batch or self._denoiser.batching.frames_per_run(size)
        ready = preprocess.prepare(frames, options, self._recipe)
        facts = provenance.facts_of(frames, options, self._denoiser, ready, self._batch, seen)
        # The file grows, so that neither its size nor its time can tell that it is the same.
        self._key = json.dumps(dict(provenance.key_of(facts, {})), sort_keys=True)
        self._name, self._frame = frames.dataset, 4 * int(np.prod(size))
        self.done, self.sums, self._synced = 0, Sums(), time.monotonic()
        self._file: Any = None
        old = output.continues(target, saved, self._key, overwrite=options.overwrite)
        try:
            with disk(self.partial):
                if not (old and self._taken_up(saved)):
                    output.discard([target])
                    old = False
                    self.partial.touch()
                    reserve(self.partial, 0, self._frame + MARGIN)
                    self._file = h5py.File(self.partial, "w", libver="latest")
                    shape = frames.stored_shape[1:]
                    self._data = self._file.create_dataset(
                        self._name, (0, *shape), np.float32, maxshape=(None, *shape),
                        chunks=(1, *shape),
                    )  # fmt: skip
                    for letter, axis in zip(frames.order, frames.axes, strict=True):
                        if axis.step is not None:
                            self._data.attrs[f"step_{letter}"] = axis.step
                            self._data.attrs[f"units_{letter}"] = axis.units
                    record(self._file, self._name, facts)
                reserve(self.partial, self._file.id.get_filesize(), self._frame + MARGIN)
                self._file.swmr_mode = True
                self._save_map()
        except BaseException:
            with contextlib.suppress(OSError, RuntimeError):
                if self._file is not None:
                    self._file.close()
                if not old:
                    output.discard([target])
            raise

    def denoise(self, there: int, stop: int) -> Iterator[int]:
        """Denoise frames up to ``stop`` of those that are there, with their neighbours."""
        if stop <= self.done:
            return
        ready = preprocess.prepare(self._read(), DenoiseOptions(), self._recipe)
        spans, more = blocks(self.done, stop, self._batch), min(there, stop + self.half)
        after = [ready.take(stop, more)] if more > stop else []
        read = denoise_file.with_neighbours(ready.take, spans, self.half, ([], after))
        for start, end in spans:
            block = read(start, end)
            made = self._denoiser.answer(
                block.frames, self._recipe.scale, around=block.around, usable=block.usable,
                batch=self._batch,
            )  # fmt: skip
            self.append(start, block.part, block.part.finish(made).frames, made.shifts)
            yield end - start

    def append(
        self, start: int, part: Part, after: NDArray[np.float32], shifts: NDArray[np.float64]
    ) -> None:
        """Write denoised frames after those that are there."""
        stop = start + len(after)
        with disk(self.partial):
            end = self._file.id.get_filesize()
            reserve(self.partial, end, len(after) * self._frame + MARGIN)
            self._data.resize(stop, axis=0)
            self._data[start:stop] = after.reshape(-1, *self._data.shape[1:])
            self._data.flush()
            sums = copy.deepcopy(self.sums)
            sums.add(part.counted(), after)
            denoise_file.tally(sums, start, part, shifts)
            self.sums, self.done = sums, stop  # an interrupted block counts wholly or not at all
            if time.monotonic() - self._synced > output.SYNC_SECONDS:
                self._save_map()

    def end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the output, or after an error leave it to be continued."""
        # A failed close leaves what was flushed, which is all that the map speaks of.
        with contextlib.suppress(OSError, RuntimeError):
            self._save_map()
            self._file.close()
        if not self.done:
            output.discard([self.target])
        elif error is None or isinstance(error, GeneratorExit | KeyboardInterrupt):
            try:
                self._complete()
            except OutputError as failed:
                output.advise(failed, self.done, self.partial)
                raise
        else:
            output.advise(error, self.done, self.partial)

    def _complete(self) -> None:
        facts = self.sums.facts(self._recipe.scale.offset)
        with disk(self.partial):
            reserve(self.partial, self.partial.stat().st_size, MARGIN)
            with h5py.File(self.partial, "r+") as file:
                if len(file[self._name]) != self.done:  # interrupted while it was written
                    file[self._name].resize(self.done, axis=0)
            finish(self.partial, {**facts, **provenance.memory(self._denoiser)})
            with self.partial.open("r+b") as written:
                os.fsync(written.fileno())
            os.replace(self.partial, self.target)
            output.discard([self.target])

    def _taken_up(self, saved: dict[str, Any]) -> bool:
        """Open the output of an interrupted run, unless that was killed while it wrote."""
        try:
            reserve(self.partial, self.partial.stat().st_size, self._frame + MARGIN)
            self._file = h5py.File(self.partial, "r+", libver="latest")
            self._data = self._file[self._name]
        except (OSError, KeyError, RuntimeError) as error:
            if getattr(error, "errno", None):
                raise
            _log.warning("%s: was left open by a run that was killed; begun anew", self.partial)
            return False
        self.done, self.sums = int(saved["done"]), Sums(**json.loads(str(saved["sums"])))
        self._data.resize(self.done, axis=0)
        _log.info("%s: continuing after frame %d", self.partial, self.done - 1)
        return True

    def _save_map(self) -> None:
        with self.partial.open("r+b") as file:
            os.fsync(file.fileno())
        sums = json.dumps(asdict(self.sums))
        known = {"key": self._key, "first": self._first, "done": self.done, "sums": sums}
        output.save_map(self.target, known)
        self._synced = time.monotonic()
