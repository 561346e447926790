"""How fast models are on this machine: ``emdn-deploy bench``, and what benchmarks share with it.

Calls are timed in turn, after a warm-up, on noisy frames; a row says how fast a model was.
"""

import itertools
import logging
import math
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.config import Device, Precision, text_table
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.dose import Intensity
from emdn_deploy.session import Session, usable_cpus
from emdn_models import MODELS, pretrained

Row = dict[str, Any]
Stack = NDArray[np.float32]
Call = Callable[[], object]

ELECTRONS = 40.0
SCALE = Intensity(ELECTRONS, 1.0, 0.0, ELECTRONS**0.5, "known")
"""The intensity scale of `noisy` frames."""
ROUNDS = 100
_RING_PIXELS = 2**23

_log = logging.getLogger(__name__)


class Bench(NamedTuple):
    """What was measured on a `machine`, under conditions (`about`), at a camera's rate.

    A row a model has the columns of `speed` for frames one by one, then ``stack frames/s``, array
    to array; ``gain dB``; and with a rate ``keeps up``: whether the faster of the two is that fast.
    """

    machine: Row
    conditions: Row
    rate: float | None
    rows: list[Row]


def bench(
    models: Sequence[str] | None = None,
    size: int = 256,
    rate: float | None = None,
    device: Device = "auto",
    threads: int | None = None,
    precision: Precision = "fp32",
    seconds: float = 35.0,
) -> Bench:
    """Time models on this machine, on frames of ``size`` x ``size``.

    ``models``: shipped names or .onnx files, None for all; ``rate``: frames a second of a camera;
    ``seconds``: for frames one by one, all models together; stacks take about as much. EmdnError
    if a model cannot be opened.
    """
    denoisers: dict[str, Denoiser] = {}
    asked, shape = device, (size, size)
    for name in models or MODELS:  # where the first one went: ``auto`` is asked once
        denoisers[name] = Denoiser(name, device, threads, precision)
        device = denoisers[name].session.device
    facts, budget = machine(), seconds / len(denoisers)
    frames = noisy(int(np.clip(_RING_PIXELS // size**2, 2, 16)), *shape)
    ring = itertools.cycle(range(len(frames)))

    def single(one: Denoiser) -> object:
        number = next(ring)
        return one.run(frames[number : number + 1], SCALE)

    calls = {name: lambda one=one: single(one) for name, one in denoisers.items()}
    for call in calls.values():
        warm(call, min(1.0, budget / 4))
    times, rows = in_turn(calls, ROUNDS, seconds), []
    for name, one in denoisers.items():
        session, each = one.session, float(np.median(times[name]))
        row: Row = {"model": session.info.name}
        row |= speed(times[name], 1, shape, gflop_of(session, shape))
        if each < budget / 4:
            row["stack frames/s"] = digits(stack_rate(one, frames, each, budget / 2))
        row["gain dB"] = gain_db(session)
        if rate is not None:
            row["keeps up"] = max(row["frames/s"], row.get("stack frames/s", 0.0)) >= rate
        rows.append(row)
        _log.info("%s: %s frames/s", name, row["frames/s"])
    return Bench(facts, about(session, asked, shape), rate, rows)


def text(found: Bench) -> list[str]:
    """Return what ``emdn-deploy bench`` prints."""
    conditions = ", ".join(f"{name} {one}" for name, one in found.conditions.items())
    table = text_table(*cells(found.rows))
    lines = [machine_line(found.machine), conditions, table]
    if found.rate is not None:
        able = ", ".join(row["model"] for row in found.rows if row["keeps up"])
        lines.append(f"keep up with {found.rate:g} frames/s: {able or 'none'}")
    return lines


def noisy(count: int, height: int, width: int, seed: int = 0) -> Stack:
    """Return counts of a hexagonal lattice, (count, height, width), other noise in each.

    With 40 electrons a pixel and a contrast of 0.1 the signal to noise per pixel is 0.6. Never
    time with zeros, which some processors multiply faster.
    """
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = sum(
        np.cos(2 * np.pi / 12 * (np.cos(angle) * y + np.sin(angle) * x))
        for angle in np.deg2rad((10, 70, 130))
    )
    expected = np.maximum(ELECTRONS * (1 + 0.1 * waves / np.std(waves)), 0)
    rng = np.random.default_rng(seed)
    return np.stack([rng.poisson(expected).astype(np.float32) for _ in range(count)])


def warm(call: Call, limit_s: float = 1.0) -> None:
    """Call again and again for some seconds, once at least."""
    began = time.perf_counter()
    call()
    while time.perf_counter() - began < limit_s:
        call()


def in_turn(
    calls: Mapping[str, Call], rounds: int, limit_s: float = math.inf
) -> dict[str, list[float]]:
    """Time several calls, one of each a round, so that what slows the machine slows all.

    The order of each round is drawn, always the same way, so that none always follows the
    same one: threads that still spin, or a cache just filled, meet all of them. Returns name to
    seconds, one number a round: ``rounds`` or fewer, as none but the first is begun after
    ``limit_s``.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    began, chance = time.perf_counter(), random.Random(0)
    for number in range(rounds):
        if number and time.perf_counter() - began >= limit_s:
            break
        for name in chance.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return times


def stack_rate(one: Denoiser, frames: Stack, each: float, limit_s: float) -> float:
    """Return the frames a second of a stack, array to array, its scale found on the way.

    ``each``, the seconds of a frame by itself, and ``limit_s`` say how long the stack is.
    """
    count = int(np.clip(limit_s / each, 2, 128))
    stack = frames[np.arange(count) % len(frames)]
    times = in_turn({"": lambda: one.denoise(stack)}, 3, limit_s)[""]
    return count / float(np.median(times))


def processor() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def machine(*more: str) -> Row:
    """Describe the machine: processor, CPUs that may be used, load, system, versions.

    Versions are those of emdn, Python, numpy, onnxruntime and ``more`` that are installed.
    """
    versions = {}
    for name in ("emdn", "numpy", "onnxruntime-gpu", "onnxruntime", *more):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cpus": usable_cpus(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def machine_line(found: Row) -> str:
    """Put `machine` into one line."""
    load = "" if found["load"] is None else f", load {found['load']:.1f}"
    listed = ", ".join(f"{name} {one}" for name, one in found["versions"].items())
    return f"{found['processor']}, {found['cpus']} CPUs{load}, {listed}"


def about(session: Session, asked: Device, size: tuple[int, int]) -> Row:
    """Say how a model ran: precision, device asked for and got, threads, size of frames."""
    return {
        "precision": session.info.precision,
        "asked": asked,
        "got": session.device,
        "threads": session.threads,
        "size": f"{size[0]} x {size[1]}",
    }


def gflop_of(session: Session, size: tuple[int, int]) -> float:
    """Return the GFLOP of a frame (H, W), counted on the net as its paper has it."""
    return session.info.gflop_256 * size[0] * size[1] / 256**2


def gain_db(session: Session) -> float | None:
    """Return the mean gain in dB on the fixed test split; None for weights that are not shipped."""
    quality = pretrained.index()["models"].get(session.info.name, {}).get("quality", {})
    if quality.get("weights_sha256") != session.info.text.get("weights_sha256"):
        return None
    gains = quality.get("gain_db", {})
    return round(sum(gains.values()) / len(gains), 1) if gains else None


def speed(seconds: Sequence[float], frames: int, size: tuple[int, int], gflop: float) -> Row:
    """Turn the seconds of rounds, of so many ``frames`` each, into columns.

    ``frames/s`` and what follows from it, with the ``gflop`` of a frame, are of the median round;
    ``p90`` and ``p99``, in milliseconds a frame, are None for fewer than 10 and 100 rounds.
    """
    each = np.asarray(seconds) / frames
    median = float(np.median(each))
    return {
        "frames/s": digits(1 / median),
        "Mpx/s": digits(size[0] * size[1] / median / 1e6),
        "ms p50": digits(1e3 * median),
        "p90": digits(1e3 * float(np.quantile(each, 0.9))) if len(each) >= 10 else None,
        "p99": digits(1e3 * float(np.quantile(each, 0.99))) if len(each) >= 100 else None,
        "rounds": len(each),
        "GFLOP/s": digits(gflop / median),
    }


def digits(value: float) -> float:
    """Round to three significant digits."""
    return float(f"{value:.3g}")


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns that any row fills, and their text; ``-``: unknown."""

    def said(value: object) -> str:
        if value is None:
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:.10g}" if isinstance(value, float) else str(value)

    every = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in every if any(row.get(name) is not None for row in rows)]
    return names, [[said(row.get(name)) for name in names] for row in rows]
