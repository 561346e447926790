import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import pipeline
from emdn_deploy.pipeline import blocks, ordered, stream


def block(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)


@pytest.mark.parametrize("parallel", [1, 3])
def test_all_blocks_arrive_in_order(parallel: int) -> None:
    got: list[tuple[int, float, float]] = []

    def compute(frames: np.ndarray) -> np.ndarray:
        time.sleep(0.01 if frames[0, 0, 0] == 3 else 0)  # the first is the last to be ready
        return frames + 1

    stream(
        block,
        compute,
        lambda start, before, after: got.append((start, before[0, 0, 0], after[-1, 0, 0])),
        blocks(3, 20, 4),
        parallel,
    )
    assert got == [(3, 3, 7), (7, 7, 11), (11, 11, 15), (15, 15, 19), (19, 19, 20)]


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_slow_writer_holds_the_reader_back(parallel: int) -> None:
    """Memory is set by the queues: the reader is never far ahead of the writer."""
    read, written, ahead = [0], [0], []

    def reading(start: int, stop: int) -> np.ndarray:
        read[0] = stop
        ahead.append(stop - written[0])
        return block(start, stop)

    def writing(start: int, before: np.ndarray, after: np.ndarray) -> None:
        time.sleep(0.002)
        written[0] = start + len(after)

    stream(reading, lambda frames: frames, writing, blocks(0, 200, 1), parallel, depth=2)
    assert written[0] == 200
    # Two queues of 2, one block in the hands of each stage, and what the threads have begun.
    assert max(ahead) <= 2 * 2 + 3 + (2 * parallel if parallel > 1 else 0)


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("stage", ["read", "compute", "write"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_the_first_error_stops_all(stage: str, kind: type[BaseException], parallel: int) -> None:
    before = threading.active_count()
    calls = {"read": 0, "compute": 0, "write": 0}

    def step(name: str) -> None:
        calls[name] += 1
        if name == stage and calls[name] == 3:
            raise kind("third block")

    def read(start: int, stop: int) -> np.ndarray:
        step("read")
        return block(start, stop)

    def compute(frames: np.ndarray) -> np.ndarray:
        step("compute")
        return frames

    with pytest.raises(kind, match="third block"):
        stream(read, compute, lambda *_: step("write"), blocks(0, 1000, 1), parallel)
    assert calls["read"] < 20
    assert threading.active_count() == before


def test_stages_overlap() -> None:
    """Block 2 is read while block 1 is computed and block 0 written, or the barrier breaks."""
    together = threading.Barrier(3, timeout=300)

    def meet(block_number: float, number: int) -> None:
        if block_number == number:
            together.wait()

    def read(start: int, stop: int) -> np.ndarray:
        meet(start, 2)
        return block(start, stop)

    def compute(frames: np.ndarray) -> np.ndarray:
        meet(frames[0, 0, 0], 1)
        return frames

    stream(read, compute, lambda start, *_: meet(start, 0), blocks(0, 5, 1))


@pytest.mark.parametrize("width", [1, 2, 5])
def test_results_come_in_order(width: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.004 if item % 3 == 0 else 0)
        return item * item

    assert list(ordered(work, range(40), width)) == [item * item for item in range(40)]


def test_items_are_worked_on_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=300)  # breaks unless three are there at once
    assert list(ordered(lambda item: together.wait() >= 0 and item, range(9), 3)) == [*range(9)]


def test_items_are_asked_for_as_they_are_needed() -> None:
    """What is begun, and so held in memory, does not grow with the stack."""
    asked, ahead = 0, []

    def items() -> Iterator[int]:
        nonlocal asked
        for item in range(100):
            asked = item + 1
            yield item

    for done, _ in enumerate(ordered(lambda item: item, items(), 3)):
        ahead.append(asked - done)
    assert max(ahead) <= 6


@pytest.mark.parametrize("width", [1, 3])
def test_an_error_ends_all(width: int) -> None:
    before, begun = threading.active_count(), []

    def work(item: int) -> int:
        begun.append(item)
        if item == 5:
            raise ValueError("the sixth")
        return item

    with pytest.raises(ValueError, match="the sixth"):
        list(ordered(work, range(1000), width))
    assert len(begun) < 20
    assert threading.active_count() == before


def test_who_stops_asking_leaves_no_threads() -> None:
    before = threading.active_count()
    results = ordered(lambda item: item, range(1000), 3)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before


def group(root: Path, line: str, files: dict[str, str]) -> Path:
    """Write what Linux says of a process and its control group."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        # The strictest of all that a group lies in.
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        # Seen from a container: the path is the host's, the tree is the container's own.
        ("0::/docker/123\n", {"cpu.max": "400000 100000"}, 4),
        (
            "3:cpuset:/\n1:cpu,cpuacct:/job\n",
            {"cpu/job/cpu.cfs_quota_us": "50000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": ""}, None),
        ("0::/\n", {}, None),
    ],
)
def test_a_quota_is_read(
    tmp_path: Path, line: str, files: dict[str, str], expected: float | None
) -> None:
    assert pipeline._quota(group(tmp_path, line, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert pipeline._quota(tmp_path) is None


@pytest.mark.parametrize(
    ("masked", "quota", "expected"),
    [(64, 2.0, 2), (64, 1.5, 2), (4, 0.1, 1), (3, 8.0, 3), (5, None, 5)],
)
def test_the_smaller_of_mask_and_quota_counts(
    monkeypatch: pytest.MonkeyPatch, masked: int, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(masked)), raising=False)
    monkeypatch.setattr(pipeline, "_quota", lambda: quota)
    assert pipeline.usable_cpus() == expected
