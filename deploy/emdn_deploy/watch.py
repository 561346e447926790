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
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy import denoise_file, output, output_paths, preprocess, provenance, writers
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.output import Sums, disk
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
from emdn_deploy.writers import Provenance, partial_of
from emdn_deploy.writers.hdf5 import MARGIN, finish, record, reserve
from emdn_models.errors import EmdnError, FormatError, OutputError

# Frames that the scale is taken from, if there are so many before the first wait ends.
FIRST_FRAMES = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """A file as it was at the last look: one that no longer changes is complete."""

    size: int
    changed_ns: int


@dataclass(frozen=True)
class Arrival:
    """One denoised piece of an acquisition.

    ``lag_s``: from the moment the input was last written to the moment its output was there.
    """

    source: Path
    output: Path
    frames: int
    lag_s: float


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
    now: dict[Path, Seen] = {}
    complete: list[Path] = []
    idle = 0.0
    try:
        while idle <= idle_s:
            before, now = now, _look(source, out, options.suffix)
            grew, complete = now != before, _complete(before, now)
            ready = [path for path in complete if watched.wants(path, now[path])]
            if watched.recipe is None and ready and (len(ready) >= FIRST_FRAMES or not grew):
                watched.find_recipe(ready, now)
            idle = 0.0 if grew else idle + poll_s
            # The last files wait for those that come after them.
            yield from watched.denoise_all(complete, now, last=idle > idle_s)
            sleep(poll_s)
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


@dataclass
class _Watched:
    """A folder that is watched, and what has become of its files.

    ``model``: what is taken for all, and how many files before and after one it sees (``half``).
    ``done``, ``skipped``: files that were denoised, or could not be, as they were then. ``own``:
    those of ``done`` that this run has denoised. ``full``: whether the disk is: the next file would
    not fit either.
    """

    source: Path
    place: Path
    out: Path
    options: DenoiseOptions
    opened: dict[str | None, Denoiser]
    recipe: preprocess.Recipe | None = None
    model: str | None = None
    half: int = 0
    done: dict[Path, Seen] = field(default_factory=dict)
    skipped: dict[Path, Seen] = field(default_factory=dict)
    own: set[Path] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    full: bool = False

    def wants(self, path: Path, seen: Seen) -> bool:
        """Say whether a complete file is to be denoised, for the first time or again."""
        if path in self.done and (path not in self.own or self.done[path] == seen):
            return False
        return bool(seen.size) and self.skipped.get(path) != seen

    def find_recipe(self, ready: list[Path], now: dict[Path, Seen]) -> None:
        """Take scale and bad pixels from the first files, but for those that do not fit."""
        sizes: dict[Path, tuple[int, ...]] = {}
        choice = Choice(self.options.dataset, self.options.axes)
        for path in ready[:FIRST_FRAMES]:
            try:
                with open_frames(path, choice) as frames:
                    frames.read(frames.shape[0] - 1, frames.shape[0])
                    sizes[path] = frames.shape[1:]
            except Exception as error:
                self._skip(path, now[path], error)
        if not sizes:
            return
        size, _ = Counter(sizes.values()).most_common(1)[0]
        paths = [path for path in sizes if sizes[path] == size]
        try:
            recipe = _first_recipe(self.source, paths, self.options)
            with open_list(self.source, paths, choice) as frames:
                stack = preprocess.prepare(frames, self.options, recipe)
                denoiser, seen = denoise_file.choose(stack, self.options, self.opened)
            self.model = next(name for name, one in self.opened.items() if one is denoiser)
            self.half, self.recipe = denoiser.session.info.frames // 2, recipe
            _log.info("%s: %s, %s", self.source, denoiser.session.info.name, seen)
        except Exception as error:
            for path in paths:
                self._skip(path, now[path], error)

    def denoise_all(
        self, complete: list[Path], now: dict[Path, Seen], *, last: bool
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
                break
            if made := self.denoise(path, now[path], (before, after)):
                yield made
            if self.full:
                break
        self.full = False

    def denoise(
        self, path: Path, seen: Seen, neighbours: tuple[list[Path], list[Path]]
    ) -> Arrival | None:
        """Denoise a file between its neighbours; say so and return None where that fails."""
        place = self.out / path.parent.relative_to(self.place)
        own = replace(self.options, out_dir=place, model=self.model)
        try:
            assert own.out_dir is not None
            own.out_dir.mkdir(parents=True, exist_ok=True)
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
                path, own, opened=self.opened, recipe=self.recipe, between=neighbours
            )
        except OutputError as error:
            # Not the file's fault: there may be room, or leave to write, at the next look.
            self._say(path, error, "tried again")
            self.full = getattr(error.__cause__, "errno", 0) in (errno.ENOSPC, errno.EDQUOT)
            return None
        except Exception as error:
            self._skip(path, seen, error)
            return None
        self.done[path] = seen
        self.own.add(path)
        lag = time.time() - seen.changed_ns / 1e9
        return Arrival(path, report.output, report.frames, lag)

    def _skip(self, path: Path, seen: Seen, error: Exception) -> None:
        self.skipped[path] = seen
        self._say(path, error, "skipped, and tried again when it changes")

    def _say(self, path: Path, error: Exception, what: str) -> None:
        text = str(error) if isinstance(error, EmdnError) else f"{type(error).__name__}: {error}"
        text = text if str(path) in text else f"{path}: {text}"
        if text not in self.said:
            self.said.add(text)
            _log.warning("warning: %s; %s", text, what)


