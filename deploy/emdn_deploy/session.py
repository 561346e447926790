"""Open an ONNX model on a device and run it: the only user of onnxruntime.

onnxruntime by itself opens a model on the CPU where CUDA's libraries are missing, and leaves
convolutions to the CPU where only cuDNN is. Here the libraries are loaded first, and a session
that computes elsewhere than asked for is refused.
"""

import contextlib
import ctypes
import io
import json
import logging
import math
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from emdn_deploy.config import Device, Precision
from emdn_models import pretrained
from emdn_models.errors import DeviceError, DeviceMemoryError, EmdnError, ModelError, install

Place = Literal["cpu", "cuda"]

SCHEMA = "1"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_INPUTS = ["frames", "scale", "offset", "gain"]

# What onnxruntime's arenas, CUDA's runtime, cuDNN and cuBLAS say where memory runs out.
_OUT_OF_MEMORY = (
    "failed to allocate memory", "bfcarena", "out of memory", "cudaerrormemoryallocation",
    "alloc_failed", "allocation_failed", "bad_alloc",
)  # fmt: skip
# Several threads may ask for a session with one thread at once.
_opening = threading.Lock()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelInfo:
    """The metadata of an exported ONNX file; ``text`` is all of it as the file has it.

    ``frames``: how many it sees to denoise the middle one of them, an odd number. ``multiple``:
    step that height and width are padded to inside the graph. ``receptive_field``: side, in pixels,
    of the largest square that an output pixel sees. ``halo``: border, in pixels, that a tile needs
    on every inner side; None in files that do not say, for which the field decides.
    ``tiling_exact``: whether halo tiles give the whole frame's result; if not, ``text`` has the
    node that sees more as ``whole_frame``. ``recipe``, ``quality``: how the weights were trained
    and what they were measured to do.
    """

    path: Path
    sha256: str
    name: str
    preset: str
    precision: str
    frames: int
    multiple: int
    receptive_field: int
    halo: int | None
    tiling_exact: bool
    parameters: int
    gflop_256: float
    recipe: Mapping[str, Any]
    quality: Mapping[str, Any]
    text: Mapping[str, str]


@dataclass(frozen=True)
class Session:
    """An open model; ``handle`` uses all threads for one batch.

    ``precision``: what it computes with, as the file says, or ``tf32``.
    """

    info: ModelInfo
    device: Place
    precision: str
    threads: int
    handle: ort.InferenceSession

    @property
    def single(self) -> ort.InferenceSession:
        """Return the same model with one thread, to be run by several callers at once."""
        if self.device != "cpu" or self.threads == 1:
            return self.handle
        with _opening:
            return self._single

    @cached_property
    def _single(self) -> ort.InferenceSession:
        return _open(self.info.path, self.device, 1)

    def run(
        self,
        frames: NDArray[np.float32],
        scale: float,
        offset: float,
        gain: float,
        *,
        out: NDArray[np.float32] | None = None,
        alone: bool = False,
    ) -> NDArray[np.float32]:
        """Denoise one batch.

        Parameters
        ----------
        frames
            (n, H, W) in the input's own units; (n, F, H, W), each with its neighbours, for a
            model that sees F frames.
        scale, offset, gain
            Mean electrons per pixel of the stack, reading of a pixel without electrons, units
            per electron.
        out
            (n, H, W), contiguous, where the result goes; None for a new array.
        alone
            Whether to keep to one CPU thread, the caller's: for callers that run
            several batches at the same time.

        Returns
        -------
        ndarray
            (n, H, W), same units: ``out``, if there is one.

        Raises
        ------
        DeviceError
            If the device gives up; DeviceMemoryError if its memory does not suffice, where fewer
            frames, or tiles, may do.
        """
        if out is None:
            out = np.empty((len(frames), *frames.shape[-2:]), np.float32)
        try:
            _run(self.single if alone else self.handle, frames, (scale, offset, gain), out)
        except Exception as error:  # onnxruntime raises bare Exceptions
            failed = (
                f"{self.info.name} failed on {self.device} for {len(frames)} frames of "
                f"{frames.shape[-2]} x {frames.shape[-1]}: {_first_line(error)}"
            )
            raise (DeviceMemoryError if _ran_out(error) else DeviceError)(failed) from error
        return out


