"""Time models on this machine, in less than two minutes, without torch and pytest."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.bench import machine, rows
from emdn_deploy.bench.frames import SCALE, noisy
from emdn_deploy.bench.live import stream
from emdn_deploy.bench.memory import peak_mb
from emdn_deploy.bench.rounds import in_turn, percentile, warm
from emdn_deploy.bench.rows import Row
from emdn_deploy.config import Device, Precision
from emdn_deploy.denoiser import Denoiser
from emdn_models import MODELS
from emdn_models.errors import EmdnError

RING_PIXELS = 2**23
SMALL = (256, 256)
ROUNDS = 100

Stack = NDArray[np.float32]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchConfig:
    """What to time.

    Attributes
    ----------
    models
        Shipped names or ``.onnx`` files; None for the seven that are shipped.
    size
        Side of a frame in pixels.
    rate
        Frames a second of a camera; None to leave it out.
    device, threads, precision
        As of `emdn_deploy.session.open_session`.
    seconds
        Time that frames one by one are given, all models together; stacks, memory and
        the camera take about as much again.
    """

    models: tuple[str, ...] | None = None
    size: int = 256
    rate: float | None = None
    device: Device = "auto"
    threads: int | None = None
    precision: Precision = "fp32"
    seconds: float = 35.0

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.size < 8:
            raise EmdnError(f"size is {self.size}, expected 8 pixels or more")
        if self.rate is not None and not 0 < self.rate < 1e6:
            raise EmdnError(f"rate is {self.rate}, expected frames a second, more than 0")


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes
    ----------
    machine
        As of `emdn_deploy.bench.machine.facts`.
    rate
        As asked for.
    rows
        One a model: those of `rows.about` and `rows.speed` for frames one by one, then
        ``stack frames/s``, array to array; ``peak MB`` and ``gain dB``; and with a rate
        ``keeps up``, ``dropped`` of ``arrived``, ``live p99`` and ``live worst`` in
        milliseconds from arrival to result, and ``load`` (`live.Live`). What 0 ``rounds``
        say follows from frames of 256 x 256: a model too slow for these to be timed.
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
    facts, size = machine.facts(), (config.size, config.size)
    budget = config.seconds / len(denoisers)
    slow = _too_slow(denoisers, size, config.seconds)
    timed = {name: one for name, one in denoisers.items() if name not in slow}
    frames = noisy(int(np.clip(RING_PIXELS // (size[0] * size[1]), 2, 16)), *size)
    seconds = _one_by_one(timed, frames, config.seconds)
    result = []
    for name, one in denoisers.items():
        row = rows.about(one.session, config.device, 1, size)
        gflop = rows.gflop_of(one.session, size)
        if name in timed:
            row |= rows.speed(seconds[name], 1, size, gflop)
            each = float(np.median(seconds[name]))
            row["stack frames/s"] = rows.digits(stack_rate(one, frames, each, budget / 2))
            asked = one.session.device, one.session.threads, 1, size
            path = str(one.session.info.path)
            row["peak MB"] = _rounded(peak_mb(path, *asked))
        else:
            row |= rows.speed([slow[name]], 1, size, gflop) | {"rounds": 0}
        row["gain dB"] = rows.gain_db(one.session)
        if config.rate is not None:
            row |= _camera(one, frames, config.rate, row, budget / 2)
        result.append(row)
        _log.info("%s: %s frames/s", name, row["frames/s"])
    return Bench(facts, config.rate, result)


def _opened(config: BenchConfig) -> dict[str, Denoiser]:
    """Open every model where the first one went, so that ``auto`` is asked once."""
    opened: dict[str, Denoiser] = {}
    device = config.device
    for name in config.models or MODELS:
        opened[name] = Denoiser(name, device, config.threads, config.precision)
        device = opened[name].session.device
    return opened


def _too_slow(
    denoisers: dict[str, Denoiser], size: tuple[int, int], limit_s: float
) -> dict[str, float]:
    """Name the models, slowest first, that cannot all be timed in so long; their seconds a frame.

    A model that is timed denoises ten frames or more in all, warming up and memory counted.
    """
    area = size[0] * size[1] / (SMALL[0] * SMALL[1])
    if area <= 1:
        return {}
    expected = {name: area * _once(one, SMALL) for name, one in denoisers.items()}
    left, slow = limit_s, {}
    for name in sorted(expected, key=expected.__getitem__):
        left -= 10 * expected[name]
        if left < 0:
            slow[name] = expected[name]
    return slow


def _once(one: Denoiser, size: tuple[int, int]) -> float:
    """Return the seconds that a frame takes."""
    frame = noisy(1, *size)
    one.run(frame, SCALE)
    return in_turn({"": lambda: one.run(frame, SCALE)}, 1)[""][0]


def _one_by_one(
    denoisers: dict[str, Denoiser], frames: Stack, limit_s: float
) -> dict[str, list[float]]:
    """Denoise frame by frame, the models in turn; name to seconds."""
    ring = itertools.cycle(range(len(frames)))

    def single(one: Denoiser) -> object:
        number = next(ring)
        return one.run(frames[number : number + 1], SCALE)

    calls = {name: lambda one=one: single(one) for name, one in denoisers.items()}
    if not calls:
        return {}
    for call in calls.values():
        warm(call, limit_s / (4 * len(calls)))
    return in_turn(calls, ROUNDS, limit_s)


def stack_rate(one: Denoiser, frames: Stack, each: float, limit_s: float) -> float:
    """Return the frames a second of a whole stack, array to array, its scale found on the way.

    ``each``, the seconds of a frame by itself, and ``limit_s`` say how long the stack is.
    """
    count = int(np.clip(limit_s / each, 2, 128))
    stack = frames[np.arange(count) % len(frames)]
    times = in_turn({"": lambda: one.denoise(stack)}, 3, limit_s)[""]
    return count / float(np.median(times))


def _camera(one: Denoiser, frames: Stack, rate: float, row: Row, seconds: float) -> Row:
    """Let frames arrive at a rate; a model that is far too slow is not tried."""
    best = max(row["frames/s"], row.get("stack frames/s", 0.0))
    if rate > 1.2 * best or not row["rounds"]:
        return {"keeps up": rate < best, "dropped": None, "arrived": 0}

    def work(numbers: Sequence[int]) -> object:
        return one.run(frames[np.asarray(numbers) % len(frames)], SCALE)

    # On a CPU, frames that wait are computed side by side, one on each thread.
    session = one.session
    batch = session.threads if session.device == "cpu" else one.batch_for(frames.shape[1:])
    found = stream(work, rate, max(3, round(rate * seconds)), batch)
    return {
        "keeps up": found.keeps_up,
        "dropped": found.dropped,
        "arrived": found.frames,
        "live p99": rows.milliseconds(percentile(found.latencies, 0.99)),
        "live worst": rows.milliseconds(max(found.latencies)),
        "load": round(found.load, 2),
    }


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)
