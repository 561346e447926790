"""Frames that arrive at a rate: how late each is denoised, and how many are lost.

At 0.8 of what a model does one by one, and for the default also at 1.2, where one frame in six
must be lost.
"""

import numpy as np
import pytest

from benchmarks.cases import CASES, Case
from emdn_deploy.bench import live, rows
from emdn_deploy.bench.frames import SCALE
from emdn_deploy.bench.rounds import in_turn, percentile, warm
from emdn_models import pretrained

FRAMES = 120
DEFAULT = Case(pretrained.default_model(), "fp32", "cpu")
LOADS = [(case, 0.8) for case in CASES] + [(DEFAULT, 1.2)]


@pytest.mark.parametrize(("case", "load"), LOADS, ids=str)
def test_live(benchmark, ring, case, load):
    denoiser = case.open()
    warm(lambda: denoiser.run(ring[:1], SCALE))
    each = float(np.median(in_turn({"": lambda: denoiser.run(ring[:1], SCALE)}, 20)[""]))

    def work(numbers):
        denoiser.run(ring[np.array(numbers) % len(ring)], SCALE)

    rate = load / each
    found = benchmark.pedantic(live.stream, (work, rate, FRAMES), rounds=1)
    assert len(found.latencies) + found.dropped == FRAMES
    benchmark.extra_info.update(
        table="live",
        row={"scenario": "live", "boundary": "array"} | case.about(1) | {
            "asked load": load,
            "frames/s": rows.digits(rate),
            "frames": FRAMES,
            "dropped": found.dropped,
            "p50": rows.milliseconds(percentile(found.latencies, 0.5)),
            "p90": rows.milliseconds(percentile(found.latencies, 0.9)),
            "p99": rows.milliseconds(percentile(found.latencies, 0.99)),
            "load": round(found.load, 2),
        },
    )  # fmt: skip
