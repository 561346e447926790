"""Every shipped model at 256 x 256 by bare session.run: one frame at a time, and batches.

Frames one by one are 100 rounds or more, so that a p99 can be said; batches as many as fit into
a few seconds.
"""

import itertools

import numpy as np
import pytest

from benchmarks.cases import CASES, SIZE
from emdn_deploy.bench.frames import SCALE
from emdn_deploy.bench.memory import peak_mb
from emdn_deploy.bench.rounds import in_turn, warm

SECONDS = 1.5


def prepared(ring, batch):
    """Give the next frames of the ring, other ones every round."""
    starts = itertools.cycle(range(len(ring)))

    def prepare():
        frames = np.take(ring, range(start := next(starts), start + batch), axis=0, mode="wrap")
        return (frames, SCALE.scale, SCALE.offset, SCALE.gain), {}

    return prepare


@pytest.mark.parametrize("case", CASES, ids=str)
def test_single_stream(benchmark, ring, roof, gain, case):
    session, prepare = case.open().session, prepared(ring, 1)
    warm(lambda: session.run(*prepare()[0]))
    denoised = benchmark.pedantic(session.run, setup=prepare, rounds=100)
    assert np.isfinite(denoised).all()
    benchmark.extra_info.update(
        table="inference", frames=1, size=SIZE, gflop=case.gflop, roofline=roof(case.device),
        row={"scenario": "single-stream", "boundary": "compute"} | case.about(1)
        | {"peak MB": peak(session, case, 1), "dB multislice": gain(case)},
    )  # fmt: skip


@pytest.mark.parametrize("batch", [16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_offline(benchmark, ring, roof, case, batch):
    session, prepare = case.open().session, prepared(ring, batch)
    call = lambda: session.run(*prepare()[0])  # noqa: E731
    warm(call, SECONDS / 2)
    each = in_turn({"": call}, 1)[""][0]
    rounds = int(np.clip(SECONDS / each, 3, 100))
    benchmark.pedantic(session.run, setup=prepare, rounds=rounds)
    benchmark.extra_info.update(
        table="inference", frames=batch, size=SIZE, gflop=case.gflop, roofline=roof(case.device),
        row={"scenario": "offline", "boundary": "compute"} | case.about(batch)
        | {"peak MB": peak(session, case, batch), "dB multislice": None},
    )  # fmt: skip


def peak(session, case, batch):
    """Return the peak memory in whole MB of a process of its own."""
    found = peak_mb(str(session.info.path), case.device, session.threads, batch, SIZE)
    return None if found is None else round(found)
