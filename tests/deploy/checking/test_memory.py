"""Memory does not grow with the stack."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy.checking import check, evaluate, grounds
from emdn_deploy.config import DenoiseOptions


def _peak(work, *arguments) -> int:
    tracemalloc.start()
    try:
        work(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_longer_stack_takes_no_more(
    stacks, tmp_path: Path, options: DenoiseOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounds, "DRAWS", 12)
    raw, clean = stacks(4, height=96, width=96)
    peaks = []
    for count in (64, 112):  # of a shorter stack, every frame is sampled
        paths = [tmp_path / f"{count}{name}.npy" for name in ("raw", "clean")]
        for path, frames in zip(paths, (raw, clean), strict=True):
            np.save(path, np.tile(frames, (count // 4, 1, 1)).astype(np.float32))
        peaks.append((_peak(check, *paths, options), _peak(evaluate, paths[1], paths[0])))
    stack = 48 * 96 * 96 * 4
    for few, many in zip(*peaks, strict=True):
        assert many - few < stack / 2
