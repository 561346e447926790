"""Every shipped model at 256 x 256, several batch sizes, on each device that is there.

The boundary is array to array: float32 frames in, float32 frames out, model and session
open. Inputs are noisy frames, a different batch every round.
"""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy.session import cuda_obstacle, open_session
from emdn_models import MODELS, pretrained

DEVICES = ["cpu"] if cuda_obstacle() else ["cpu", "cuda"]
BATCHES = (1, 4, 16)
SECONDS = 3.0

# A process of its own: the peak of this one would be that of the hungriest model so far.
PEAK = """
import re, resource, sys
from pathlib import Path
import numpy as np
from emdn_deploy.session import open_session
session = open_session(sys.argv[1], sys.argv[2])
frames = np.random.default_rng(0).poisson(40, (int(sys.argv[3]), 256, 256)).astype(np.float32)
for _ in range(3):
    session.run(frames, 40.0, 0.0, 1.0)
status = Path("/proc/self/status")
if status.exists():  # ru_maxrss keeps the peak of the process that started this one
    print(int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) / 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.fixture(scope="module")
def ring():
    """Noisy frames of the example movie, (16, 256, 256) float32."""
    path = Path(__file__).parents[1] / "deploy" / "examples" / "frames.h5"
    with h5py.File(path) as file:
        entry = file["entry/data"]
        return entry[entry.attrs["signal"]][()].astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_inference(benchmark, ring, name, batch, device):
    session = open_session(name, device)
    entry = pretrained.index()["models"][name]
    scale = float(ring.mean())
    starts = itertools.cycle(range(len(ring)))

    def prepare():
        start = next(starts)
        return (np.take(ring, range(start, start + batch), axis=0, mode="wrap"),), {}

    def work(frames):
        return session.run(frames, scale, 0.0, 1.0)

    began = time.perf_counter()
    work(*prepare()[0])
    work(*prepare()[0])
    each = (time.perf_counter() - began) / 2
    rounds = int(np.clip(SECONDS / each, 5, 120))
    denoised = benchmark.pedantic(work, setup=prepare, rounds=rounds, warmup_rounds=2)
    assert np.isfinite(denoised).all()
    gains = entry["quality"].get("gain_db", {})
    peak = subprocess.run(
        [sys.executable, "-c", PEAK, name, device, str(batch)],
        capture_output=True,
        text=True,
        check=True,
    )
    benchmark.extra_info.update(
        table="inference",
        model=name,
        device=f"{device} ({session.device})",
        threads=session.threads,
        batch=batch,
        frames=batch,
        gflop=entry["gflop_256"],
        **{"peak MB": round(float(peak.stdout.strip().splitlines()[-1]))},
        **{"gain dB": round(sum(gains.values()) / len(gains), 1) if gains else None},
    )
