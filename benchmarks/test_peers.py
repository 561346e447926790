"""The shipped model against the same net by other programs, in turn in one run."""

import functools
import itertools

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.cases import CASES
from emdn_deploy import bench
from emdn_deploy.bench import in_turn, noisy, ratio, warm

ROUNDS, SECONDS = 40, 6.0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_peers(benchmark, ring, case):
    session = case.open().session
    found = {"emdn": peers.bare(session)}
    found |= peers.programs(case.model, case.device, session.threads)
    tolerance = 1e-4 if case.precision == "fp32" else 0.1
    expected = found["eager"](ring[:1])
    for name, program in found.items():
        error = np.abs(program(ring[:1]) - expected).max() / np.ptp(expected)
        assert error < (tolerance if name == "emdn" else 1e-4), name
    starts = itertools.cycle(range(len(ring)))

    def one(program):
        start = next(starts)
        return program(ring[start : start + 1])

    calls = {name: functools.partial(one, program) for name, program in found.items()}
    flat = noisy(1, peers.SIDE, peers.SIDE)
    calls["conv"] = functools.partial(peers.roofline(case.device), flat)
    for call in calls.values():
        warm(call, 0.5)
    times = benchmark.pedantic(in_turn, (calls, ROUNDS, SECONDS), rounds=1)
    gflops = case.gflop / np.array(times["emdn"])
    ratios = {name: ratio(times[name], times["emdn"]) for name in peers.PEERS if name in times}
    benchmark.extra_info.update(
        table="ratios",
        row=case.about(1) | {
            "GFLOP": round(case.gflop, 2),
            "ms": bench.digits(1e3 * float(np.median(times["emdn"]))),
            "GFLOP/s": bench.digits(float(np.median(gflops))),
            "roofline": ratio(gflops, peers.CONV_GFLOP / np.array(times["conv"])),
            **dict.fromkeys(peers.PEERS), **ratios, "rounds": len(times["emdn"]),
        },
    )  # fmt: skip
