"""How fast the shipped models are at 256 x 256: one by one, in batches, and to files."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from benchmarks.cases import CASES, SIZE, gain_db
from benchmarks.peers import roof_gflops
from emdn_deploy import bench, denoise_file
from emdn_deploy.bench import SCALE, in_turn, ratio, warm
from emdn_deploy.config import DenoiseOptions

NUMBERS = (SCALE.scale, SCALE.offset, SCALE.gain)


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
    about = {"scenario": "single-stream" if batch == 1 else "offline", "boundary": "compute"}
    peak = bench.peak_mb(str(session.info.path), case.device, session.threads, batch, SIZE)
    gain = gain_db(case) if batch == 1 else None
    benchmark.extra_info.update(
        table="inference", frames=batch, size=SIZE, gflop=case.gflop,
        roofline=roof_gflops(case.device),
        row=about | case.about(batch) | {"peak MB": peak, "dB multislice": gain},
    )  # fmt: skip


@pytest.mark.parametrize("case", [one for one in CASES if one.precision == "fp32"], ids=str)
def test_boundaries(benchmark, ring, tmp_path, request, case):
    """What is lost on the way from bare session.run to arrays, and to files.

    All denoise the same frames, in turn. ``array`` is Denoiser.denoise, which finds the stack's
    scale first; ``file`` is all of ``emdn-deploy denoise`` but opening the model: HDF5 to
    HDF5, bad pixels, scale, quick check and all.
    """
    denoiser = case.open()
    run = denoiser.session.run
    warm(lambda: run(ring[:1], *NUMBERS))
    each = min(in_turn({"": lambda: run(ring[:1], *NUMBERS)}, 5)[""])
    seconds = request.config.getoption("--file-seconds")
    count = max(16, round(seconds / each))
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
    times = benchmark.pedantic(in_turn, (calls, 3 if seconds < 10 else 1), rounds=1)
    compute = min(list(times)[:-2], key=lambda name: min(times[name]))
    speeds = {name: bench.digits(count / float(np.median(times[name]))) for name in times}
    benchmark.extra_info.update(
        table="boundaries",
        row=case.about(1) | {
            "frames": count,
            "compute by": compute,
            "frames/s compute": speeds[compute], "array": speeds["array"], "file": speeds["file"],
            "array / compute": ratio(times[compute], times["array"]),
            "file / compute": ratio(times[compute], times["file"]),
        },
    )  # fmt: skip
