"""A shipped model, the same net by other programs, and the machine's own limit."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from emdn_deploy import bench
from emdn_deploy.bench import SCALE, noisy
from emdn_deploy.config import Device, Precision
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.session import Session, open_session
from emdn_models import checkpoint, pretrained
from emdn_models.nets import build, load_state
from emdn_train.onnx_graph import Graph, describe, to_onnx

Frames = NDArray[np.float32]
Program = Callable[[Frames], Frames]
"""Frames (n, H, W) to such."""

SIZE = (256, 256)
PEERS = ("naive", "eager", "compile", "openvino")
"""The graph without rewriting by onnxruntime; torch; torch.compile; that graph by OpenVINO."""


@dataclass(frozen=True)
class Case:
    """A model on a device; its name is the test's."""

    model: str
    precision: Precision
    device: Device

    def __str__(self) -> str:
        return f"{self.model}-{self.precision}-{self.device}"

    @cache  # noqa: B019
    def open(self, threads: int | None = None) -> Denoiser:
        """Open the model, once for every number of threads."""
        return Denoiser(self.model, self.device, threads, self.precision)

    def about(self, batch: int) -> bench.Row:
        """Begin a row."""
        return bench.about(self.open().session, self.device, batch, SIZE)

    @property
    def gflop(self) -> float:
        """GFLOP of a frame of 256 x 256, counted on the net in torch."""
        return bench.gflop_of(self.open().session, SIZE)


def absent() -> dict[str, str]:
    """Say which peers this machine lacks, and what they need."""
    lacking = {}
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        lacking["compile"] = "needs a C++ compiler"
    if not find_spec("openvino"):
        lacking["openvino"] = "is in the extra bench-peers"
    return lacking


def programs(model: str, device: str, threads: int) -> dict[str, Program]:
    """Give every peer that is there, by name."""
    left_out = set(absent()) | ({"openvino"} if device != "cpu" else set())
    makers = (naive, eager, compiled, openvino)
    found = zip(PEERS, makers, strict=True)
    return {name: make(model, device, threads) for name, make in found if name not in left_out}


def bare(session: Session) -> Program:
    """Give a model by bare session.run."""
    return lambda frames: session.run(frames, SCALE.scale, SCALE.offset, SCALE.gain)


def naive(model: str, device: str, threads: int) -> Program:
    """Give the net as it is written, exported without any rewriting."""
    return bare(open_session(_naive_file(model), device, threads))


def eager(model: str, device: str, threads: int) -> Program:
    """Give the net in torch, as it is written."""
    return _torch(_graph(model).to(device), device, threads)


def compiled(model: str, device: str, threads: int) -> Program:
    """Give the net by torch.compile, its shapes fixed."""
    with warnings.catch_warnings():  # of torch in torch
        warnings.simplefilter("ignore")
        graph = torch.compile(_graph(model).to(device), dynamic=False)
        run = _torch(graph, device, threads)
        run(noisy(1, *SIZE))
    return run


def openvino(model: str, device: str, threads: int) -> Program:
    """Give the graph without rewriting by OpenVINO, for latency, in float32."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    graph = core.read_model(_naive_file(model))
    graph.reshape({0: [1, 1, *SIZE], 1: [1, 1, 1, 1], 2: [1, 1, 1, 1], 3: [1, 1, 1, 1]})
    request = core.compile_model(graph, device.upper(), settings).create_infer_request()

    def run(frames: Frames) -> Frames:
        request.infer(_inputs(frames))
        return np.array(request.get_output_tensor(0).data)[:, 0]

    return run


def _torch(graph: Graph, device: str, threads: int) -> Program:
    def run(frames: Frames) -> Frames:
        torch.set_num_threads(threads)
        inputs = [torch.from_numpy(one).to(device) for one in _inputs(frames)]
        with torch.inference_mode():
            return graph(*inputs)[:, 0].cpu().numpy()

    return run


def _inputs(frames: Frames) -> list[Frames]:
    numbers = (SCALE.scale, SCALE.offset, SCALE.gain)
    shape = (len(frames), 1, 1, 1)
    return [np.ascontiguousarray(frames[:, None]), *(np.full(shape, n, "f4") for n in numbers)]


@cache
def _graph(model: str) -> Graph:
    weights = checkpoint.load(pretrained.CHECKPOINT)[model]
    net = build(model, weights.preset)
    load_state(net, model, weights)
    return Graph(net).eval()


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@cache
def _naive_file(model: str) -> Path:
    """Export a net without rewriting, as ``emdn_train.export`` would with it."""
    path = Path(_folder().name, f"{model}.onnx")
    shipped = onnx.load(pretrained.onnx_path(model), load_external_data=False)
    program = to_onnx(_graph(model))
    describe(program, {one.key: one.value for one in shipped.metadata_props})
    onnx.save(program, path)
    return path


# 64 maps of 128 x 128: 4 MB, between those of full and of quarter resolution.
SIDE, WIDTH, LAYERS = 128, 64, 4
CONV_GFLOP = 2 * (LAYERS * 9 * WIDTH**2 + 2 * WIDTH) * SIDE**2 / 1e9
_CONV = """
<ir_version: 8, opset_import: ["" : 18]>
conv (float[n,1,h,w] frames, float[n,1,1,1] scale, float[n,1,1,1] offset, float[n,1,1,1] gain)
    => (float[n,1,h,w] denoised)
{
    x0 = Conv (frames, w0)
    x1 = Conv <pads = [1, 1, 1, 1]> (x0, w1)
    x2 = Conv <pads = [1, 1, 1, 1]> (x1, w2)
    x3 = Conv <pads = [1, 1, 1, 1]> (x2, w3)
    x4 = Conv <pads = [1, 1, 1, 1]> (x3, w4)
    denoised = Conv (x4, w5)
}
"""


@cache
def roofline(device: str, threads: int | None = None) -> Program:
    """Give a chain of 64 -> 64 convolutions of 3 x 3, by the same runtime and threads."""
    rng, maps = np.random.default_rng(0), (WIDTH, WIDTH, 3, 3)
    shapes = [(WIDTH, 1, 1, 1), *[maps] * LAYERS, (1, WIDTH, 1, 1)]
    model = onnx.parser.parse_model(_CONV)
    for number, shape in enumerate(shapes):
        kernel = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype("f4")
        model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, f"w{number}"))
    facts = {
        "emdn_schema": "1", "model": "conv", "preset": "benchmark", "weights_sha256": "0" * 64,
        "multiple": "1", "receptive_field": "3", "tiling_exact": "false", "parameters": "0",
        "recipe": "{}", "quality": "{}", "gflop_256": str(CONV_GFLOP * 4),
    }  # fmt: skip
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    path = Path(_folder().name, "conv.onnx")
    onnx.save(model, path)
    return bare(open_session(path, device, threads))
