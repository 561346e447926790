"""What is compared computes the same; the machine's limit is counted right."""

from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import engines, roofline
from benchmarks.cases import CASES, Case
from emdn_deploy.bench.frames import noisy
from emdn_models import MODELS


def test_every_shipped_model_is_a_case() -> None:
    assert {case.model for case in CASES} == set(MODELS)
    assert {case.precision for case in CASES if case.device == "cuda"} <= {"fp32", "fp16"}


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("dncnn", "fp32", "cpu")


@pytest.mark.slow
def test_the_graph_without_rewriting_and_torch_give_what_is_shipped(case, tmp_path) -> None:
    frames = noisy(2, 256, 256)
    expected = engines.shipped(case.open(1))(frames)
    for engine in (engines.naive("dncnn", "cpu", 1, tmp_path), engines.eager("dncnn", "cpu", 1)):
        error = np.abs(engine(frames) - expected).max() / np.ptp(expected)
        assert error < 1e-5


@pytest.mark.skipif(find_spec("openvino") is None, reason="is in the extra bench-peers only")
def test_openvino_gives_what_is_shipped(case, tmp_path) -> None:
    frames = noisy(1, 256, 256)
    expected = engines.shipped(case.open(1))(frames)
    found = engines.openvino("dncnn", 1, tmp_path)(frames)
    assert np.abs(found - expected).max() / np.ptp(expected) < 1e-4


def test_peers_are_left_out_where_they_are_absent(tmp_path, monkeypatch) -> None:
    for name in ("naive", "eager", "compiled", "openvino"):
        monkeypatch.setattr(engines, name, lambda *arguments: None)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    monkeypatch.setattr(engines.shutil, "which", lambda name: "/usr/bin/" + name)
    assert engines.absent() == {"openvino": "is in the extra bench-peers"}
    assert list(engines.peers("dncnn", "cpu", 1, tmp_path)) == ["naive", "eager", "compile"]
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert list(engines.peers("dncnn", "cpu", 1, tmp_path)) == ["naive", "eager"]
    monkeypatch.setattr(engines, "find_spec", lambda name: "there")
    monkeypatch.setenv("CXX", "g++")
    assert list(engines.peers("dncnn", "cpu", 1, tmp_path)) == list(engines.PEERS)
    assert "openvino" not in engines.peers("dncnn", "cuda", 1, tmp_path)


@pytest.mark.parametrize(
    ("make", "gflop", "side"),
    [
        (roofline.conv, roofline.conv_gflop(), roofline.SIDE),
        (roofline.gemm, roofline.gemm_gflop(), roofline.GEMM),
    ],
)
def test_the_roofline_is_a_graph_of_so_many_operations(make, gflop, side, tmp_path) -> None:
    import onnx

    path = make(tmp_path)
    counted = 0
    for tensor in onnx.load(path).graph.initializer:
        pixels = side if tensor.name == "w" else side**2  # a row, or a map, per element
        counted += 2 * int(np.prod(tensor.dims)) * pixels
    assert counted / 1e9 == pytest.approx(gflop, rel=0.01)
    denoised = roofline.opened(path, "cpu", 1).run(noisy(1, side, side), 1.0, 0.0, 1.0)
    assert denoised.shape == (1, side, side)
    assert np.isfinite(denoised).all()
    assert denoised.std() > 0
