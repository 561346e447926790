import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from emdn_deploy.session import open_session, staging
from emdn_deploy.session.handles import open_handle
from emdn_deploy.session.staging import Numbers, Staging

NUMBERS = Numbers(9.0, 2.0, 3.0)


class Watched:
    """A session on the CPU that notes how it is run."""

    def __init__(self, path: Path) -> None:
        self._handle = open_handle(path, "cpu", 1)
        self.graphs: list[int] = []
        self.threads: set[str] = set()
        self.held: list[bool] = []
        self.fails: dict[int, Exception] = {}
        self.before = lambda: None

    def __getattr__(self, name: str) -> object:
        return getattr(self._handle, name)

    def io_binding(self) -> onnxruntime.IOBinding:
        return self._handle.io_binding()

    def run_with_iobinding(self, binding, options) -> None:
        graph = int(options.get_run_config_entry("gpu_graph_id"))
        self.before()
        self.held.append(staging._copying.locked())
        self.threads.add(threading.current_thread().name)
        if graph in self.fails:
            raise self.fails.pop(graph)
        self.graphs.append(graph)
        self._handle.run_with_iobinding(binding, options)


def stack(*shape: int, seed: int = 0) -> np.ndarray:
    frames = np.random.default_rng(seed).poisson(9, shape).astype(np.float32)
    return frames * NUMBERS.gain + NUMBERS.offset


def run(staged: Staging, frames: np.ndarray, numbers: Numbers = NUMBERS) -> np.ndarray:
    out = np.full(frames.shape, np.nan, np.float32)
    staged.run(frames, numbers, out)
    return out


@pytest.fixture
def watched(box_model: Path) -> Watched:
    return Watched(box_model)


@pytest.mark.parametrize("graphs", [False, True])
def test_results_are_those_of_the_cpu(box_model: Path, memory, graphs: bool) -> None:
    session = open_session(box_model, "cpu", threads=1)
    staged = Staging(lambda _: open_handle(box_model, "cpu", 1), memory, graphs=graphs)
    for seed, shape in enumerate([(2, 31, 24), (1, 9, 7), (2, 31, 24), (2, 31, 24), (4, 16, 16)]):
        frames, numbers = stack(*shape, seed=seed), Numbers(9.0 + seed // 2, 2.0, 3.0)
        expected = session.run(frames, *numbers)
        np.testing.assert_array_equal(run(staged, frames, numbers), expected)
        turned = np.ascontiguousarray(frames.transpose(0, 2, 1)).transpose(0, 2, 1)
        np.testing.assert_array_equal(run(staged, turned, numbers), expected)


def test_numbers_are_copied_only_where_they_change(watched: Watched, memory) -> None:
    staged = Staging(lambda _: watched, memory, graphs=False)
    counts = []
    for numbers in (NUMBERS, NUMBERS, Numbers(8.0, 2.0, 3.0)):
        before = memory.copied_in
        run(staged, stack(1, 8, 8), numbers)
        counts.append(memory.copied_in - before)
    assert counts == [4, 1, 4]


def test_a_shape_is_recorded_the_second_time_and_then_replayed(watched: Watched, memory) -> None:
    staged = Staging(lambda _: watched, memory, graphs=True)
    for shape in ((2, 8, 8), (2, 8, 8), (1, 8, 8), (2, 8, 8), (1, 8, 8), (1, 8, 8)):
        run(staged, stack(*shape))
    assert watched.graphs == [-1, 1, -1, 1, 2, 2]
    # Nothing is copied while a graph is recorded: the second and the fifth run.
    assert watched.held == [False, True, False, False, True, False]


def test_one_thread_runs_all_models(box_model: Path, memory) -> None:
    models = [Watched(box_model), Watched(box_model)]
    both = [Staging(lambda _, one=one: one, memory, graphs=True) for one in models]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: run(both[index % 2], stack(1, 8, 8)), range(12)))
    threads = models[0].threads | models[1].threads
    assert len(threads) == 1
    assert threads != {threading.current_thread().name}


def test_a_batch_is_copied_while_another_is_computed(watched: Watched, memory) -> None:
    staged = Staging(lambda _: watched, memory, graphs=False)
    # Buffers are made by the device's thread, which will be waiting.
    for own in staged._sets.queue:
        staged._prepare(own, (1, 8, 8))
    other_came = threading.Event()
    copies = []

    def copied() -> None:
        copies.append(threading.current_thread().name)
        if len(set(copies)) == 2:
            other_came.set()

    memory.on_copy_in = copied
    # The first run ends only when the second lane's frames are on the device.
    watched.before = lambda: other_came.wait(20) or pytest.fail("nothing was copied meanwhile")
    frames = [stack(1, 8, 8, seed=seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda one: run(staged, one), frames))
    assert not np.array_equal(*made)
    watched.before = lambda: None
    for one, expected in zip(frames, made, strict=True):
        np.testing.assert_array_equal(run(staged, one), expected)


def test_many_threads_get_their_own_results(box_model: Path, memory) -> None:
    staged = Staging(lambda _: open_handle(box_model, "cpu", 1), memory, graphs=True)
    session = open_session(box_model, "cpu", threads=1)
    frames = [stack(1 + seed % 3, 12, 10, seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(5) as pool:
        made = list(pool.map(lambda one: run(staged, one), frames))
    for one, found in zip(frames, made, strict=True):
        np.testing.assert_array_equal(found, session.run(one, *NUMBERS))


def test_a_failed_recording_goes_on_without_graphs(
    box_model: Path, memory, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[tuple[bool, Watched]] = []

    def opens(graphs: bool) -> Watched:
        opened.append((graphs, Watched(box_model)))
        return opened[-1][1]

    staged = Staging(opens, memory, graphs=True)
    opened[0][1].fails[1] = RuntimeError("operation not permitted when stream is capturing\nmore")
    frames = stack(2, 8, 8)
    first = run(staged, frames)
    with caplog.at_level(logging.WARNING):
        second = run(staged, frames)
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(run(staged, frames), first)
    assert [graphs for graphs, _ in opened] == [True, False]
    assert opened[1][1].graphs == [-1, -1]
    assert "CUDA graphs failed, going on without: operation not permitted" in caplog.text
    assert "more" not in caplog.text


def test_a_lack_of_memory_while_recording_is_no_fault_of_graphs(
    watched: Watched, memory, out_of_memory: Exception
) -> None:
    staged = Staging(lambda _: watched, memory, graphs=True)
    run(staged, stack(2, 8, 8))
    watched.fails[1] = out_of_memory
    with pytest.raises(Exception, match="Failed to allocate memory"):
        run(staged, stack(2, 8, 8))
    assert staged.graphs


def test_buffers_of_a_failed_run_are_given_up(
    watched: Watched, memory, out_of_memory: Exception
) -> None:
    staged = Staging(lambda _: watched, memory, graphs=False)
    run(staged, stack(1, 8, 8))
    watched.fails[-1] = out_of_memory
    with pytest.raises(Exception, match="Failed to allocate memory"):
        run(staged, stack(4, 64, 64))
    assert not any(one for one in list(staged._sets.queue))
    assert len(staged._sets.queue) == staging.SETS
    assert np.isfinite(run(staged, stack(1, 8, 8))).all()


def test_few_shapes_are_kept(watched: Watched, memory) -> None:
    staged = Staging(lambda _: watched, memory, graphs=False)
    for side in range(8, 8 + 2 * staging.SHAPES):
        run(staged, stack(1, side, 8))
    assert [len(one) for one in staged._sets.queue] == [0, staging.SHAPES]
