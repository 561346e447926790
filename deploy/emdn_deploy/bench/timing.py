"""How calls are timed: noisy frames, warm-up, turns, percentiles, a live camera, peak memory."""

import math
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.config import Device
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.dose import Intensity

Call = Callable[[], object]

ELECTRONS = 40.0
SCALE = Intensity(ELECTRONS, 1.0, 0.0, ELECTRONS**0.5, "known")
"""The intensity scale of `noisy` frames."""
BUFFER = 8
"""Frames of a camera that may wait; one that comes when so many do is lost."""


def noisy(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
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


def warm(call: Call, limit_s: float = 2.0) -> int:
    """Call until it is stable: until two calls in a row are under 5 % faster than the best.

    At least two calls are made, and none is begun after ``limit_s``. Returns their number.
    """
    began, best, quiet, calls = time.perf_counter(), math.inf, 0, 0
    while calls < 2 or (quiet < 2 and time.perf_counter() - began < limit_s):
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        quiet = quiet + 1 if took > 0.95 * best else 0
        best, calls = min(best, took), calls + 1
    return calls


def in_turn(
    calls: Mapping[str, Call], rounds: int, limit_s: float = math.inf
) -> dict[str, list[float]]:
    """Time several calls, one of each a round, so that what slows the machine slows all.

    The order of each round is drawn, always the same way, so that none always follows the
    same one: threads that still spin, or a cache just filled, meet all of them.

    Returns
    -------
    Name to seconds, one number a round: ``rounds`` or fewer, as none but the first is begun
    after ``limit_s``.
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


def percentile(seconds: Sequence[float], share: float) -> float | None:
    """Return a quantile, None where the rounds are too few: a p90 needs 10, a p99 100."""
    enough = len(seconds) >= round(1 / (1 - share))
    return float(np.quantile(seconds, share)) if enough else None


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Divide the times of two calls of `in_turn` round by round: the median and the quartiles."""
    shares = np.asarray(above) / np.asarray(below)
    low, middle, high = np.quantile(shares, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def stack_rate(one: Denoiser, frames: NDArray[np.float32], each: float, limit_s: float) -> float:
    """Return the frames a second of a stack, array to array, its scale found on the way.

    ``each``, the seconds of a frame by itself, and ``limit_s`` say how long the stack is.
    """
    count = int(np.clip(limit_s / each, 2, 128))
    stack = frames[np.arange(count) % len(frames)]
    times = in_turn({"": lambda: one.denoise(stack)}, 3, limit_s)[""]
    return count / float(np.median(times))


class Live(NamedTuple):
    """What became of frames that arrived at a rate.

    ``latencies`` are seconds from arrival to result, of those that were not dropped; ``load`` is
    the share of the time that the computation needs: above 1 the backlog grows, even where the
    buffer was large enough so far.
    """

    frames: int
    dropped: int
    latencies: list[float]
    load: float

    @property
    def keeps_up(self) -> bool:
        """Say whether this could go on for ever."""
        return not self.dropped and self.load < 1


def stream(
    work: Callable[[Sequence[int]], object],
    rate: float,
    frames: int,
    batch: int = 1,
    buffer: int = BUFFER,
) -> Live:
    """Let frames arrive and denoise them as they come, several at once where several wait.

    Parameters
    ----------
    work
        Denoises the frames of these numbers, 1 to ``batch`` of them.
    rate
        Frames a second; frame k arrives k / rate after the start.
    """
    waiting: deque[int] = deque()
    latencies: list[float] = []
    arrived = dropped = 0
    busy = 0.0
    began = time.perf_counter()
    while arrived < frames or waiting:
        now = time.perf_counter()
        # Nothing leaves the buffer during a computation, so that it can be filled afterwards.
        while arrived < frames and began + arrived / rate <= now:
            if len(waiting) < buffer:
                waiting.append(arrived)
            else:
                dropped += 1
            arrived += 1
        if not waiting:
            if arrived < frames:
                time.sleep(max(0.0, began + arrived / rate - time.perf_counter()))
            continue
        taken = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
        start = time.perf_counter()
        work(taken)
        done = time.perf_counter()
        busy += done - start
        latencies += [done - (began + number / rate) for number in taken]
    return Live(frames, dropped, latencies, busy * rate / len(latencies))


_RUN = """
import sys
from emdn_deploy.bench.timing import SCALE, noisy
from emdn_deploy.denoiser import Denoiser

model, device, threads, batch, height, width = sys.argv[1:]
frames = noisy(int(batch), int(height), int(width))
denoiser = Denoiser(model, device, int(threads))
for _ in range(2):
    denoiser.run(frames, SCALE)
"""
_COMMAND = """
from emdn_deploy.cli import main

try:
    main()
except SystemExit as end:
    if end.code:
        raise
"""
_PEAK = """
from pathlib import Path

status = Path("/proc/self/status")
if status.exists():  # ru_maxrss keeps the peak of the process that started this one
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    print(float(peak.split()[1]) / 1024)
else:
    import resource

    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def peak_mb(
    model: str, device: Device, threads: int, batch: int, size: tuple[int, int]
) -> int | None:
    """Return the peak memory of a process that opens a model and denoises (batch, H, W) twice.

    In MiB, the interpreter's among them; None where the system does not tell. A process of its
    own: the peak of this one would be its hungriest model's.
    """
    found = _peak_of(_RUN, [model, device, threads, batch, *size])
    return None if found is None else round(found)


def command_peak_mb(arguments: Sequence[str | PathLike[str]]) -> float | None:
    """Return the peak of ``emdn-deploy`` with these arguments, as `peak_mb` does."""
    return _peak_of(_COMMAND, arguments)


def _peak_of(code: str, arguments: Sequence[object]) -> float | None:
    command = [sys.executable, "-c", code + _PEAK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None
