"""Denoise one file by many processes: dask's workers make a part file of each block of frames.

Scale, corrections and model are chosen once, by the process that was started. A worker opens the
input itself, denoises a block with its neighbours, and renames its part when it is complete. The
output then refers to the parts (an HDF5 virtual dataset), or they are joined into it. Queue,
retries and lost workers are dask's; a run that ends early is continued from the parts.
"""

import contextlib
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emdn_deploy import denoise_file, writers
from emdn_deploy.batching import blocks
from emdn_deploy.check.quick import Quick
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoise_file import Progress, Work
from emdn_deploy.denoiser import opened
from emdn_deploy.output import Output, Stamps, State, Sums, key_of, stamps
from emdn_deploy.preprocess import Answer, Part, Prepared, Recipe
from emdn_deploy.readers import Choice, Frames, open_selected
from emdn_deploy.readers.frames import select
from emdn_deploy.session import usable_cpus
from emdn_deploy.writers import SIGMA, Provenance, Storage
from emdn_deploy.writers.hdf5 import dataset_of
from emdn_models import __version__
from emdn_models.errors import EmdnError, OutputError, library

# Bytes of a part: a thousandth of the output, within these bounds.
SMALLEST_PART, LARGEST_PART, _PARTS = 2**25, 2**28, 1000
_PATIENCE = 30  # seconds to wait for a scheduler, and for its first worker
_STATE = "emdn_part"  # the group of a part with what is known of its frames
# Run by workers as they start: Ctrl-C in a terminal reaches them too, and is the client's to heed.
_NO_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"

