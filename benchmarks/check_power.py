"""How often ``emdn-deploy check`` is wrong, and which planted faults it finds.

    python -m benchmarks.check_power FOLDER [--movies 2] [--sound 3]

Movies are simulated into FOLDER; those that are there are used. The scene of a movie is put
where the default model gives back what went in, on average, so that its results are right by
construction: whatever the check flags in them is a false alarm. So is what it flags in results
that are better than the default's: the scene itself, and the mean of many frames of it. Faults
are then planted in all of the frames or in two of sixteen. The table goes to
``benchmarks/results/check_power.md``.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
from scipy import ndimage

from emdn_deploy import Denoiser
from emdn_deploy.check import check
from emdn_deploy.config import DenoiseOptions
from emdn_models import pretrained
from emdn_train.config import SimulateConfig
from emdn_train.quality import markdown
from emdn_train.simulate.movie import simulate_movie

Stack = np.ndarray[Any, np.dtype[np.float32]]

FRAMES, SIZE, LEVELS = 16, 192, (0.4, 1.2)
PLACES = {"all": slice(None), "2 of 16": slice(3, None, 8)}
DRAWS = 32
AVERAGED = 256
SOUND = ("none", "the scene itself", f"mean of {AVERAGED} frames")
RESULTS = Path(__file__).parent / "results"


def scene_of(folder: Path, seed: int, snr: float) -> tuple[Stack, Stack]:
    """Simulate a movie that stands still: expected electrons (H, W), and an atom's there."""
    out = folder / f"movie{seed}_{snr:g}"
    if not (out / "movie_truth.h5").exists():
        simulate_movie(
            SimulateConfig(out, frames=2, kind="movie", size=SIZE, snr=(snr, snr), seed=seed)
        )
    with h5py.File(out / "movie_truth.h5") as file:
        clean = file["expected"][0]
        atoms = file["atoms/000000"][()][:, ::-1]
    # The mean picture of an atom, where one is added beside the middle.
    inside = atoms[(np.abs(atoms - SIZE / 2) < SIZE / 2 - 16).all(1)]
    detail = clean - ndimage.gaussian_filter(clean, 12.0)
    y, x = np.mgrid[:SIZE, :SIZE]
    pictures = [ndimage.shift(detail, SIZE / 2 - place, order=1) for place in inside[:60]]
    near = np.exp(-((y - SIZE / 2) ** 2 + (x - SIZE / 2) ** 2) / (2 * 4.0**2))
    return clean, (np.mean(pictures, 0) * near).astype(np.float32)


def faults(raw: Stack, denoised: Stack, atom: Stack, seed: int) -> Iterator[tuple[str, Stack]]:
    """Yield frames (n, H, W) with one fault each, from barely to clearly visible."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    noise = raw.mean() ** 0.5
    contrast = (denoised - ndimage.gaussian_filter(denoised, (0, 32.0, 32.0))).std()
    lattice = np.cos(2 * np.pi * (0.8 * x + 0.6 * y) / 7.3) * 2**0.5
    stripes = chance.standard_normal(SIZE)

    for width in (0.5, 1.0, 2.0):
        yield f"blur {width} px", ndimage.gaussian_filter(denoised, width, axes=(1, 2))
    for width in (1.0, 4.0):
        smooth = ndimage.gaussian_filter(raw, width, axes=(1, 2))
        yield f"Gaussian filter {width} px, no model", smooth
    for share in (0.5, 1.0):
        yield f"filled vacancy {share} atoms", denoised + share * atom
    for share in (0.03, 0.1, 0.3):
        yield f"added lattice {share} x contrast", denoised + share * contrast * lattice
    for share in (0.002, 0.01):
        yield f"scaled {1 + share} x", denoised * (1 + share)
    for share in (0.03, 0.1):
        yield f"column stripes {share} x noise", denoised + share * noise * stripes
    for share in (0.01, 0.03):
        yield f"noise left in {share}", denoised + share * (raw - denoised)


def measured(folder: Path, seed: int, snr: float, sound: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each check: the fault, where it is planted, and what is flagged."""
    options = DenoiseOptions(threads=1, device="cpu", gain=1.0, offset=0.0)
    model, chance = Denoiser(threads=1), np.random.default_rng(seed)
    truth, atom = scene_of(folder, seed, snr)

    def run(frames: Stack) -> Stack:
        return np.asarray(model.denoise(frames, gain=1, offset=0))

    wanted = run(chance.poisson(truth)[None])[0]
    base = wanted
    for step in (1, 2):
        drawn = chance.poisson(np.maximum(base, 0), (DRAWS, SIZE, SIZE))
        base = base + (wanted - run(drawn).mean(axis=0)) / step
    base = np.maximum(base, 0)
    for repeat in range(sound):
        raw = chance.poisson(base, (FRAMES, SIZE, SIZE)).astype(np.uint16)
        denoised = run(raw)
        others = chance.poisson(base * (AVERAGED - 1), raw.shape)
        perfect = np.repeat(base[None], FRAMES, axis=0)
        made = zip(SOUND, (denoised, perfect, (raw + others) / AVERAGED), strict=True)
        results = [(name, "all", result) for name, result in made]
        if repeat == 0:
            for name, faulty in faults(raw.astype(np.float32), denoised, atom, seed):
                for place, where in PLACES.items():
                    mixed = denoised.copy()
                    mixed[where] = faulty[where]
                    results.append((name, place, mixed))
        for fault, place, frames in results:
            paths = folder / "raw.npy", folder / "denoised.npy"
            for path, array in zip(paths, (raw, frames.astype(np.float32)), strict=True):
                np.save(path, array)
            result = check(*paths, options, seed=3)
            flags = np.isin(range(FRAMES), result.failing)
            among = flags if fault in SOUND else flags[PLACES[place]]
            where = f"{place} at {snr}"
            yield {"result": fault, "where": where, "flagged": among.mean(), "failed": result.word}


def summary(rows: pl.DataFrame) -> pl.DataFrame:
    """Give a row a result or fault, a column a place and level: frames flagged, stacks failed."""
    shares = rows.group_by("result", "where", maintain_order=True).agg(
        flagged=100 * pl.col("flagged").mean(),
        failed=(pl.col("failed") == "FAIL").sum(),
        stacks=pl.len(),
    )
    found = pl.format("{} ({} of {})", pl.col("flagged").round(1), "failed", "stacks")
    columns = [f"{place} at {snr}" for place in PLACES for snr in LEVELS]
    table = shares.select("result", "where", found=found).pivot("where", values="found")
    return table.select("result", *columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--movies", type=int, default=2)
    parser.add_argument("--sound", type=int, default=3, help="repeats without a fault")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    asked.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in range(30, 30 + asked.movies):
        for snr in LEVELS:
            rows += measured(asked.folder, seed, snr, asked.sound)
            print(f"movie {seed} at {snr}: done", flush=True)
    name = pretrained.default_model()
    text = (
        f"`python -m benchmarks.check_power FOLDER --movies {asked.movies} --sound {asked.sound}`: "
        f"movies of {FRAMES} frames of {SIZE} x {SIZE} at a signal to noise per pixel of "
        f"{LEVELS[0]} and {LEVELS[1]}, denoised by {name} "
        f"({pretrained.index()['models'][name]['sha256'][:8]}). Frames that are flagged in per "
        "cent, and how many stacks fail; the first three rows are without a fault.\n\n"
    )
    text += markdown(summary(pl.DataFrame(rows))) + "\n"
    (RESULTS / "check_power.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
