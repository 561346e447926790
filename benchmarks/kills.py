"""What is lost when ``denoise`` is killed at any moment, or its disk is full?

    python benchmarks/kills.py --minutes 5

Runs in every form of output are killed some time after the n-th file that they open, rename or
remove, up to three times in a row; or no file may grow beyond a random size. Then the command is
repeated. Lost is: an input that has changed, an output under its final name that is incomplete, a
run that ends by a traceback or another signal, or a repeated command that does not give the
frames of an undisturbed one, or leaves anything behind. The table goes to
``benchmarks/results/robustness.md``.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import pkgutil
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np

import emdn_deploy
from emdn_deploy import cli, output
from emdn_deploy.readers import open_frames

RESULTS = Path(__file__).with_name("results")
FOLLOWED = "HDF5, followed"
FORMS = {
    "HDF5, mirrored": "out.h5",
    "HDF5, compressed": "out.h5 --compress",
    "HDF5 with sigma": "out.h5 --sigma",
    "hspy": "out.hspy --frames :",
    "hspy, uint16": "out.hspy --frames : --dtype uint16",
    "TIFF": "out.tif",
    "TIFF, compressed": "out.tif --compress",
    "TIFF with sigma": "out.tif --sigma",
    "TIFF with sigma, compressed": "out.tif --sigma --compress",
    "MRC": "out.mrc",
    "MRC with sigma": "out.mrc --sigma",
    "npy": "out.npy",
    "npy with sigma": "out.npy --sigma",
    "folder to TIFF": "out.tif",
    FOLLOWED: "out.h5 --idle 0 --poll 0.01",
}
HANGS_S = 300  # a run of a second
ENDED = (-signal.SIGKILL, -signal.SIGALRM)
DONE = "exists already; add"
FULL = ("cannot be written", "No space left", "make room")
# What every run would load, in the process that they are forked from.
LOADED = [one.name for one in pkgutil.walk_packages(emdn_deploy.__path__, "emdn_deploy.")]
LOADED = ["benchmarks.kills", "onnxruntime", *(one for one in LOADED if "__main__" not in one)]

Kill = tuple[int, float]
"""The number of a file operation, 0 for the start, and the seconds after it."""


def work(command: list[str], out: str, told: Connection, kill: Kill | None, limit: int) -> None:
    """Run the command in this process, which a timer ends, or with files of so many bytes."""
    output.SYNC_SECONDS = 0.005
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = os.fdopen(told.fileno(), "w", closefd=False)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    operations = []

    def arm() -> None:
        if kill and len(operations) == kill[0]:
            if not kill[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            signal.setitimer(signal.ITIMER_REAL, kill[1])

    def count(name: str, arguments: tuple[object, ...]) -> None:
        if name in ("open", "os.rename", "os.remove") and out in str(arguments[0]):
            operations.append(f"{name} {Path(str(arguments[0])).name}")
            arm()

    sys.addaudithook(count)
    began, status = time.perf_counter(), 2
    arm()
    try:
        cli.main(command)
    except SystemExit as end:
        status = int(end.code or 0)
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, operations]), file=sys.stderr, flush=True)
    maps = Path("/proc/self/maps")
    words = maps.read_text().split() if maps.exists() else []
    for path in {word for word in words if "/libhdf5-" in word or "/libhdf5.so" in word}:
        ctypes.CDLL(path).H5close()  # as a program ends: HDF5 writes what it has left
    sys.exit(status)


@dataclass
class Tally:
    """How often something was tried, how often it was disturbed, and what was lost."""

    runs: int = 0
    disturbed: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count in another."""
        self.runs, self.disturbed = self.runs + other.runs, self.disturbed + other.disturbed
        self.lost += other.lost


