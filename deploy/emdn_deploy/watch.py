"""Denoise frames while an acquisition writes them: new files of a folder, or a growing dataset.

The first frames give the scale, the bad pixels and the model of the whole acquisition (a live run
cannot look ahead). Each file that follows in a folder becomes one output, as soon as it is complete
and every file before it is done; a model that sees several frames also waits for the files after
it. What cannot be denoised is said and skipped, and tried again when it changes. The output of an
HDF5 dataset that grows (SWMR) grows as it does and can itself be followed; it takes its final name
when nothing has come for a time, or when the user says so.
"""

import contextlib
import copy
import errno
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np

from emdn_deploy import denoise_file, preprocess, writers
from emdn_deploy.batching import blocks, reader
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.output import Sums, claimed, discard, disk, save_map
from emdn_deploy.preprocess import Prepared, Recipe
from emdn_deploy.readers import (
    SUFFIXES,
    Choice,
    Frames,
    natural,
    open_frames,
    open_list,
    split_pattern,
)
from emdn_deploy.readers.frames import default_order, select
from emdn_deploy.readers.hdf5 import choose, frames_of
from emdn_deploy.report import REFERENCES, facts_of, late_facts
from emdn_deploy.writers import partial_of
from emdn_deploy.writers.hdf5 import finish, record
from emdn_models.errors import EmdnError, FormatError, OutputError