def _look(source: Path, out: Path, suffix: str) -> dict[Path, Seen]:
    """List the files of a folder or pattern, in natural order, as they are now.

    Outputs inside the folder, in ``out`` or with names that end in ``suffix``, are left out.
    """
    place, pattern = (source, "**/*") if source.is_dir() else split_pattern(source)
    inside = place.resolve() in out.resolve().parents
    among = place.resolve() == out.resolve()
    seen = {}
    for path in sorted(place.glob(pattern), key=natural):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if (inside and out in path.parents) or (among and suffix and path.stem.endswith(suffix)):
            continue
        with contextlib.suppress(OSError):  # gone again
            stat = path.stat()
            if S_ISREG(stat.st_mode):
                seen[path] = Seen(stat.st_size, stat.st_mtime_ns)
    return seen


def _complete(before: dict[Path, Seen], now: dict[Path, Seen]) -> list[Path]:
    """Return the files that did not change, up to the first that did: order is kept."""
    ready = []
    for path, seen in now.items():
        if before.get(path) != seen:
            break
        ready.append(path)
    return ready


def _first_recipe(source: Path, paths: list[Path], options: DenoiseOptions) -> preprocess.Recipe:
    with open_list(source, paths, Choice(options.dataset, options.axes)) as frames:
        recipe = preprocess.find_recipe(frames, options)
        note = f"{recipe.scale.note}; from the first {frames.shape[0]} frames"
    return replace(recipe, scale=replace(recipe.scale, note=note))


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
    with contextlib.ExitStack() as stack:
        stack.enter_context(output.claimed([target], [], inputs, overwrite=options.overwrite))
        opened = {options.model: Denoiser.of(options)}  # before any frame is waited for
        count, now = _followed(source, options, stack)
        idle, there = 0.0, 0
        while True:
            grew, there = count() > there, count()
            if there and (there >= FIRST_FRAMES or not grew):
                break
            if idle > idle_s:
                raise FormatError(f"{source}: stayed empty for {idle_s:g} s")
            idle = 0.0 if grew else idle + poll_s
            sleep(poll_s)
        saved = output.load_map(target)
        known = int(saved["first"]) if "first" in saved else there
        first = now()
        begun = select(first, f"0:{known}")
        recipe = preprocess.find_recipe(begun, options)
        denoiser, seen = denoise_file.choose(
            preprocess.prepare(begun, options, recipe), options, opened
        )
        half = denoiser.session.info.frames // 2
        ready = preprocess.prepare(first, options, recipe)
        batch = options.batch or denoiser.batch_for(first.shape[1:])
        facts = provenance.facts_of(first, options, denoiser, ready, batch, seen)

        def late(sums: Sums) -> Provenance:
            return {**sums.facts(recipe.scale.offset), **provenance.memory(denoiser)}

        made = _Growing(target, first, facts, known, late, overwrite=options.overwrite)
        stack.enter_context(made)

        def denoise(there: int, stop: int) -> Generator[int, None, None]:
            """Denoise frames up to ``stop`` of those that are there, with their neighbours."""
            ready = preprocess.prepare(now(), DenoiseOptions(), recipe)
            for start in range(made.done, stop, batch):
                end = min(stop, start + batch)
                spans = (max(0, start - half), start), (start, end), (end, min(there, end + half))
                parts = {span: ready.take(*span) for span in spans if span[0] < span[1]}
                part, near = parts[spans[1]], [len(range(*span)) for span in spans]
                answer = denoiser.answer(
                    np.concatenate([one.frames for one in parts.values()]), recipe.scale,
                    around=(near[0], near[2]),
                    usable=~np.concatenate([one.empty for one in parts.values()]), batch=batch,
                )  # fmt: skip
                made.append(start, part, part.finish(answer).frames, answer.shifts)
                yield end - start

        idle, earlier = 0.0, made.done
        try:
            while idle <= idle_s:
                arrived, there = time.time(), count()
                if there < made.done:
                    raise FormatError(
                        f"{source}: has {there} frames, of which {made.done} were denoised: it was "
                        "begun anew; so do with the output, by --overwrite"
                    )
                # The last frames wait for those that come after them.
                for frames in denoise(there, there - half):
                    yield Arrival(source, target, frames, time.time() - arrived)
                idle, earlier = (0.0 if there > earlier else idle + poll_s), there
                sleep(poll_s)
        except (GeneratorExit, KeyboardInterrupt):
            list(denoise(count(), min(count(), made.done + half)))
            raise
        for frames in denoise(count(), min(count(), made.done + half)):
            yield Arrival(source, target, frames, time.time() - arrived)


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

    def now() -> Frames:
        return frames_of(source, file, chosen, choice, why)

    return count, now