class Case:
    """A form of output, in a folder of its own, and an undisturbed run of it."""

    def __init__(self, form: str, folder: Path, model: str, movie: np.ndarray) -> None:
        self.form, self.folder = form, folder
        self.input = folder / "in" / ("frames" if form.startswith("folder") else "movie.h5")
        self.out = folder / "out"
        name, *options = FORMS[form].split()
        self.target = self.out / name
        verb = "watch" if form == FOLLOWED else "denoise"
        self.command = [verb, str(self.input), "-o", str(self.target), *options]
        self.command += ["--model", model, "--device", "cpu", "--threads", "1"]
        self.command += [] if form == FOLLOWED else ["--batch", "2"]
        self.input.parent.mkdir(parents=True)
        self.out.mkdir()
        if self.input.suffix:
            size = movie.shape[1:]
            with h5py.File(self.input, "w", libver="latest") as file:
                file.create_dataset("frames", data=movie, chunks=(1, *size), maxshape=(None, *size))
        else:
            self.input.mkdir()
            for number, frame in enumerate(movie):
                np.save(self.input / f"f_{number}.npy", frame)
        self.before = self.input_bytes()
        status, words = self.run()
        if status:
            raise SystemExit(f"{form}: an undisturbed run fails: {words or status}")
        self.seconds, self.events = json.loads(words.splitlines()[-1])
        self.wanted = self.outputs()
        self.size = max(file.stat().st_size for file in self.out.iterdir())
        self.clear()

    def input_bytes(self) -> list[bytes]:
        """Return the content of the input."""
        files = self.input.parent.rglob("*.*")
        return [file.read_bytes() for file in sorted(files) if file.is_file()]

    def outputs(self) -> dict[str, list[np.ndarray]]:
        """Return the stacks of every file of frames there, by name; [] for other files."""
        found: dict[str, list[np.ndarray]] = {}
        for file in self.out.iterdir():
            found[file.name] = []
            if file.suffix in (".h5", ".hspy"):
                with h5py.File(file) as opened:
                    names: list[str] = []
                    opened.visit(names.append)
                    items = [opened[name] for name in names]
                    found[file.name] = [one[()] for one in items if getattr(one, "ndim", 0) == 3]
            elif file.suffix == self.target.suffix:
                with open_frames(file) as frames:
                    found[file.name] = [frames.read(0, frames.shape[0])]
        return found

    def clear(self) -> None:
        """Remove the outputs."""
        for file in self.out.iterdir():
            file.unlink()

    def run(self, kill: Kill | None = None, limit: int = 0) -> tuple[int, str]:
        """Run the command in a process of its own; return exit status and words."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LOADED)
        mine, its = context.Pipe()
        process = context.Process(target=work, args=(self.command, str(self.out), its, kill, limit))
        process.start()
        its.close()
        try:
            process.join(HANGS_S)
        finally:
            process.kill()
            process.join()
        words = b"".join(iter(lambda: os.read(mine.fileno(), 2**16), b""))
        mine.close()
        return process.exitcode or 0, words.decode(errors="replace")

    def tried(self, disturbances: Sequence[tuple[Kill | None, int]]) -> Tally:
        """Kill the command or limit its files, in turn; then repeat it, and remove what it made."""
        tally, lost = Tally(), list[str]()
        for kill, limit in (*disturbances, (None, 0)):
            where, last = f"{self.form}, kill {kill}, limit {limit}:", not (kill or limit)
            status, words = self.run(kill, limit)
            tally.runs += 1
            tally.disturbed += status in ENDED or (limit > 0 and status == 1)
            named = DONE in words or (limit and any(one in words for one in FULL))
            if not (status == 0 or (kill and status in ENDED) or (status == 1 and named)):
                lost.append(f"{where} {status} {words}")
            if self.input_bytes() != self.before:
                lost.append(f"{where} the input has changed")
            found = self.outputs()
            for name in self.wanted if last else {self.target.name} & set(found):
                stacks, wanted = found.get(name, []), self.wanted[name]
                if len(stacks) != len(wanted) or not all(map(np.array_equal, stacks, wanted)):
                    lost.append(f"{where} {name} is not complete")
        if left := set(found) - set(self.wanted):
            lost.append(f"{self.form}: left behind: {left}")
        tally.lost = lost
        self.clear()
        return tally


def kills(case: Case, chance: random.Random) -> Iterator[Kill]:
    """Choose one to three times at which to kill: at or soon after a file operation, or any."""
    for _ in range(chance.randint(1, 3)):
        event = chance.randint(1, len(case.events))
        soon = 10 ** chance.uniform(-4.5, -2)
        yield chance.choice([(event, 0.0), (event, soon), (0, case.seconds * chance.random())])


def movie(frames: int, side: int) -> np.ndarray:
    """Return counts, (frames, side, side)."""
    y, x = np.mgrid[:side, :side]
    rng = np.random.default_rng(0)
    return rng.poisson(20 + 8 * np.sin(x / 2) * np.sin(y / 2), (frames, side, side)).astype("u2")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="mcnn")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--side", type=int, default=96)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    every = {(form, what): Tally() for what in ("full disk", "killed") for form in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        counts = movie(given.frames, given.side)
        cases = [Case(form, Path(folder, form), given.model, counts) for form in FORMS]
        stop = time.monotonic() + 60 * given.minutes
        while time.monotonic() < stop:
            for case in cases:
                times = [(kill, 0) for kill in kills(case, chance)]
                every[case.form, "killed"].add(case.tried(times))
                limit = max(1, int(case.size * chance.uniform(0, 1.2)))
                every[case.form, "full disk"].add(case.tried([(None, limit)]))
    for what in ("killed", "full disk"):
        total = Tally()
        for (_, by), tally in list(every.items()):
            if by == what:
                total.add(tally)
        every["**all**", what] = total
    rows = ["| output | disturbed by | runs | disturbed | lost |", "|---|---|---|---|---|"]
    for (form, what), one in every.items():
        rows.append(f"| {form} | {what} | {one.runs} | {one.disturbed} | {len(one.lost)} |")
    command = f"`python benchmarks/kills.py --minutes {given.minutes:g} --seed {given.seed}`"
    size = f"{given.frames} frames of {given.side} x {given.side}, {given.model}"
    text = f"{command} ({size})\n\n" + "\n".join(rows) + "\n"
    (RESULTS / "robustness.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit("\n".join(words for one in every.values() for words in one.lost) or None)


if __name__ == "__main__":
    main()
