"""Denoise one file by many machines: dask's workers make a part file of each block of frames.

Scale, corrections and model are chosen once, by the process that was started. A worker opens the
input itself, denoises a block with its neighbours, and renames its part when it is complete. The
output then refers to the parts (an HDF5 virtual dataset), or they are joined into it. Queue,
retries and lost workers are dask's; a run that ends early is continued from the parts.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy import denoise_file, writers
from emdn_deploy.batching import blocks
from emdn_deploy.check.quick import Quick
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoise_file import Progress, Work
from emdn_deploy.denoiser import opened
from emdn_deploy.output import Output, Stamps, Sums, key_of, stamps
from emdn_deploy.preprocess import Part, Prepared, Recipe
from emdn_deploy.readers import Choice, Frames, open_selected
from emdn_deploy.readers.frames import select
from emdn_deploy.session import usable_cpus
from emdn_deploy.stacks import Answer
from emdn_deploy.writers import SIGMA, Provenance, Storage
from emdn_deploy.writers.hdf5 import dataset_of
from emdn_models import __version__
from emdn_models.errors import EmdnError, MissingExtraError, OutputError, install

# Bytes of a part: a thousandth of the output, within these bounds.
SMALLEST_PART, LARGEST_PART, _PARTS = 2**25, 2**28, 1000
# Seconds to wait for a scheduler, and for its first worker.
_PATIENCE = 30
# In a part, what is known of its frames; in the folder of all, how many there are.
_STATE, _COMPLETE = "emdn_part", "complete"
# Run by workers as they start: Ctrl-C in a terminal reaches them too, and is the client's to heed.
_NO_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to denoise any block of a stack.

    ``opening``: see `emdn_deploy.denoiser.opened`. ``given``: size and time of the input's files.
    ``key``: what decides the pixels. ``sha256``: of the model.
    """

    source: Path
    options: DenoiseOptions
    opening: tuple[Any, ...]
    recipe: Recipe
    given: Stamps
    facts: Provenance
    folder: Path
    key: str
    sha256: str

    def part(self, start: int) -> Path:
        """Name the file of the block that begins with a frame."""
        return self.folder / f"{start:09}.h5"

    @property
    def storage(self) -> Storage:
        """Return how a part is stored."""
        return Storage(self.options.dtype, bool(self.options.compress), self.options.sigma)


