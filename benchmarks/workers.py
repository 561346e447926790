"""What do several worker processes gain over one process with as many threads?

    python -m benchmarks.workers FOLDER --minutes 8

Both denoise the same stack in turn, file to file, so that whatever else slows the machine slows
both. Processor time hardly changes with load. The table goes to ``benchmarks/results/workers.md``.
"""

import argparse
import logging
import os
import time
from pathlib import Path

import h5py
import numpy as np

from emdn_deploy import cluster, denoise_file
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.session import usable_cpus

RESULTS = Path(__file__).with_name("results") / "workers.md"
SIDE = 512


def stack(path: Path, frames: int) -> Path:
    """Write counts of a lattice."""
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    scene = 12 + 4 * np.cos(x / 1.7) * np.cos(y / 2.3)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("frames", (frames, SIDE, SIDE), "u2", chunks=(1, SIDE, SIDE))
        for number in range(frames):
            data[number] = chance.poisson(scene)
    return path


def timed(source: Path, elsewhere: cluster.Cluster | None, threads: int) -> tuple[float, float]:
    """Return the seconds of a run, and those of all processors."""

    def busy() -> float:
        theirs = elsewhere._client.run(time.process_time).values() if elsewhere else ()
        return time.process_time() + sum(theirs)

    target = source.with_name("made.h5")
    options = DenoiseOptions(
        output=target, device="cpu", threads=threads, gain=1, offset=0, overwrite=True
    )
    before, began = busy(), time.perf_counter()
    denoise_file.run(source, options, elsewhere=elsewhere)
    seconds = time.perf_counter() - began, busy() - before
    for folder in cluster.folders(target):  # or its parts would be used again
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--part", type=int, default=30, help="frames of a worker's part")
    given = parser.parse_args()
    logging.getLogger("emdn_deploy").setLevel(logging.ERROR)
    cores = usable_cpus()
    source = stack(given.folder / "large.h5", given.frames)
    cluster.SMALLEST_PART = cluster.LARGEST_PART = 4 * SIDE**2 * given.part
    began, rounds = time.perf_counter(), []
    with cluster.connected(None, cores, None, join=False) as workers:
        start_s = time.perf_counter() - began
        timed(source, workers, cores)  # workers open the model
        until = time.monotonic() + 60 * given.minutes
        while len(rounds) < 3 or time.monotonic() < until:
            rounds.append((timed(source, None, cores), timed(source, workers, cores)))
    seconds = np.array(rounds)  # (rounds, one process or many, wall clock and processors)
    one, many = np.median(seconds, axis=0)
    quartiles = np.quantile(seconds[:, 0] / seconds[:, 1], (0.25, 0.5, 0.75), axis=0).T
    gains = " | ".join(f"{middle:.2f} ({low:.2f} to {high:.2f})" for low, middle, high in quartiles)
    text = f"""\
`python -m benchmarks.workers FOLDER --minutes {given.minutes:g} --frames {given.frames} \
--part {given.part}`: {cores} cores, load {os.getloadavg()[0]:.1f} when it ended; the default \
model, frames of {SIDE} x {SIDE}, {len(rounds)} rounds in turn. Read ratios, not seconds, on a \
machine that does other things.

| | seconds | of processors |
|---|---|---|
| one process, {cores} threads | {one[0]:.1f} | {one[1]:.1f} |
| {cores} workers | {many[0]:.1f} | {many[1]:.1f} |
| efficiency: one process over workers (quartiles) | {gains} |
| start of {cores} workers | {start_s:.1f} | |
"""
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
