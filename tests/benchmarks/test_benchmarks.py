"""What is compared computes the same; rounds become tables."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from benchmarks import conftest, test_speed
from benchmarks.test_speed import Case
from emdn_deploy.bench import noisy


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(test_speed.eager, marks=pytest.mark.slow),
        pytest.param(test_speed.openvino, marks=pytest.mark.skipif(
            find_spec("openvino") is None, reason="is in the extra bench-peers only")),
    ],
)  # fmt: skip
def test_a_peer_gives_what_is_shipped(make) -> None:
    frames = noisy(1, 256, 256)
    expected = test_speed.bare(Case("dncnn", "fp32", "cpu").open(1).session)(frames)
    found = make("dncnn", "cpu", 1)(frames)
    assert np.abs(found - expected).max() / np.ptp(expected) < 1e-4


def test_rounds_become_tables_and_files(tmp_path) -> None:
    timed = {"table": "inference", "frames": 2, "size": (100, 200), "gflop": 1.0}
    benchmarks = [
        SimpleNamespace(extra_info=info, stats=SimpleNamespace(data=seconds))
        for seconds, info in (
            ([0.4] * 100, timed | {"row": {"model": "a"}}),
            ([], {"some": "other"}),
            ([0.8] * 9, timed | {"row": {"model": "b", "extra": 1}}),
            ([9.9], {"table": "memory", "row": {"model": "a", "peak MB": 3}}),
        )
    ]
    found = conftest.collect(benchmarks)
    assert found["memory"].to_dicts() == [{"model": "a", "peak MB": 3}]
    first, second = found["inference"].to_dicts()
    assert (first["frames/s"], first["Mpx/s"], first["GFLOP/s"]) == (5.0, 0.1, 5.0)
    assert (first["p99"], second["p99"], second["extra"]) == (200.0, None, 1)
    conftest.save(tmp_path, "inference", found["inference"])
    written = pl.read_csv(tmp_path / "inference.csv")
    assert written.to_dicts() == found["inference"].to_dicts()
