"""How often `emdn_deploy.noise_model` finds faults that are there, or that are not.

`python benchmarks/noise_power.py null` counts findings in white Poisson stacks, of
lattices that hold still or move; `power` prints, fault by fault, the least strength found
in 95 % of stacks. Both take the number of stacks for each row.
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from emdn_deploy import noise_model
from emdn_deploy.noise_level import Sample
from emdn_deploy.noise_model import NoiseModel

Stack = np.ndarray[Any, Any]
Chance = np.random.Generator

NULLS = {(64, 2): 200, (64, 12): 100, (128, 1): 200, (128, 3): 100, (256, 6): 20, (512, 64): 4}
DOSES = (0.05, 1.0, 10.0, 100.0)
SIZES = ((64, 2, 10.0), (128, 3, 1.0), (128, 9, 10.0))


def estimate(frames: Stack, offset: float | None = None, bad: Stack | None = None) -> NoiseModel:
    """Measure frames (N, H, W)."""
    stack = np.asarray(frames, np.float32)
    sample = Sample.of(lambda start, stop: stack[start:stop], len(stack), stack.shape[1:])
    return noise_model.estimate(sample, bad, offset)


def lattice(count: int, side: int, shifts: Stack) -> Stack:
    """Return expected frames of mean 1, (count, side, side), a lattice shifted by (count, 2)."""
    y, x = (grid[None].astype(float) for grid in np.mgrid[:side, :side])
    y, x = y + shifts[:, :1, None], x + shifts[:, 1:, None]
    waves = sum(
        np.cos(2 * np.pi / 9 * (np.cos(angle) * y + np.sin(angle) * x))
        for angle in np.deg2rad((10, 70, 130))
    )
    return 1 + 0.2 * waves + 0.3 * (x / side - 0.5)


def blurred(rate: Stack, rng: Chance, share: float) -> Stack:
    """Give a share of every electron to the four neighbours."""
    frames = rng.poisson(rate).astype(float)
    near = sum(np.roll(frames, step, axis) for step in (-1, 1) for axis in (1, 2))
    return (1 - share) * frames + share / 4 * near


def trailed(rate: Stack, rng: Chance, share: float) -> Stack:
    """Leave a share of every pixel in the next of its row."""
    frames = rng.poisson(rate).astype(float)
    return (1 - share) * frames + share * np.roll(frames, 1, 2)


def flickering(rate: Stack, rng: Chance, share: float) -> Stack:
    """Make rows brighter and darker, by a share of the mean RMS, from frame to frame."""
    return rng.poisson((rate * (1 + rng.normal(0, share, (*rate.shape[:2], 1)))).clip(0))


def columns(rate: Stack, rng: Chance, share: float) -> Stack:
    """Add offsets of columns, a share of the mean RMS, others in each frame."""
    return rng.poisson(rate) + rng.normal(0, share * rate.mean(), (len(rate), 1, rate.shape[2]))


# What makes the fault, and the words that say so.
FAULTS: dict[str, tuple[Callable[[Stack, Chance, float], Stack], str]] = {
    "blur, share given to 4 neighbours": (blurred, "correlated"),
    "trail, share left in the next of a row": (trailed, "correlated"),
    "rows flicker, of mean": (flickering, "rows flicker"),
    "columns flicker, of mean": (columns, "columns flicker"),
}


def null(stacks: int | None) -> None:
    """Print how many white stacks had any finding, or were not taken for counts."""
    rng, count_all, wrong = np.random.default_rng(0), 0, 0
    for (side, count), usual in NULLS.items():
        for moving in (0.0, 0.4, 3.0) if count > 1 else (0.0,):
            said: Counter[str] = Counter()
            for number in range(stacks or usual):
                shifts = moving * np.arange(count)[:, None] * np.array([[1.0, 0.6]])
                if number % 2:
                    shifts = moving * rng.normal(0, 1, (count, 2))
                dose = DOSES[number // 2 % len(DOSES)]
                found = estimate(rng.poisson(dose * lattice(count, side, shifts).clip(0)))
                texts = [one for one in found.findings if not moving or "moves" not in one]
                texts += [] if found.counting else ["not counting"]
                said.update(text[:40] for text in texts)
                count_all, wrong = count_all + 1, wrong + bool(texts)
            print(f"{side} x {side} x {count}, moving {moving}: {dict(said) or 'none'}", flush=True)
    print(f"{wrong} of {count_all} stacks had a finding")


def power(stacks: int | None) -> None:
    """Print the least strength of each fault that 95 % of stacks show."""
    rng, number = np.random.default_rng(1), stacks or 20
    print("| fault | " + " | ".join(f"{s} x {s} x {n}, {d:g} e" for s, n, d in SIZES) + " |")
    print("|---" * (len(SIZES) + 1) + "|")
    strengths = 0.002 * 2 ** (0.5 * np.arange(19))
    for fault, (make, words) in FAULTS.items():
        row = []
        for side, count, dose in SIZES:
            rate = dose * lattice(count, side, np.zeros((count, 2)))
            low, high = 0, len(strengths)
            while low < high:
                middle = (low + high) // 2
                missed = 0
                for _ in range(number):
                    said = " ".join(estimate(make(rate, rng, strengths[middle])).findings)
                    missed += words not in said
                    if missed > 0.05 * number:
                        break
                low, high = (middle + 1, high) if missed > 0.05 * number else (low, middle)
            row.append(f"{strengths[low]:.3f}" if low < len(strengths) else "-")
        print(f"| {fault} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    {"null": null, "power": power}[sys.argv[1]](int(sys.argv[2]) if len(sys.argv) > 2 else None)
