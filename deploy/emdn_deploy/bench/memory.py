"""The peak memory of a process of its own: that of this one would be its hungriest model's."""

import subprocess
import sys
from collections.abc import Sequence
from os import PathLike

from emdn_deploy.config import Device

_RUN = """
import sys
from emdn_deploy.bench.frames import SCALE, noisy
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
) -> float | None:
    """Return the peak of a process that opens a model and denoises (batch, H, W) twice.

    Returns
    -------
    float or None
        MiB of main memory, the interpreter's among them; None where the system does not tell.
    """
    return _peak_of(_RUN, [model, device, threads, batch, *size])


def command_peak_mb(arguments: Sequence[str | PathLike[str]]) -> float | None:
    """Return the peak of ``emdn-deploy`` with these arguments, as `peak_mb` does."""
    return _peak_of(_COMMAND, arguments)


def _peak_of(code: str, arguments: Sequence[object]) -> float | None:
    done = subprocess.run(
        [sys.executable, "-c", code + _PEAK, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None
