"""What do many workers gain over one process, and how far would they go?

    python benchmarks/workers.py FOLDER --minutes 8

Rounds of one process with N threads and of N workers take turns on the same stack, file to file,
so that whatever else slows the machine slows both; processor time hardly changes with load. The
overhead of a part is that of a stack in many small parts over one in few. Both feed a simulation
of a cluster. The table goes to ``benchmarks/results/workers.md``.
"""

import argparse
import heapq
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy import cluster, denoise_file
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.session import usable_cpus

RESULTS = Path(__file__).with_name("results") / "workers.md"
SIDE = 512
# A night in situ: a million frames of 1024 x 1024, 16 bits in and 32 out.
FRAMES, PIXELS, BYTES = 1_000_000, 2**20, 6
PART = cluster.LARGEST_PART


def stack(path: Path, frames: int, side: int) -> Path:
    """Write counts of a lattice."""
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    scene = 12 + 4 * np.cos(x / 1.7) * np.cos(y / 2.3)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("frames", (frames, side, side), "u2", chunks=(1, side, side))
        for number in range(frames):
            data[number] = chance.poisson(scene)
    return path


def timed(
    source: Path, part: int, elsewhere: cluster.Cluster | None, model: str, threads: int
) -> tuple[float, float]:
    """Return seconds, and those of all processors, of a run with parts of so many frames."""

    def busy() -> float:
        theirs = elsewhere._client.run(time.process_time).values() if elsewhere else ()
        return time.process_time() + sum(theirs)

    with h5py.File(source) as file:
        size = 4 * file["frames"][0].size * part
    cluster.SMALLEST_PART = cluster.LARGEST_PART = size
    options = DenoiseOptions(
        output=source.with_name("made.h5"), model=model, device="cpu", threads=threads,
        gain=1, offset=0, overwrite=True,
    )  # fmt: skip
    before, began = busy(), time.perf_counter()
    denoise_file.run(source, options, elsewhere=elsewhere)
    seconds = time.perf_counter() - began, busy() - before
    for folder in cluster.folders(source.with_name("made.h5")):  # or they would be used again
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return seconds


Timed = Callable[[], tuple[float, float]]


def rounds(first: Timed, second: Timed, until: float) -> NDArray[np.float64]:
    """Return `timed` of both, (rounds, 2, 2), as many as there is time for, three at least."""
    found: list[tuple[Any, Any]] = []
    while len(found) < 3 or time.monotonic() < until:
        found.append((first(), second()) if len(found) % 2 else (second(), first())[::-1])
    return np.array(found)


def simulated(workers: int, cores: int, bandwidth: float, frame_s: float, part_s: float) -> float:
    """Return the hours of a night's frames: compute on each worker, one file system for all.

    ``bandwidth``: bytes/s. ``frame_s``: of a core, per frame. ``part_s``: overhead of a part.
    """
    part = PART // (4 * PIXELS)
    free, disk = [0.0] * (workers * cores), 0.0
    for _ in range(-(-FRAMES // part)):
        start = heapq.heappop(free)
        disk = max(disk, start) + part * BYTES * PIXELS / bandwidth
        heapq.heappush(free, max(start + part * frame_s + part_s, disk))
    return max(free) / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--part", type=int, default=30, help="frames")
    given = parser.parse_args()
    logging.getLogger("emdn_deploy").setLevel(logging.ERROR)
    cores = usable_cpus()
    large = stack(given.folder / "large.h5", given.frames, SIDE)
    small = stack(given.folder / "small.h5", 256, 64)
    began = time.perf_counter()
    with cluster.connected(None, cores, None, join=False) as workers:
        start_s = time.perf_counter() - began
        timed(small, 32, workers, "unet", 1)  # workers open the model
        until = time.monotonic() + 60 * given.minutes
        whole = rounds(
            lambda: timed(large, given.part, None, "unet", cores),
            lambda: timed(large, given.part, workers, "unet", cores),
            until,
        )
        parts = rounds(
            lambda: timed(small, 64, workers, "dncnn", cores),
            lambda: timed(small, 8, workers, "dncnn", cores),
            0,
        )
    one, many = np.median(whole, axis=0)
    walls, processors = np.quantile(whole[:, 0] / whole[:, 1], (0.25, 0.5, 0.75), axis=0).T
    part_s = float(np.median(parts[:, 1, 1] - parts[:, 0, 1])) / (256 / 8 - 256 / 64)
    frame_s = float(one[1]) / given.frames * PIXELS / SIDE**2
    lines = [
        f"`python benchmarks/workers.py FOLDER --minutes {given.minutes:g} --frames {given.frames} "
        f"--part {given.part}`: {cores} cores, load {os.getloadavg()[0]:.1f} when it ended; "
        f"`unet`, frames of {SIDE} x {SIDE}, {len(whole)} rounds in turn. Read ratios, not "
        "seconds, on a machine that does other things.",
        "",
        "| | seconds | of processors |",
        "|---|---|---|",
        f"| one process, {cores} threads | {one[0]:.1f} | {one[1]:.1f} |",
        f"| {cores} workers | {many[0]:.1f} | {many[1]:.1f} |",
        "| efficiency: one process over workers (quartiles) | "
        + " | ".join(f"{b:.2f} ({a:.2f} to {c:.2f})" for a, b, c in (walls, processors))
        + " |",
        f"| overhead of a part | | {part_s:.2g} |",
        f"| start of {cores} workers | {start_s:.1f} | |",
        "",
        f"Simulated from these: 1,000,000 frames of 1024 x 1024, 2 TB in and 4 TB out, in parts of "
        f"{PART / 2**20:.0f} MiB; a core takes {frame_s:.2g} s a frame (processor time, which load "
        "hardly changes), a worker has 16.",
        "",
        "Reading and computing go side by side, so a night takes as long as the slower of the two: "
        "cores, or 6 TB through the file system. Add workers until they need its bandwidth; beyond "
        "that, only a faster file system helps.",
        "",
        "| workers | file system | hours | of the ideal |",
        "|---|---|---|---|",
    ]
    for count in (1, 10, 30, 100):
        for bandwidth in (1e9, 5e9, 2e10):
            hours = simulated(count, 16, bandwidth, frame_s, part_s)
            ideal = FRAMES * frame_s / (16 * count) / 3600
            disk = f"{bandwidth / 1e9:.0f} GB/s"
            lines.append(f"| {count} | {disk} | {hours:.2f} | {100 * ideal / hours:.0f} % |")
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
