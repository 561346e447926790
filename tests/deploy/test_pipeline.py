import threading
import time

import numpy as np
import pytest

from emdn_deploy.pipeline import blocks, stream


def block(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)


@pytest.mark.parametrize("lanes", [1, 3])
def test_all_blocks_arrive_in_order(lanes: int) -> None:
    got: list[tuple[int, float, float]] = []

    def compute(frames: np.ndarray) -> np.ndarray:
        time.sleep(0.01 if frames[0, 0, 0] == 3 else 0)  # the first is the last to be ready
        return frames + 1

    stream(
        block,
        compute,
        lambda start, before, after: got.append((start, before[0, 0, 0], after[-1, 0, 0])),
        blocks(3, 20, 4),
        lanes,
    )
    assert got == [(3, 3, 7), (7, 7, 11), (11, 11, 15), (15, 15, 19), (19, 19, 20)]


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_slow_writer_holds_the_reader_back(lanes: int) -> None:
    """Memory is set by the queues: the reader is never far ahead of the writer."""
    read, written, ahead = [0], [0], []

    def reading(start: int, stop: int) -> np.ndarray:
        read[0] = stop
        ahead.append(stop - written[0])
        return block(start, stop)

    def writing(start: int, before: np.ndarray, after: np.ndarray) -> None:
        time.sleep(0.002)
        written[0] = start + len(after)

    stream(reading, lambda frames: frames, writing, blocks(0, 200, 1), lanes, depth=2)
    assert written[0] == 200
    # Two queues of 2, one block in the hands of each stage, and what the lanes have begun.
    assert max(ahead) <= 2 * 2 + 3 + (2 * lanes if lanes > 1 else 0)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("stage", ["read", "compute", "write"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_the_first_error_stops_all(stage: str, kind: type[BaseException], lanes: int) -> None:
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
        stream(read, compute, lambda *_: step("write"), blocks(0, 1000, 1), lanes)
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
