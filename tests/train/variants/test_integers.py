"""Integers in a graph: which convolutions get them, and that they compute the same."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from emdn_deploy.session import open_session
from emdn_models import MODELS, pretrained
from emdn_train.variants import ranges
from emdn_train.variants.insertion import LARGEST_WEIGHT, families, inner, inserted
from emdn_train.variants.integers import affordable, quantised

LAYERS = {"cafcn": 23, "dncnn": 11, "ffdnet": 11, "unet": 15, "rednet": 19, "mcnn": 12, "msdnet": 0}


@pytest.mark.parametrize("name", MODELS)
def test_the_first_and_the_last_convolution_stay_as_they_are(name: str) -> None:
    model = onnx.load(pretrained.onnx_path(name))
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    chosen = [node.output[0] for node in inner(model)]
    assert len(chosen) == LAYERS[name]
    assert not {one.output[0] for one in convs[:1] + convs[-1:]} & set(chosen)


def counted(model: onnx.ModelProto) -> dict[str, int]:
    kinds = [node.op_type for node in model.graph.node]
    return {kind: kinds.count(kind) for kind in ("QuantizeLinear", "DequantizeLinear", "Conv")}


def test_one_convolution_in_integers(smooth: onnx.ModelProto, frames, tmp_path: Path) -> None:
    before = smooth.SerializeToString()
    convs = inner(smooth)
    assert families(smooth, convs) == [["b"], ["d"]]
    known = ranges.measure(smooth, ["b", "d"], frames.fitted, tmp_path)
    assert 10 < known["d"][1] < known["b"][1] < 20
    made = inserted(smooth, convs, known)
    assert smooth.SerializeToString() == before
    # Both tensors, and the kernel; there is no bias.
    assert counted(made) == {"QuantizeLinear": 2, "DequantizeLinear": 3, "Conv": 3}
    whole = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    kernel = whole["k.whole"]
    assert kernel.dtype == np.int8
    assert np.abs(kernel).max() == LARGEST_WEIGHT
    # The other convolutions still read the kernel as it was.
    np.testing.assert_array_equal(whole["k"].ravel() * 4 * LARGEST_WEIGHT, kernel.ravel())
    paths = [tmp_path / "whole.onnx", tmp_path / "integers.onnx"]
    for model, path in zip((smooth, made), paths, strict=True):
        onnx.save(model, path)
    sample = frames.judged[0]
    exact, found = (
        open_session(path, "cpu", 1).run(sample.noisy[None], *sample.numbers) for path in paths
    )
    # Half a step of both tensors, at the most.
    step = (known["b"][1] + known["d"][1]) / 255 * sample.numbers[0] ** 0.5
    assert 0 < np.abs(found - exact).max() < 0.51 * step


def test_biases_are_integers_in_units_of_the_sums() -> None:
    model = onnx.load(pretrained.onnx_path("dncnn"))
    convs = inner(model)
    names = [name for family in families(model, convs) for name in family]
    made = inserted(model, convs, dict.fromkeys(names, (0.0, 9.0)))
    known = {one.name: numpy_helper.to_array(one) for one in (*made.graph.initializer,
                                                             *model.graph.initializer)}  # fmt: skip
    for conv in convs:
        (output,) = conv.output
        whole, factors = known[f"{output}.bias.whole"], known[f"{output}.bias.scale"]
        assert whole.dtype == np.int32
        np.testing.assert_allclose(whole * factors, known[conv.input[2]], atol=factors.max() / 2)
        expected = known[f"{conv.input[1]}.scale"] * np.float32(9 / 255)
        np.testing.assert_allclose(factors, expected, rtol=1e-6)


def test_the_cheapest_convolutions_are_taken_until_nothing_is_left_to_lose(smooth) -> None:
    convs = [node for node in smooth.graph.node if node.op_type == "Conv"]
    assert [one.output[0] for one in affordable(convs, [0.06, 0.05, 0.03])] == ["y", "c"]
    # What is better by chance pays for nothing.
    assert [one.output[0] for one in affordable(convs, [0.2, -0.3, 0.09])] == ["c", "y"]
    assert affordable(convs, [0.2, float("nan"), float("nan")]) == []


def test_a_net_without_such_convolutions_is_left(frames, tmp_path: Path) -> None:
    model = onnx.load(pretrained.onnx_path("msdnet"))
    assert quantised(model, frames.fitted, tmp_path).integers == 0