# Frames that the scale is taken from, if there are so many before the first wait ends.
FIRST_FRAMES = 16
# Room for what HDF5 writes besides pixels.
_MARGIN = 2**18

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

    ``half``: how many frames before and after one the model sees. ``done``, ``skipped``: files that
    were denoised, or could not be, as they were then. ``own``: those of ``done`` that this run has
    denoised.
    """

    source: Path
    place: Path
    out: Path
    options: DenoiseOptions
    opened: dict[str | None, Denoiser]
    recipe: Recipe | None = None
    half: int = 0
    done: dict[Path, _Seen] = field(default_factory=dict)
    skipped: dict[Path, _Seen] = field(default_factory=dict)
    own: set[Path] = field(default_factory=set)
    said: set[str] = field(default_factory=set)

    def look(self) -> dict[Path, _Seen]:
        """List the files, in natural order, as they are now; outputs among them are left out."""
        out, suffix = self.out, self.options.suffix
        pattern = "**/*" if self.source.is_dir() else split_pattern(self.source)[1]
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
        if not paths:
            return
        try:
            with open_list(self.source, paths, choice) as frames:
                recipe = preprocess.find_recipe(frames, self.options)
                note = f"{recipe.scale.note}; from the first {frames.shape[0]} frames"
                recipe = replace(recipe, scale=replace(recipe.scale, note=note))
                stack = Prepared(frames, recipe)
                denoiser, seen = denoise_file.choose(stack, self.options, self.opened)
            model = next(name for name, one in self.opened.items() if one is denoiser)
            self.options, self.recipe = replace(self.options, model=model), recipe
            self.half = denoiser.session.info.frames // 2
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
        own = replace(self.options, out_dir=place)
        target, module = writers.target_of(path, own)
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

    Closing the iterator completes the output with what there is. After an error it stays
    ``NAME.partial``, and the same command begins anew: the input still has all frames. Raises
    EmdnError: as `emdn_deploy.denoise_file.run`, and if the file cannot be followed.
    """
    given = [getattr(options, name) for name in REFERENCES]
    inputs = [source, *(Path(path) for path in (*given, options.model) if path)]
    made: _Growing | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed([target], [], inputs, overwrite=options.overwrite))
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
                if there < made.done:
                    raise FormatError(
                        f"{source}: has {there} frames, of which {made.done} were denoised: it was "
                        "begun anew; so do with the output, by the same command"
                    )
                # The last frames wait for those that come after them.
                for frames in made.denoise(there, there if last else there - made.half):
                    yield Arrival(source, target, frames, time.time() - arrived)
        except (GeneratorExit, KeyboardInterrupt):
            if made is not None:
                list(made.denoise(there := count(), min(there, made.done + made.half)))
                made.complete()
            raise
        except BaseException as error:
            if made is not None:
                made.leave(error)
            raise
        if made is not None:
            made.complete()


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
        what = f"{len(chosen.parts)} parts" if chosen.parts else f"axes {order}"
        raise FormatError(
            f"{source}: {chosen.path} has {what}; a dataset that grows must be one of axes "
            "(frame, y, x): denoise the file when it is complete"
        )

    def count() -> int:
        try:
            chosen.dataset.refresh()
        except (OSError, RuntimeError) as error:
            raise FormatError(f"{source}: cannot be read any more ({error})") from error
        return int(chosen.dataset.shape[0])

    said = replace(choice, axes=order)  # the shape of what grows is not judged
    return count, lambda: frames_of(source, file, chosen, said, why)


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
        self.target, self.partial, self._read = target, partial_of(target), read
        frames = read()
        first = select(frames, f"0:{there}")
        ready = Prepared(first, preprocess.find_recipe(first, options))
        self._recipe = ready.recipe
        self._denoiser, seen = denoise_file.choose(ready, options, opened)
        self.half = self._denoiser.session.info.frames // 2
        size, shape = frames.shape[1:], frames.stored_shape[1:]
        self._batch = options.batch or self._denoiser.batching.frames_per_run(size)
        facts = facts_of(Prepared(frames, ready.recipe), options, self._denoiser, self._batch, seen)
        self._frame = 4 * int(np.prod(size))
        self.done, self._sums = 0, Sums()
        self._file: Any = None
        discard([target])
        with disk(self.partial):
            save_map(target, {"key": json.dumps({"watched": str(frames.path)})})
            self.partial.touch()
            self._reserve(0)
            self._file = h5py.File(self.partial, "w", libver="latest")
            self._data: Any = self._file.create_dataset(
                frames.dataset, (0, *shape), np.float32, maxshape=(None, *shape),
                chunks=(1, *shape),
            )  # fmt: skip
            for letter, axis in zip(frames.order, frames.axes, strict=True):
                if axis.step is not None:
                    self._data.attrs[f"step_{letter}"] = axis.step
                    self._data.attrs[f"units_{letter}"] = axis.units
            record(self._file, frames.dataset, facts)
            self._file.swmr_mode = True

    def denoise(self, there: int, stop: int) -> Iterator[int]:
        """Denoise frames up to ``stop`` of those that are there, with their neighbours."""
        ready = Prepared(self._read(), self._recipe)
        spans = blocks(self.done, stop, self._batch)
        read = reader(ready.take, spans, self.half, there)
        for start, end in spans:
            block = read(start, end)
            made = self._denoiser.answer(
                block.frames, self._recipe.scale, around=block.around, usable=block.usable,
                batch=self._batch,
            )  # fmt: skip
            after = block.part.finish(made).frames
            with disk(self.partial):
                self._reserve(end - start)
                self._data.resize(end, axis=0)
                self._data[start:end] = after.reshape(-1, *self._data.shape[1:])
                self._data.flush()
            sums = copy.deepcopy(self._sums)
            sums.add(block.part.counted(), after)
            sums.add_part(start, block.part, made.shifts)
            self._sums, self.done = sums, end  # an interrupted block counts wholly or not at all
            yield end - start

    def complete(self) -> None:
        """Give the output its name."""
        facts = late_facts(self._sums, self._recipe.scale.offset, None, self._denoiser)
        with disk(self.partial):
            self._data.resize(self.done, axis=0)  # of what was interrupted while it was written
            self._file.close()
            finish(self.partial, facts)
            os.replace(self.partial, self.target)
            discard([self.target])

    def leave(self, error: BaseException) -> None:
        """Close the output after an error, and say where the frames are."""
        with contextlib.suppress(OSError, RuntimeError):
            self._file.close()
        if not self.done:
            discard([self.target])
            return
        words = f"{self.done} frames are in {self.partial}; the same command begins anew"
        if isinstance(error, EmdnError):
            error.args = (f"{error}; {words}",)
        else:
            _log.warning("%s", words)

    def _reserve(self, frames: int) -> None:
        """Claim the disk for more frames: HDF5 ends the process where it cannot write."""
        size = (frames + 1) * self._frame + _MARGIN
        start = self._file.id.get_filesize() if self._file else 0
        with self.partial.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), start, size)
                return
            except AttributeError:  # not on Windows and macOS
                pass
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
        if shutil.disk_usage(self.partial.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
