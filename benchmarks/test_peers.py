"""The shipped model against the same net by other programs, in turn in one run."""

import functools
import itertools

import numpy as np
import pytest

from benchmarks import engines, roofline
from benchmarks.cases import CASES
from emdn_deploy.bench import rows
from emdn_deploy.bench.frames import noisy
from emdn_deploy.bench.rounds import in_turn, ratio, warm

ROUNDS = 40
SECONDS = 6.0


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("naive")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_peers(benchmark, ring, folder, case):
    denoiser = case.open()
    threads = denoiser.session.threads
    found = {"emdn": engines.shipped(denoiser)}
    found |= engines.peers(case.model, case.device, threads, folder)
    tolerance = 1e-4 if case.precision == "fp32" else 0.1
    expected = found["eager"](ring[:1])
    for name, engine in found.items():
        error = np.abs(engine(ring[:1]) - expected).max() / np.ptp(expected)
        assert error < (tolerance if name == "emdn" else 1e-4), name
    conv = roofline.opened(roofline.conv(folder), case.device)
    flat = noisy(1, roofline.SIDE, roofline.SIDE)
    starts = itertools.cycle(range(len(ring)))

    def one(engine):
        start = next(starts)
        return engine(ring[start : start + 1])

    calls = {name: functools.partial(one, engine) for name, engine in found.items()}
    calls["conv"] = lambda: conv.run(flat, 1.0, 0.0, 1.0)
    for call in calls.values():
        warm(call, 0.5)
    times = benchmark.pedantic(in_turn, (calls, ROUNDS, SECONDS), rounds=1)
    gflops = case.gflop / np.array(times["emdn"])
    peak = roofline.conv_gflop() / np.array(times["conv"])
    benchmark.extra_info.update(
        table="ratios",
        row=case.about(1) | {
            "GFLOP": round(case.gflop, 2),
            "ms": rows.milliseconds(float(np.median(times["emdn"]))),
            "GFLOP/s": rows.digits(float(np.median(gflops))),
            "roofline": str(ratio(gflops, peak)),
            **{
                name: str(ratio(times[name], times["emdn"])) if name in times else None
                for name in engines.PEERS
            },
            "rounds": len(times["emdn"]),
        },
    )  # fmt: skip