def open_session(
    model: str | PathLike[str] | None = None,
    device: Device = "auto",
    threads: int | None = None,
    precision: Precision = "fp32",
) -> Session:
    """Open a model.

    Parameters
    ----------
    model
        A shipped name, the path of an ``.onnx`` file, or None for the default.
    device
        ``cuda`` never falls back; ``auto`` takes CUDA where it works and says what it took.
        Where there is no NVIDIA GPU it is the CPU without a word.
    threads
        CPU threads; None takes those that affinity mask and quota allow.
    precision
        Which variant of the model. ``int8`` is for the CPU, where ``auto`` then stays; ``tf32``
        is the model itself, on CUDA, which may then round to 10 bits before it multiplies.

    Raises
    ------
    ModelError
        If the model is unknown, damaged or foreign, or has no such variant.
    DeviceError
        If the device asked for cannot be had; the message names what is missing.
    """
    if device not in get_args(Device):
        devices = ", ".join(get_args(Device))
        raise DeviceError(f"no device is called {device!r}; there are {devices}")
    if threads is not None and threads < 1:
        raise EmdnError(f"threads is {threads}, expected 1 or more")
    path, count = resolve(model, precision), threads or usable_cpus()
    if precision == "int8" and device == "cuda":  # onnxruntime has no such convolutions there
        raise DeviceError("int8 variants are for the CPU; use fp32 on CUDA")
    place: Place = "cpu" if device == "cpu" or precision == "int8" else "cuda"
    if device == "auto" and place == "cuda" and not _nvidia_there():
        place = "cpu"
    if place == "cuda":
        try:
            if missing := cuda_obstacle():
                raise DeviceError(f"CUDA is not available: {missing}")
            handle = _open(path, "cuda", count, precision)
        except DeviceError as error:
            if device != "auto":
                raise
            place = "cpu"
            _log.info("device: cpu (%s)", error)
        else:
            if device == "auto":
                _log.info("device: cuda")
    if place == "cpu":
        if precision == "tf32":
            raise DeviceError("tf32 is CUDA's, and the device is cpu; use fp32")
        handle = _open(path, "cpu", count)
    info = _info(path, handle, precision)
    return Session(info, place, "tf32" if precision == "tf32" else info.precision, count, handle)


def resolve(model: str | PathLike[str] | None, precision: Precision = "fp32") -> Path:
    """Return the ONNX file of a shipped model's name or of a path.

    A shipped variant's file stands in the index, that of ``NAME.onnx`` is ``NAME.int8.onnx``
    beside it. Raises ModelError if there is no such name, file or variant.
    """
    if precision not in get_args(Precision):
        raise ModelError(
            f"no precision is called {precision!r}; there are {', '.join(get_args(Precision))}"
        )
    precision = stored(precision)
    if model is None:
        return pretrained.onnx_path(pretrained.default_model(), precision)
    text = str(model)
    if isinstance(model, str) and not text.endswith(".onnx") and not {"/", "\\"} & set(text):
        return pretrained.onnx_path(text, precision)
    path, suffix = Path(model), f".{precision}.onnx"
    if not path.is_file():
        raise ModelError(f"{path}: no such ONNX file")
    if precision == "fp32" or path.name.endswith(suffix):
        return path
    variant = path.with_name(path.stem + suffix)
    if not variant.is_file():
        raise ModelError(f"{path}: has no {precision} variant; {variant} does not exist")
    return variant


def stored(precision: Precision) -> Precision:
    """Return the variant whose file a precision needs: TF32 is a way to compute with float32."""
    return "fp32" if precision == "tf32" else precision


