"""Models in halves: what is a half, what is not, and that the emulation rounds as they do."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, shape_inference

from emdn_deploy import session
from emdn_deploy.session import open_session
from emdn_models import MODELS, pretrained
from emdn_train.variants import halves
from emdn_train.variants.halves import between, emulated, halved


def save(model: onnx.ModelProto, path: Path) -> Path:
    told = {one.key: one.value for one in model.metadata_props}
    helper.set_model_props(model, {**told, "precision": "fp16"})
    onnx.save(model, path)
    return path


def frames_of(scale: float, *shape: int) -> np.ndarray:
    y, x = np.mgrid[: shape[1], : shape[2]]
    clean = scale * (1 + 0.3 * np.cos(x / 2.3) * np.cos(y / 2.9 + x / 4))
    return np.random.default_rng(0).poisson(clean, shape).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("halves")
    return {
        name: save(halved(onnx.load(pretrained.onnx_path(name))), folder / f"{name}.fp16.onnx")
        for name in MODELS
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_net_is_halves_and_the_rest_is_not(made: dict[str, Path], name: str) -> None:
    model = onnx.load(made[name])
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {one.name: one.type.tensor_type.elem_type
             for one in [*inferred.input, *inferred.value_info, *inferred.output]}  # fmt: skip
    types |= {one.name: one.data_type for one in inferred.initializer}
    kinds, spectral = Counter(), Counter()
    kernels = {one.name: tuple(one.dims) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            kernel = kernels.get(node.input[1], ())
            rows_or_windows = len(kernel) == 3 or kernel[-2:] in ((128, 128), (64, 64))
            counter = spectral if rows_or_windows else kinds
            counter.update(types[one] for one in [*node.input, *node.output])
    assert set(kinds) == {TensorProto.FLOAT16}
    assert set(spectral) == {TensorProto.FLOAT}  # a half cannot hold the power of a bright lattice
    for one in [*model.graph.input, *model.graph.output]:
        assert one.type.tensor_type.elem_type == TensorProto.FLOAT
    # The scale is a number that a half cannot hold.
    readers = [node for node in model.graph.node if {"frames", "scale", "gain"} & {*node.input}]
    assert all(types[output] == TensorProto.FLOAT for node in readers for output in node.output
               if node.op_type not in ("Shape", "Size"))  # fmt: skip
    saved = pretrained.onnx_path(name).stat().st_size - made[name].stat().st_size
    assert saved > 1.2 * MODELS[name].presets["shipped"].parameters  # two bytes of four each


@pytest.mark.parametrize("name", MODELS)
def test_halves_differ_by_their_rounding_only(made: dict[str, Path], name: str) -> None:
    whole, half = open_session(name, "cpu", 1), open_session(made[name], "cpu", 1)
    assert half.precision == "fp16"
    for scale, gain, offset in ((0.3, 1.0, 0.0), (9.0, 28.0, 120.0), (5e4, 1.0, 0.0)):
        frames = frames_of(scale, 2, 67, 50) * np.float32(gain) + np.float32(offset)
        expected = whole.run(frames, scale, offset, gain)
        found = half.run(frames, scale, offset, gain)
        # 11 bits of what the noise is the unit of, in tens of layers.
        unit = gain * scale**0.5
        assert 0 < np.abs(found - expected).max() < 0.02 * unit + 0.001 * np.ptp(expected)
        assert abs(found.mean() / expected.mean() - 1) < 1e-3


def test_a_hot_pixel_does_not_spread(made: dict[str, Path]) -> None:
    frames = frames_of(0.05, 1, 256, 256)
    frames[0, 100, 100] = 65535
    whole, half = (open_session(one, "cpu", 1) for one in ("ffdnet", made["ffdnet"]))
    found = half.run(frames, 0.05, 0.0, 1.0)
    assert np.isfinite(found).all()
    far = np.s_[:, 200:, 200:]
    expected = whole.run(frames, 0.05, 0.0, 1.0)
    assert np.abs(found[far] - expected[far]).max() < 0.02 * 0.05**0.5


SMALL = """
<ir_version: 8, opset_import: ["" : 18]>
small (float[n,1,h,w] frames, float[n,1,1,1] scale) => (float[n,1,h,w] denoised)
<float[1,1,1,1] k = {0.5}, float[4] up = {1.0, 1.0, 2.0, 2.0}>
{
    x = Div(frames, scale)
    a = Conv(x, k)
    half = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (a)
    wide = Resize <mode = "nearest"> (half, , up)
    size = Shape(a)
    same = Reshape(wide, size)
    b = Conv(same, k)
    y = Add(b, x)
    denoised = Mul(y, scale)
}
"""


def test_what_lies_between_convolutions_is_found() -> None:
    kinds = [node.op_type for node in between(onnx.parser.parse_model(SMALL))]
    assert kinds == ["Conv", "AveragePool", "Resize", "Shape", "Reshape", "Conv"]


def test_sizes_and_scales_keep_their_types() -> None:
    model = halved(onnx.parser.parse_model(SMALL))
    kinds = [node.op_type for node in model.graph.node]
    # The net is entered once, and left once.
    assert (kinds.count("Clip"), kinds.count("Cast")) == (1, 2)
    types = {one.name: one.data_type for one in model.graph.initializer}
    assert types["up"] == TensorProto.FLOAT
    assert types["k.half"] == TensorProto.FLOAT16
    assert "k" not in types


def test_the_model_is_left_as_it_was() -> None:
    model = onnx.load(pretrained.onnx_path("ffdnet"))
    before = model.SerializeToString()
    assert halved(model).SerializeToString() != before
    assert model.SerializeToString() == before
    assert np.finfo(np.float16).max / 7 > halves.LARGEST


ROUNDING = """
<ir_version: 8, opset_import: ["" : 18]>
rounding (float[n,1,h,w] frames) => (float[n,1,h,w] denoised)
<float[1,1,1,1] one = {1.0}, float[1] little = {0.000244140625}, float[1] less = {-1.0}>
{
    a = Conv(frames, one, little)
    denoised = Conv(a, one, less)
}
"""


def test_the_emulation_rounds_where_the_cpu_does_not(tmp_path: Path) -> None:
    # 1 + 2^-12 is no half. onnxruntime adds it up in float32, and forgets to round.
    model = halved(onnx.parser.parse_model(ROUNDING))
    ones = np.ones((1, 1, 4, 4), np.float32)
    handles = [session._open(save(one, tmp_path / "one.onnx"), "cpu", 1)
               for one in (model, emulated(model))]  # fmt: skip
    exact, rounded = (handle.run(None, {"frames": ones})[0] for handle in handles)
    np.testing.assert_array_equal(rounded, 0)
    # If this ever fails, onnxruntime has learnt it, and the emulation is not needed.
    assert (exact == 2**-12).all()


@pytest.mark.parametrize("name", ["ffdnet", "mcnn"])
def test_the_emulation_is_of_the_same_graph(
    made: dict[str, Path], tmp_path: Path, name: str
) -> None:
    half = open_session(made[name], "cpu", 1)
    path = save(emulated(onnx.load(made[name])), tmp_path / "emulated.onnx")
    frames = frames_of(9.0, 1, 64, 64)
    exact = open_session(name, "cpu", 1).run(frames, 9.0, 0.0, 1.0)
    plain = half.run(frames, 9.0, 0.0, 1.0)
    rounded = open_session(path, "cpu", 1).run(frames, 9.0, 0.0, 1.0)
    # The weights' rounding is in both, that of results only in one.
    assert np.abs(rounded - exact).std() > np.abs(plain - exact).std()
    assert np.abs(rounded - plain).max() < 0.02 * 9.0**0.5


def test_what_overflows_shows_in_the_emulation(tmp_path: Path) -> None:
    text = ROUNDING.replace("one = {1.0}", "one = {1000.0}")
    path = save(emulated(halved(onnx.parser.parse_model(text))), tmp_path / "large.onnx")
    found = session._open(path, "cpu", 1).run(None, {"frames": np.full((1, 1, 2, 2), 99, "f4")})[0]
    assert np.isinf(found).all()
