"""Frames a second against threads and against the size of a frame; drawn in scaling.png."""

import numpy as np
import pytest

from benchmarks.cases import CASES
from emdn_deploy import cpus
from emdn_deploy.bench import rows
from emdn_deploy.bench.frames import SCALE, noisy
from emdn_deploy.bench.rounds import in_turn, warm

THREADS = sorted({2**k for k in range(10) if 2**k < cpus.usable()} | {cpus.usable()})
SIDES = (64, 128, 256, 512, 1024)
POINTS = [(256, threads) for threads in THREADS[:-1]] + [(side, THREADS[-1]) for side in SIDES]
SECONDS = 1.0


@pytest.mark.parametrize(("side", "threads"), POINTS)
@pytest.mark.parametrize(
    "case", [one for one in CASES if one.precision == "fp32" and one.device == "cpu"], ids=str
)
def test_scaling(benchmark, case, side, threads):
    denoiser, frame, size = case.open(threads), noisy(1, side, side), (side, side)
    call = lambda: denoiser.run(frame, SCALE)  # noqa: E731
    warm(call, SECONDS)
    rounds = int(np.clip(SECONDS / in_turn({"": call}, 1)[""][0], 2, 50))
    benchmark.pedantic(call, rounds=rounds)
    benchmark.extra_info.update(
        table="scaling", frames=1, size=size, gflop=rows.gflop_of(denoiser.session, size),
        row={"boundary": "array"} | rows.about(denoiser.session, case.device, 1, size),
    )  # fmt: skip
