import logging
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser, session, tiling
from emdn_deploy.batching import Batching
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoise_file import run
from emdn_deploy.provenance import recorded
from emdn_models.errors import DeviceMemoryError

# What onnxruntime 1.31 raises when its arena cannot grow.
ARENA = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. "
    "Status Message: bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, "
    "bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 324000000"
)


class Cramped:
    """Let runs of more than so many pixels fail; note those that are tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
        self.tried: list[tuple[int, ...]] = []
        real = session._run

        def into(handle: object, frames: np.ndarray, *rest: object) -> None:
            self.tried.append(frames.shape)
            if frames.size > pixels:
                raise RuntimeError(ARENA)
            real(handle, frames, *rest)

        monkeypatch.setattr(session, "_run", into)


def noisy(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(9, shape).astype(np.float32)


def on(device: str, threads: int = 1) -> Batching:
    return Batching(SimpleNamespace(device=device, threads=threads))


@pytest.mark.parametrize(
    ("threads", "count", "side", "expected"),
    [
        (1, 100, 256, 1),
        (2, 1, 256, 1),
        (2, 2, 256, 2),
        (64, 63, 256, 1),
        (64, 1000, 256, 64),
        # Memory: 64 frames of this size at once would take some ten gigabytes.
        (64, 1000, 1280, 1),
    ],
)
def test_one_frame_gets_all_cores_and_a_stack_one_each(threads, count, side, expected) -> None:
    assert on("cpu", threads).parallel_runs(count, (side, side)) == expected


def test_frames_share_a_run_as_long_as_they_fit() -> None:
    batching = on("cpu")
    assert batching._that_fit((4096, 4096), 64) == 64
    batching.pixels = 1000
    assert [batching._that_fit((10, 10), most) for most in (1, 7, 40)] == [1, 7, 10]
    assert batching._that_fit((100, 100), 5) == 1  # by tiles


def test_frames_that_fit_are_run_whole_and_others_by_tiles(
    box_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cramped = Cramped(monkeypatch, 10**6)
    denoiser = Denoiser(box_model, threads=1)
    denoiser.denoise(noisy(3, 40, 40), batch=3)
    assert cramped.tried == [(3, 40, 40)]
    monkeypatch.setattr(tiling, "WHOLE_PIXELS", 40 * 40 - 1)
    monkeypatch.setattr(tiling, "TILE_PIXELS", 32 * 32)
    denoiser.denoise(noisy(1, 40, 40))
    assert len(cramped.tried) == 1 + 4
    assert max(height * width for _, height, width in cramped.tried[1:]) <= 32 * 32


def test_few_shapes_are_powers_of_two() -> None:
    batching = on("cuda")
    left, cut = 13, []
    while left:
        cut.append(batching._that_fit((8, 8), min(8, left)))
        left -= cut[-1]
    assert cut == [8, 4, 1]


def test_runs_that_fail_together_halve_once() -> None:
    batching = on("cpu")
    for _ in range(3):
        batching._shrink(4000)
    assert batching.pixels == 2000


@pytest.mark.parametrize(
    ("shape", "batches"), [((8, 96, 96), [8, 4, 2, 1]), ((7, 90, 101), [7, 3, 1])]
)
def test_batches_halve_and_then_tiles_with_the_same_result(
    box_model: Path, shape, batches, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    frames = noisy(*shape)
    expected = Denoiser(box_model, threads=1).denoise(frames, batch=8)
    # A third of a frame fits.
    cramped = Cramped(monkeypatch, 3000)
    denoiser = Denoiser(box_model, threads=1)
    with caplog.at_level(logging.WARNING):
        found = denoiser.denoise(frames, batch=8)
    np.testing.assert_array_equal(found, expected)
    # First as few frames as there can be, and only then less of a frame.
    whole, tiles = cramped.tried[: len(batches)], cramped.tried[len(batches) :]
    assert whole == [(count, *shape[1:]) for count in batches]
    areas = [height * width for _, height, width in tiles]
    assert max(areas) < shape[1] * shape[2]
    assert max(areas[1:]) <= 3000
    assert denoiser.batching.note.startswith("ran out of memory: at most ")
    assert f"memory ran out for {frames.size} pixels at once" in caplog.text
    # What was learnt is kept.
    cramped.tried.clear()
    denoiser.denoise(frames, batch=8)
    assert all(height * width <= 3000 for _, height, width in cramped.tried)


def test_parallel_runs_back_off_too(box_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noisy(12, 64, 64)
    expected = Denoiser(box_model, threads=1).denoise(frames)
    Cramped(monkeypatch, 3000)
    denoiser = Denoiser(box_model, threads=3)
    assert denoiser.batching.parallel_runs(12, (64, 64)) == 3
    np.testing.assert_array_equal(denoiser.denoise(frames), expected)


def test_runs_go_one_at_a_time_before_they_shrink(
    box_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that suffices for one frame, but not for several at the same time."""
    frames, running, lock = noisy(12, 64, 64), [], threading.Lock()
    expected = Denoiser(box_model, threads=1).denoise(frames)
    real, together = session._run, threading.Barrier(3)

    def into(handle: object, part: np.ndarray, *rest: object) -> None:
        with lock:
            running.append(part.shape)
        if len(running) <= 3:  # the first of all three
            together.wait(10)
            raise RuntimeError(ARENA)
        assert inside.acquire(blocking=False)
        try:
            real(handle, part, *rest)
        finally:
            inside.release()

    inside = threading.Lock()
    monkeypatch.setattr(session, "_run", into)
    denoiser = Denoiser(box_model, threads=3)
    np.testing.assert_array_equal(denoiser.denoise(frames, batch=1), expected)
    assert running == [(1, 64, 64)] * 15
    assert denoiser.batching.note == "ran out of memory: one run at a time"


