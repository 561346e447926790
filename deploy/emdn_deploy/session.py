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
from emdn_models.errors import DeviceError, DeviceMemoryError, ModelError, install

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
    on every inner side. ``tiling_exact``: whether such tiles give the result of the uncut frame; if
    not, ``text`` has the node that sees more as ``whole_frame``.
    """

    path: Path
    sha256: str
    name: str
    preset: str
    precision: str
    frames: int
    multiple: int
    receptive_field: int
    halo: int
    tiling_exact: bool
    gflop_256: float
    quality: Mapping[str, Any]
    text: Mapping[str, str]


@dataclass(frozen=True)
class Session:
    """An open model; ``handle`` uses all threads for one batch."""

    info: ModelInfo
    device: Literal["cpu", "cuda"]
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
        return _open(self.info.path, "cpu", 1)

    def run(
        self,
        frames: NDArray[np.float32],
        scale: float,
        offset: float,
        gain: float,
        *,
        alone: bool = False,
    ) -> NDArray[np.float32]:
        """Denoise a batch (n, H, W), or (n, F, H, W) for a model that sees F frames.

        ``scale``, ``offset``, ``gain``: mean electrons per pixel of the stack, reading of a pixel
        without electrons, units per electron. ``alone``: whether to keep to one CPU thread, the
        caller's, as others run beside it. Returns (n, H, W) in the same units. Raises DeviceError
        if the device gives up; DeviceMemoryError if fewer frames, or tiles, may do.
        """
        given = frames if frames.ndim == 4 else frames[:, None]
        numbers = (
            np.full((len(frames), 1, 1, 1), one, np.float32) for one in (scale, offset, gain)
        )
        feeds = dict(zip(_INPUTS, (np.ascontiguousarray(given), *numbers), strict=True))
        try:
            return _run(self.single if alone else self.handle, feeds)
        except Exception as error:  # onnxruntime raises bare Exceptions
            text = str(error).lower()
            short = isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)
            raise (DeviceMemoryError if short else DeviceError)(
                f"{self.info.name} failed on {self.device} for {len(frames)} frames of "
                f"{frames.shape[-2]} x {frames.shape[-1]}: {_first_line(error)}"
            ) from error


def open_session(
    model: str | PathLike[str] | None = None,
    device: Device = "auto",
    threads: int | None = None,
    precision: Precision = "fp32",
) -> Session:
    """Open a model: a shipped name, the path of an ``.onnx`` file, or None for the default.

    ``device``: ``cuda`` never falls back; ``auto`` takes CUDA where it works and says what it took,
    but for machines without an NVIDIA GPU. ``threads``: of the CPU; None takes those that affinity
    mask and quota allow. ``precision``: which variant of a shipped model; ``int8`` is for the CPU,
    where ``auto`` then stays. Raises ModelError if the model is unknown, damaged or foreign, or has
    no such variant; DeviceError, which names what is missing, if the device cannot be had.
    """
    if device not in get_args(Device):
        devices = ", ".join(get_args(Device))
        raise DeviceError(f"no device is called {device!r}; there are {devices}")
    path, count = resolve(model, precision), threads or usable_cpus()
    if precision == "int8" and device == "cuda":  # onnxruntime has no such convolutions there
        raise DeviceError("int8 variants are for the CPU; use fp32 on CUDA")
    if device == "cuda" or (device == "auto" and precision != "int8" and _nvidia_there()):
        try:
            if missing := cuda_obstacle():
                raise DeviceError(f"CUDA is not available: {missing}")
            handle = _open(path, "cuda", count, precision)
            if device == "auto":
                _log.info("device: cuda")
            return Session(_info(path, handle, precision), "cuda", count, handle)
        except DeviceError as error:
            if device != "auto":
                raise
            _log.info("device: cpu (%s)", error)
    handle = _open(path, "cpu", count)
    return Session(_info(path, handle, precision), "cpu", count, handle)


def resolve(model: str | PathLike[str] | None, precision: Precision = "fp32") -> Path:
    """Return the ONNX file of a path, or of a shipped model's name and precision.

    Raises ModelError if there is no such file, name or variant.
    """
    text = str(model or pretrained.default_model())
    if isinstance(model, PathLike) or text.endswith(".onnx") or {"/", "\\"} & set(text):
        if not Path(text).is_file():
            raise ModelError(f"{text}: no such ONNX file")
        return Path(text)
    return pretrained.onnx_path(text, precision)


def _info(path: Path, handle: ort.InferenceSession, precision: Precision) -> ModelInfo:
    """Read the metadata that ``emdn-train export`` writes; ModelError if the file has none."""
    text = dict(handle.get_modelmeta().custom_metadata_map)
    inputs, schema = [one.name for one in handle.get_inputs()], text.get("emdn_schema")
    if inputs != _INPUTS or schema != SCHEMA:
        raise ModelError(
            f"{path}: found inputs {', '.join(inputs)} and emdn_schema {schema}, expected "
            f"{', '.join(_INPUTS)} and {SCHEMA}; export it with this emdn's emdn-train export"
        )
    try:
        field, multiple = int(text["receptive_field"]), int(text["multiple"])
        # The field is centred on a pixel's cell of ``multiple`` pixels, not on the pixel itself.
        radius = (field + 1) // 2 + multiple // 2
        info = ModelInfo(
            path=path,
            sha256=pretrained.sha256(path),
            name=text["model"],
            preset=text["preset"],
            precision=text.get("precision", "fp32"),
            frames=int(text.get("frames", "1")),
            multiple=multiple,
            receptive_field=field,
            halo=int(text.get("halo") or -(-radius // multiple) * multiple),
            tiling_exact=text["tiling_exact"] == "true",
            gflop_256=float(text["gflop_256"]),
            quality=json.loads(text["quality"]),
            text=text,
        )
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{path}: its metadata is incomplete or damaged ({str(error)[:200]!r}); "
            "export it again with emdn-train export"
        ) from error
    if precision not in ("fp32", info.precision):
        raise ModelError(f"{path}: is {info.precision}, not {precision}; name the file of that one")
    return info


def usable_cpus() -> int:
    """Return how many threads may compute: the affinity mask's CPUs, or a quota if that is less.

    ``docker --cpus`` and Kubernetes limits set a quota of processor time (``cpu.max`` of a control
    group, of version 2), which the mask does not show. A share of a CPU counts as one.
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
    # It prints what it does not find; the check below says it better.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        ort.preload_dlls()
    providers = Path(ort.__file__).parent / "capi"
    needed = [str(one) for name in ("shared", "cuda")
              for one in providers.glob(f"*onnxruntime_providers_{name}.*")]  # fmt: skip
    # onnxruntime opens cuDNN by itself, and leaves convolutions to the CPU where it is not there.
    windows = sys.platform == "win32"
    needed += ["cudnn64_9.dll", "nvcuda.dll"] if windows else ["libcudnn.so.9", "libcuda.so.1"]
    try:
        for library in needed:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        missing = str(error).split(":", 1)[0]
        return f"{missing} cannot be loaded; {install('cuda')}, and an NVIDIA driver"
    try:
        ort.OrtValue.ortvalue_from_shape_and_type((1,), np.float32, "cuda", 0)
    except Exception as error:  # onnxruntime raises bare Exceptions
        return f"no GPU can be used ({_first_line(error)}); check the driver with nvidia-smi"
    return ""


def _nvidia_there() -> bool:
    """Tell whether the machine has an NVIDIA GPU, as its driver's files show."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def _open(
    path: Path, device: Literal["cpu", "cuda"], threads: int, precision: str = "fp32"
) -> ort.InferenceSession:
    """Open a file on a device, and refuse a session that would compute elsewhere."""
    options, providers = ort.SessionOptions(), list[Any]([CPU])
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
        cuda = {
            "use_tf32": "0",  # float32 is not to be cut to 10 bits
            "prefer_nhwc": str(int(precision == "fp16")),  # as tensor cores want it
            "cudnn_conv_algo_search": "HEURISTIC",
            # Doubling every time, as by default, would keep up to half of the memory idle.
            "arena_extend_strategy": "kSameAsRequested",
        }
        providers.insert(0, (CUDA, cuda))
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
    handle: ort.InferenceSession, feeds: dict[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    denoised: NDArray[np.float32] = handle.run(["denoised"], feeds)[0]
    return denoised[:, 0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
