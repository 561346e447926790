"""What is compared computes the same; the machine's limit is counted right."""

from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.cases import Case
from emdn_deploy.bench import noisy


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(peers.naive, marks=pytest.mark.slow),
        pytest.param(peers.eager, marks=pytest.mark.slow),
        pytest.param(peers.openvino, marks=pytest.mark.skipif(
            find_spec("openvino") is None, reason="is in the extra bench-peers only")),
    ],
)  # fmt: skip
def test_a_peer_gives_what_is_shipped(make) -> None:
    frames = noisy(1, 256, 256)
    expected = peers.bare(Case("dncnn", "fp32", "cpu").open(1).session)(frames)
    found = make("dncnn", "cpu", 1)(frames)
    tolerance = 1e-4 if make is peers.openvino else 1e-5
    assert np.abs(found - expected).max() / np.ptp(expected) < tolerance


def test_peers_are_left_out_where_they_are_absent(monkeypatch) -> None:
    for name in ("naive", "eager", "compiled", "openvino"):
        monkeypatch.setattr(peers, name, lambda *_: None)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(peers.shutil, "which", lambda name: "/usr/bin/" + name)
    assert peers.absent() == {"openvino": "is in the extra bench-peers"}
    assert list(peers.programs("dncnn", "cpu", 1)) == ["naive", "eager", "compile"]
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    assert list(peers.programs("dncnn", "cpu", 1)) == ["naive", "eager"]
    monkeypatch.setattr(peers, "find_spec", lambda name: "there")
    monkeypatch.setenv("CXX", "g++")
    assert list(peers.programs("dncnn", "cpu", 1)) == list(peers.PEERS)
    assert "openvino" not in peers.programs("dncnn", "cuda", 1)
