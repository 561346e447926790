"""The machine's own limit: a convolution and a matrix product, by the same runtime and threads.

Both are models of emdn's own form, so that they are opened, and run, as the others are.
"""

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from emdn_deploy.session import Session, open_session

SIDE = 128  # 64 maps of 128 x 128: 4 MB, between those of full and of quarter resolution
WIDTH = 64
LAYERS = 4
GEMM = 1024

_INFO = {
    "emdn_schema": "1", "preset": "benchmark", "weights_sha256": "0" * 64, "multiple": "1",
    "receptive_field": "3", "tiling_exact": "false", "parameters": "0", "recipe": "{}",
    "quality": "{}",
}  # fmt: skip


def conv(folder: Path) -> Path:
    """Save a chain of 64 -> 64 convolutions of 3 x 3, on 64 copies of a frame."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "frames"
    widths = (1, *[WIDTH] * (LAYERS + 1), 1)
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        side = 3 if inputs == outputs else 1  # into and out of 64 maps: little to do
        kernel = rng.normal(0, (inputs * side**2) ** -0.5, (outputs, inputs, side, side))
        weights.append(numpy_helper.from_array(kernel.astype("f4"), f"w{layer}"))
        out = "denoised" if layer == len(widths) - 2 else f"x{layer}"
        pads = [side // 2] * 4
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [out], pads=pads))
        last = out
    return _save(folder / "conv.onnx", nodes, weights, conv_gflop())


def conv_gflop() -> float:
    """GFLOP of the chain for a frame of 128 x 128."""
    return 2 * (LAYERS * 9 * WIDTH**2 + 2 * WIDTH) * SIDE**2 / 1e9


def gemm(folder: Path) -> Path:
    """Save the product of a frame's pixels, as rows of 1024, with a matrix of that size."""
    matrix = np.random.default_rng(0).normal(0, GEMM**-0.5, (GEMM, GEMM)).astype("f4")
    weights = [
        numpy_helper.from_array(matrix, "w"),
        numpy_helper.from_array(np.array([-1, GEMM]), "rows"),
    ]
    nodes = [
        helper.make_node("Shape", ["frames"], ["shape"]),
        helper.make_node("Reshape", ["frames", "rows"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Reshape", ["y", "shape"], ["denoised"]),
    ]
    return _save(folder / "gemm.onnx", nodes, weights, gemm_gflop())


def gemm_gflop() -> float:
    """GFLOP of the product."""
    return 2 * GEMM**3 / 1e9


def opened(path: Path, device: str, threads: int | None = None) -> Session:
    """Open one of them."""
    return open_session(path, device, threads)


def _save(
    path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], gflop: float
) -> Path:
    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs = [value("frames", "n", 1, "h", "w")]
    inputs += [value(name, "n", 1, 1, 1) for name in ("scale", "offset", "gain")]
    graph = helper.make_graph(
        nodes, path.stem, inputs, [value("denoised", "n", 1, "h", "w")], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, _INFO | {"model": path.stem, "gflop_256": str(gflop)})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
