"""How much memory ``emdn-deploy denoise`` takes: for a large frame, and for a long stack.

The peak is that of the command's own process (VmHWM), from its start to its end, file to file.
It hardly depends on how fast the machine is, and may be measured on one that does other things.
"""

import h5py
import numpy as np
import pytest

from benchmarks.cases import CASES
from emdn_deploy.bench import command_peak_mb
from emdn_models import pretrained

SIDE = 4096
COUNTS, SMALL = (200, 2000), (128, 128)
ON_CPU = [case for case in CASES if case.device == "cpu"]
DEFAULT = [case for case in ON_CPU if case.model == pretrained.default_model()]


def peak(tmp_path, case, frames):
    """Denoise frames of a file by the command; return the peak of its process in MiB."""
    source = tmp_path / f"{len(frames)}.h5"
    with h5py.File(source, "w") as file:
        file.create_dataset("frames", data=frames, chunks=(1, *frames.shape[1:]))
    arguments = ["denoise", source, "-o", tmp_path / "out.h5", "--overwrite", "--device", "cpu"]
    arguments += ["--model", case.model, "--precision", case.precision]
    found = command_peak_mb(arguments)
    assert found is not None, arguments
    return found


@pytest.mark.parametrize("case", ON_CPU, ids=str)
def test_memory_of_a_large_frame(benchmark, ring, tmp_path, case):
    frame = np.resize(ring, (1, SIDE, SIDE)).astype(np.uint16)
    found = benchmark.pedantic(peak, (tmp_path, case, frame), rounds=1)
    row = {"model": case.model, "precision": case.precision, "size": f"{SIDE} x {SIDE}"}
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