@contextlib.contextmanager
def connected(
    scheduler: str | None, workers: int | None, threads: int | None, *, join: bool
) -> Iterator["Cluster"]:
    """Reach a scheduler, or start workers on this machine, until the context ends.

    ``scheduler``: address, such as ``tcp://host:8786``; None to start ``workers`` processes.
    ``threads``: of all these together; None for all that are allowed. ``join``: whether parts
    become one plain file. Raises EmdnError if dask is not installed, or no worker is there.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingExtraError(
            f"--scheduler and --workers need dask.distributed; {install('dask')}"
        ) from error
    # What goes wrong is said here, in one line.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        where: Any = scheduler
        if scheduler is None:
            count = workers or 1
            each = max(1, (threads or usable_cpus()) // count)
            where = stack.enter_context(
                LocalCluster(
                    n_workers=count, threads_per_worker=each, memory_limit=0,
                    dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
                    preload=[_NO_CTRL_C],
                )
            )  # fmt: skip
        name = scheduler or "the workers"
        try:
            client = stack.enter_context(Client(where, timeout=_PATIENCE, set_as_default=False))
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

    def mends(self, target: Path) -> bool:
        """Say whether an output has lost one of its parts, so that it may be replaced."""
        marks = [one / _COMPLETE for one in (folders(target) if target.exists() else [])]
        return any(
            mark.exists() and len([*mark.parent.glob("*.h5")]) < int(mark.read_text())
            for mark in marks
        )

    def plan(self, work: Work, storage: Storage) -> tuple[Provenance, Storage]:
        """Look whether all workers can do the work; say what to record, and how pixels are stored.

        Raises EmdnError if a worker cannot, or the output cannot refer to parts.
        """
        frames, target, options = work.ready.frames, work.target, work.options
        last = work.module == "hdf5" or frames.order.endswith("yx")
        if not self._join and not (work.module in writers.INSIDE and last):
            raise OutputError(
                f"{target}: cannot refer to parts (frames {frames.order}); add --join, or take "
                "--to hspy"
            )
        digest = hashlib.sha256(key_of(work.facts, work.given).encode()).hexdigest()
        folder = target.with_name(f"{target.name}.parts-{digest[:8]}").absolute()
        model, device, _, precision = work.denoiser.opening
        job = Job(
            Path(os.path.abspath(frames.path)), options, (model, device, 1, precision),
            work.ready.recipe, {os.path.abspath(name): one for name, one in work.given.items()},
            work.facts, folder, digest, work.denoiser.session.info.sha256,
        )  # fmt: skip
        for other in folders(target):
            if other != folder and not target.exists() and not options.overwrite:
                raise OutputError(
                    f"{other}: is an interrupted run of another command, or of another input; "
                    "repeat that to continue it, or add --overwrite to begin anew"
                )
        if not folder.exists():
            words = writers.check_room(target, frames.shape, storage)
            _log.info("%s: writes %s, in parts", target, words)
        folder.mkdir(exist_ok=True)
        try:
            devices = self._look(job)
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless there are parts in it
            raise
        self._job = replace(job, key=f"{digest} {devices}")
        if self._join:
            return {**work.facts, "device": devices}, storage
        parts = tuple(
            (*span, f"{folder.name}/{job.part(span[0]).name}", dataset_of(frames))
            for span in _spans(job, frames.shape)
        )
        facts = {**work.facts, "device": devices, "parts": folder.name}
        return facts, replace(storage, parts=parts)

    def fill(self, work: Work, output: Output, quick: Quick, progress: Progress) -> int:
        """Let workers make the parts that are missing; return how many frames were there."""
        job, frames = self._job, work.ready.frames
        spans = _spans(job, frames.shape)
        found = {span: state for span in spans if (state := _load(job, *span))}
        resumed = done = sum(stop - start for start, stop in found)
        if resumed:
            _log.info("%s: %d of %d parts are there", job.folder, len(found), len(spans))
        progress(done, frames.shape[0])
        for span, state in self._made(job, [span for span in spans if span not in found]):
            found[span], done = state, done + span[1] - span[0]
            progress(done, frames.shape[0])
        self._asked(lambda: self._client.run(_frames.cache_clear))  # so that others may write to it
        if lost := set(spans) - {span for span in spans if job.part(span[0]).is_file()}:
            raise OutputError(
                f"{job.part(min(lost)[0])}: was made and is gone; the same command makes it again"
            )
        if self._join:
            self._joined(frames, spans, output)
        sums = Sums()
        # The first part comes last: its sample is the one that stays.
        for (start, _), state in sorted(found.items(), reverse=True):
            state["quick"][:, 0] += start
            quick.restore(state, frames.shape[1] * frames.shape[2])
            work.denoiser.batching.note = work.denoiser.batching.note or str(state["note"])
        for (start, _), state in sorted(found.items()):
            sums.include(Sums(**json.loads(str(state["sums"]))), start)
        vars(output.sums).update(vars(sums))
        return resumed

    def tidy(self, work: Work) -> None:
        """Remove what an output that is complete does not refer to."""
        for folder in folders(work.target):
            if self._join or folder != self._job.folder:
                shutil.rmtree(folder, ignore_errors=True)
        if self._join:
            return
        spans = _spans(self._job, work.ready.frames.shape)
        known = {self._job.part(start) for start, _ in spans}
        for file in self._job.folder.iterdir():  # that killed workers have left
            if file not in known:
                file.unlink()
        (self._job.folder / _COMPLETE).write_text(str(len(spans)))
        _log.info("%s: refers to the parts in %s", work.target, self._job.folder)

    def _look(self, job: Job) -> str:
        """Ask every worker what it sees; return the devices that they compute on."""
        found = self._asked(lambda: self._client.run(_look, job, on_error="return"))
        wrong = [(worker, said) for worker, said in found.items() if isinstance(said, Exception)]
        if wrong:
            worker, said = wrong[0]
            what = said if isinstance(said, EmdnError) else f"worker {worker} fails ({said})"
            raise EmdnError(f"{what} ({len(wrong)} of {len(found)} workers)")
        devices = ", ".join(sorted(set(found.values())))
        if "," in devices:
            _log.warning("warning: workers compute on %s: last digits may differ", devices)
        return devices

    def _made(
        self, job: Job, spans: list[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        """Yield the blocks that workers have finished, and what is known of each."""
        from distributed import as_completed

        if not spans:
            return
        # As the result of a task, which another worker can make again, and sent to each once.
        known = self._client.submit(replace, job, pure=False)
        begun = {self._client.submit(_make, known, *span, pure=False): span for span in spans}
        try:
            for future in as_completed(list(begun), loop=self._client.loop):
                state = self._asked(future.result)
                span = begun.pop(future)
                yield span, state
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(list(begun), force=True)

    def _asked(self, what: Callable[[], Any]) -> Any:
        """Call something of dask, and say in one line what of it fails."""
        try:
            return what()
        except EmdnError:
            raise
        except Exception as error:
            name = type(error).__name__
            gone = isinstance(error, OSError) or "Cancelled" in name
            said = " ".join(str(error).split())
            words = f"{'the scheduler is gone' if gone else 'a worker failed'} ({name}: {said})"
            raise EmdnError(
                f"{self._name}: {words}; parts that are complete stay, the same command goes on "
                "from there"
            ) from error

    def _joined(self, frames: Frames, spans: list[tuple[int, int]], output: Output) -> None:
        """Copy the parts into the output."""
        job, dataset = self._job, dataset_of(frames)
        for start, stop in spans:
            with h5py.File(job.part(start)) as file:
                for first, last in blocks(max(start, output.done), stop, 8):
                    some = slice(first - start, last - start)
                    sigma = file[dataset + SIGMA][some] if job.options.sigma else None
                    made = Answer(file[dataset][some], np.zeros(last - first), sigma)
                    output.write(first, Part(made.frames), made)


def _spans(job: Job, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Cut a stack (N, H, W) into blocks, alike for whatever workers."""
    frame = job.storage.total((1, *shape[1:]))
    part = np.clip(shape[0] * frame / _PARTS, SMALLEST_PART, LARGEST_PART)
    return blocks(0, shape[0], max(1, int(part) // frame))


def folders(target: Path) -> list[Path]:
    """List the folders of parts of an output, complete or not."""
    start = f"{target.name}.parts-"
    return sorted(one for one in target.absolute().parent.iterdir() if one.name.startswith(start))


def _look(job: Job) -> str:
    """On a worker: say on which device it computes; EmdnError says why it cannot do the work."""
    _check_seen(job)
    here = socket.gethostname()
    probe = job.folder / f"{uuid.uuid4().hex}.probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EmdnError(
            f"{job.folder}: a worker on {here} cannot write there ({error.strerror}); all must see "
            "the output under this path"
        ) from error
    session = opened(*job.opening).session
    if (__version__, session.info.sha256) != (job.facts["version"], job.sha256):
        raise EmdnError(
            f"a worker on {here} has emdn {__version__}, or another model; install "
            f"{job.facts['version']} there"
        )
    return session.device


def _check_seen(job: Job) -> None:
    """Refuse an input that is not the client's here."""
    for name, known in stamps(Path(name) for name in job.given).items():
        if known[:2] != job.given[name][:2]:
            how = "another file of this name" if known[0] else "no such file"
            raise EmdnError(
                f"{name}: a worker on {socket.gethostname()} sees {how}; put it where all workers "
                "see it under this path"
            )


@lru_cache(1)
def _frames(source: Path, choice: Choice, selection: str | None, key: str) -> Frames:
    """Open an input once in a process: of some, frames are first copied to a scratch file."""
    return open_selected(source, choice, selection)


def _make(job: Job, start: int, stop: int) -> dict[str, Any]:
    """On a worker: denoise a block into its part, and return what is known of it."""
    _check_seen(job)
    denoiser, options, recipe = opened(*job.opening), job.options, job.recipe
    choice = Choice(options.dataset, options.axes)
    whole = Prepared(_frames(job.source, choice, options.frames, job.key), recipe)
    some = select(whole.frames, f"{start}:{stop}")
    quick = Quick(recipe.scale.pixel_gain, recipe.scale.offset, bad=recipe.bad)
    # Two workers may make the same part, if dask has lost sight of one.
    own = job.folder / f"{start:09}-{uuid.uuid4().hex}.h5"
    with Output(
        [own], "hdf5",
        lambda partial: writers.lay_out("hdf5", partial, some, job.facts, job.storage),
        json.dumps({"key": job.key}),
    ) as output:  # fmt: skip
        try:
            given = stamps(Path(name) for name in job.given)
            work = Work(own, "hdf5", options, whole, denoiser, job.facts, given)
            denoise_file.denoise_frames(
                work, output, quick, lambda done, count: None, slice(start, stop)
            )
            output.complete({}, given)
        except BaseException:
            output.done = 0  # so that nothing of it stays
            raise
    state: dict[str, NDArray[Any] | str] = {
        **quick.state(), "note": denoiser.batching.note, "sums": json.dumps(asdict(output.sums)),
    }  # fmt: skip
    with h5py.File(own, "r+") as file:
        group = file.create_group(_STATE)
        for name, value in state.items():
            group[name] = value
        group.attrs.update({"key": job.key, "stop": stop})
    with own.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(own, job.part(start))
    return state


def _load(job: Job, start: int, stop: int) -> dict[str, Any]:
    """Return what is known of a part; nothing if it is not there, or not of this job."""
    try:
        with h5py.File(job.part(start)) as file:
            group = file[_STATE]
            if (group.attrs["key"], group.attrs["stop"]) != (job.key, stop):
                return {}
            text = ("note", "sums")
            return {
                name: group[name].asstr()[()] if name in text else group[name][()] for name in group
            }
    except (KeyError, OSError):
        return {}
