"""Open an ONNX model on a device and run it: the only user of onnxruntime."""

import contextlib
import ctypes
import io
import logging
import threading
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from emdn_deploy import cpus
from emdn_deploy import model as models
from emdn_deploy.model import ModelInfo
from emdn_deploy.options import Device, Precision
from emdn_models.errors import DeviceError, EmdnError, ModelError

DEVICES: tuple[Device, ...] = get_args(Device)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 rounds the inputs of a convolution to 10 bits: never under the name of float32.
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}

_FATAL = 4  # onnxruntime's own log lines would follow ours
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """An open model.

    Attributes
    ----------
    device
        Where it runs: ``cpu`` or ``cuda``.
    threads
        Threads of the CPU provider.
    handle
        Uses all threads for one batch.
    """

    info: ModelInfo
    device: Literal["cpu", "cuda"]
    threads: int
    handle: ort.InferenceSession
    _single: list[ort.InferenceSession] = field(default_factory=list, repr=False)
    _opening: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def single(self) -> ort.InferenceSession:
        """Return the same model with one thread, to be run by several callers at once."""
        if self.device != "cpu" or self.threads == 1:
            return self.handle
        with self._opening:
            if not self._single:
                self._single.append(_inference_session(self.info.path, 1, self.device))
        return self._single[0]

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
            (n, H, W) in the input's own units.
        scale
            Mean electrons per pixel of the stack.
        offset, gain
            Reading of a pixel without electrons, and units per electron.
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
            If the device gives up, most often for lack of memory.
        """
        if out is None:
            out = np.empty(frames.shape, np.float32)
        column = (len(frames), 1, 1, 1)
        numbers = {"scale": scale, "offset": offset, "gain": gain}
        feed = {"frames": np.ascontiguousarray(frames[:, None])}
        feed |= {name: np.full(column, value, np.float32) for name, value in numbers.items()}
        handle = self.single if alone else self.handle
        try:
            _into(handle, feed, out)
        except Exception as error:  # onnxruntime raises bare Exceptions
            raise DeviceError(
                f"{self.info.name} failed on {self.device} for frames of "
                f"{frames.shape[1]} x {frames.shape[2]}: {_first_line(error)}; "
                "if memory ran out, use a smaller --batch"
            ) from error
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
        ``cuda`` never falls back; ``auto`` takes CUDA where it works and says so.
    threads
        CPU threads; None takes those that affinity mask and quota allow.
    precision
        Which variant of the model; ``int8`` is for the CPU, where ``auto`` then stays.

    Raises
    ------
    ModelError
        If the model is unknown, damaged or foreign, or has no such variant.
    DeviceError
        If the device asked for cannot be had; the message names what is missing.
    """
    if device not in DEVICES:
        raise DeviceError(f"no device is called {device!r}; there are {', '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise EmdnError(f"threads is {threads}, expected 1 or more")
    path = models.resolve(model, precision)
    if precision == "int8" and device != "cpu":
        # CUDA has no convolutions of int8 in onnxruntime: it would go back to float32.
        if device == "cuda":
            raise DeviceError("int8 variants are for the CPU; use fp32 on CUDA, or --device cpu")
        device = "cpu"
        _log.info("device: cpu (int8 variants are for it)")
    count = threads or cpus.usable()
    missing = cuda_obstacle() if device != "cpu" else "not asked for"
    if device == "cuda" and missing:
        raise DeviceError(f"CUDA is not available: {missing}")
    take: Literal["cpu", "cuda"] = "cpu" if missing else "cuda"
    handle = _inference_session(path, count, take)
    got = handle.get_providers()[0]
    if take == "cuda" and got != CUDA:
        if device == "cuda":
            raise DeviceError(
                f"CUDA is not available: onnxruntime fell back to {got}; "
                "check the driver with nvidia-smi"
            )
        take, missing = "cpu", "onnxruntime could not start it"
    if device == "auto":
        _log.info("device: %s", take if take == "cuda" else f"cpu (no CUDA: {missing})")
    meta = handle.get_modelmeta().custom_metadata_map
    info = models.parse(path, meta, [one.name for one in handle.get_inputs()])
    models.check_precision(info, precision)
    return Session(info, take, count, handle)


def cuda_obstacle() -> str:
    """Say what keeps CUDA from working, or return an empty string.

    onnxruntime lists the CUDA provider even where its libraries are missing and
    then quietly runs on the CPU, so the libraries are loaded here first.
    """
    if CUDA not in ort.get_available_providers():
        return (
            f"the installed onnxruntime {ort.__version__} has no CUDA provider; "
            "install emdn[cuda] and nothing that brings plain onnxruntime"
        )
    if hasattr(ort, "preload_dlls"):
        # It prints what it does not find; the check below says it better.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            ort.preload_dlls()
    folder = Path(ort.__file__).parent / "capi"
    try:
        for name in ("shared", "cuda"):
            for library in sorted(folder.glob(f"*onnxruntime_providers_{name}.*")):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        missing = str(error).split(":", 1)[0]
        return f"{missing} cannot be loaded; install emdn[cuda] and an NVIDIA driver"
    return "" if _driver_devices() else "no NVIDIA driver or GPU found"


def _driver_devices() -> int:
    """Count GPUs with the driver's own library."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def _inference_session(path: Path, threads: int, device: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    # Spinning threads take the cores from the reader, the writer and other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    providers: list[Any] = [CPU] if device == "cpu" else [(CUDA, CUDA_OPTIONS), CPU]
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises bare Exceptions
        raise ModelError(
            f"{path}: onnxruntime cannot load it ({_first_line(error)}); "
            "is it a complete ONNX file written by emdn-train export?"
        ) from error


def _into(
    handle: ort.InferenceSession, feed: dict[str, NDArray[np.float32]], out: NDArray[np.float32]
) -> None:
    """Run so that the result is written where it belongs, and not copied there."""
    if out.shape != feed["frames"][:, 0].shape or out.dtype != np.float32:
        raise ValueError(f"out is {out.dtype} {out.shape}")
    if not out.flags.c_contiguous:
        raise ValueError("out is not contiguous")
    binding = handle.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    place = out[:, None]
    binding.bind_output("denoised", "cpu", 0, np.float32, place.shape, place.ctypes.data)
    handle.run_with_iobinding(binding)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
