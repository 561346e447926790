"""What is compared computes the same; rounds become tables; published weights fit the nets."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks import conftest, peers
from benchmarks.peers import Case
from benchmarks.published_psnr import load, psnr_of
from emdn_deploy.bench import noisy
from emdn_models import MODELS
from emdn_models.nets import NETS


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
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    assert peers.absent().keys() == {"compile", "openvino"}
    assert list(peers.programs("dncnn", "cpu", 1)) == ["naive", "eager"]
    monkeypatch.setattr(peers, "find_spec", lambda name: "there")
    monkeypatch.setenv("CXX", "g++")
    assert list(peers.programs("dncnn", "cpu", 1)) == list(peers.PEERS)
    assert "openvino" not in peers.programs("dncnn", "cuda", 1)


def test_rounds_become_tables_and_files(tmp_path) -> None:
    timed = {"table": "inference", "frames": 2, "size": (100, 200), "gflop": 1.0}
    benchmarks = [
        SimpleNamespace(extra_info=info, stats=SimpleNamespace(data=seconds))
        for seconds, info in (
            ([0.4] * 100, timed | {"row": {"model": "a", "threads": 2, "batch": 2}}),
            ([], {"some": "other"}),
            ([0.8] * 9, timed | {"row": {"model": "b", "threads": 2, "batch": 2, "extra": 1}}),
            ([9.9], {"table": "memory", "row": {"model": "a", "peak MB": 3}}),
        )
    ]
    found = conftest.collect(benchmarks)
    assert found["memory"].to_dicts() == [{"model": "a", "peak MB": 3}]
    table = found["inference"]
    first, second = table.to_dicts()
    assert (first["frames/s"], first["Mpx/s"], first["GFLOP/s"]) == (5.0, 0.1, 5.0)
    assert (first["p99"], first["rounds"]) == (200.0, 100)
    assert (second["p90"], second["p99"], second["extra"]) == (None, None, 1)
    assert first["extra"] is None
    text = conftest.save(tmp_path / "results", "inference", table, ["A machine"])
    pasted = (tmp_path / "results" / "inference.md").read_text()
    assert pasted.splitlines()[0] == "A machine"
    assert "threads 2, batch 2" in pasted
    rows = [line.strip("| ").split(" | ") for line in pasted.splitlines() if line[0:1] == "|"]
    assert rows[0][:2] == ["model", "frames/s"]
    assert [" ".join(row) for row in rows[2:]] == [
        " ".join(line.split()) for line in text.splitlines()[-2:]
    ]
    assert pl.read_csv(tmp_path / "results" / "inference.csv").to_dicts() == table.to_dicts()


@pytest.mark.parametrize("model", ["dncnn", "ffdnet"])
def test_a_state_dict_under_other_names_gives_the_same_image(model, tmp_path) -> None:
    options = dict(MODELS[model].presets["paper"].options)
    if model == "dncnn":  # as its authors ship it: batch norm merged
        options["batch_norm"] = False
    torch.manual_seed(0)
    net = NETS[model](**options).eval()
    path = tmp_path / "weights.pth"
    torch.save({f"model.{k}.x": value for k, value in enumerate(net.state_dict().values())}, path)
    clean = np.random.default_rng(0).integers(0, 255, (32, 24)).astype(np.uint8)
    assert psnr_of(load(model, path), clean, 25.0, 0) == psnr_of(net, clean, 25.0, 0)
