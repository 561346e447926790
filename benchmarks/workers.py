"""What do many workers gain over one process?

    python -m benchmarks.workers FOLDER --rounds 3

Runs of ``emdn-deploy denoise`` by one process with N threads and by N workers take turns on the
same stack, from the command's start to its end, so that whatever else slows the machine slows both;
processor time hardly changes with load. The table goes to ``benchmarks/results/workers.md``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import polars as pl

from emdn_deploy.bench import noisy
from emdn_deploy.session import usable_cpus
from emdn_train.quality import markdown

RESULTS = Path(__file__).with_name("results") / "workers.md"
SIDE = 512


def timed(source: Path, *words: object) -> tuple[float, float]:
    """Return the seconds of a run, and those of all processors."""
    command = [sys.executable, "-m", "emdn_deploy", "-q", "denoise", source, "--device", "cpu"]
    command += ["--model", "unet", "--gain", 1, "--offset", 0, *words]
    before, began = sum(os.times()[2:4]), time.perf_counter()  # of processes that have ended
    with tempfile.TemporaryDirectory(dir=source.parent) as out:
        subprocess.run([*map(str, command), "--out-dir", out], check=True, capture_output=True)
        seconds = time.perf_counter() - began
    return seconds, sum(os.times()[2:4]) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=480)
    given = parser.parse_args()
    source, cores = given.folder / "movie.h5", usable_cpus()
    frames = np.resize(noisy(16, SIDE, SIDE), (given.frames, SIDE, SIDE)).astype(np.uint16)
    with h5py.File(source, "w") as file:
        file.create_dataset("frames", data=frames, chunks=(1, SIDE, SIDE))
    ways = {f"one process, {cores} threads": "--threads", f"{cores} workers": "--workers"}
    rounds = [[timed(source, way, cores) for way in ways.values()] for _ in range(given.rounds)]
    one, many = np.array(rounds).swapaxes(0, 1)
    measured = {**dict(zip(ways, (one, many), strict=True)), "one process / workers": one / many}
    rows = [[name, *np.median(each, axis=0)] for name, each in measured.items()]
    table = pl.DataFrame(rows, ["run", "seconds", "of processors"], orient="row")
    head = f"`python -m benchmarks.workers FOLDER --rounds {given.rounds} --frames {given.frames}`"
    text = f"{head}: {cores} cores, load {os.getloadavg()[0]:.1f} when it ended; `unet`, frames of "
    text += f"{SIDE} x {SIDE}, medians of rounds in turn. On a busy machine, read ratios.\n\n"
    text += markdown(table.with_columns(pl.col(pl.Float64).round(2))) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
