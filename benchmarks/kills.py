"""What is lost when `denoise` is killed at random, and when its disk is full?

`python benchmarks/kills.py --minutes 5` kills runs in every form of output, at random moments, at
the n-th file that is opened, renamed or removed, and while the record is completed, up to three
times in a row, and repeats the command. Then it fills disks: a tmpfs of random size where
it may mount one, otherwise a limit on the size of a file. Lost is: an input that has changed, an
output under its final name that is incomplete, a run that ends by a signal or a traceback, or a
repeated command that does not end with the same frames as an undisturbed one, or leaves anything
behind. The table goes to
`benchmarks/results/robustness.md`.
"""

import argparse
import contextlib
import ctypes
import functools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emdn_deploy import job, output, watch
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import Choice, open_frames
from emdn_deploy.writers import hdf5, mirror, mrc, npy, tiff
from emdn_models.errors import EmdnError

RESULTS = Path(__file__).with_name("results")
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "HDF5, mirrored": ("out.h5", {}),
    "HDF5, compressed": ("out.h5", {"compress": True}),
    "HDF5 with sigma": ("out.h5", {"sigma": True}),
    "hspy": ("out.hspy", {"frames": ":"}),
    "hspy, uint16": ("out.hspy", {"frames": ":", "dtype": "uint16"}),
    "TIFF": ("out.tif", {}),
    "TIFF, compressed": ("out.tif", {"compress": True}),
    "TIFF with sigma": ("out.tif", {"sigma": True}),
    "TIFF with sigma, compressed": ("out.tif", {"sigma": True, "compress": True}),
    "MRC": ("out.mrc", {}),
    "MRC with sigma": ("out.mrc", {"sigma": True}),
    "npy": ("out.npy", {}),
    "npy with sigma": ("out.npy", {"sigma": True}),
    "folder to TIFF": ("out.tif", {}),
}
HANGS_S = 300  # a run of a second
ENDED = (-signal.SIGKILL, -signal.SIGALRM)
FOLLOWED = "HDF5, followed"
# What every run would load, in the process that they are forked from.
_LOADED = [
    "benchmarks.kills", "onnxruntime", "h5py", "mrcfile", "tifffile",
    *(f"emdn_deploy.readers.{name}" for name in ("hdf5", "npy", "mrc", "tiff")),
    *(f"emdn_deploy.writers.{name}" for name in ("mirror", "hdf5", "npy", "mrc", "tiff")),
]  # fmt: skip


@dataclass
class Tally:
    """How often something was tried, and what was lost."""

    runs: int = 0
    ended: int = 0
    lost: list[str] = field(default_factory=list)

    def check(self, fine: bool, words: str) -> None:
        """Note a loss."""
        if not fine:
            self.lost.append(words)


@dataclass(frozen=True)
class Case:
    """A form of output, in a folder of its own."""

    form: str
    folder: Path
    out: Path
    model: str

    @property
    def source(self) -> Path:
        """Return the input."""
        return self.folder / ("frames" if self.form.startswith("folder") else "movie.h5")

    @property
    def target(self) -> Path:
        """Return the output."""
        return self.out / FORMS.get(self.form, ("out.h5", {}))[0]

    @property
    def options(self) -> DenoiseOptions:
        """Return what the command is given."""
        more = FORMS.get(self.form, ("", {}))[1]
        return DenoiseOptions(
            output=self.target, model=self.model, device="cpu", threads=1, batch=2, **more
        )

    def prepare(self, movie: np.ndarray) -> None:
        """Write the input."""
        self.folder.mkdir(exist_ok=True)
        self.out.mkdir(exist_ok=True)
        if self.source.suffix:
            with h5py.File(self.source, "w", libver="latest") as file:
                file.create_dataset(
                    "frames", data=movie, chunks=(1, *movie.shape[1:]),
                    maxshape=(None, *movie.shape[1:]),
                )  # fmt: skip
            return
        self.source.mkdir(exist_ok=True)
        for number, frame in enumerate(movie):
            np.save(self.source / f"f_{number}.npy", frame)

    def input(self) -> list[bytes]:
        """Return the content of the input."""
        files = [self.source] if self.source.suffix else sorted(self.source.iterdir())
        return [file.read_bytes() for file in files]

    def pixels(self) -> list[np.ndarray] | None:
        """Return the frames of the output, and their sigma; None where there is no output."""
        if not self.target.exists():
            return None
        with open_frames(self.target) as frames:
            found = [frames.read(0, frames.shape[0])]
            dataset = frames.dataset
        if self.options.sigma:
            beside = self.target.with_name(f"{self.target.stem}_sigma{self.target.suffix}")
            place = (beside, Choice()) if beside.exists() else (
                self.target, Choice(dataset=f"{dataset}_sigma")
            )  # fmt: skip
            with open_frames(*place) as frames:
                found.append(frames.read(0, frames.shape[0]))
        return found


