"""The driver's calls, against a library of C functions with its signatures."""

import ctypes
import gc
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_uint64,
    c_void_p,
)
from types import SimpleNamespace

import numpy as np
import pytest

from emdn_deploy.session import driver as module
from emdn_deploy.session.driver import Driver
from emdn_models.errors import DeviceError

CONTEXT, STREAM = 0x7F00_1234_5678, 0x7F00_9ABC_DEF0
# Written from cuda.h, and not from what is tested: a pointer cut to 32 bits would show.
SIGNATURES = {
    "cuInit": [c_uint],
    "cuDeviceGetCount": [POINTER(c_int)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuCtxSetCurrent": [c_void_p],
    "cuMemGetInfo_v2": [POINTER(c_size_t), POINTER(c_size_t)],
    "cuMemHostAlloc": [POINTER(c_void_p), c_size_t, c_uint],
    "cuMemFreeHost": [c_void_p],
    "cuStreamCreate": [POINTER(c_void_p), c_uint],
    "cuStreamSynchronize": [c_void_p],
    "cuMemcpyHtoDAsync_v2": [c_uint64, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, c_uint64, c_size_t, c_void_p],
    "cuGetErrorString": [c_int, POINTER(c_char_p)],
}


class Card:
    """A graphics card whose memory is the host's."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.codes: dict[str, int] = {}
        self.pinned: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.current = 0
        self.count = 1
        self.library = SimpleNamespace()
        for name, arguments in SIGNATURES.items():
            function = CFUNCTYPE(c_int, *arguments)(self._answer(name))
            setattr(self.library, name, function)

    def _answer(self, name: str):
        def answer(*arguments: object) -> int:
            self.calls.append(name)
            code = self.codes.get(name, 0)
            return code or getattr(self, name, lambda *_: 0)(*arguments) or 0

        return answer

    def cuDeviceGetCount(self, count) -> None:
        count[0] = self.count

    def cuDevicePrimaryCtxRetain(self, context, device) -> None:
        assert device == 0
        context[0] = CONTEXT

    def cuCtxSetCurrent(self, context) -> None:
        self.current = context

    def cuMemGetInfo_v2(self, free, total) -> None:
        assert self.current == CONTEXT
        free[0], total[0] = 6 * 2**30, 8 * 2**30

    def cuMemHostAlloc(self, pointer, size, flags) -> None:
        assert (self.current, flags) == (CONTEXT, 0)
        buffer = ctypes.create_string_buffer(size)
        self.pinned[ctypes.addressof(buffer)] = buffer
        pointer[0] = ctypes.addressof(buffer)

    def cuMemFreeHost(self, pointer) -> None:
        del self.pinned[pointer]

    def cuStreamCreate(self, stream, flags) -> None:
        assert flags == 1  # CU_STREAM_NON_BLOCKING
        stream[0] = STREAM

    def cuMemcpyHtoDAsync_v2(self, there, here, size, stream) -> None:
        assert (self.current, stream) == (CONTEXT, STREAM)
        ctypes.memmove(there, here, size)

    def cuMemcpyDtoHAsync_v2(self, here, there, size, stream) -> None:
        assert (self.current, stream) == (CONTEXT, STREAM)
        ctypes.memmove(here, there, size)

    def cuGetErrorString(self, code, text) -> None:
        text[0] = {2: b"out of memory", 100: b"no CUDA-capable device is detected"}[code]


@pytest.fixture
def card() -> Card:
    return Card()


def test_it_tells_devices_and_free_memory(card: Card) -> None:
    driver = Driver(card.library)
    assert driver.devices() == 1
    assert driver.free_bytes() == 6 * 2**30


def test_the_context_and_the_stream_are_made_once(card: Card) -> None:
    driver = Driver(card.library)
    for _ in range(3):
        driver.free_bytes()
    assert card.calls.count("cuDevicePrimaryCtxRetain") == 1
    assert card.calls.count("cuStreamCreate") == 1
    assert card.calls.count("cuCtxSetCurrent") == 3  # any thread may have called


def test_what_is_copied_in_comes_back(card: Card) -> None:
    driver = Driver(card.library)
    before, after = driver.empty((2, 3, 5)), driver.empty((2, 3, 5))
    assert (before.shape, before.dtype) == ((2, 3, 5), np.float32)
    before[:] = np.arange(30).reshape(2, 3, 5)
    device = ctypes.create_string_buffer(before.nbytes)
    driver.copy_in(ctypes.addressof(device), before)
    driver.copy_out(after, ctypes.addressof(device))
    np.testing.assert_array_equal(after, before)
    # Either copy is waited for.
    assert card.calls[-1] == "cuStreamSynchronize"
    assert card.calls.count("cuStreamSynchronize") == 2


def test_pinned_memory_is_freed_with_the_last_view_of_it(card: Card) -> None:
    driver = Driver(card.library)
    array = driver.empty((4, 4))
    view = array[1:]
    del array
    gc.collect()
    assert len(card.pinned) == 1
    view[:] = 1
    del view
    gc.collect()
    assert not card.pinned


def test_failures_are_named(card: Card) -> None:
    driver = Driver(card.library)
    card.codes["cuMemHostAlloc"] = 2
    with pytest.raises(MemoryError, match="cuMemHostAlloc: out of memory"):
        driver.empty((1, 1))
    card.codes["cuInit"] = 100
    with pytest.raises(DeviceError, match=r"cuInit: no CUDA-capable device is detected \(100\)"):
        Driver(card.library)


@pytest.mark.parametrize("missing", ["library", "function", "start", "device"])
def test_no_driver_is_none(card: Card, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        if missing == "library":
            raise OSError(name)
        return card.library

    if missing == "function":
        del card.library.cuMemHostAlloc
    if missing == "start":
        card.codes["cuInit"] = 100
    if missing == "device":
        card.count = 0
    monkeypatch.setattr(ctypes, "CDLL", load)
    module.open_driver.cache_clear()
    assert module.open_driver() is None
    module.open_driver.cache_clear()


def test_a_driver_with_a_device_is_found(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: card.library)
    module.open_driver.cache_clear()
    found = module.open_driver()
    assert found is not None
    assert found is module.open_driver()
    module.open_driver.cache_clear()
