"""Sessions: devices, threads, variants, and files that are no model of emdn."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import Denoiser, session
from emdn_deploy.dose import Intensity
from emdn_deploy.session import cuda_obstacle, open_session
from emdn_models import MODELS
from emdn_models.errors import DeviceError, DeviceMemoryError, ModelError

needs_gpu = pytest.mark.skipif(bool(cuda_obstacle()), reason="needs a CUDA device")


def noisy(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(9, shape).astype(np.float32)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Let ``cuda`` be there, and compute on the CPU; return what was opened."""
    real, asked = session._open, []

    def opened(path: Path, device: str, threads: int, precision: str = "fp32") -> object:
        asked.append((device, precision))
        return real(path, "cpu", 1)

    monkeypatch.setattr(session, "_nvidia_there", lambda: True)
    monkeypatch.setattr(session, "cuda_obstacle", lambda: "")
    monkeypatch.setattr(session, "_open", opened)
    return asked


@pytest.mark.parametrize("threads", [None, 1])
def test_threads_follow_the_affinity_mask(
    box_model: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    opened = open_session(box_model, "cpu", threads)
    assert opened.threads == (threads or 3)
    assert opened.single is opened.single
    assert (opened.single is opened.handle) == (threads == 1)
    for handle, count in ((opened.handle, threads or 3), (opened.single, 1)):
        options = handle.get_session_options()
        assert options.intra_op_num_threads == count
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        # The strictest of all that a group lies in.
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        # Seen from a container: the path is the host's, the tree is the container's own.
        ("0::/docker/123\n", {"cpu.max": "400000 100000"}, 4),
        ("3:cpuset:/\n1:cpu,cpuacct:/job\n", {}, 64),
    ],
)
def test_threads_follow_the_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: str, files, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group)
    quotas = session._quotas
    monkeypatch.setattr(session, "_quotas", lambda: quotas(tmp_path))
    assert session.usable_cpus() == expected


