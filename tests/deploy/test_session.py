import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from emdn_deploy import Denoiser, session
from emdn_deploy.dose import Intensity
from emdn_deploy.session import CPU, CUDA, cuda_obstacle, open_session
from emdn_models import MODELS, pretrained
from emdn_models.errors import DeviceError, DeviceMemoryError, EmdnError, ModelError

needs_gpu = pytest.mark.skipif(bool(cuda_obstacle()), reason="needs a CUDA device")


def noisy(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(9, shape).astype(np.float32)


def operators(*kinds: tuple[str, str], providers: tuple[str, ...] = (CUDA, CPU)) -> SimpleNamespace:
    """Make a session that says which provider has which operators."""

    def part(provider: str, kind: str) -> SimpleNamespace:
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: [SimpleNamespace(op_type=kind)])

    parts = [part(*one) for one in kinds]
    return SimpleNamespace(
        get_providers=lambda: list(providers), get_provider_graph_assignment_info=lambda: parts
    )


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
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
        assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
        # The strictest of all that a group lies in.
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        # Seen from a container: the path is the host's, the tree is the container's own.
        ("0::/docker/123\n", {"cpu.max": "400000 100000"}, 4),
        ("3:cpuset:/\n1:cpu,cpuacct:/job\n", {}, 64),
        ("0::/\n", {"cpu.max": ""}, 64),
        (None, {}, 64),
    ],
)
def test_threads_follow_the_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: str | None, files, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if group is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(group)
    quotas = session._quotas
    monkeypatch.setattr(session, "_quotas", lambda: quotas(tmp_path))
    assert session.usable_cpus() == expected


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 7), (2, 31, 64), (1, 65, 33)])
def test_results_are_written_where_they_belong(box_model: Path, shape: tuple[int, ...]) -> None:
    opened, frames = open_session(box_model, "cpu"), noisy(*shape)
    expected = opened.run(frames, 9.0, 0.0, 1.0)
    assert (expected.shape, expected.dtype) == (shape, np.float32)
    into = np.zeros((shape[0] + 2, *shape[1:]), np.float32)
    made = opened.run(frames, 9.0, 0.0, 1.0, out=into[1:-1], alone=True)
    assert np.shares_memory(made, into)
    np.testing.assert_array_equal(into[1:-1], expected)
    assert not into[[0, -1]].any()
    turned = np.ascontiguousarray(frames.transpose(0, 2, 1)).transpose(0, 2, 1)
    np.testing.assert_array_equal(opened.run(turned, 9.0, 0.0, 1.0), expected)


@pytest.mark.parametrize("wrong", [
    np.zeros((1, 8, 9), np.float32), np.zeros((2, 8, 9)),
    np.zeros((2, 8, 18), np.float32)[:, :, ::2],
])  # fmt: skip
def test_a_buffer_that_does_not_fit_is_refused(box_model: Path, wrong: np.ndarray) -> None:
    """It would be written past its end."""
    with pytest.raises(DeviceError, match="out is"):
        open_session(box_model, "cpu").run(noisy(2, 8, 9), 9.0, 0.0, 1.0, out=wrong)


def test_a_missing_library_is_named(box_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "cuda_obstacle", lambda: "libexample.so.1 cannot be loaded")
    with pytest.raises(DeviceError, match=r"CUDA is not available: libexample\.so\.1"):
        open_session(box_model, "cuda")


def test_auto_says_what_it_took(
    box_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "cuda_obstacle", lambda: "no GPU")
    monkeypatch.setattr(session, "_nvidia_there", lambda: False)
    with caplog.at_level(logging.INFO):
        assert open_session(box_model, "auto").device == "cpu"
    assert "CUDA" not in caplog.text  # nobody without a GPU wants to read of it
    monkeypatch.setattr(session, "_nvidia_there", lambda: True)
    with caplog.at_level(logging.INFO):
        assert open_session(box_model, "auto").device == "cpu"
    assert "device: cpu (CUDA is not available: no GPU)" in caplog.text