class _Growing:
    """An output to which frames are appended.

    ``first``: frames that the scale was taken from, by which a later run finds it again. ``late``:
    what is recorded when all frames are there.
    """

    def __init__(
        self,
        target: Path,
        frames: Frames,
        facts: Provenance,
        first: int,
        late: Callable[[Sums], Provenance],
        *,
        overwrite: bool,
    ) -> None:
        self.target, self.partial = target, partial_of(target)
        self._first, self._late, self._synced = first, late, time.monotonic()
        # The file grows, so that neither its size nor its time can tell that it is the same.
        self._key = json.dumps(dict(provenance.key_of(facts, {})), sort_keys=True)
        self._name = frames.dataset
        self._frame = 4 * int(np.prod(frames.shape[1:]))
        self.done, self.sums = 0, Sums()
        self._file: Any = None
        saved = output.load_map(target)
        old = output.continues(target, saved, self._key, overwrite=overwrite)
        try:
            with disk(self.partial):
                if not (old and self._taken_up(saved)):
                    output.discard([target])
                    old = False
                    self.partial.touch()
                    reserve(self.partial, 0, self._frame + MARGIN)
                    self._file = h5py.File(self.partial, "w", libver="latest")
                    self._data = _create(self._file, frames, facts)
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

    def append(
        self,
        start: int,
        part: preprocess.Part,
        after: NDArray[np.float32],
        shifts: NDArray[np.float64],
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
            empty = (start + np.flatnonzero(part.empty)).tolist()
            sums.add_kept(part.saturated, part.filled, empty)
            sums.add_shifts(shifts, part.frames[0].size)
            self.sums, self.done = sums, stop  # an interrupted block counts wholly or not at all
            if time.monotonic() - self._synced > output.SYNC_SECONDS:
                self._save_map()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        with disk(self.partial):
            reserve(self.partial, self.partial.stat().st_size, MARGIN)
            with h5py.File(self.partial, "r+") as file:
                if len(file[self._name]) != self.done:  # interrupted while it was written
                    file[self._name].resize(self.done, axis=0)
            finish(self.partial, self._late(self.sums))
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


def _create(file: h5py.File, frames: Frames, facts: Provenance) -> h5py.Dataset:
    shape = frames.stored_shape[1:]
    made: h5py.Dataset = file.create_dataset(
        frames.dataset, (0, *shape), np.float32, maxshape=(None, *shape), chunks=(1, *shape)
    )
    for letter, axis in zip(frames.order, frames.axes, strict=True):
        if axis.step is not None:
            made.attrs[f"step_{letter}"] = axis.step
            made.attrs[f"units_{letter}"] = axis.units
    record(file, frames.dataset, facts)
    return made