def work(case: Case, told: Connection, event: int, limit: int) -> None:
    """Run the command once; in a process of its own.

    Parameters
    ----------
    event
        The number of the file operation at which it kills itself; 0 for none; below, so many
        microseconds after it has begun to complete the record in the file.
    limit
        Bytes that a file may have; 0 for any number.
    """
    output.SYNC_SECONDS = 0.005
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    operations: list[str] = []

    def count_down(name: str, arguments: tuple[Any, ...]) -> None:
        if name in ("open", "os.rename", "os.remove") and str(case.out) in str(arguments[0]):
            operations.append(f"{name} {Path(arguments[0]).name}")
            if len(operations) == event:
                os.kill(os.getpid(), 9)

    sys.addaudithook(count_down)
    for module in (mirror, hdf5, tiff, mrc, npy, watch) if event < 0 else ():
        vars(module)["finish"] = functools.partial(dying, module.finish, -event * 1e-6)
    told.send("go")
    began = time.perf_counter()
    try:
        if case.form == FOLLOWED:
            for _ in watch.dataset(case.source, case.target, case.options, 0.0, 0.01):
                pass
        else:
            job.run(case.source, case.options)
    except EmdnError as error:
        told.send(str(error))
        end_hdf5()
        sys.exit(1)
    except BaseException:
        told.send(traceback.format_exc())
        sys.exit(2)
    seconds = time.perf_counter() - began
    end_hdf5()
    told.send(" / ".join([str(seconds), *operations]))


def dying(finish: Callable[..., None], after_s: float, *arguments: Any) -> None:
    """Complete a record, and end on the way."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    finish(*arguments)


def end_hdf5() -> None:
    """Let HDF5 write what it has left, as it does at the end of a program, and crash if it does."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    found = {line.split()[-1] for line in lines if "/libhdf5-" in line or "/libhdf5.so" in line}
    for path in found:
        ctypes.CDLL(path).H5close()


