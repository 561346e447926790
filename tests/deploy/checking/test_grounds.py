"""Ranges from honest denoisings, for a denoiser of which everything is known."""

from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import correction
from emdn_deploy.checking.grounds import grounds_of
from emdn_deploy.checking.result import Limits
from emdn_deploy.checking.verdict import findings
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import open_frames

SIDE, FRAMES = 64, 24


@pytest.mark.parametrize("seed", range(3))
def test_a_lattice_that_is_kept_whole_is_not_missed(seed: int, tmp_path: Path) -> None:
    y, x = np.mgrid[:SIDE, :SIDE]
    places = [(9, 0), (4, 8), (4, -8)]
    clean = 200 + 6 * sum(np.cos(2 * np.pi * (a * y + b * x) / SIDE) for a, b in places)
    raw = np.random.default_rng(seed).poisson(clean, (FRAMES, SIDE, SIDE)).astype(np.uint16)
    kept = np.abs(np.fft.rfft2(clean)) > 1e-3 * clean.sum() / SIDE**2

    def keep(frames):
        return np.fft.irfft2(np.fft.rfft2(frames) * kept, s=frames.shape[1:]).astype(np.float32)

    path = tmp_path / "raw.npy"
    np.save(path, raw)
    with open_frames(path) as frames:
        grounds = grounds_of(frames, correction.prepare(frames, DenoiseOptions()), keep, seed)
    rows = grounds.rows()
    for number, frame in enumerate(raw.astype(np.float32)):
        rows.add(number, frame, keep(frame[None])[0])
    table = rows.finish()
    high = grounds.ranges["lattice_removed"].high
    assert (table["lattice_removed"] <= high).all()
    assert not table["verdict"].str.contains("over-smoothed").any()
    assert high < 5


def test_what_is_beyond_a_range_without_scatter_is_far_out() -> None:
    signs = {"peak_added": 0.0, "peak_y": 0.1, "peak_x": 0.1}
    [found] = findings({"peak": 2.0}, {"peak": Limits(-np.inf, 0.0, 0.0)}, signs, {})
    assert found.excess == np.inf
