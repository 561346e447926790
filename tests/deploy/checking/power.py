"""How often a check is wrong, and what it finds: ``python -m tests.deploy.checking.power FOLDER``.

Movies are simulated into FOLDER (those that are there are used) and denoised by the default
model. ``honest`` counts the frames that fail though they are drawn from what the model makes
of a movie, so that there is nothing to find but what it takes of its own result; ``movie``
counts them on the movies themselves, where what the model takes away is found too; the rest
are faults planted in the honest frames of the first movie, strengths in units of
the noise's standard deviation. The last number is the largest peak, in units of the noise's
power, in the spectrum of what the model takes of the movie's truth, which nobody has.
"""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emdn_deploy import Denoiser
from emdn_deploy.checking import check
from emdn_deploy.checking.panel import panel
from emdn_deploy.options import DenoiseOptions
from emdn_train.simulate.config import SimulateConfig
from emdn_train.simulate.movie import simulate_movie

MOVIES = {14: 0.4, 11: 0.15, 12: 0.25, 13: 0.4, 17: 0.25, 16: 0.4, 15: 0.8, 18: 1.2}
FRAMES = 24
OPTIONS = DenoiseOptions(threads=1, device="cpu")

Array = np.ndarray[Any, Any]


def faults(raw: Array, clean: Array, noise: float) -> Iterator[tuple[str, Array]]:
    """Yield the honest frames with faults planted."""
    y, x = np.mgrid[: clean.shape[1], : clean.shape[2]]
    atom = np.exp(-((y - 61) ** 2 + (x - 47) ** 2) / 18)
    for size in (0.25, 0.35, 0.5, 0.75):
        yield f"atom {size}", clean + size * noise * atom
    for size in (0.03, 0.06, 0.12):
        yield f"lattice {size}", clean + size * noise * np.cos(2 * np.pi * 0.17 * x)
    for share in (0.01, 0.05):
        yield f"noise share {share}", (1 - share) * clean + share * raw
    for change in (0.002, 0.005):
        yield f"brighter {change}", (1 + change) * clean
    for width in (0.5, 1.0):
        taps = np.exp(-0.5 * (np.arange(-4, 5) / width) ** 2)
        wide = np.pad(clean, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        for axis in (1, 2):
            length = clean.shape[axis]
            wide = sum(
                tap * np.take(wide, range(at, at + length), axis)
                for at, tap in enumerate(taps / taps.sum())
            )
        yield f"blur {width}", wide


def failures(folder: Path, raw: Array, clean: Array) -> str:
    """Say how many frames fail, and with what verdicts."""
    paths = folder / "raw.npy", folder / "clean.npy"
    for path, frames in zip(paths, (raw, clean.astype(np.float32)), strict=True):
        np.save(path, frames)
    return told(check(*paths, OPTIONS, seed=3))


def told(result: Any) -> str:
    kinds = {one for words in result.table["verdict"] for one in words.split("; ")}
    return f"{len(result.failing)}/{result.table.height} {sorted(kinds - {'within noise'})}"


def main(folder: Path) -> None:
    model = Denoiser(threads=1)
    for seed, snr in MOVIES.items():
        out = folder / f"movie{seed}"
        config = SimulateConfig(
            out, frames=FRAMES, kind="movie", size=128, snr=(snr, snr), seed=seed
        )
        simulate_movie(config)
        with h5py.File(out / "movie_truth.h5") as file:
            truth = file["expected"][0]
        rng = np.random.default_rng(1)

        def run(frames: Array) -> Array:
            return model.denoise(frames, gain=1, offset=0)

        drawn = run(rng.poisson(truth, (16, *truth.shape)))
        removed = (truth - drawn.mean(axis=0)) / np.sqrt(truth.mean())
        shape = panel(*truth.shape)
        peak = (np.abs(np.fft.rfft2(removed * shape.window)) ** 2 * shape.far).max()
        base = drawn[0]
        for step in (1, 2):
            again = run(rng.poisson(np.maximum(base, 0), (4, *truth.shape))).mean(axis=0)
            base = base + (drawn[0] - again) / step
        raw = rng.poisson(np.maximum(base, 0), (32, *truth.shape)).astype(np.uint16)
        clean = run(raw)
        print(f"{seed} snr {snr} honest {failures(folder, raw, clean)}", flush=True)  # noqa: T201
        words = told(check(out / "movie.h5", None, OPTIONS))
        print(f"{seed} snr {snr} movie {words} takes {peak:.1f}", flush=True)  # noqa: T201
        if seed == next(iter(MOVIES)):
            for name, planted in faults(raw, clean, float(truth.mean()) ** 0.5):
                print(f"  {name}: {failures(folder, raw, planted)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    main(Path(sys.argv[1]))