def test_auto_takes_a_gpu_and_stays_on_the_cpu_where_it_fails(
    box_model: Path, pretended: list[object], monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    caplog.set_level(logging.INFO)
    opened = open_session(box_model, "auto")
    assert (opened.device, pretended) == ("cuda", [("cuda", "fp32")])
    assert opened.single is opened.handle
    assert "device: cuda" in caplog.text
    opens = session._open

    def fails(path: Path, device: str, *rest: object) -> object:
        if device == "cuda":
            raise DeviceError("CUDA is not available: onnxruntime fell back")
        return opens(path, device, *rest)

    monkeypatch.setattr(session, "_open", fails)
    assert open_session(box_model, "auto").device == "cpu"
    assert "device: cpu (CUDA is not available: onnxruntime fell back)" in caplog.text
    with pytest.raises(DeviceError, match="fell back"):
        open_session(box_model, "cuda")
    monkeypatch.setattr(session, "cuda_obstacle", lambda: "libexample.so.1 cannot be loaded")
    with pytest.raises(DeviceError, match=r"CUDA is not available: libexample\.so\.1"):
        open_session(box_model, "cuda")
    caplog.clear()
    monkeypatch.setattr(session, "_nvidia_there", lambda: False)
    assert open_session(box_model, "auto").device == "cpu"
    assert not caplog.text  # nobody without a GPU wants to read of it
    with pytest.raises(DeviceError, match="called 'tpu'; there are auto, cpu, cuda"):
        open_session(box_model, "tpu")  # type: ignore[arg-type]


@pytest.mark.skipif(not cuda_obstacle(), reason="there is a GPU")
def test_a_silent_fallback_is_refused(box_model: Path) -> None:
    # onnxruntime itself opens a session here, on the CPU.
    with pytest.raises(DeviceError, match="fell back to CPUExecutionProvider"):
        session._open(box_model, "cuda", 1)


@pytest.mark.parametrize(("text", "expected"), [
    ("bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal Failed to allocate "
     "memory for requested buffer of size 324000000", DeviceMemoryError),
    ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0", DeviceMemoryError),
    ("CUDNN failure 3: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", DeviceMemoryError),
    ("CUDA error cudaErrorMemoryAllocation:out of memory", DeviceMemoryError),
    ("std::bad_alloc", DeviceMemoryError),
    ("CUDNN failure 3: CUDNN_STATUS_BAD_PARAM", DeviceError),
    ("CUDA failure 700: an illegal memory access was encountered", DeviceError),
])  # fmt: skip
def test_a_lack_of_memory_is_recognised(
    box_model: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: type
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 6 : {text}")

    monkeypatch.setattr(session, "_run", fails)
    with pytest.raises(DeviceError, match="box failed on cpu for 4 frames of 8 x 9") as caught:
        open_session(box_model, "cpu", 1).run(noisy(4, 8, 9), 9.0, 0.0, 1.0)
    assert type(caught.value) is expected


KNOWN = Intensity(9.0, 1.0, 0.0, 3.0, "")


def scene(*shape: int) -> np.ndarray:
    """Return noisy frames of a lattice."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    clean = 9 * (1 + 0.3 * np.cos(x / 2.3) * np.cos(y / 2.9 + x / 4))
    return np.random.default_rng(0).poisson(clean, shape).astype(np.float32)


@needs_gpu
@pytest.mark.parametrize("name", MODELS)
def test_float32_on_a_gpu_is_that_of_the_cpu(name: str) -> None:
    gpu, cpu = Denoiser(name, "cuda"), Denoiser(name, "cpu")
    large = [(150, 256, 256), (1, 2500, 2300)] if name == "ffdnet" else []
    for shape in ((4, 256, 256), (1, 97, 131), *large):
        expected = cpu.run(scene(*shape), KNOWN)
        found = gpu.run(scene(*shape), KNOWN)
        assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("model", [None, "unet", "path"])
def test_a_variant_is_taken_by_name_or_file(shipped: Path, model: str | None) -> None:
    variant = shipped / "unet.int8.onnx"
    found = open_session(variant if model == "path" else model, "cpu", precision="int8").info
    assert (found.path, found.precision) == (variant, "int8")
    found = open_session(shipped / "unet.onnx" if model == "path" else model, "cpu").info
    assert (found.path, found.precision) == (shipped / "unet.onnx", "fp32")


@pytest.mark.parametrize(("model", "precision", "match"), [
    ("dncnn", "int8", "dncnn has no int8 variant; make one with emdn-train"),
    ("unet", "fp16", "unet has no fp16 variant; make one with emdn-train"),
    ("dncnn.onnx", "int8", r"dncnn\.onnx: is fp32, not int8"),
])  # fmt: skip
def test_a_missing_variant_is_an_error(shipped: Path, model: str, precision, match: str) -> None:
    path = shipped / model
    with pytest.raises(ModelError, match=match):
        open_session(path if path.is_file() else model, "cpu", precision=precision)


def test_int8_stays_on_the_cpu(shipped: Path, pretended: list[object]) -> None:
    assert open_session("unet", "auto", precision="int8").device == "cpu"
    with pytest.raises(DeviceError, match="int8 variants are for the CPU; use fp32 on CUDA"):
        open_session("unet", "cuda", precision="int8")


@pytest.mark.parametrize(
    ("changes", "size", "match"),
    [
        ({"emdn_schema": None}, None, "emdn_schema None, expected frames, scale, offset, gain"),
        ({"emdn_schema": "2"}, None, "found inputs frames, scale, offset, gain and emdn_schema 2"),
        ({"recipe": None, "multiple": None}, None, "incomplete or damaged"),
        ({"quality": "{"}, None, "incomplete or damaged"),
        ({"receptive_field": "x"}, None, "incomplete or damaged"),
        ({}, 0, "onnxruntime cannot load it|found inputs"),
        ({}, 400, "onnxruntime cannot load it|found inputs"),
    ],
)
def test_files_that_no_export_writes(make_model, tmp_path: Path, changes, size, match: str) -> None:
    path = make_model(tmp_path / "model.onnx", **changes)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=match) as caught:
        open_session(path, "cpu", 1)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
