"""Batches, tiles, threads: no result depends on them, nor on how little memory there is."""

import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser, batching, session
from emdn_deploy.batching import Batching, blocks, stream
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoise_file import run
from emdn_deploy.dose import Intensity
from emdn_deploy.session import open_session
from emdn_deploy.writers import recorded
from emdn_models.errors import DeviceMemoryError

KNOWN = Intensity(9.0, 1.0, 0.0, 3.0, "")


class Cramped:
    """Let runs of more than so many pixels fail; note those that are tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
        self.tried: list[tuple[int, ...]] = []
        real = session._run

        def run(handle: object, feeds: dict[str, np.ndarray]) -> np.ndarray:
            frames = feeds["frames"][:, 0]
            self.tried.append(frames.shape)
            if frames.size > pixels:
                raise RuntimeError("std::bad_alloc")
            return real(handle, feeds)

        monkeypatch.setattr(session, "_run", run)


def noisy(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(9, shape).astype(np.float32)


def block(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)


@pytest.mark.parametrize("parallel", [1, 3])
def test_all_blocks_arrive_in_order_and_the_reader_is_not_far_ahead(parallel: int) -> None:
    """Memory does not grow with the stack, where the writer is slow."""
    read, written, ahead = [0], [0], []

    def reading(start: int, stop: int) -> np.ndarray:
        read[0] = stop
        ahead.append(stop - written[0])
        return block(start, stop)

    def writing(start: int, before: np.ndarray, after: np.ndarray) -> None:
        time.sleep(0.002)
        assert (start, after[0, 0, 0]) == (written[0], before[0, 0, 0] + 1)
        written[0] = start + len(after)

    stream(reading, lambda frames: frames + 1, writing, blocks(0, 200, 1), parallel)
    assert written[0] == 200
    # Two wait on either side, one is in the hands of each stage, and what the threads have begun.
    assert max(ahead) <= 2 * 2 + 3 + (2 * parallel if parallel > 1 else 0)


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_the_first_error_stops_all(stage: str, parallel: int) -> None:
    before, lock = threading.active_count(), threading.Lock()
    calls = {"read": 0, "compute": 0, "write": 0}

    def step(name: str) -> None:
        with lock:
            calls[name] += 1
            number = calls[name]
        time.sleep(0.001)
        if name == stage and number == 3:
            raise KeyboardInterrupt("third block")

    def read(start: int, stop: int) -> np.ndarray:
        step("read")
        return block(start, stop)

    with pytest.raises(KeyboardInterrupt, match="third block"):
        stream(read, lambda frames: step("compute"), lambda *_: step("write"),
               blocks(0, 1000, 1), parallel)  # fmt: skip
    assert calls["read"] < 20
    assert calls["write"] <= 3, "nothing is written after a block that was not"
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("device", "threads", "count", "side", "expected"),
    [
        ("cpu", 1, 100, 256, (1, 8)),
        ("cpu", 2, 2, 256, (2, 1)),
        ("cpu", 64, 63, 256, (1, 8)),
        ("cpu", 64, 1000, 256, (64, 1)),
        # Memory: 64 frames of this size at once would take some ten gigabytes.
        ("cpu", 64, 1000, 1280, (1, 1)),
        ("cuda", 4, 65, 256, (2, 64)),
        ("cuda", 4, 2, 3000, (2, 1)),
    ],
)
def test_one_frame_gets_all_cores_and_a_stack_one_each(
    device, threads, count, side, expected
) -> None:
    batching = Batching(SimpleNamespace(device=device, threads=threads))
    assert batching.plan(count, (side, side), None) == expected


@pytest.mark.parametrize("size", [(97, 131), (64, 300), (300, 41), (128, 128)])
@pytest.mark.parametrize("pixels", [48 * 48, 5000])
def test_tiles_equal_the_whole_frame_bit_for_bit(
    box_model: Path, size: tuple[int, int], pixels: int
) -> None:
    opened = open_session(box_model, "cpu", threads=1)
    frames, shapes = noisy(2, *size), []

    def denoise(tile: np.ndarray) -> np.ndarray:
        shapes.append(tile.shape[1:])
        return opened.run(tile, 5.0, 0.0, 1.0)

    tiled = batching.by_tiles(denoise, frames, opened.info, pixels)
    assert len(shapes) > 2
    assert all(height * width <= pixels for height, width in shapes)
    np.testing.assert_array_equal(tiled, opened.run(frames, 5.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("shape", "batches"), [((8, 96, 96), [8, 4, 2, 1]), ((7, 90, 101), [7, 3, 1])]
)
def test_batches_halve_and_then_tiles_with_the_same_result(
    box_model: Path, shape, batches, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    frames = noisy(*shape)
    expected = Denoiser(box_model, threads=1).answer(frames, KNOWN, batch=8).frames
    # A third of a frame fits.
    cramped = Cramped(monkeypatch, 3000)
    denoiser = Denoiser(box_model, threads=1)
    with caplog.at_level(logging.WARNING):
        found = denoiser.answer(frames, KNOWN, batch=8).frames
    np.testing.assert_array_equal(found, expected)
    # First as few frames as there can be, and only then less of a frame.
    whole, tiles = cramped.tried[: len(batches)], cramped.tried[len(batches) :]
    assert whole == [(count, *shape[1:]) for count in batches]
    areas = [height * width for _, height, width in tiles]
    assert max(areas) < shape[1] * shape[2]
    assert max(areas[1:]) <= 3000
    assert denoiser.batching.note.startswith("ran out of memory: at most ")
    assert f"memory ran out for {frames.size} pixels at once" in caplog.text
    # What was learnt is kept.
    cramped.tried.clear()
    denoiser.answer(frames, KNOWN, batch=8)
    assert all(height * width <= 3000 for _, height, width in cramped.tried)


def test_memory_that_suffices_for_nothing_is_an_error(
    box_model: Path, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = noisy(2, 64, 64)
    model = make_model(tmp_path / "whole.onnx", model="whole", tiling_exact="false")
    expected = Denoiser(model).run(frames, KNOWN)
    Cramped(monkeypatch, 64 * 64)
    made = Denoiser(model, threads=1).answer(frames, KNOWN, batch=2).frames
    np.testing.assert_array_equal(made, expected)
    Cramped(monkeypatch, 64 * 64 - 1)
    with pytest.raises(DeviceMemoryError, match=r"ran out of memory: .*whole \(test\) does not"):
        Denoiser(model, threads=1).denoise(frames)
    cramped = Cramped(monkeypatch, 0)
    with pytest.raises(DeviceMemoryError, match=r"ran out of memory: .* sees 8 pixels at once"):
        Denoiser(box_model, threads=1).denoise(frames)
    assert len(cramped.tried) < 20


def test_a_run_records_that_memory_ran_out(
    box_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "movie.h5"
    with h5py.File(source, "w") as file:
        file["frames"] = noisy(6, 64, 64).astype(np.uint16)

    def made(name: str) -> Path:
        options = DenoiseOptions(
            output=tmp_path / name, model=str(box_model), device="cpu", threads=1, batch=4
        )
        return run(source, options).output

    whole = made("whole.h5")
    assert "memory" not in recorded(whole)
    Cramped(monkeypatch, 64 * 64)
    parts = made("parts.h5")
    assert recorded(parts)["memory"] == "ran out of memory: at most 4096 pixels a run"
    with h5py.File(whole) as one, h5py.File(parts) as other:
        np.testing.assert_array_equal(one["frames"][()], other["frames"][()])


def test_ends_and_empty_frames_are_replaced_by_the_other_side() -> None:
    np.testing.assert_array_equal(
        batching.beside(0, 6, 6, 5),
        [[2, 1, 0, 1, 2], [3, 0, 1, 2, 3], [0, 1, 2, 3, 4],
         [1, 2, 3, 4, 5], [2, 3, 4, 5, 2], [3, 4, 5, 4, 3]],
    )  # fmt: skip
    usable = np.array([True, True, False, True, True, True])
    np.testing.assert_array_equal(
        batching.beside(0, 4, 6, 5, usable),
        [[1, 1, 0, 1, 1], [3, 0, 1, 0, 3], [0, 1, 2, 3, 4], [1, 4, 3, 4, 5]],
    )
    np.testing.assert_array_equal(batching.beside(0, 2, 2, 5), [[1, 1, 0, 1, 1], [0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(batching.beside(0, 1, 1, 3), [[0, 0, 0]])
