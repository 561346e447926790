"""What onnxruntime has no call for, from NVIDIA's driver: free memory, pinned memory, copies.

The driver's library comes with the driver, so nothing more has to be installed. Work is done
in the device's primary context, the one that onnxruntime uses too, so that its pointers are
valid here.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any, Protocol
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from emdn_models.errors import DeviceError

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")

_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1
# As in cuda.h: names with their version suffix, as macros there rename them.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}


class Memory(Protocol):
    """Host memory that a device copies from and to.

    Attributes
    ----------
    device
        What onnxruntime calls the device.
    """

    device: str

    def empty(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return a new contiguous float32 array."""

    def copy_in(self, pointer: int, array: NDArray[np.float32]) -> None:
        """Copy an array to the device, and wait for it."""

    def copy_out(self, array: NDArray[np.float32], pointer: int) -> None:
        """Copy from the device into an array, and wait for it."""

    def free_bytes(self) -> int:
        """Return how much of the device's memory nobody uses."""


class Driver:
    """The first device that the driver shows (``CUDA_VISIBLE_DEVICES`` chooses).

    Parameters
    ----------
    library
        As ``ctypes.CDLL("libcuda.so.1")``.

    Raises
    ------
    DeviceError
        If the driver does not start; of all methods, if a call of it fails.
    MemoryError
        Of `empty`, if no more memory can be pinned.
    """

    device = "cuda"

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        self._call("cuInit", 0)
        self._context = c_void_p()
        self._stream = c_void_p()

    def devices(self) -> int:
        """Count the devices that may be used."""
        count = c_int(0)
        self._call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def free_bytes(self) -> int:
        """Return how much of the device's memory nobody uses."""
        free, total = c_size_t(0), c_size_t(0)
        self._enter()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def empty(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return a float32 array in pinned memory, which the device reads by itself."""
        count = int(np.prod(shape))
        pointer = c_void_p()
        self._enter()
        self._call("cuMemHostAlloc", ctypes.byref(pointer), max(1, 4 * count), 0)
        assert pointer.value is not None
        # The views of an array keep the buffer alive, and the last of them frees it.
        buffer = (ctypes.c_float * count).from_address(pointer.value)
        finalize(buffer, self._free, pointer.value).atexit = False
        array: NDArray[np.float32] = np.ctypeslib.as_array(buffer)
        return array.reshape(shape)

    def copy_in(self, pointer: int, array: NDArray[np.float32]) -> None:
        """Copy a contiguous array to the device, and wait for it."""
        self._enter()
        self._call("cuMemcpyHtoDAsync_v2", pointer, array.ctypes.data, array.nbytes, self._stream)
        self._call("cuStreamSynchronize", self._stream)

    def copy_out(self, array: NDArray[np.float32], pointer: int) -> None:
        """Copy from the device into a contiguous array, and wait for it."""
        self._enter()
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, pointer, array.nbytes, self._stream)
        self._call("cuStreamSynchronize", self._stream)

    def _enter(self) -> None:
        """Make the device's context that of the calling thread."""
        if not self._context:
            device = c_int(0)
            self._call("cuDeviceGet", ctypes.byref(device), 0)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._call("cuCtxSetCurrent", self._context)
        if not self._stream:
            # Of its own, so that copies wait for no computation.
            self._call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)

    def _free(self, pointer: int) -> None:
        self._enter()
        self._call("cuMemFreeHost", pointer)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code == 0:
            return
        text = c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        why = text.value.decode() if text.value else "unknown error"
        if code == _OUT_OF_MEMORY:
            raise MemoryError(f"{name}: {why}")
        raise DeviceError(f"the NVIDIA driver failed: {name}: {why} ({code}); see nvidia-smi")


@cache
def open_driver() -> Driver | None:
    """Open the driver, None where there is none or it sees no device."""
    for name in LIBRARIES:
        try:
            found = Driver(ctypes.CDLL(name))
        except (OSError, AttributeError, DeviceError):  # absent, too old, without a device
            continue
        if found.devices():
            return found
    return None
