"""The same model by other programs: every engine takes frames (n, H, W) and gives such."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from benchmarks.cases import SIZE
from emdn_deploy.bench.frames import SCALE, noisy
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.session import Session, open_session
from emdn_models import checkpoint, pretrained
from emdn_models.nets import build, load_state
from emdn_train.onnx_graph import Graph, describe, to_onnx

Frames = NDArray[np.float32]
Engine = Callable[[Frames], Frames]

PEERS = ("naive", "eager", "compile", "openvino")
"""The graph without rewriting by onnxruntime; torch; torch.compile; that graph by OpenVINO."""


def shipped(denoiser: Denoiser) -> Engine:
    """Give the model as it is shipped, by bare session.run."""
    return _bare(denoiser.session)


def absent() -> dict[str, str]:
    """Say which peers this machine lacks, and what they need."""
    lacking = {}
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        lacking["compile"] = "needs a C++ compiler"
    if not find_spec("openvino"):
        lacking["openvino"] = "is in the extra bench-peers"
    return lacking


def peers(model: str, device: str, threads: int, folder: Path) -> dict[str, Engine]:
    """Give every peer that is there, by name."""
    found = {
        "naive": lambda: naive(model, device, threads, folder),
        "eager": lambda: eager(model, device, threads),
        "compile": lambda: compiled(model, device, threads),
        "openvino": lambda: openvino(model, threads, folder),
    }
    left_out = set(absent()) | ({"openvino"} if device != "cpu" else set())
    return {name: make() for name, make in found.items() if name not in left_out}


def naive(model: str, device: str, threads: int, folder: Path) -> Engine:
    """Give the net as it is written, exported without any rewriting."""
    return _bare(open_session(naive_file(model, folder), device, threads))


def eager(model: str, device: str, threads: int) -> Engine:
    """Give the net in torch, as it is written."""
    return _torch(_graph(model).to(device), device, threads)


def compiled(model: str, device: str, threads: int) -> Engine:
    """Give the net by torch.compile, its shapes fixed."""
    with _deprecations():
        graph = torch.compile(_graph(model).to(device), dynamic=False)
        run = _torch(graph, device, threads)
        run(noisy(1, *SIZE))
    return run


def openvino(model: str, threads: int, folder: Path) -> Engine:
    """Give the graph without rewriting by OpenVINO, for latency, in float32."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    graph = core.read_model(naive_file(model, folder))
    graph.reshape({0: [1, 1, *SIZE], 1: [1, 1, 1, 1], 2: [1, 1, 1, 1], 3: [1, 1, 1, 1]})
    request = core.compile_model(graph, "CPU", settings).create_infer_request()

    def run(frames: Frames) -> Frames:
        request.infer([frames[:, None], *_numbers(len(frames))])
        return np.array(request.get_output_tensor(0).data)[:, 0]

    return run


def naive_file(model: str, folder: Path) -> Path:
    """Export a net without rewriting, as ``emdn_train.export`` would with it."""
    path = folder / f"{model}.onnx"
    if not path.exists():
        shipped = onnx.load(pretrained.onnx_path(model), load_external_data=False)
        program = to_onnx(_graph(model))
        describe(program, {one.key: one.value for one in shipped.metadata_props})
        onnx.save(program, path)
    return path


def _bare(session: Session) -> Engine:
    return lambda frames: session.run(frames, SCALE.scale, SCALE.offset, SCALE.gain)


def _torch(graph: Graph, device: str, threads: int) -> Engine:
    def run(frames: Frames) -> Frames:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return graph(*_tensors(frames, device))[:, 0].cpu().numpy()

    return run


@contextmanager
def _deprecations() -> Iterator[None]:
    """Pass over what torch's compiler warns of in torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _weights() -> dict[str, checkpoint.Weights]:
    return checkpoint.load(pretrained.CHECKPOINT)


def _graph(model: str) -> Graph:
    weights = _weights()[model]
    net = build(model, weights.preset)
    load_state(net, model, weights)
    return Graph(net).eval()


def _numbers(count: int) -> list[Frames]:
    return [
        np.full((count, 1, 1, 1), one, np.float32)
        for one in (SCALE.scale, SCALE.offset, SCALE.gain)
    ]


def _tensors(frames: Frames, device: str) -> list[torch.Tensor]:
    return [
        torch.from_numpy(np.ascontiguousarray(one)).to(device)
        for one in (frames[:, None], *_numbers(len(frames)))
    ]
