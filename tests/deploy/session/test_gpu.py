"""What only a GPU can show; elsewhere skipped.

``python -m pytest tests/deploy/session/test_gpu.py`` on a machine that has one, and
``make bench`` for its rows in the table of benchmarks.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from emdn_deploy import Denoiser
from emdn_deploy.intensity import Intensity
from emdn_deploy.session import cuda_obstacle, open_session
from emdn_deploy.session.driver import open_driver
from emdn_deploy.session.providers import PROVIDERS, obstacle
from emdn_models import MODELS, pretrained

pytestmark = pytest.mark.skipif(bool(cuda_obstacle()), reason="needs a CUDA device")

SCALE = 9.0
KNOWN = Intensity(SCALE, 1.0, 0.0, 3.0, "")


def scene(count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy frames of a lattice and what they are of, in electrons."""
    y, x = np.mgrid[:height, :width]
    clean = SCALE * (1 + 0.3 * np.cos(x / 2.3) * np.cos(y / 2.9 + x / 4))
    noisy = np.random.default_rng(0).poisson(clean, (count, height, width))
    return noisy.astype(np.float32), clean


def error(frames: np.ndarray, clean: np.ndarray) -> float:
    return float(np.mean((frames - clean) ** 2))


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_that_of_the_cpu(name: str) -> None:
    gpu, cpu = open_session(name, "cuda"), open_session(name, "cpu")
    assert gpu.handle.get_providers()[0] == PROVIDERS["cuda"]
    for shape in ((4, 256, 256), (1, 97, 131)):
        frames, _ = scene(*shape)
        expected = cpu.run(frames, SCALE, 0.0, 1.0)
        # The first run as it is, the second recorded as a graph, the third replayed.
        for _ in range(3):
            found = gpu.run(frames, SCALE, 0.0, 1.0)
            assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)
            frames, expected = frames[::-1], expected[::-1]
    assert gpu.staging is not None
    assert gpu.staging.graphs, "recording failed; the warning says why"


def test_tf32_rounds_and_float32_does_not() -> None:
    frames, _ = scene(2, 256, 256)
    exact = open_session("dncnn", "cpu").run(frames, SCALE, 0.0, 1.0)
    off = {
        precision: np.abs(
            open_session("dncnn", "cuda", precision=precision).run(frames, SCALE, 0.0, 1.0) - exact
        ).max()
        for precision in ("fp32", "tf32")
    }
    assert off["fp32"] < off["tf32"] / 5


@pytest.mark.parametrize("name", MODELS)
def test_halves_lose_next_to_nothing(name: str) -> None:
    if "fp16" not in pretrained.precisions(name):
        pytest.skip(f"{name} is shipped without an fp16 variant")
    frames, clean = scene(8, 256, 256)
    exact = open_session(name, "cuda").run(frames, SCALE, 0.0, 1.0)
    halves = open_session(name, "cuda", precision="fp16").run(frames, SCALE, 0.0, 1.0)
    assert 10 * np.log10(error(halves, clean) / error(exact, clean)) <= 0.1
    assert abs(halves.mean() / exact.mean() - 1) <= 0.005


def test_stacks_and_tiles_are_those_of_the_cpu() -> None:
    gpu, cpu = Denoiser("ffdnet", "cuda"), Denoiser("ffdnet", "cpu")
    for shape in ((150, 256, 256), (1, 2500, 2300)):
        frames, _ = scene(*shape)
        expected = cpu.run(frames, KNOWN)
        assert np.abs(gpu.run(frames, KNOWN) - expected).max() < 1e-4 * np.ptp(expected)


def test_a_batch_that_is_too_large_is_halved() -> None:
    gpu, driver = Denoiser("rednet", "cuda"), open_driver()
    assert driver is not None
    frames, _ = scene(64, 256, 256)
    expected = open_session("rednet", "cpu").run(frames, SCALE, 0.0, 1.0)
    assert gpu.room.pixels > frames.size
    # Leave too little for the 64 maps of 64 frames, which take a gigabyte.
    taken = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
        ((driver.free_bytes() - 400 * 2**20) // 4,), np.float32, "cuda", 0
    )
    found = gpu.run(frames, KNOWN, batch=64)
    del taken
    assert gpu.room.note
    assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)


def test_pinned_memory_is_copied_there_and_back() -> None:
    driver = open_driver()
    assert driver is not None
    before, after = driver.empty((3, 100, 100)), driver.empty((3, 100, 100))
    before[:] = np.random.default_rng(0).normal(size=before.shape)
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(before.shape, np.float32, "cuda", 0)
    driver.copy_in(value.data_ptr(), before)
    driver.copy_out(after, value.data_ptr())
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(value.numpy(), before)


@pytest.mark.skipif(bool(obstacle("tensorrt")), reason="needs TensorRT")
def test_tensorrt_is_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    frames, _ = scene(2, 256, 256)
    expected = open_session("ffdnet", "cpu").run(frames, SCALE, 0.0, 1.0)
    for _ in range(2):  # the second from the engine that is kept
        found = open_session("ffdnet", "tensorrt").run(frames, SCALE, 0.0, 1.0)
        assert np.abs(found - expected).max() < 1e-3 * np.ptp(expected)
    assert list(tmp_path.rglob("*.engine"))
