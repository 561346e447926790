"""Time models on this machine, in less than two minutes, without torch and pytest."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.bench import rows
from emdn_deploy.bench.rows import Row
from emdn_deploy.bench.timing import (
    SCALE,
    in_turn,
    noisy,
    peak_mb,
    percentile,
    stack_rate,
    stream,
    warm,
)
from emdn_deploy.config import Device, Precision
from emdn_deploy.denoiser import Denoiser
from emdn_models import MODELS
from emdn_models.errors import EmdnError

RING_PIXELS = 2**23
ROUNDS = 100

Stack = NDArray[np.float32]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchConfig:
    """What to time: the flags of ``emdn-deploy bench``."""

    models: tuple[str, ...] | None = None  # shipped names or .onnx files; None for all seven
    size: int = 256  # side of a frame in pixels
    rate: float | None = None  # frames a second of a camera
    device: Device = "auto"
    threads: int | None = None
    precision: Precision = "fp32"
    # For frames one by one, all models together; stacks, memory and the camera take about as much.
    seconds: float = 35.0

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.size < 8:
            raise EmdnError(f"size is {self.size}, expected 8 pixels or more")
        if self.rate is not None and not 0 < self.rate < 1e6:
            raise EmdnError(f"rate is {self.rate}, expected frames a second, more than 0")


class Bench(NamedTuple):
    """What was measured on a machine (`rows.machine`), at a camera's rate: a row a model.

    A row has the columns of `rows.about` and `rows.speed` for frames one by one, then ``stack
    frames/s``, array to array; ``peak MB`` and ``gain dB``; and with a rate ``keeps up``,
    ``dropped`` of ``arrived``, ``live p99`` and ``live worst`` in milliseconds from arrival to
    result, and ``load`` (`timing.Live`). One of 0 ``rounds`` follows from frames of 256 x 256:
    the model is too slow for these to be timed.
    """

    machine: dict[str, object]
    rate: float | None
    rows: list[Row]


def bench(config: BenchConfig) -> Bench:
    """Time every model.

    Raises
    ------
    ModelError, DeviceError
        As `emdn_deploy.session.open_session`.
    """
    denoisers = _opened(config)
    facts, size = rows.machine(), (config.size, config.size)
    budget = config.seconds / len(denoisers)
    slow = _too_slow(denoisers, config.size, config.seconds)
    timed = {name: one for name, one in denoisers.items() if name not in slow}
    frames = noisy(int(np.clip(RING_PIXELS // (size[0] * size[1]), 2, 16)), *size)
    seconds = _one_by_one(timed, frames, config.seconds)
    result = []
    for name, one in denoisers.items():
        session = one.session
        row = rows.about(session, config.device, 1, size)
        gflop = rows.gflop_of(session, size)
        if name in timed:
            row |= rows.speed(seconds[name], 1, size, gflop)
            each = float(np.median(seconds[name]))
            row["stack frames/s"] = rows.digits(stack_rate(one, frames, each, budget / 2))
            row["peak MB"] = peak_mb(
                str(session.info.path), session.device, session.threads, 1, size
            )
        else:
            row |= rows.speed([slow[name]], 1, size, gflop) | {"rounds": 0}
        row["gain dB"] = rows.gain_db(session)
        if config.rate is not None:
            row |= _camera(one, frames, config.rate, row, budget / 2)
        result.append(row)
        _log.info("%s: %s frames/s", name, row["frames/s"])
    return Bench(facts, config.rate, result)


def text(found: Bench) -> list[str]:
    """Return what ``emdn-deploy bench`` prints."""
    lines = [rows.machine_line(found.machine), rows.table(found.rows)]
    if slow := [row["model"] for row in found.rows if not row["rounds"]]:
        lines.append(f"too slow to time, estimated from 256 x 256: {', '.join(slow)}")
    if found.rate is not None:
        able = ", ".join(row["model"] for row in found.rows if row["keeps up"])
        size = found.rows[0]["size"]
        lines.append(f"keep up with {found.rate:g} frames/s of {size}: {able or 'none'}")
    return lines


def _opened(config: BenchConfig) -> dict[str, Denoiser]:
    """Open every model where the first one went, so that ``auto`` is asked once."""
    opened: dict[str, Denoiser] = {}
    device = config.device
    for name in config.models or MODELS:
        opened[name] = Denoiser(name, device, config.threads, config.precision)
        device = opened[name].session.device
    return opened


def _too_slow(denoisers: dict[str, Denoiser], side: int, limit_s: float) -> dict[str, float]:
    """Name the models that cannot all be timed in so long, with the seconds that a frame takes.

    A model that is timed denoises ten frames or more in all, warming up and memory counted.
    """
    if side <= 256:
        return {}
    expected = {name: (side / 256) ** 2 * _once(one) for name, one in denoisers.items()}
    left, slow = limit_s, {}
    for name in sorted(expected, key=expected.__getitem__):
        left -= 10 * expected[name]
        if left < 0:
            slow[name] = expected[name]
    return slow


def _once(one: Denoiser) -> float:
    """Return the seconds that a frame of 256 x 256 takes."""
    frame = noisy(1, 256, 256)
    return in_turn({"": lambda: one.run(frame, SCALE)}, 2)[""][1]


def _one_by_one(
    denoisers: dict[str, Denoiser], frames: Stack, limit_s: float
) -> dict[str, list[float]]:
    """Denoise frame by frame, the models in turn; name to seconds."""
    ring = itertools.cycle(range(len(frames)))

    def single(one: Denoiser) -> object:
        number = next(ring)
        return one.run(frames[number : number + 1], SCALE)

    calls = {name: lambda one=one: single(one) for name, one in denoisers.items()}
    for call in calls.values():
        warm(call, limit_s / (4 * len(calls)))
    return in_turn(calls, ROUNDS, limit_s)


def _camera(one: Denoiser, frames: Stack, rate: float, row: Row, seconds: float) -> Row:
    """Let frames arrive at a rate; a model that is far too slow is not tried."""
    best = max(row["frames/s"], row.get("stack frames/s", 0.0))
    if rate > 1.2 * best or not row["rounds"]:
        return {"keeps up": rate < best, "dropped": None, "arrived": 0}

    def work(numbers: Sequence[int]) -> object:
        return one.run(frames[np.asarray(numbers) % len(frames)], SCALE)

    # On a CPU, frames that wait are computed side by side, one on each thread.
    session = one.session
    batch = (
        session.threads
        if session.device == "cpu"
        else one.batching.frames_per_run(frames.shape[1:])
    )
    found = stream(work, rate, max(3, round(rate * seconds)), batch)
    return {
        "keeps up": found.keeps_up,
        "dropped": found.dropped,
        "arrived": found.frames,
        "live p99": rows.milliseconds(percentile(found.latencies, 0.99)),
        "live worst": rows.milliseconds(max(found.latencies)),
        "load": round(found.load, 2),
    }