def start(
    case: Case, event: int = 0, limit: int = 0, after_s: float | None = None
) -> tuple[int, str]:
    """Run the command, kill it after a time if asked to, and return exit status and words."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    mine, its = context.Pipe()
    process = context.Process(target=work, args=(case, its, event, limit))
    process.start()
    its.close()
    words = ""
    try:
        mine.recv()
        if after_s is not None:
            time.sleep(after_s)
            process.kill()
        with contextlib.suppress(EOFError):
            words = str(mine.recv())
    finally:
        if after_s is None and sys.exc_info()[0] is None:
            process.join(HANGS_S)
        process.kill()
        process.join()
        mine.close()
    return process.exitcode or 0, words


def same(one: list[np.ndarray] | None, other: list[np.ndarray] | None) -> bool:
    """Say whether two outputs are equal in every pixel."""
    return bool(one and other) and all(map(np.array_equal, one or [], other or []))


def left_behind(case: Case, files: set[str]) -> set[str]:
    """Return what lies beside the output that an undisturbed run does not leave."""
    return {file.name for file in case.out.iterdir()} - files


@dataclass
class Reference:
    """An undisturbed run; ``events`` are the file operations that it can be killed at."""

    pixels: list[np.ndarray] | None
    files: set[str]
    size: int
    seconds: float
    events: list[str]

    @classmethod
    def of(cls, case: Case) -> "Reference":
        """Run the command."""
        status, words = start(case)
        if status:
            raise SystemExit(f"{case.form}: an undisturbed run fails: {words or status}")
        files = {file.name for file in case.out.iterdir()}
        size = sum(file.stat().st_size for file in case.out.iterdir())
        seconds, *operations = words.split(" / ")
        return cls(case.pixels(), files, size, float(seconds), operations)


def moments(wanted: Reference, chance: random.Random) -> list[tuple[int, float | None]]:
    """Choose one to three times at which to kill: file operations, seconds, or in the record."""
    return [
        chance.choice(
            [
                (chance.randint(1, len(wanted.events)), None),
                (0, wanted.seconds * chance.random()),
                (-int(10 ** chance.uniform(1.5, 4)), None),
            ]
        )
        for _ in range(chance.randint(1, 3))
    ]


def killed(
    case: Case, wanted: Reference, kills: list[tuple[int, float | None]], tally: Tally
) -> None:
    """Kill the command several times in a row, then let it end."""
    before = case.input()
    where = f"{case.form}:"
    for event, after_s in kills:
        status, words = start(case, event, after_s=after_s)
        tally.runs += 1
        tally.ended += status in ENDED
        where += f" event {event}" if event else f" {after_s:.4f} s"
        tally.check(
            status in (0, *ENDED) or "exists already; add" in words, f"{where}: {status} {words}"
        )
        tally.check(case.input() == before, f"{where}: the input has changed")
        there = case.pixels()
        tally.check(there is None or same(there, wanted.pixels), f"{where}: incomplete")
    _completed(case, wanted, tally, where)
    tally.check(case.input() == before, f"{where}: the input has changed")


def filled(case: Case, wanted: Reference, size: int, tally: Tally) -> None:
    """Run the command on a disk of so many bytes, then make room and repeat it."""
    before = case.input()
    where = f"{case.form}: room for {size} of {wanted.size} bytes"
    with small_disk(case.out, size) as grow:
        status, words = start(case, limit=0 if grow else max(1, size))
        tally.runs += 1
        tally.ended += status == 1
        named = (
            not status
            or "cannot be written" in words
            or "No space left" in words
            or "make room" in words
        )
        tally.check(status in (0, 1) and named, f"{where}: {status} {words}")
        there = case.pixels()
        tally.check(there is None or same(there, wanted.pixels), f"{where}: incomplete")
        if grow:
            grow()
        _completed(case, wanted, tally, where)
        tally.check(case.input() == before, f"{where}: the input has changed")


def _completed(case: Case, wanted: Reference, tally: Tally, where: str) -> None:
    status, words = start(case)
    tally.runs += 1
    tally.check(
        not status or "exists already; add" in words, f"{where}: repeated: {status} {words}"
    )
    tally.check(same(case.pixels(), wanted.pixels), f"{where}: the frames differ")
    tally.check(not (left := left_behind(case, wanted.files)), f"{where}: left behind: {left}")


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """Mount a disk of a size, and give what enlarges it; None where that is not allowed."""
    pages = max(8192, size // 4096 * 4096)  # a folder takes one, too
    command = ["mount", "-t", "tmpfs", "-o", f"size={pages}", "tmpfs", str(place)]
    mounted = not subprocess.run(command, capture_output=True).returncode

    def grow() -> None:
        subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)

    try:
        yield grow if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def movie(frames: int, side: int) -> np.ndarray:
    """Return counts, (frames, side, side)."""
    y, x = np.mgrid[:side, :side]
    rng = np.random.default_rng(0)
    return rng.poisson(20 + 8 * np.sin(x / 2) * np.sin(y / 2), (frames, side, side)).astype("u2")


def trials(
    folder: Path, forms: list[str], model: str, chance: random.Random, frames: int, side: int
) -> Iterator[tuple[str, str, Callable[[Tally], None]]]:
    """Give trials without end: what is done to which form, and a function that does it."""
    counts, wanted = movie(frames, side), {}
    for form in forms:
        case = Case(form, folder / f"{form} whole", folder / f"{form} whole out", model)
        case.prepare(counts)
        wanted[form] = Reference.of(case)
    number = 0
    while True:
        for form in forms:
            for what in ("killed", "full disk"):
                number += 1
                own = Case(form, folder / f"{number}", folder / f"{number} out", model)

                def trial(
                    tally: Tally,
                    own: Case = own,
                    form: str = form,
                    what: str = what,
                ) -> None:
                    own.prepare(counts)
                    if what == "killed":
                        killed(own, wanted[form], moments(wanted[form], chance), tally)
                    else:
                        most = wanted[form].size + 2**18
                        filled(own, wanted[form], int(most * chance.uniform(0, 1.2)), tally)
                    shutil.rmtree(own.folder)
                    shutil.rmtree(own.out)

                yield what, form, trial


def table(tallies: dict[tuple[str, str], Tally]) -> str:
    """Return Markdown."""
    rows = ["| output | disturbed by | runs | disturbed | lost |", "|---|---|---|---|---|"]
    total = {what: Tally() for what in ("killed", "full disk")}
    for (what, form), one in sorted(tallies.items()):
        rows.append(f"| {form} | {what} | {one.runs} | {one.ended} | {len(one.lost)} |")
        total[what].runs += one.runs
        total[what].ended += one.ended
        total[what].lost += one.lost
    for what, one in total.items():
        rows.append(f"| **all** | {what} | {one.runs} | {one.ended} | {len(one.lost)} |")
    return "\n".join(rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="mcnn")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--side", type=int, default=96)
    given = parser.parse_args()
    tallies: dict[tuple[str, str], Tally] = {}
    stop = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        chance = random.Random(given.seed)
        forms = [*FORMS, FOLLOWED]
        for what, form, trial in trials(
            Path(folder), forms, given.model, chance, given.frames, given.side
        ):
            if time.monotonic() > stop:
                break
            tally = tallies.setdefault((what, form), Tally())
            known = len(tally.lost)
            trial(tally)
            for lost in tally.lost[known:]:
                print(f"LOST {lost}", flush=True)
    text = table(tallies)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "robustness.md").write_text(
        f"`python benchmarks/kills.py --minutes {given.minutes:g} --seed {given.seed}` "
        f"({given.frames} frames of {given.side} x {given.side}, {given.model})\n\n{text}\n"
    )
    print(text)
    sys.exit(any(tally.lost for tally in tallies.values()))


if __name__ == "__main__":
    main()
