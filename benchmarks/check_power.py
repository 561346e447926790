"""How often ``emdn-deploy check`` is wrong, and which planted faults it finds.

    python -m benchmarks.check_power FOLDER [--movies 4] [--sound 8] [--quick]

Movies are simulated into FOLDER; those that are there are used. The scene of a movie is put
where the default model gives back what went in, on average, so that its results are right by
construction: whatever the check flags in them is a false alarm. So is what it flags in results
that are better than the default's: the scene itself, and the mean of many frames of it. Faults
are then planted in all of the frames or in two of sixteen. The table goes to
``benchmarks/results/check_power.md``, the rows beside it.
``--quick`` takes one movie a level and three sound repeats: some minutes on one core.
"""

import argparse
import functools
import hashlib
import logging
import time
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
FEW = slice(3, None, 8)  # two frames of sixteen
DRAWS = 32
AVERAGED = 256
SOUND = ("none", "the scene itself", f"mean of {AVERAGED} frames")
RESULTS = Path(__file__).parent / "results"


def remember() -> None:
    """Denoise no block twice: checks of one movie with one seed draw the same frames."""
    run, known = Denoiser.run, dict[bytes, Any]()

    def remembered(self: Denoiser, frames: Stack, *scale: Any) -> Any:
        key = hashlib.sha256(np.ascontiguousarray(frames)).digest() + repr(scale).encode()
        if key not in known:
            known[key] = run(self, frames, *scale)
        return known[key]

    Denoiser.run = remembered  # type: ignore[method-assign]
    Denoiser.of = functools.cache(Denoiser.of)  # type: ignore[method-assign]


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

    def smoothed(frames: Stack, width: float) -> Stack:
        return ndimage.gaussian_filter(frames, (0, width, width))

    for width in (0.5, 1.0, 2.0):
        yield f"blur {width} px", smoothed(denoised, width)
    for width in (1.0, 4.0):
        yield f"Gaussian filter {width} px, no model", smoothed(raw, width)
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
    model = Denoiser(threads=1)
    chance = np.random.default_rng(seed)
    truth, atom = scene_of(folder, seed, snr)

    def run(frames: Stack) -> Stack:
        return np.asarray(model.denoise(frames, gain=1, offset=0))

    wanted = run(chance.poisson(truth)[None])[0]
    base = wanted
    for step in (1, 2):
        drawn = chance.poisson(np.maximum(base, 0), (DRAWS, SIZE, SIZE))
        base = base + (wanted - run(drawn).mean(axis=0)) / step
    paths = folder / f"raw{seed}.npy", folder / f"denoised{seed}.npy"

    def row(fault: str, place: str, frames: Stack) -> dict[str, Any]:
        np.save(paths[1], frames.astype(np.float32))
        result = check(*paths, options, seed=3)
        flags = np.isin(np.arange(FRAMES), list(result.failing))
        planted = np.zeros(FRAMES, bool)
        planted[FEW if place == "2 of 16" else slice(None)] = fault not in SOUND
        return {
            "snr": snr, "seed": seed, "fault": fault, "place": place,
            "stack": not result.passed, "planted": int(planted.sum()),
            "found": int((flags & planted).sum()), "false": int((flags & ~planted).sum()),
        }  # fmt: skip

    base = np.maximum(base, 0)
    for repeat in range(sound):
        raw = chance.poisson(base, (FRAMES, SIZE, SIZE)).astype(np.uint16)
        np.save(paths[0], raw)
        denoised = run(raw)
        others = chance.poisson(base * (AVERAGED - 1), raw.shape)
        yield row(SOUND[0], "all", denoised)
        yield row(SOUND[1], "all", np.repeat(base[None], FRAMES, axis=0))
        yield row(SOUND[2], "all", (raw + others) / AVERAGED)
        if repeat:
            continue
        for name, faulty in faults(raw.astype(np.float32), denoised, atom, seed):
            yield row(name, "all", faulty)
            mixed = denoised.copy()
            mixed[FEW] = faulty[FEW]
            yield row(name, "2 of 16", mixed)
    for path in paths:
        path.unlink()


def summary(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Sum up sound results by kind and level, and faults by kind, in columns of place and level."""
    count, planted = FRAMES * pl.len(), pl.col("planted").sum()
    kinds = rows.group_by("fault", "place", "snr", maintain_order=True).agg(
        stacks=pl.len(),
        failed=pl.col("stack").sum(),
        flagged=(100 * pl.col("false").sum() / (count - planted)).round(1),
        found=(100 * pl.col("found").sum() / planted).round(0),
    )
    sound = pl.col("fault").is_in(SOUND)
    results = kinds.filter(sound).drop("place", "found").rename({"fault": "result"})
    faults = (
        kinds.filter(~sound)
        .with_columns(
            pl.format("{} at {}", "place", "snr").alias("where"),
            pl.format("{} ({})", pl.col("found").cast(int), "failed").alias("found"),
        )
        .sort("place", "snr", descending=[True, False], maintain_order=True)
        .pivot("where", index="fault", values="found")
        .sort("fault")
    )
    return results, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--movies", type=int, default=4)
    parser.add_argument("--sound", type=int, default=8, help="repeats without a fault")
    parser.add_argument("--quick", action="store_true", help="one movie, three repeats")
    asked = parser.parse_args()
    movies, sound = (1, 3) if asked.quick else (asked.movies, asked.sound)
    logging.disable(logging.CRITICAL)
    asked.folder.mkdir(parents=True, exist_ok=True)
    remember()
    rows: list[dict[str, Any]] = []
    for seed in range(30, 30 + movies):
        for snr in LEVELS:
            began = time.perf_counter()
            rows += measured(asked.folder, seed, snr, sound)
            print(f"movie {seed} at {snr}: {time.perf_counter() - began:.0f} s", flush=True)
            RESULTS.mkdir(exist_ok=True)
            pl.DataFrame(rows).write_parquet(RESULTS / "check_power.parquet")
    sound_results, planted = summary(pl.DataFrame(rows))
    name = pretrained.default_model()
    text = (
        f"`python -m benchmarks.check_power FOLDER --movies {movies} --sound {sound}`: movies of "
        f"{FRAMES} frames of {SIZE} x {SIZE} at a signal to noise per pixel of {LEVELS[0]} and "
        f"{LEVELS[1]}, denoised by {name} "
        f"({pretrained.index()['models'][name]['sha256'][:8]}).\n\n"
        "Results without a fault: stacks that fail, and frames that are flagged in per cent.\n\n"
        f"{markdown(sound_results)}\n\n"
        "Faults: frames with the fault that are flagged in per cent, and of "
        f"{movies} stacks how many fail.\n\n{markdown(planted)}\n"
    )
    (RESULTS / "check_power.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
