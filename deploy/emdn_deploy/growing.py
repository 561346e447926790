"""Denoise an HDF5 dataset while an acquisition appends to it (SWMR).

The output grows as the input does and can itself be followed by SWMR readers; it takes
its final name when nothing has come for a time, or when the user says so. After anything
else it stays ``NAME.partial``, which the same command continues.
"""

import contextlib
import copy
import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy import correction, job, output, provenance, selection
from emdn_deploy.correction import Part, Prepared, Recipe
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.readers import Choice, Frames
from emdn_deploy.readers.hdf5 import choose, frames_of, order_in
from emdn_deploy.sums import Sums
from emdn_deploy.watch import FIRST_FRAMES, Arrival
from emdn_deploy.writers import Provenance
from emdn_deploy.writers.hdf5_frames import MARGIN, finish, record, reserve
from emdn_deploy.writers.layout import partial_of
from emdn_models.errors import FormatError, OutputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Source:
    """A dataset that grows.

    Attributes
    ----------
    now
        Gives its frames as they are when it is called.
    """

    data: Any
    now: Callable[[], Frames]

    def count(self) -> int:
        """Return how many frames there are now."""
        try:
            self.data.refresh()
        except (OSError, RuntimeError) as error:
            raise FormatError(
                f"{self.data.file.filename}: cannot be read any more ({error})"
            ) from error
        return int(self.data.shape[0])


def dataset(
    source: Path,
    target: Path,
    options: DenoiseOptions,
    idle_s: float,
    poll_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Arrival, None, None]:
    """Denoise what is appended to a dataset until nothing comes for ``idle_s``.

    Closing the iterator completes the output with what there is.

    Raises
    ------
    EmdnError
        As `emdn_deploy.job.run`, and if the file cannot be followed.
    """
    with contextlib.ExitStack() as stack:
        inputs = [
            source,
            *(path for name in provenance.REFERENCES if (path := getattr(options, name))),
            *([Path(options.model)] if options.model else []),
        ]
        stack.enter_context(output.held([target], [], inputs, overwrite=options.overwrite))
        opened = {options.model: Denoiser.of(options)}  # before any frame is waited for
        try:
            file = stack.enter_context(h5py.File(source, "r", libver="latest", swmr=True))
        except OSError as error:
            raise FormatError(
                f"{source}: cannot be followed ({error}); the acquisition must write it in SWMR "
                "mode"
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
                f"{source}: {chosen.path} has axes {order}; a dataset that grows must be "
                "(frame, y, x)"
            )
        growing = _Source(chosen.dataset, lambda: frames_of(source, file, chosen, choice, why))
        idle, count = 0.0, 0
        while True:
            grew, count = growing.count() > count, growing.count()
            if count and (count >= FIRST_FRAMES or not grew):
                break
            if idle > idle_s:
                raise FormatError(f"{source}: {chosen.path} stayed empty for {idle_s:g} s")
            idle = 0.0 if grew else idle + poll_s
            sleep(poll_s)
        yield from _follow(target, growing, count, opened, options, idle_s, poll_s, sleep)


def _follow(
    target: Path,
    source: _Source,
    count: int,
    opened: dict[str | None, Denoiser],
    options: DenoiseOptions,
    idle_s: float,
    poll_s: float,
    sleep: Callable[[float], None],
) -> Generator[Arrival, None, None]:
    saved = output.load_map(target)
    known = int(saved["first"]) if "first" in saved else count
    first = source.now()
    begun = selection.select(first, f"0:{known}")
    recipe = correction.find_recipe(begun, options)
    denoiser, seen = job.choose(correction.prepare(begun, options, recipe), options, opened)
    ready = correction.prepare(first, options, recipe)
    batch = options.batch or denoiser.batch_for(first.shape[1:])
    facts = provenance.facts_of(first, options, denoiser, ready, batch)
    facts = {**facts, "neighbours": seen}
    half = denoiser.session.info.frames // 2

    def late(sums: Sums) -> Provenance:
        return {**sums.facts(recipe.scale.offset), **provenance.memory(denoiser)}

    with _Growing(target, first, facts, known, late, overwrite=options.overwrite) as made:

        def denoise(ready: Prepared, start: int, stop: int, count: int) -> None:
            part, parts = ready.take(start, stop), []
            around = min(half, start), min(half, count - stop)
            if around[0]:
                parts.append(ready.take(start - around[0], start))
            parts.append(part)
            if around[1]:
                parts.append(ready.take(stop, stop + around[1]))
            answer = denoiser.answer(
                np.concatenate([one.frames for one in parts]), recipe.scale, around=around,
                usable=~np.concatenate([one.empty for one in parts]), batch=batch,
            )  # fmt: skip
            answer = part.finish(answer)
            tally = partial(_tally, part, start, answer.shifts)
            made.append(part.counted(), answer.frames, tally)

        def finish() -> None:
            """Denoise the frames that were waiting for their neighbours."""
            count, ready = source.count(), _reading(source.now(), recipe)
            last = min(count, made.done + half)
            for start in range(made.done, last, batch):
                denoise(ready, start, min(last, start + batch), count)

        idle, before = 0.0, made.done
        try:
            while idle <= idle_s:
                arrived, count = time.time(), source.count()
                if count < made.done:
                    raise FormatError(
                        f"{first.path}: has {count} frames, of which {made.done} were denoised: it "
                        "was begun anew; so do with the output, by --overwrite"
                    )
                ready = _reading(source.now(), recipe)
                # The last frames wait for those that come after them.
                for start in range(made.done, count - half, batch):
                    stop = min(count - half, start + batch)
                    denoise(ready, start, stop, count)
                    yield Arrival(first.path, target, stop - start, time.time() - arrived)
                idle, before = (0.0 if count > before else idle + poll_s), count
                sleep(poll_s)
        except (GeneratorExit, KeyboardInterrupt):
            finish()
            raise
        finish()


