"""A shipped model, the same net by other programs, and the machine's own limit."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from emdn_deploy import bench
from emdn_deploy.bench import SCALE, noisy
from emdn_deploy.config import Device, Precision
from emdn_deploy.denoiser import Denoiser, opened
from emdn_deploy.session import Session
from emdn_models import checkpoint, pretrained
from emdn_models.nets import build, load_state
from emdn_train.onnx_graph import Graph

Frames = NDArray[np.float32]
Program = Callable[[Frames], Frames]
"""Frames (n, H, W) to such."""

SIZE = (256, 256)


class Case(NamedTuple):
    """A model on a device; its name is the test's."""

    model: str
    precision: Precision
    device: Device

    def __str__(self) -> str:
        return f"{self.model}-{self.precision}-{self.device}"

    def open(self, threads: int | None = None) -> Denoiser:
        """Open the model, once for every number of threads."""
        return opened(self.model, self.device, threads, self.precision)

    def about(self) -> bench.Row:
        """Begin a row."""
        return {"model": self.model} | bench.about(self.open().session, self.device, SIZE)

    @property
    def gflop(self) -> float:
        """GFLOP of a frame of 256 x 256, counted on the net in torch."""
        return bench.gflop_of(self.open().session, SIZE)


def programs(model: str, device: Device, threads: int) -> dict[str, Program]:
    """Give every peer that can run here, by name."""
    makers = {"eager": eager}
    if os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++"):
        makers["compile"] = compiled
    if find_spec("openvino") and device == "cpu":
        makers["openvino"] = openvino
    return {name: make(model, device, threads) for name, make in makers.items()}


def bare(session: Session) -> Program:
    """Give a model by bare session.run."""
    return lambda frames: session.run(frames, SCALE.scale, SCALE.offset, SCALE.gain)


def eager(model: str, device: Device, threads: int) -> Program:
    """Give the net in torch, as it is written."""
    return _torch(_graph(model).to(device), device, threads)


def compiled(model: str, device: Device, threads: int) -> Program:
    """Give the net by torch.compile, its shapes fixed."""
    with warnings.catch_warnings():  # of torch in torch
        warnings.simplefilter("ignore")
        graph = torch.compile(_graph(model).to(device), dynamic=False)
        run = _torch(graph, device, threads)
        run(noisy(1, *SIZE))
    return run


def openvino(model: str, device: Device, threads: int) -> Program:
    """Give the shipped file by OpenVINO, for latency, in float32."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    graph = core.read_model(pretrained.onnx_path(model))
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


SIDE = 1024
PRODUCT_GFLOP = 2 * SIDE**3 / 1e9


def product(device: Device, threads: int) -> Callable[[], float]:
    """Give the product of two matrices in float32 by torch: the machine's limit."""
    matrix = torch.rand(SIDE, SIDE, device=device)

    def run() -> float:
        torch.set_num_threads(threads)
        return float((matrix @ matrix)[0, 0])

    return run


_COMMAND = """
from emdn_deploy.cli import main

try:
    main()
except SystemExit as end:
    if end.code:
        raise
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def peak_mb(arguments: Sequence[object]) -> float:
    """Return the peak memory of ``emdn-deploy`` with these arguments, in MiB, on Linux."""
    command = [sys.executable, "-c", _COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) / 1024
