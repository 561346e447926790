"""Speed and memory of every shipped model, in all its precisions, on each device there is."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peers import SIZE, Case
from emdn_deploy import bench, denoise_file
from emdn_deploy.bench import SCALE, in_turn, ratio, warm
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
ON_CPU = [case for case in CASES if case.device == "cpu"]
DEFAULT = [case for case in ON_CPU if case.model == pretrained.default_model()]
LARGE, COUNTS, SMALL = 4096, (200, 2000), (128, 128)  # of the memory of a frame, of a stack


@pytest.mark.parametrize("case", CASES, ids=str)
def test_peers(benchmark, ring, case):
    """The shipped model against the same net by other programs, in turn."""
    session = case.open().session
    found = {"emdn": peers.bare(session)}
    found |= peers.programs(case.model, case.device, session.threads)
    expected = found["eager"](ring[:1])
    for name, program in found.items():
        error = np.abs(program(ring[:1]) - expected).max() / np.ptp(expected)
        exact = name != "emdn" or case.precision == "fp32"
        assert error < (1e-4 if exact else 0.1), name
    starts = itertools.cycle(range(len(ring)))

    def one(program):
        start = next(starts)
        return program(ring[start : start + 1])

    calls = {name: functools.partial(one, program) for name, program in found.items()}
    flat = bench.noisy(1, peers.SIDE, peers.SIDE)
    calls["conv"] = functools.partial(peers.roofline(case.device), flat)
    for call in calls.values():
        warm(call, 0.5)
    times = benchmark.pedantic(in_turn, (calls, 40, 6.0), rounds=1)
    gflops = case.gflop / np.array(times["emdn"])
    ratios = {name: ratio(times[name], times["emdn"]) for name in peers.PEERS if name in times}
    row = case.about(1) | {
        "GFLOP": round(case.gflop, 2),
        "ms": bench.digits(1e3 * float(np.median(times["emdn"]))),
        "GFLOP/s": bench.digits(float(np.median(gflops))),
        "roofline": ratio(gflops, peers.CONV_GFLOP / np.array(times["conv"])),
    }
    row |= dict.fromkeys(peers.PEERS) | ratios | {"rounds": len(times["emdn"])}
    benchmark.extra_info.update(table="ratios", row=row)


@pytest.mark.parametrize("batch", [1, 16], ids=["single-stream", "offline"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_inference(benchmark, ring, case, batch):
    """By bare session.run; 100 rounds one by one, so that a p99 can be said."""
    session, starts = case.open().session, itertools.cycle(range(len(ring)))

    def prepare():
        """Give other frames every round."""
        frames = np.take(ring, range(start := next(starts), start + batch), axis=0, mode="wrap")
        return (frames, *NUMBERS), {}

    call = lambda: session.run(*prepare()[0])  # noqa: E731
    warm(call)
    seconds = in_turn({"": call}, 1)[""][0]
    rounds = 100 if batch == 1 else int(np.clip(1.5 / seconds, 3, 100))
    denoised = benchmark.pedantic(session.run, setup=prepare, rounds=rounds)
    assert np.isfinite(denoised).all()
    row = {"scenario": "single-stream" if batch == 1 else "offline"} | case.about(batch)
    row["peak MB"] = bench.peak_mb(
        str(session.info.path), case.device, session.threads, batch, SIZE
    )
    row["gain dB"] = bench.gain_db(session)
    benchmark.extra_info.update(
        table="inference", frames=batch, size=SIZE, gflop=case.gflop, row=row
    )


@pytest.mark.parametrize("case", [one for one in CASES if one.precision == "fp32"], ids=str)
def test_boundaries(benchmark, ring, tmp_path, case):
    """What is lost on the way from bare session.run to arrays, and to files.

    All denoise the same frames, in turn. ``array`` is Denoiser.denoise, which finds the stack's
    scale first; ``file`` is all of ``emdn-deploy denoise`` but opening the model: HDF5 to
    HDF5, bad pixels, scale, quick check and all.
    """
    denoiser = case.open()
    run = denoiser.session.run
    warm(lambda: run(ring[:1], *NUMBERS))
    each = min(in_turn({"": lambda: run(ring[:1], *NUMBERS)}, 5)[""])
    count = max(16, round(1.5 / each))
    movie = np.resize(ring, (count, *SIZE))
    source = tmp_path / "movie.h5"
    with h5py.File(source, "w") as file:
        file.create_dataset("frames", data=movie.astype(np.uint16), chunks=(1, *SIZE))
    options = DenoiseOptions(tmp_path / "out.h5", device=case.device, overwrite=True)

    def side_by_side():
        def alone(number):
            return run(movie[number : number + 1], *NUMBERS, alone=True)

        with ThreadPoolExecutor(denoiser.session.threads) as pool:
            list(pool.map(alone, range(count)))

    calls = {
        "all threads": lambda: [run(frame[None], *NUMBERS) for frame in movie],
        "one thread each": side_by_side,
        "array": lambda: denoiser.denoise(movie),
        "file": lambda: denoise_file.run(source, options, opened={options.model: denoiser}),
    }
    if case.device != "cpu":
        del calls["one thread each"]
    run(ring[:1], *NUMBERS, alone=True)
    times = benchmark.pedantic(in_turn, (calls, 3), rounds=1)
    compute = min(list(times)[:-2], key=lambda name: min(times[name]))
    speeds = {name: bench.digits(count / float(np.median(times[name]))) for name in times}
    row = case.about(1) | {
        "frames": count,
        "compute by": compute,
        "frames/s compute": speeds[compute],
        "array": speeds["array"],
        "file": speeds["file"],
        "array / compute": ratio(times[compute], times["array"]),
        "file / compute": ratio(times[compute], times["file"]),
    }
    benchmark.extra_info.update(table="boundaries", row=row)


def peak(tmp_path, case, frames):
    """Denoise frames of a file by the command; return the peak of its process in MiB."""
    source = tmp_path / f"{len(frames)}.h5"
    with h5py.File(source, "w") as file:
        file.create_dataset("frames", data=frames, chunks=(1, *frames.shape[1:]))
    arguments = ["denoise", source, "-o", tmp_path / "out.h5", "--overwrite", "--device", "cpu"]
    arguments += ["--model", case.model, "--precision", case.precision]
    found = bench.command_peak_mb(arguments)
    assert found is not None, arguments
    return found


@pytest.mark.parametrize("case", ON_CPU, ids=str)
def test_memory_of_a_large_frame(benchmark, ring, tmp_path, case):
    """File to file, from the command's start to its end; needs no idle machine."""
    frame = np.resize(ring, (1, LARGE, LARGE)).astype(np.uint16)
    found = benchmark.pedantic(peak, (tmp_path, case, frame), rounds=1)
    row = {"model": case.model, "precision": case.precision, "size": f"{LARGE} x {LARGE}"}
    benchmark.extra_info.update(table="memory of a frame", row=row | {"peak MB": round(found)})


@pytest.mark.parametrize("case", DEFAULT, ids=str)
def test_memory_of_a_stack(benchmark, ring, tmp_path, case):
    def both():
        stacks = (np.resize(ring, (count, *SMALL)).astype(np.uint16) for count in COUNTS)
        return [peak(tmp_path, case, stack) for stack in stacks]

    short, long = benchmark.pedantic(both, rounds=1)
    row = {"model": case.model, "precision": case.precision, "size": f"{SMALL[0]} x {SMALL[1]}"}
    for count, found in zip(COUNTS, (short, long), strict=True):
        row[f"peak MB of {count} frames"] = round(found, 1)
    row["more"] = f"{100 * (long / short - 1):.1f} %"
    benchmark.extra_info.update(table="memory of a stack", row=row)
