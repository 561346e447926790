"""Speed and memory of every shipped model, in all precisions, beside other programs."""

import functools
import itertools
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from emdn_deploy import bench, denoise_file
from emdn_deploy.bench import SCALE, in_turn, noisy, warm
from emdn_deploy.config import DenoiseOptions, Device, Precision
from emdn_deploy.denoiser import Denoiser, opened
from emdn_deploy.session import Session, cuda_obstacle
from emdn_models import MODELS, checkpoint, pretrained
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
    """Give the product of two matrices in float32, by torch."""
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


NUMBERS = (SCALE.scale, SCALE.offset, SCALE.gain)
DEVICES = ("cpu",) if cuda_obstacle() else ("cpu", "cuda")
CASES = [
    Case(model, precision, device)
    for device in DEVICES
    for model in MODELS
    for precision in pretrained.precisions(model)
    if device == "cpu" or precision != "int8"
]
SCENARIOS = {"single-stream": 1, "offline": 16, "array": 64, "file": 64}  # frames a round
MEMORY = [(case, (1, 4096, 4096)) for case in CASES if case.device == "cpu"] + [
    (Case(pretrained.default_model(), "fp32", "cpu"), (count, 128, 128)) for count in (200, 2000)
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_peers(benchmark, ring, case):
    """The shipped model against the same net by other programs, in turn."""
    session = case.open().session
    others = programs(case.model, case.device, session.threads)
    found = {"emdn": bare(session), **others}
    expected = found["eager"](ring[:1])
    for name, program in found.items():
        error = np.abs(program(ring[:1]) - expected).max() / np.ptp(expected)
        exact = name != "emdn" or case.precision == "fp32"
        assert error < (1e-4 if exact else 0.1), name
    frames = itertools.cycle(ring)
    calls = {
        name: lambda program=program: program(next(frames)[None]) for name, program in found.items()
    }
    calls["product"] = product(case.device, session.threads)
    for call in calls.values():
        warm(call, 0.5)
    times = benchmark.pedantic(in_turn, (calls, 40, 6.0), rounds=1)
    own = np.array(times["emdn"])
    row = case.about() | {
        "GFLOP": round(case.gflop, 2),
        "ms": bench.digits(1e3 * float(np.median(own))),
        "GFLOP/s": bench.digits(case.gflop / float(np.median(own))),
        "matmul": ratio(case.gflop / own * np.array(times["product"]) / PRODUCT_GFLOP),
        **{name: ratio(np.array(times[name]) / own) for name in others},
        "rounds": len(own),
    }
    benchmark.extra_info.update(table="ratios", row=row)


def ratio(rounds):
    """Give the median of the ratios of rounds, and their quartiles."""
    low, middle, high = np.quantile(rounds, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_inference(benchmark, ring, tmp_path, case, scenario):
    """By bare session.run, from array to array, and all of ``emdn-deploy denoise``."""
    denoiser, count = case.open(), SCENARIOS[scenario]
    session, frames = denoiser.session, itertools.cycle(ring)
    source = written(tmp_path, np.resize(ring, (count, *SIZE)))
    options = DenoiseOptions(
        tmp_path / "out.h5", model=case.model, device=case.device, overwrite=True
    )
    call = {
        "single-stream": lambda: session.run(next(frames)[None], *NUMBERS),
        "offline": lambda: session.run(ring, *NUMBERS),
        "array": functools.partial(denoiser.denoise, np.resize(ring, (count, *SIZE))),
        "file": lambda: denoise_file.run(source, options, opened={case.model: denoiser}),
    }[scenario]
    warm(call, 0.5)
    # 100 rounds one by one, so that a p99 can be said.
    benchmark.pedantic(call, rounds=100 if count == 1 else 5)
    row = {"scenario": scenario} | case.about() | {"gain dB": bench.gain_db(session)}
    benchmark.extra_info.update(
        table="inference", frames=count, size=SIZE, gflop=case.gflop, row=row
    )


def written(folder, frames):
    """Write frames as counts to a file, one a chunk."""
    with h5py.File(folder / "movie.h5", "w") as file:
        counts = frames.astype(np.uint16)
        file.create_dataset("frames", data=counts, chunks=(1, *frames.shape[1:]))
    return folder / "movie.h5"


@pytest.mark.parametrize(("case", "shape"), MEMORY, ids=str)
def test_memory(benchmark, ring, tmp_path, case, shape):
    """The peak of the command, file to file; needs no idle machine."""
    words = ["denoise", written(tmp_path, np.resize(ring, shape)), "--model", case.model]
    words += ["--precision", case.precision, "--device", "cpu"]
    found = benchmark.pedantic(peak_mb, (words,), rounds=1)
    row = {
        "model": case.model,
        "precision": case.precision,
        "frames": "{} of {} x {}".format(*shape),
    }
    benchmark.extra_info.update(table="memory", row=row | {"peak MB": round(found, 1)})