def test_sigma_backs_off_too(box_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noisy(3, 48, 64)
    expected = Denoiser(box_model, threads=1).denoise_with_sigma(frames)
    Cramped(monkeypatch, 2000)
    found = Denoiser(box_model, threads=1).denoise_with_sigma(frames)
    np.testing.assert_array_equal(found, expected)


def test_a_model_without_exact_tiles_is_named_when_a_frame_does_not_fit(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = noisy(2, 64, 64)
    model = make_model(tmp_path / "whole.onnx", model="whole", tiling_exact="false")
    expected = Denoiser(model).denoise(frames)
    Cramped(monkeypatch, 64 * 64)
    np.testing.assert_array_equal(Denoiser(model, threads=1).denoise(frames, batch=2), expected)
    Cramped(monkeypatch, 64 * 64 - 1)
    with pytest.raises(DeviceMemoryError, match=r"ran out of memory: .*whole \(test\) does not"):
        Denoiser(model, threads=1).denoise(frames)


def test_memory_that_suffices_for_nothing_is_an_error(
    box_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cramped = Cramped(monkeypatch, 0)
    with pytest.raises(DeviceMemoryError, match=r"ran out of memory: .* need about 0.8 GB"):
        Denoiser(box_model, threads=1).denoise(noisy(4, 64, 64))
    assert len(cramped.tried) < 20


def test_tiles_that_are_mostly_borders_are_not_tried(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A net that sees half of a frame would compute it 80 times over, for minutes."""
    model = make_model(tmp_path / "wide.onnx", model="wide", receptive_field="80", halo="40")
    cramped = Cramped(monkeypatch, 128 * 128 - 1)
    with pytest.raises(DeviceMemoryError, match=r"128 x 128 need about .* times as long"):
        Denoiser(model, threads=1).denoise(noisy(2, 128, 128))
    assert len(cramped.tried) == 2


def test_other_failures_are_not_tried_again(
    box_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def into(*_: object) -> None:
        calls.append(1)
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    monkeypatch.setattr(session, "_run", into)
    with pytest.raises(session.DeviceError, match=r"box failed on cpu .*illegal memory access"):
        Denoiser(box_model, threads=1).denoise(noisy(4, 64, 64))
    assert calls == [1]


def test_a_run_records_that_memory_ran_out(
    box_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "movie.h5"
    with h5py.File(source, "w") as file:
        file["frames"] = noisy(6, 64, 64).astype(np.uint16)

    def made(name: str) -> Path:
        options = DenoiseOptions(
            output=tmp_path / name, model=str(box_model), device="cpu", threads=1, batch=4
        )
        return run(source, options).output

    whole = made("whole.h5")
    assert "memory" not in recorded(whole)
    Cramped(monkeypatch, 64 * 64)
    parts = made("parts.h5")
    assert recorded(parts)["memory"] == "ran out of memory: at most 4096 pixels a run"
    with h5py.File(whole) as one, h5py.File(parts) as other:
        np.testing.assert_array_equal(one["frames"][()], other["frames"][()])


# In a process of its own, which may then have little more memory than it has.
REAL = """
import re, resource, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from emdn_deploy import Denoiser
from emdn_deploy.dose import Intensity

known = Intensity(9.0, 1.0, 0.0, 3.0, "")
frames = np.random.default_rng(0).poisson(9, (2, 1500, 1500)).astype(np.float32)
expected = Denoiser("ffdnet", threads=1).run(frames, known, batch=2)
denoiser = Denoiser("ffdnet", threads=1)
denoiser.run(frames[:, :64, :64], known)
has = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (has + int(sys.argv[1]) * 2**20, resource.RLIM_INFINITY))
found = denoiser.run(frames, known, batch=2)
print(np.array_equal(found, expected), denoiser.batching.note)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the size from Linux")
def test_onnxruntime_that_runs_out_of_memory_is_understood() -> None:
    # How much is too little for the whole and enough for a half depends on the C library and
    # the processor; with far too little, the C library itself ends the process.
    for megabytes in (550, 500, 600, 525, 575, 450, 475, 400, 650):
        command = [sys.executable, "-c", REAL, str(megabytes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.startswith("True ran out of memory: at most "):
            return
        assert done.stdout.strip() in ("", "True"), done.stdout
    pytest.fail(f"never understood: {done.stderr}")
