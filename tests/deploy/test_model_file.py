"""Models from elsewhere: what they may hold, and that a bad one is one line, soon."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from emdn_deploy import model_file, session
from emdn_deploy.session import open_session
from emdn_models import pretrained
from emdn_models.errors import ModelError

END = "denoised = Add(charged, offset)"


def changed(make_model: Callable[..., Path], path: Path, nodes: str) -> Path:
    """Make the blur of other tests end otherwise: ``nodes`` turn ``plain`` into ``denoised``."""
    from tests.deploy.conftest import BOX

    text = BOX.replace(END, "plain = Add(charged, offset)\n    " + nodes)
    return make_model(path, text)


def refused(path: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        open_session(path, "cpu", 1)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", pretrained.index()["models"])
def test_shipped_models_read_as_onnx_reads_them(name: str) -> None:
    path = pretrained.onnx_path(name)
    model = onnx.load(path)
    metadata, inputs = model_file.contents(path)
    assert metadata == {one.key: one.value for one in model.metadata_props}
    assert inputs == [one.name for one in model.graph.input]


@pytest.mark.parametrize(("nodes", "match"), [
    ("denoised = NonZero(plain)", "has the operator 'NonZero'"),
    ("denoised = com.microsoft.Gelu(plain)", "has the operator com.microsoft.'Gelu'"),
    ("denoised = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (plain)",
     r"makes float32 \(1, 1, 32, 32\) of frames \(1, 1, 64, 64\)"),
    ("zero = Sub(plain, plain)\n denoised = Div(plain, zero)", "float32 .* of finite numbers"),
    ("s = Constant <value_ints = [1, 1, 60000, 60000]> ()\n big = ConstantOfShape(s)\n"
     "m = ReduceMax <keepdims = 1> (big)\n denoised = Add(plain, m)",
     "fails on a frame of 64 x 64"),
])  # fmt: skip
def test_what_a_graph_must_not_do(
    make_model: Callable[..., Path], tmp_path: Path, nodes: str, match: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(onnx.checker, "check_model", lambda model: None)
    refused(changed(make_model, tmp_path / "model.onnx", nodes), match)


def test_loops_are_refused_wherever_they_hide(box_model: Path, tmp_path: Path) -> None:
    model = onnx.load(box_model)
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=body))
    path = tmp_path / "loop.onnx"
    onnx.save(model, path)
    refused(path, "has a graph or a sparse constant inside")
    # Protobuf joins a message that comes twice: the graph of the second file hides the loop's.
    path.write_bytes(path.read_bytes() + box_model.read_bytes())
    refused(path, "has a graph or a sparse constant inside")
    model = onnx.load(box_model)
    model.functions.append(helper.make_function("own", "f", [], [], [], model.opset_import))
    onnx.save(model, path)
    refused(path, "has functions of its own")


def test_constants_are_in_the_file(box_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.load(box_model)
    weights = model.graph.initializer[0]
    weights.CopyFrom(numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), weights.name))
    onnx.external_data_helper.set_external_data(weights, "../../etc/passwd")
    weights.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    refused(path, "constants in other files")
    model = onnx.load(box_model)
    model.graph.initializer[0].dims[:] = [10**6, 10**6, 3, 3]
    path.write_bytes(model.SerializeToString())
    refused(path, r"the constant 'k' claims shape \[1000000, 1000000, 3, 3\]")


@pytest.mark.parametrize("changes", [
    {"recipe": "[" * 100_000}, {"recipe": "[]"}, {"quality": "3"}, {"multiple": "9" * 4300},
    {"multiple": "9" * 5000}, {"multiple": "0"}, {"halo": "-2"}, {"gflop_256": "nan"},
    {"receptive_field": "1000000000"}, {"parameters": "-1"}, {"recipe": "9" * 5000},
    {"multiple": None}, {"recipe": "{"}, {"frames": "2"},
])  # fmt: skip
def test_metadata_that_no_export_writes(
    make_model: Callable[..., Path], tmp_path: Path, changes: dict[str, str]
) -> None:
    path = make_model(tmp_path / "model.onnx", **changes)
    with pytest.raises(ModelError, match="incomplete or damaged") as caught:
        open_session(path, "cpu", 1)
    assert len(str(caught.value)) < len(str(path)) + 400


@pytest.mark.parametrize(("changes", "match"), [
    ({"emdn_schema": None}, "not a model exported by emdn"),
    ({"emdn_schema": "2"}, "has emdn_schema 2, this emdn reads 1"),
    ({"recipe": json.dumps({"data": "x" * 2**20})}, "metadata of more than 1 MB"),
])  # fmt: skip
def test_foreign_metadata_is_refused(
    make_model: Callable[..., Path], tmp_path: Path, changes: dict[str, str | None], match: str
) -> None:
    refused(make_model(tmp_path / "model.onnx", **changes), match)


def test_a_slow_model_is_left_behind(box_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    left = Event()
    monkeypatch.setattr(session, "_TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(session, "_try_run", lambda *_: left.wait(30))
    try:
        with pytest.raises(ModelError, match=r"box\.onnx: did not denoise a frame of 64 x 64"):
            session._try(box_model, "slow", 1)
    finally:
        left.set()


@pytest.mark.parametrize("seed", range(24))
def test_damage_is_a_model_error_or_none(box_model: Path, tmp_path: Path, seed: int) -> None:
    chance = np.random.default_rng(seed)
    content = bytearray(box_model.read_bytes())
    for _ in range(3):
        content[chance.integers(0, len(content))] ^= 1 << chance.integers(0, 8)
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: chance.integers(1, len(content))] if seed % 3 == 0 else content)
    with contextlib.suppress(ModelError):
        model_file.contents(path)