_log = logging.getLogger(__name__)
Span = tuple[int, int]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to denoise any block of a stack."""

    source: Path
    options: DenoiseOptions
    opening: tuple[Any, ...]  # of `emdn_deploy.denoiser.opened`
    recipe: Recipe
    given: Stamps  # the input's files, as the client sees them
    facts: Provenance
    storage: Storage
    folder: Path  # of the parts

    def part(self, span: Span) -> Path:
        """Name the file of a block."""
        return self.folder / f"{span[0]:09}-{span[1]:09}.h5"


@contextlib.contextmanager
def connected(
    scheduler: str | None, workers: int | None, threads: int | None, *, join: bool
) -> Iterator["Cluster"]:
    """Reach a scheduler, or start workers on this machine, until the context ends.

    ``scheduler``: address, such as ``tcp://host:8786``; None to start ``workers`` processes.
    ``threads``: of all these together; None for all that are allowed. ``join``: whether parts
    become one plain file. Raises EmdnError if dask is not installed, or no worker is there.
    """
    dask = library("distributed", "dask", "--scheduler and --workers")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors are said here
    count, name = workers or 1, scheduler or "the workers"
    with contextlib.ExitStack() as stack:
        where: Any = scheduler or stack.enter_context(
            dask.LocalCluster(
                n_workers=count, threads_per_worker=max(1, (threads or usable_cpus()) // count),
                memory_limit=0, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
                preload=[_NO_CTRL_C],
            )
        )  # fmt: skip
        try:
            client = stack.enter_context(
                dask.Client(where, timeout=_PATIENCE, set_as_default=False)
            )
            client.wait_for_workers(1, timeout=_PATIENCE)
        except (OSError, ValueError) as error:
            raise EmdnError(
                f"{name}: no dask scheduler with workers answers ({error}); see that `dask "
                f"scheduler` runs there, and `dask worker {name}`"
            ) from error
        yield Cluster(client, name, join=join)


class Cluster:
    """The workers of a dask client, to which `emdn_deploy.denoise_file.run` leaves the frames."""

    def __init__(self, client: Any, name: str, *, join: bool) -> None:
        self._client, self._name, self._join = client, name, join

    def plan(self, work: Work, storage: Storage) -> tuple[Provenance, Storage]:
        """Look whether all workers can do the work; say what to record, and how pixels are stored.

        Raises EmdnError if a worker cannot, or the output cannot refer to parts.
        """
        frames, target, model = work.ready.frames, work.target.absolute(), work.denoiser.opening
        lead = [letter for letter in frames.order if letter not in "yxc"]
        plain = work.module == "hdf5" or (work.module == "mirror" and frames.order.endswith("yx"))
        if not self._join and not (plain and len(lead) == 1):
            raise OutputError(
                f"{target}: cannot refer to parts (frames {frames.order}); add --join"
            )
        given = {str(Path(name).absolute()): one for name, one in work.given.items()}
        job = Job(
            frames.path.absolute(), work.options, (*model[:2], 1, *model[3:]), work.ready.recipe,
            given, work.facts, storage, target.parent,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(dir=target.parent) as seen:
            devices = self._devices(replace(job, folder=Path(seen)))
        facts = {**work.facts, "device": devices}
        digest = hashlib.sha256(key_of(facts, given).encode()).hexdigest()
        folder = target.with_name(f"{target.name}.parts-{digest[:16]}")
        self._job, self._spans = replace(job, facts=facts, folder=folder), _spans(frames, storage)
        if not folder.exists():
            words = writers.check_room(target, frames.shape, storage)
            _log.info("%s: writes %s, in parts", target, words)
            folder.mkdir()
        if self._join:
            return facts, storage
        name, dataset = folder.name, dataset_of(frames)
        parts = tuple(
            (*span, f"{name}/{self._job.part(span).name}", dataset) for span in self._spans
        )
        return {**facts, "parts": name, "part_files": len(parts)}, replace(storage, parts=parts)

    def fill(self, work: Work, output: Output, quick: Quick, progress: Progress) -> int:
        """Let workers make the parts that are missing; return how many frames were there."""
        from distributed import as_completed

        job, (count, *size), found = self._job, work.ready.frames.shape, dict[Span, State]()
        there = {span for span in self._spans if job.part(span).exists()}
        resumed = done = sum(stop - start for start, stop in there)
        progress(done, count)
        with self._in_one_line():
            # As the result of a task, which another worker can make again, and sent to each once.
            known = self._client.submit(replace, job, pure=False)
            begun = self._client.map(_make, self._spans, job=known, pure=False)
            try:
                for future in as_completed(begun, loop=self._client.loop):
                    span, found[span] = future.result()
                    done += 0 if span in there else span[1] - span[0]
                    progress(done, count)
                self._client.run(_frames.cache_clear)  # so that others may write to it
            finally:
                with contextlib.suppress(Exception):
                    self._client.cancel(begun, force=True)
        for part in map(job.part, self._spans):
            if not part.exists():
                raise OutputError(f"{part}: was made and is gone; the same command makes it again")
        for span in self._spans if self._join else ():
            self._copy(span, dataset_of(work.ready.frames), output)
        sums, batching = Sums(), work.denoiser.batching
        # The first part comes last: its sample is the one that stays.
        for (start, _), state in sorted(found.items(), reverse=True):
            state["quick"][:, 0] += start
            quick.restore(state, size[0] * size[1])
            note, theirs = json.loads(bytes(state["facts"]))
            theirs["empty"] = [start + number for number in theirs["empty"]]
            sums += Sums(**theirs)
            batching.note = batching.note or note
        sums.empty.sort()
        output.sums = sums
        return resumed

    def tidy(self, work: Work) -> None:
        """Remove what an output that is complete does not refer to."""
        own = self._job.folder
        for folder in folders(work.target):
            if self._join if folder == own else work.options.overwrite:
                shutil.rmtree(folder, ignore_errors=True)
        if not self._join:
            for file in own.glob("*.new*"):  # which killed workers have left
                file.unlink()
            _log.info("%s: refers to the parts in %s", work.target, own)

    def _devices(self, job: Job) -> str:
        """Ask every worker what it sees; return the devices that they compute on."""
        with self._in_one_line():
            found = self._client.run(_look, job, on_error="return")
        for worker, said in found.items():
            if isinstance(said, Exception):
                raise EmdnError(
                    f"worker {worker}: {said}; every worker needs emdn {__version__}, and must see "
                    "input and output under these paths"
                )
        return ", ".join(sorted(set(found.values())))

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """Say in one line what of dask fails."""
        try:
            yield
        except EmdnError:
            raise
        except Exception as error:
            name, said = type(error).__name__, " ".join(str(error).split())
            gone = isinstance(error, OSError) or "Cancelled" in name
            raise EmdnError(
                f"{self._name}: {'the scheduler is gone' if gone else 'a worker failed'} ({name}: "
                f"{said}); parts that are complete stay, the same command goes on from there"
            ) from error

    def _copy(self, span: Span, dataset: str, output: Output) -> None:
        """Copy what is missing of a part into the output."""
        start, stop = span
        with h5py.File(self._job.part(span)) as file:
            for first, last in blocks(max(start, output.done), stop, 8):
                some = slice(first - start, last - start)
                sigma = file[dataset + SIGMA][some] if self._job.options.sigma else None
                made = Answer(file[dataset][some], np.zeros(last - first), sigma)
                output.write(first, Part(made.frames), made)


def folders(target: Path) -> list[Path]:
    """List the folders of parts of an output, complete or not."""
    return [*target.absolute().parent.glob(f"{glob.escape(target.name)}.parts-*")]


def _spans(frames: Frames, storage: Storage) -> list[Span]:
    """Cut a stack into blocks, alike for whatever workers."""
    count, *size = frames.shape
    frame = storage.total((1, *size))
    part = np.clip(count * frame / _PARTS, SMALLEST_PART, LARGEST_PART)
    return blocks(0, count, max(1, int(part) // frame))


def _look(job: Job) -> str:
    """On a worker: say on which device it computes; an error says why it cannot do the work."""
    for name, known in stamps(map(Path, job.given)).items():
        if known[:2] != job.given[name][:2]:
            raise EmdnError(f"sees {'another' if known[0] else 'no'} file {name}")
    tempfile.TemporaryFile(dir=job.folder).close()
    session = opened(*job.opening).session
    if (__version__, session.info.sha256) != (job.facts["version"], job.facts["model_sha256"]):
        raise EmdnError(f"has emdn {__version__}, or another model")
    return session.device


@lru_cache(1)
def _frames(source: Path, choice: Choice, selection: str | None, folder: Path) -> Frames:
    """Open an input once in a process, and anew for another run, which has another folder."""
    return open_selected(source, choice, selection)


def _make(span: Span, job: Job) -> tuple[Span, State]:
    """On a worker: make a part, if it is not there, and return what is known of it."""
    part, options, recipe = job.part(span), job.options, job.recipe
    with contextlib.suppress(KeyError, OSError), h5py.File(part) as file:  # or it is damaged
        return span, {name: one[()] for name, one in file[_STATE].items()}
    denoiser, choice = opened(*job.opening), Choice(options.dataset, options.axes)
    frames = _frames(job.source, choice, options.frames, job.folder)
    some = select(frames, f"{span[0]}:{span[1]}")
    quick = Quick(recipe.scale.pixel_gain, recipe.scale.offset, bad=recipe.bad)
    # Two workers may make the same part, if dask has lost sight of one.
    own = job.folder / f"{uuid.uuid4().hex}.new"

    def make(partial: Path) -> writers.Layout:
        return writers.lay_out("hdf5", partial, some, job.facts, job.storage)

    with Output([own], "hdf5", make, "") as output:
        try:
            work = Work(own, "hdf5", options, Prepared(frames, recipe), denoiser, job.facts, {})
            denoise_file.denoise_frames(work, output, quick, lambda done, count: None, slice(*span))
            output.complete({})
        except BaseException:
            output.done = 0  # so that nothing of it stays
            raise
    facts = json.dumps([denoiser.batching.note, asdict(output.sums)]).encode()
    state = {**quick.state(), "facts": np.frombuffer(facts, np.uint8)}
    with h5py.File(own, "r+") as file:
        file.create_group(_STATE).update(state)
    with own.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(own, part)
    return span, state