def test_an_unknown_device_is_refused(box_model: Path) -> None:
    for device in ("tpu", "tensorrt"):
        with pytest.raises(DeviceError, match=f"called '{device}'; there are auto, cpu, cuda$"):
            open_session(box_model, device)  # type: ignore[arg-type]
    with pytest.raises(EmdnError, match="threads is 0"):
        open_session(box_model, "cpu", threads=0)


def test_what_cuda_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel without CUDA, libraries that are not there, a GPU that does not answer."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    assert "no CUDA provider" in cuda_obstacle()
    missing = {"cudnn"}
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(
        session, "_unloadable", lambda name: next((one for one in missing if one in name), "")
    )
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", lambda *_: None)
    assert cuda_obstacle().startswith('cudnn cannot be loaded; pip install ".[cuda]"')
    missing.clear()
    assert cuda_obstacle() == ""

    def fails(*_: object) -> None:
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected\nmore")

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", fails)
    assert cuda_obstacle() == (
        "no GPU can be used (CUDA failure 100: no CUDA-capable device is detected); "
        "check the driver with nvidia-smi"
    )


def test_float32_is_float32() -> None:
    for precision, tf32, channels_last in (("fp32", "0", "0"), ("tf32", "1", "1"),
                                           ("fp16", "0", "1")):  # fmt: skip
        (name, options), last = session._providers("cuda", precision)
        assert (name, last) == (CUDA, CPU)
        assert (options["use_tf32"], options["prefer_nhwc"]) == (tf32, channels_last)
    assert session._providers("cpu", "fp32") == [CPU]


@pytest.mark.skipif(not cuda_obstacle(), reason="there is a GPU")
def test_a_silent_fallback_is_refused(box_model: Path) -> None:
    # onnxruntime itself opens a session here, on the CPU.
    with pytest.raises(DeviceError, match="fell back to CPUExecutionProvider"):
        session._open(box_model, "cuda", 1)


def test_convolutions_on_the_cpu_are_refused_under_another_name() -> None:
    handle = operators((CUDA, "Add"), (CPU, "FusedConv"), (CPU, "Conv"), (CPU, "Shape"))
    with pytest.raises(DeviceError, match=r"would run 2 convolutions of a\.onnx on another device"):
        session._check_cuda(handle, "a.onnx")


