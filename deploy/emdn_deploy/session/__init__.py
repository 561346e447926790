"""Open an ONNX model on a device and run it: the only user of onnxruntime."""

import logging
import threading
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from emdn_deploy import cpus
from emdn_deploy import model as models
from emdn_deploy.model import ModelInfo
from emdn_deploy.options import Device, Precision
from emdn_deploy.session import fit, graph, trial
from emdn_deploy.session.complaints import first_line, ran_out
from emdn_deploy.session.driver import open_driver
from emdn_deploy.session.handles import open_handle
from emdn_deploy.session.providers import NAMES, Place, cuda_obstacle, obstacle
from emdn_deploy.session.staging import Numbers, Staging
from emdn_models import pretrained
from emdn_models.errors import DeviceError, DeviceMemoryError, EmdnError

__all__ = ["DEVICES", "Session", "cuda_obstacle", "open_session"]

DEVICES: tuple[Device, ...] = get_args(Device)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """An open model.

    Attributes
    ----------
    device
        Where it runs.
    precision
        What it computes with: what the file says, or ``tf32``.
    threads
        Threads of the CPU provider.
    handle
        Uses all threads for one batch.
    staging
        What brings frames to a device of its own memory; None on the CPU.
    """

    info: ModelInfo
    device: Place
    precision: str
    threads: int
    handle: ort.InferenceSession
    staging: Staging | None = None
    _single: list[ort.InferenceSession] = field(default_factory=list, repr=False)
    _opening: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def single(self) -> ort.InferenceSession:
        """Return the same model with one thread, to be run by several callers at once."""
        if self.device != "cpu" or self.threads == 1:
            return self.handle
        with self._opening:
            if not self._single:
                self._single.append(open_handle(self.info.path, self.device, 1))
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
        DeviceMemoryError
            If the device's memory does not suffice: fewer frames, or tiles, may do.
        DeviceError
            If the device gives up for another reason.
        """
        if out is None:
            out = np.empty(frames.shape, np.float32)
        numbers = Numbers(scale, offset, gain)
        try:
            _check(frames, out)
            if self.staging is not None:
                self.staging.run(frames, numbers, out)
            else:
                _into(self.single if alone else self.handle, frames, numbers, out)
        except Exception as error:  # onnxruntime raises bare Exceptions
            failed = (
                f"{self.info.name} failed on {self.device} for {len(frames)} frames of "
                f"{frames.shape[1]} x {frames.shape[2]}: {first_line(error)}"
            )
            raise (DeviceMemoryError if ran_out(error) else DeviceError)(failed) from error
        return out

    def pixels_that_fit(self) -> int | None:
        """Measure how many pixels the device's free memory suffices for; None for the CPU."""
        if self.staging is None:
            return None

        def run(side: int) -> object:
            return self.run(np.ones((1, side, side), np.float32), 1.0, 0.0, 1.0)

        return fit.pixels(run, self.staging.memory.free_bytes)


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
        ``cuda`` and ``tensorrt`` never fall back; ``auto`` takes CUDA where it works and says
        what it took.
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
    if device not in DEVICES:
        raise DeviceError(f"no device is called {device!r}; there are {', '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise EmdnError(f"threads is {threads}, expected 1 or more")
    path = models.resolve(model, precision)
    if precision == "int8" and device != "cpu":
        # CUDA has no convolutions of int8 in onnxruntime: it would go back to float32.
        if device != "auto":
            raise DeviceError(f"int8 variants are for the CPU; use fp32 on {NAMES[device]}")
        device = "cpu"
        _log.info("device: cpu (int8 variants are for it)")
    count = threads or cpus.usable()
    contents = graph.read(path)
    info = models.parse(path, contents.metadata, contents.inputs)
    models.check_precision(info, precision)
    if path.parent != pretrained.WEIGHTS:  # those have the sha256 of the index
        _try(path, info.sha256)
    handle, staging, take = _opened(path, device, count, precision)
    if precision == "tf32" and take != "cuda":
        raise DeviceError(f"tf32 is CUDA's, and the device is {take}; use fp32")
    computed = "tf32" if precision == "tf32" else info.precision
    return Session(info, take, computed, count, handle, staging)


@cache
def _try(path: Path, sha256: str) -> None:
    """Run a file from elsewhere once, on a small frame, before it is used."""
    trial.check(path)


def _opened(
    path: Path, device: Device, threads: int, precision: Precision
) -> tuple[ort.InferenceSession, Staging | None, Place]:
    """Open a file on a device, or on the best one for ``auto``, which says what it took."""
    wanted: Place = "cuda" if device == "auto" else device
    try:
        if missing := obstacle(wanted):
            raise DeviceError(f"{NAMES[wanted]} is not available: {missing}")
        if wanted == "cpu":
            return open_handle(path, wanted, threads), None, wanted
        memory = open_driver()
        assert memory is not None  # or there is an obstacle

        def opened(graphs: bool) -> ort.InferenceSession:
            return open_handle(path, wanted, threads, precision, graphs=graphs)

        # TensorRT has graphs of its own, and leaves onnxruntime little to record.
        staging = Staging(opened, memory, graphs=wanted == "cuda")
    except DeviceError as error:
        if device != "auto":
            raise
        _log.info("device: cpu (%s)", error)
        return open_handle(path, "cpu", threads), None, "cpu"
    if device == "auto":
        _log.info("device: %s", wanted)
    return staging.handle, staging, wanted


def _check(frames: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Refuse a place for the result that would be written past its end."""
    if out.shape != frames.shape or out.dtype != np.float32:
        raise ValueError(f"out is {out.dtype} {out.shape}")
    if not out.flags.c_contiguous:
        raise ValueError("out is not contiguous")


def _into(
    handle: ort.InferenceSession,
    frames: NDArray[np.float32],
    numbers: Numbers,
    out: NDArray[np.float32],
) -> None:
    """Run on the CPU so that the result is written where it belongs, and not copied there."""
    binding = handle.io_binding()
    binding.bind_cpu_input("frames", np.ascontiguousarray(frames[:, None]))
    for name, value in numbers._asdict().items():
        binding.bind_cpu_input(name, np.full((len(frames), 1, 1, 1), value, np.float32))
    place = out[:, None]
    binding.bind_output("denoised", "cpu", 0, np.float32, place.shape, place.ctypes.data)
    handle.run_with_iobinding(binding)