def _info(path: Path, handle: ort.InferenceSession, precision: Precision) -> ModelInfo:
    """Read the metadata that ``emdn-train export`` writes; ModelError if the file has none."""
    text = dict(handle.get_modelmeta().custom_metadata_map)
    inputs, schema = [one.name for one in handle.get_inputs()], text.get("emdn_schema")
    if schema is None or inputs != _INPUTS:
        raise ModelError(
            f"{path}: is not a model exported by emdn (inputs {', '.join(inputs)}, "
            f"emdn_schema {schema}); export one with emdn-train export"
        )
    if schema != SCHEMA:
        raise ModelError(f"{path}: has emdn_schema {schema}, this emdn reads {SCHEMA}; update emdn")
    try:
        info = ModelInfo(
            path=path,
            sha256=pretrained.sha256(path),
            name=text["model"],
            preset=text["preset"],
            precision=text.get("precision", "fp32"),
            frames=int(text.get("frames", "1")),
            multiple=int(text["multiple"]),
            receptive_field=int(text["receptive_field"]),
            halo=int(text["halo"]) if "halo" in text else None,
            tiling_exact=text["tiling_exact"] == "true",
            parameters=int(text["parameters"]),
            gflop_256=float(text["gflop_256"]),
            recipe=json.loads(text["recipe"]),
            quality=json.loads(text["quality"]),
            text=text,
        )
        if min(info.multiple, info.receptive_field, info.frames % 2) < 1 or (info.halo or 0) < 0:
            raise ValueError("sizes that no model has")
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{path}: its metadata is incomplete or damaged ({str(error)[:200]!r}); "
            "export it again with emdn-train export"
        ) from error
    if stored(precision) not in ("fp32", info.precision):
        raise ModelError(f"{path}: says that it is {info.precision}, not {precision}")
    return info


def usable_cpus() -> int:
    """Return how many threads may compute: the affinity mask's CPUs, or a quota if that is less.

    Slurm, ``taskset`` and ``docker --cpuset-cpus`` set an affinity mask; ``docker --cpus`` and
    Kubernetes limits set a quota of processor time instead (``cpu.max`` of a control group, of
    version 2), which the mask does not show. A share of a CPU counts as one.
    """
    masked = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([masked or 1, *map(math.ceil, _quotas())]))


def _quotas(root: Path = Path("/")) -> Iterator[float]:
    """Yield the CPUs that this process's control group, and all that it lies in, grant."""
    try:
        _, _, group = (root / "proc/self/cgroup").read_text(encoding="utf-8").rpartition("0::/")
    except OSError:  # not Linux
        return
    # In a container the tree may begin at its own group, whatever the path says.
    for folder in (Path(group.strip()), *Path(group.strip()).parents):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number and no limit
            granted, period = (root / "sys/fs/cgroup" / folder / "cpu.max").read_text().split()
            yield int(granted) / int(period)


def cuda_obstacle() -> str:
    """Say what keeps CUDA from working, or return an empty string.

    onnxruntime lists the CUDA provider even where its libraries are missing and
    then quietly runs on the CPU, so the libraries are loaded here first.
    """
    if CUDA not in ort.get_available_providers():
        return (
            f"the installed onnxruntime {ort.__version__} has no CUDA provider; "
            f"{install('cuda')}, and nothing that brings plain onnxruntime"
        )
    if hasattr(ort, "preload_dlls"):
        # It prints what it does not find; the check below says it better.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            ort.preload_dlls()
    capi = Path(ort.__file__).parent / "capi"
    needed = [
        str(one)
        for name in ("shared", "cuda")
        for one in sorted(capi.glob(f"*onnxruntime_providers_{name}.*"))
    ]
    windows = sys.platform == "win32"
    # onnxruntime opens cuDNN by itself, and leaves convolutions to the CPU where it is not there.
    needed += ["cudnn64_9.dll", "nvcuda.dll"] if windows else ["libcudnn.so.9", "libcuda.so.1"]
    for library in needed:
        if missing := _unloadable(library):
            return f"{missing} cannot be loaded; {install('cuda')}, and an NVIDIA driver"
    try:
        ort.OrtValue.ortvalue_from_shape_and_type((1,), np.float32, "cuda", 0)
    except Exception as error:  # onnxruntime raises bare Exceptions
        return f"no GPU can be used ({_first_line(error)}); check the driver with nvidia-smi"
    return ""


