"""What is lost on the way from bare session.run to arrays, and to files.

All boundaries denoise the same frames, in turn. ``array`` is Denoiser.denoise, which finds the
stack's scale first; ``file`` is all of ``emdn-deploy denoise`` but opening the model: HDF5 to
HDF5, bad pixels, scale, quick check and all. ``--file-seconds 60`` for a minute's worth of frames.
"""

from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from benchmarks.cases import CASES, SIZE
from emdn_deploy import job
from emdn_deploy.bench import rows
from emdn_deploy.bench.frames import SCALE
from emdn_deploy.bench.rounds import in_turn, ratio, warm
from emdn_deploy.config import DenoiseOptions

NUMBERS = (SCALE.scale, SCALE.offset, SCALE.gain)


@pytest.mark.parametrize("case", [one for one in CASES if one.precision == "fp32"], ids=str)
def test_boundaries(benchmark, ring, tmp_path, request, case):
    denoiser = case.open()
    session = denoiser.session
    warm(lambda: session.run(ring[:1], *NUMBERS))
    each = min(in_turn({"": lambda: session.run(ring[:1], *NUMBERS)}, 5)[""])
    seconds = request.config.getoption("--file-seconds")
    count = max(16, round(seconds / each))
    movie = np.resize(ring, (count, *SIZE))
    source = tmp_path / "movie.h5"
    with h5py.File(source, "w") as file:
        file.create_dataset("frames", data=movie.astype(np.uint16), chunks=(1, *SIZE))
    options = DenoiseOptions(tmp_path / "out.h5", device=case.device, overwrite=True)

    def one_by_one():
        for number in range(count):
            session.run(movie[number : number + 1], *NUMBERS)

    def side_by_side():
        with ThreadPoolExecutor(session.threads) as pool:
            list(
                pool.map(
                    lambda number: session.run(movie[number : number + 1], *NUMBERS, alone=True),
                    range(count),
                )
            )

    calls = {
        "one": one_by_one,
        "each": side_by_side,
        "array": lambda: denoiser.denoise(movie),
        "file": lambda: job.run(source, options, opened={options.model: denoiser}),
    }
    if case.device != "cpu":
        del calls["each"]
    session.run(ring[:1], *NUMBERS, alone=True)
    times = benchmark.pedantic(in_turn, (calls, 3 if seconds < 10 else 1), rounds=1)
    compute = min((name for name in ("one", "each") if name in times), key=lambda n: min(times[n]))
    benchmark.extra_info.update(
        table="boundaries",
        row=case.about(1) | {
            "frames": count,
            "compute by": {"one": "all threads", "each": "one thread each"}[compute],
            "frames/s compute": rows.digits(count / float(np.median(times[compute]))),
            "array": rows.digits(count / float(np.median(times["array"]))),
            "file": rows.digits(count / float(np.median(times["file"]))),
            "array / compute": str(ratio(times[compute], times["array"])),
            "file / compute": str(ratio(times[compute], times["file"])),
        },
    )  # fmt: skip