@pytest.mark.parametrize(("text", "expected"), [
    ("bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal Failed to allocate "
     "memory for requested buffer of size 324000000", True),
    ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0", True),
    ("CUDNN failure 3: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
    ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", True),
    ("CUDA failure 2: out of memory ; GPU=0 ; hostname=here", True),
    ("CUDA error cudaErrorMemoryAllocation:out of memory", True),
    ("std::bad_alloc", True),
    ("CUDNN failure 3: CUDNN_STATUS_BAD_PARAM", False),
    ("CUDA failure 700: an illegal memory access was encountered", False),
    ("Got invalid dimensions for input: frames", False),
])  # fmt: skip
def test_a_lack_of_memory_is_recognised(text: str, expected: bool) -> None:
    assert session._ran_out(RuntimeError(f"[ONNXRuntimeError] : 6 : {text}")) is expected
    assert session._ran_out(MemoryError())


def test_auto_takes_a_gpu_and_stays_on_the_cpu_where_it_fails(
    box_model: Path, pretended: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    with caplog.at_level(logging.INFO):
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
    with pytest.raises(DeviceError, match="fell back"):
        open_session(box_model, "cuda")


def test_tf32_is_used_under_its_own_name_only(
    box_model: Path, pretended: list[tuple[object, ...]]
) -> None:
    assert open_session(box_model, "cuda", precision="tf32").precision == "tf32"
    assert pretended == [("cuda", "tf32")]
    with pytest.raises(DeviceError, match="tf32 is CUDA's, and the device is cpu"):
        open_session(box_model, "cpu", precision="tf32")


def test_a_device_that_runs_out_of_memory_gets_less(
    box_model: Path, pretended: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = noisy(9, 64, 64)
    expected = Denoiser(box_model, "cpu").denoise(frames)
    denoiser, real, tried = Denoiser(box_model, "cuda"), session._run, []

    def small(handle: object, part: np.ndarray, *rest: object) -> None:
        tried.append(len(part))
        if part.size > 64 * 64 * 2:
            raise RuntimeError("CUDA failure 2: out of memory")
        real(handle, part, *rest)

    monkeypatch.setattr(session, "_run", small)
    np.testing.assert_array_equal(denoiser.denoise(frames), expected)
    assert denoiser.batching.note == "ran out of memory: at most 8192 pixels a run"
    assert tried[:3] == [8, 4, 2]
    with pytest.raises(DeviceMemoryError, match="box failed on cuda for 4 frames of 64 x 64"):
        denoiser.session.run(frames[:4], 9.0, 0.0, 1.0)


KNOWN = Intensity(9.0, 1.0, 0.0, 3.0, "")


def scene(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy frames of a lattice and what they are of, in electrons."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    clean = 9 * (1 + 0.3 * np.cos(x / 2.3) * np.cos(y / 2.9 + x / 4))
    return np.random.default_rng(0).poisson(clean, shape).astype(np.float32), clean


@needs_gpu
@pytest.mark.parametrize("name", MODELS)
def test_float32_on_a_gpu_is_that_of_the_cpu(name: str) -> None:
    gpu, cpu = open_session(name, "cuda"), open_session(name, "cpu")
    for shape in ((4, 256, 256), (1, 97, 131)):
        frames, _ = scene(*shape)
        expected = cpu.run(frames, 9.0, 0.0, 1.0)
        assert np.abs(gpu.run(frames, 9.0, 0.0, 1.0) - expected).max() < 1e-4 * np.ptp(expected)


@needs_gpu
def test_stacks_and_tiles_on_a_gpu_are_those_of_the_cpu() -> None:
    gpu, cpu = Denoiser("ffdnet", "cuda"), Denoiser("ffdnet", "cpu")
    for shape in ((150, 256, 256), (1, 2500, 2300)):
        frames, _ = scene(*shape)
        expected = cpu.run(frames, KNOWN)
        assert np.abs(gpu.run(frames, KNOWN) - expected).max() < 1e-4 * np.ptp(expected)


@needs_gpu
def test_a_batch_that_is_too_large_for_a_gpu_is_halved() -> None:
    gpu = Denoiser("rednet", "cuda")
    frames, _ = scene(64, 256, 256)
    expected = open_session("rednet", "cpu").run(frames, 9.0, 0.0, 1.0)
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0"]
    free = int(subprocess.run(command, capture_output=True, check=True).stdout)
    # Leave too little for the 64 maps of 64 frames, which take a gigabyte.
    shape = ((free - 400) * 2**20 // 4,)
    taken = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", 0)
    found = gpu.run(frames, KNOWN, batch=64)
    del taken
    assert gpu.batching.note
    assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)


def refused(path: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        open_session(path, "cpu", 1)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(path)) + 400


@pytest.mark.parametrize("name", pretrained.index()["models"])
def test_shipped_models_read_as_onnx_reads_them(name: str) -> None:
    known = onnx.load(pretrained.onnx_path(name)).metadata_props
    assert open_session(name, "cpu", 1).info.text == {one.key: one.value for one in known}


@pytest.mark.parametrize(("changes", "match"), [
    ({"emdn_schema": None}, "not a model exported by emdn"),
    ({"emdn_schema": "2"}, "has emdn_schema 2, this emdn reads 1"),
    *(({name: text}, "incomplete or damaged") for name, text in (
        ("recipe", "{"), ("multiple", "0"), ("multiple", None), ("halo", "-2"), ("frames", "2"),
        ("receptive_field", "x"),
    )),
])  # fmt: skip
def test_metadata_that_no_export_writes(
    make_model: Callable[..., Path], tmp_path: Path, changes: dict[str, str | None], match: str
) -> None:
    refused(make_model(tmp_path / "model.onnx", **changes), match)


@pytest.mark.parametrize("content", [b"", b"no ONNX", None])
def test_files_that_are_no_models(box_model: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(box_model.read_bytes()[:400] if content is None else content)
    refused(path, "onnxruntime cannot load it|not a model exported by emdn")
