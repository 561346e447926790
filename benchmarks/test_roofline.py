"""The machine's own limit, by the same runtime and threads as the models."""

import numpy as np
import pytest

from benchmarks import roofline
from benchmarks.cases import DEVICES
from emdn_deploy.bench import rows
from emdn_deploy.bench.frames import noisy

GRAPHS = {
    "64 -> 64 convolution, 3 x 3": (roofline.conv, roofline.conv_gflop(), roofline.SIDE),
    "matrix product": (roofline.gemm, roofline.gemm_gflop(), roofline.GEMM),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("what", GRAPHS)
def test_roofline(benchmark, tmp_path, what, device):
    make, gflop, side = GRAPHS[what]
    session = roofline.opened(make(tmp_path), device)
    frame = noisy(1, side, side)
    found = benchmark.pedantic(session.run, (frame, 1.0, 0.0, 1.0), rounds=100, warmup_rounds=10)
    assert np.isfinite(found).all()
    benchmark.extra_info.update(
        table="roofline", frames=1, size=(side, side), gflop=gflop,
        row={"what": what, **rows.about(session, device, 1, (side, side))} | {"model": None},
    )  # fmt: skip