def _nvidia_there() -> bool:
    """Tell whether the machine has an NVIDIA GPU, as its driver's files show."""
    return bool(
        any(Path("/dev").glob("nvidia[0-9]*"))
        or shutil.which("nvidia-smi")
        or (sys.platform == "win32" and not _unloadable("nvcuda.dll"))
    )


def _unloadable(library: str) -> str:
    """Load a library; return what of it, or of what it needs, cannot be had, or nothing."""
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error).split(":", 1)[0]
    return ""


def session_options(device: Place, threads: int) -> ort.SessionOptions:
    """Return what every session is opened with."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # onnxruntime's own log lines would follow ours
    # Spinning threads take the cores from the reader, the writer and other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if device == "cpu":
        # Where all results of a run lie is not planned ahead: half the memory, as fast.
        options.enable_mem_pattern = False
    else:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _providers(device: Place, precision: str) -> list[Any]:
    """Return the execution providers to open a session with, the one asked for first.

    Halves and TF32 go through the tensor cores, which want the channels last; TF32, float32
    with its fraction cut to 10 bits, is used under no other name.
    """
    if device == "cpu":
        return [CPU]
    cuda = {
        "use_tf32": str(int(precision == "tf32")),
        "prefer_nhwc": str(int(precision in ("fp16", "tf32"))),
        "cudnn_conv_algo_search": "HEURISTIC",
        # Doubling every time, as by default, would keep up to half of the memory idle.
        "arena_extend_strategy": "kSameAsRequested",
    }
    return [(CUDA, cuda), CPU]


def _open(path: Path, device: Place, threads: int, precision: str = "fp32") -> ort.InferenceSession:
    """Open a file on a device, and refuse a session that would compute elsewhere."""
    options, providers = session_options(device, threads), _providers(device, precision)
    try:
        handle = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises bare Exceptions
        raise ModelError(
            f"{path}: onnxruntime cannot load it ({_first_line(error)}); "
            "is it a complete ONNX file written by emdn-train export?"
        ) from error
    if device == "cuda":
        _check_cuda(handle, path.name)
    return handle


def _check_cuda(handle: ort.InferenceSession, name: str) -> None:
    """Refuse a session that runs on the CPU, or its convolutions, which onnxruntime never says."""
    got = handle.get_providers()[0]
    if got != CUDA:
        raise DeviceError(
            f"CUDA is not available: onnxruntime fell back to {got}; "
            "check the driver with nvidia-smi"
        )
    if not hasattr(handle, "get_provider_graph_assignment_info"):  # onnxruntime before 1.24
        return
    away = [part for part in handle.get_provider_graph_assignment_info() if part.ep_name != CUDA]
    convolutions = sum("Conv" in node.op_type for part in away for node in part.get_nodes())
    if convolutions:
        raise DeviceError(
            f"CUDA is not available: onnxruntime would run {convolutions} convolutions of "
            f"{name} on another device; check that cuDNN fits the installed onnxruntime"
        )


def _run(
    handle: ort.InferenceSession,
    frames: NDArray[np.float32],
    numbers: tuple[float, float, float],
    out: NDArray[np.float32],
) -> None:
    """Run so that the result is written where it belongs; a device copies it there itself."""
    if out.shape != (len(frames), *frames.shape[-2:]) or out.dtype != np.float32:
        raise ValueError(f"out is {out.dtype} {out.shape}")
    if not out.flags.c_contiguous:
        raise ValueError("out is not contiguous")
    binding = handle.io_binding()
    given = frames if frames.ndim == 4 else frames[:, None]
    binding.bind_cpu_input("frames", np.ascontiguousarray(given))
    for name, value in zip(_INPUTS[1:], numbers, strict=True):
        binding.bind_cpu_input(name, np.full((len(frames), 1, 1, 1), value, np.float32))
    place = out[:, None]
    binding.bind_output("denoised", "cpu", 0, np.float32, place.shape, place.ctypes.data)
    handle.run_with_iobinding(binding)


def _ran_out(error: BaseException) -> bool:
    """Tell whether a run failed for lack of memory, which onnxruntime has no type for."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
