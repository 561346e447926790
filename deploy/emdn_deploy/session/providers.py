"""Devices as onnxruntime's execution providers: their options, and what keeps them from working."""

import contextlib
import ctypes
import importlib
import io
import os
import shutil
import sys
from ctypes.util import find_library
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort

from emdn_deploy.session.driver import open_driver
from emdn_models.errors import install

Place = Literal["cpu", "cuda", "tensorrt"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS: dict[Place, str] = {"cpu": CPU, "cuda": CUDA, "tensorrt": "TensorrtExecutionProvider"}
NAMES: dict[Place, str] = {"cpu": "the CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}

# onnxruntime opens it by itself, and leaves convolutions to the CPU where it is not there.
_CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"


def options_of(device: Place, precision: str, sha256: str, *, graphs: bool) -> list[Any]:
    """Return the providers to open a session with, first the one asked for.

    Parameters
    ----------
    precision
        What convolutions compute in. Halves and TF32 go through the tensor cores, which want
        the channels last; TF32, float32 with its fraction cut to 10 bits, is used under no
        other name.
    sha256
        Of the model, for what is kept of it.
    graphs
        Whether runs may be recorded as CUDA graphs.
    """
    if device == "cpu":
        return [CPU]
    cuda = {
        "use_tf32": str(int(precision == "tf32")),
        "prefer_nhwc": str(int(precision in ("fp16", "tf32"))),
        "cudnn_conv_algo_search": "HEURISTIC",
        # Doubling every time, as by default, would keep up to half of the memory idle.
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": str(int(graphs)),
    }
    if device == "cuda":
        return [(CUDA, cuda), CPU]
    # TensorRT takes TF32 by itself; onnxruntime has no option against it, NVIDIA's libraries do.
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    kept = str(engines(sha256, precision))
    tensorrt = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": kept,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": kept,
        "trt_fp16_enable": str(int(precision == "fp16")),
    }
    return [(PROVIDERS[device], tensorrt), (CUDA, cuda), CPU]


def engines(sha256: str, precision: str) -> Path:
    """Return the folder, in the user's cache, for what TensorRT builds for a model."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "emdn" / "tensorrt" / f"{sha256[:16]}-{precision}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def obstacle(device: Place) -> str:
    """Say what keeps a device from working, or return an empty string."""
    if device == "cpu":
        return ""
    return tensorrt_obstacle() if device == "tensorrt" else cuda_obstacle()


def nvidia_there() -> bool:
    """Tell whether the machine has an NVIDIA GPU, as its driver's files show."""
    return bool(
        any(Path("/dev").glob("nvidia[0-9]*"))
        or shutil.which("nvidia-smi")
        or (sys.platform == "win32" and find_library("nvcuda"))
    )


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
    if missing := _missing("shared", "cuda") or _unloadable(_CUDNN):
        return f"{missing} cannot be loaded; {install('cuda')}, and an NVIDIA driver"
    return "" if open_driver() else "no NVIDIA driver or GPU found"


def tensorrt_obstacle() -> str:
    """Say what keeps TensorRT from working, or return an empty string."""
    if PROVIDERS["tensorrt"] not in ort.get_available_providers():
        return f"the installed onnxruntime {ort.__version__} has no TensorRT provider"
    if missing := cuda_obstacle():
        return missing
    # The wheel of TensorRT loads its libraries from where it has them when it is imported.
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorrt")
    if missing := _missing("tensorrt"):
        return f"{missing} cannot be loaded; install NVIDIA's TensorRT (a wheel is tensorrt)"
    return ""


def _missing(*providers: str) -> str:
    """Load the libraries of providers; return the name of one that cannot be had, or nothing."""
    folder = Path(ort.__file__).parent / "capi"
    for name in providers:
        for library in sorted(folder.glob(f"*onnxruntime_providers_{name}.*")):
            if missing := _unloadable(str(library)):
                return missing
    return ""


def _unloadable(library: str) -> str:
    """Load a library; return what of it, or of what it needs, cannot be had, or nothing."""
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error).split(":", 1)[0]
    return ""