def _tally(part: Part, start: int, shifts: NDArray[np.float64], sums: Sums) -> None:
    empty = (start + np.flatnonzero(part.empty)).tolist()
    sums.add_kept(part.saturated, part.filled, empty)
    sums.add_shifts(shifts, part.frames[0].size)


def _reading(frames: Frames, recipe: Recipe) -> Prepared:
    return correction.prepare(frames, DenoiseOptions(), recipe)


class _Growing:
    """An output to which frames are appended.

    Parameters
    ----------
    first
        Frames that the scale was taken from, by which a later run finds it again.
    late
        What is recorded when all frames are there.
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
        self._new = False
        saved = output.load_map(target)
        with self._begun(), self._disk():
            if not (
                output.continues(target, saved, self._key, overwrite=overwrite)
                and self._taken_up(saved)
            ):
                output.discard([target])
                self._new = True
                self.partial.touch()
                reserve(self.partial, 0, self._frame + MARGIN)
                self._file = h5py.File(self.partial, "w", libver="latest")
                self._data = _create(self._file, frames, facts)
            reserve(self.partial, self._file.id.get_filesize(), self._frame + MARGIN)
            self._file.swmr_mode = True
            self._save_map()

    @contextlib.contextmanager
    def _begun(self) -> Iterator[None]:
        """Leave nothing of an output that could not be begun."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, RuntimeError):
                if self._file is not None:
                    self._file.close()
                if self._new:
                    output.discard([self.target])
            raise

    def append(
        self, before: NDArray[np.float32], after: NDArray[np.float32], tally: Callable[[Sums], None]
    ) -> None:
        """Write denoised frames after those that are there; ``tally`` as of `Output.write`."""
        stop = self.done + len(before)
        with self._disk():
            end = self._file.id.get_filesize()
            reserve(self.partial, end, len(before) * self._frame + MARGIN)
            self._data.resize(stop, axis=0)
            self._data[self.done : stop] = after.reshape(-1, *self._data.shape[1:])
            self._data.flush()
            sums = copy.deepcopy(self.sums)
            sums.add(before, after)
            tally(sums)
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
                output.say_kept(failed, self.done, self.partial)
                raise
        else:
            output.say_kept(error, self.done, self.partial)

    def _complete(self) -> None:
        with self._disk():
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
        output.save_map(
            self.target,
            {
                "key": self._key, "first": self._first, "done": self.done,
                "sums": json.dumps(asdict(self.sums)),
            },
        )  # fmt: skip
        self._synced = time.monotonic()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise output.refused(self.partial, error) from error


def _create(file: h5py.File, frames: Frames, facts: Provenance) -> h5py.Dataset:
    shape = frames.stored_shape
    made: h5py.Dataset = file.create_dataset(
        frames.dataset, shape=(0, *shape[1:]), maxshape=(None, *shape[1:]),
        chunks=(1, *shape[1:]), dtype=np.float32,
    )  # fmt: skip
    for letter, axis in zip(frames.order, frames.axes, strict=True):
        if axis.step is not None:
            made.attrs[f"step_{letter}"] = axis.step
            made.attrs[f"units_{letter}"] = axis.units
    record(file, frames.dataset, facts)
    return made
