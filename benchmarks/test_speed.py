"""Speed and memory of every shipped model, in all its precisions, on each device there is."""

import functools
import itertools

import h5py
import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peers import SIZE, Case
from emdn_deploy import bench, denoise_file
from emdn_deploy.bench import SCALE, in_turn, warm
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.session import cuda_obstacle
from emdn_models import MODELS, pretrained

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
    others = peers.programs(case.model, case.device, session.threads)
    found = {"emdn": peers.bare(session), **others}
    expected = found["eager"](ring[:1])
    for name, program in found.items():
        error = np.abs(program(ring[:1]) - expected).max() / np.ptp(expected)
        exact = name != "emdn" or case.precision == "fp32"
        assert error < (1e-4 if exact else 0.1), name
    frames = itertools.cycle(ring)
    calls = {
        name: lambda program=program: program(next(frames)[None]) for name, program in found.items()
    }
    calls["product"] = peers.product(case.device, session.threads)
    for call in calls.values():
        warm(call, 0.5)
    times = benchmark.pedantic(in_turn, (calls, 40, 6.0), rounds=1)
    own = np.array(times["emdn"])
    row = case.about() | {
        "GFLOP": round(case.gflop, 2),
        "ms": bench.digits(1e3 * float(np.median(own))),
        "GFLOP/s": bench.digits(case.gflop / float(np.median(own))),
        "roofline": ratio(case.gflop / own * np.array(times["product"]) / peers.PRODUCT_GFLOP),
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
    options = DenoiseOptions(tmp_path / "out.h5", device=case.device, overwrite=True)
    call = {
        "single-stream": lambda: session.run(next(frames)[None], *NUMBERS),
        "offline": lambda: session.run(ring, *NUMBERS),
        "array": functools.partial(denoiser.denoise, np.resize(ring, (count, *SIZE))),
        "file": lambda: denoise_file.run(source, options, opened={options.model: denoiser}),
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
    found = benchmark.pedantic(peers.peak_mb, (words,), rounds=1)
    row = {
        "model": case.model,
        "precision": case.precision,
        "frames": "{} of {} x {}".format(*shape),
    }
    benchmark.extra_info.update(table="memory", row=row | {"peak MB": round(found, 1)})
