"""Run a model on a device whose memory is not this process's: copies, buffers, graphs.

Frames go to the device through pinned memory, and results come back through it. There are
two sets of buffers, so that one batch is copied while another is computed::

    lane 1   copy in | compute          | copy out | copy in | ...
    lane 2             copy in | (waits)| compute             | copy out | ...

What looks odd is how onnxruntime uses CUDA graphs. It keeps them for each thread, and while
it records one no other thread may use the device. So one thread, the device's, runs all
models, and a recording holds the copies back. A graph replays the same addresses and shapes:
buffers stay, and a shape is recorded when it comes for the second time, when all the memory
that it needs is there already.
"""

import itertools
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from emdn_deploy.session.complaints import first_line, ran_out
from emdn_deploy.session.driver import Memory

# Sets of buffers, and so batches on the way at the same time.
SETS = 2
# Shapes that a set keeps buffers for: batches of powers of two, and tiles.
SHAPES = 8

_NO_GRAPH = -1
_copying = threading.Lock()
Stack = NDArray[np.float32]
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Numbers(NamedTuple):
    """The inputs of a model beside its frames."""

    scale: float
    offset: float
    gain: float


class Buffers:
    """Memory for one shape of frames, here and on the device, bound to a session."""

    def __init__(
        self, handle: ort.InferenceSession, shape: tuple[int, ...], memory: Memory
    ) -> None:
        def there(wanted: tuple[int, ...]) -> ort.OrtValue:
            return ort.OrtValue.ortvalue_from_shape_and_type(wanted, np.float32, memory.device, 0)

        images, column = (shape[0], 1, *shape[1:]), (shape[0], 1, 1, 1)
        self.handle = handle
        self.before, self.after = memory.empty(shape), memory.empty(shape)
        self.column = memory.empty(column)
        self.frames, self.denoised = there(images), there(images)
        self.columns = [there(column) for _ in Numbers._fields]
        self.numbers: Numbers | None = None
        self.binding = handle.io_binding()
        self.binding.bind_ortvalue_input("frames", self.frames)
        for name, value in zip(Numbers._fields, self.columns, strict=True):
            self.binding.bind_ortvalue_input(name, value)
        self.binding.bind_ortvalue_output("denoised", self.denoised)
        self.runs = 0
        self.graph = _NO_GRAPH

    def fill(self, numbers: Numbers, memory: Memory) -> None:
        """Copy ``before`` to the device, and the numbers where they are others."""
        memory.copy_in(self.frames.data_ptr(), self.before)
        if numbers != self.numbers:
            for number, value in zip(numbers, self.columns, strict=True):
                self.column.fill(number)
                memory.copy_in(value.data_ptr(), self.column)
            self.numbers = numbers

    def run(self) -> None:
        """Compute, recording or replaying a graph where there is one."""
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(self.graph))
        self.handle.run_with_iobinding(self.binding, options)
        self.runs += 1


class Staging:
    """A model on a device.

    Parameters
    ----------
    opened
        ``opened(graphs)`` opens the model, with CUDA graphs or without.
    memory
        What copies: `emdn_deploy.session.driver.Driver`.
    graphs
        Whether to record and replay CUDA graphs.
    """

    def __init__(
        self,
        opened: Callable[[bool], ort.InferenceSession],
        memory: Memory,
        *,
        graphs: bool,
    ) -> None:
        self._opened, self.memory, self.graphs = opened, memory, graphs
        self.handle = opened(graphs)
        self._ids = itertools.count(1)
        self._sets: queue.LifoQueue[dict[tuple[int, ...], Buffers]] = queue.LifoQueue()
        for _ in range(SETS):
            self._sets.put({})

    def run(self, frames: Stack, numbers: Numbers, out: Stack) -> None:
        """Denoise (n, H, W) into ``out``; may be called by several threads at once.

        Raises
        ------
        Exception
            What onnxruntime and the driver raise.
        """
        own = self._sets.get()
        try:
            try:
                self._run(own, frames, numbers, out)
            except _NoGraphsError:
                self._run(own, frames, numbers, out)
        except BaseException:
            # Nothing of a failed run is used again, and a smaller one needs its memory.
            own.clear()
            raise
        finally:
            self._sets.put(own)

    def _run(
        self, own: dict[tuple[int, ...], Buffers], frames: Stack, numbers: Numbers, out: Stack
    ) -> None:
        buffers = own.get(frames.shape)
        if buffers is None or buffers.handle is not self.handle:
            buffers = _on_device(lambda: self._prepare(own, frames.shape))
        np.copyto(buffers.before, frames)
        with _copying:
            buffers.fill(numbers, self.memory)
        _on_device(lambda: self._compute(buffers))
        with _copying:
            self.memory.copy_out(buffers.after, buffers.denoised.data_ptr())
        np.copyto(out, buffers.after)

    def _prepare(self, own: dict[tuple[int, ...], Buffers], shape: tuple[int, ...]) -> Buffers:
        with _copying:
            own.pop(shape, None)
            while len(own) >= SHAPES:
                own.pop(next(iter(own)))
            own[shape] = Buffers(self.handle, shape, self.memory)
        return own[shape]

    def _compute(self, buffers: Buffers) -> None:
        if buffers.handle is not self.handle:  # opened again while the frames were copied
            raise _NoGraphsError
        if not self.graphs or buffers.runs != 1:
            buffers.run()
            return
        buffers.graph = next(self._ids)
        try:
            with _copying:
                buffers.run()
        except Exception as error:
            if ran_out(error):
                raise
            _log.warning("warning: CUDA graphs failed, going on without: %s", first_line(error))
            # A recording that broke off leaves its session in an unknown state.
            self.graphs, self.handle = False, self._opened(False)
            raise _NoGraphsError from error


class _NoGraphsError(Exception):
    """The session was opened again, without graphs: buffers are bound to the earlier one."""


@cache
def _device_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="emdn-device")


def _on_device(work: Callable[[], _T]) -> _T:
    """Call ``work`` in the device's thread, and don't leave it running when interrupted."""
    begun = _device_thread().submit(work)
    try:
        return begun.result()
    except KeyboardInterrupt:
        wait([begun])
        raise
