"""A device that is not there: its memory is the host's, its computing the CPU's."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from emdn_deploy import session
from emdn_deploy.session.handles import open_handle

MEGABYTE = 2**20


class HostMemory:
    """`emdn_deploy.session.driver.Memory` without a device."""

    device = "cpu"

    def __init__(self) -> None:
        self.free = 100 * MEGABYTE
        self.copied_in = 0
        self.on_copy_in: Callable[[], None] = lambda: None

    def empty(self, shape: Sequence[int]) -> NDArray[np.float32]:
        return np.full(shape, np.nan, np.float32)

    def copy_in(self, pointer: int, array: NDArray[np.float32]) -> None:
        assert array.flags.c_contiguous
        self.copied_in += 1
        self.on_copy_in()
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def copy_out(self, array: NDArray[np.float32], pointer: int) -> None:
        assert array.flags.c_contiguous
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def free_bytes(self) -> int:
        return self.free


@pytest.fixture
def memory() -> HostMemory:
    return HostMemory()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, memory: HostMemory) -> HostMemory:
    """Make ``cuda`` and ``tensorrt`` open what they would, on the CPU."""

    def opened(path: Path, device: str, *rest: object, **more: object) -> object:
        opened.asked.append((device, *rest, more))
        return open_handle(path, "cpu", 1)

    opened.asked = []
    memory.asked = opened.asked
    monkeypatch.setattr(session, "nvidia_there", lambda: True)
    monkeypatch.setattr(session, "obstacle", lambda _: "")
    monkeypatch.setattr(session, "open_driver", lambda: memory)
    monkeypatch.setattr(session, "open_handle", opened)
    return memory


@pytest.fixture
def out_of_memory() -> Exception:
    """What onnxruntime raised when its arena could not grow (1.31, CPU)."""
    return onnxruntime.capi.onnxruntime_pybind11_state.Fail(
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Gather node. "
        "Name:'node_index_select_3' Status Message: bfc_arena.cc:360 void* onnxruntime::BFCArena::"
        "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for "
        "requested buffer of size 324000000"
    )
