"""Thresholds hold what they promise, and the verdict says what is beyond them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from emdn_deploy import preprocess
from emdn_deploy.check import thresholds
from emdn_deploy.check.quick import allowed
from emdn_deploy.check.residual_tests import STATISTICS, Spot
from emdn_deploy.check.thresholds import Limits, Reference, Thresholds
from emdn_deploy.check.verdict import Rows, findings, judge, judge_neighbours, summed_up
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import open_frames
from emdn_models.metrics import Linearity

SIDE, FRAMES = 64, 24


@pytest.mark.parametrize("count", [1, 16, 1000, 60_000])
@pytest.mark.parametrize("rate", [0.0075, 0.3])
def test_what_chance_allows_is_binomial(count: int, rate: float) -> None:
    most = allowed(count, rate)
    assert stats.binom.sf(most, count, rate) < 0.01
    assert most == 0 or stats.binom.sf(most - 1, count, rate) >= 0.01


@pytest.mark.parametrize("largest", [False, True])
def test_a_further_draw_stays_inside(largest: bool) -> None:
    rng = np.random.default_rng(0)
    draws, chance, count = 32, 0.01, 20000
    take = rng.gumbel if largest else rng.normal
    known, further = take(size=(count, draws)), take(size=count)
    reach = thresholds.reach(largest, chance, draws, draws)
    high = known.mean(axis=1) + reach * known.std(axis=1, ddof=1)
    rate = float((further > high).mean())
    # Of few draws, the spread of a skewed number is itself uncertain.
    assert 0.3 * chance < rate < 1.6 * chance


@pytest.fixture(scope="module")
def lattice(tmp_path_factory):
    """Find the thresholds for a lattice that a denoiser leaves whole, and its frames."""
    y, x = np.mgrid[:SIDE, :SIDE]
    places = [(9, 0), (4, 8), (4, -8)]
    clean = 200 + 6 * sum(np.cos(2 * np.pi * (a * y + b * x) / SIDE) for a, b in places)
    raw = np.random.default_rng(0).poisson(clean, (FRAMES, SIDE, SIDE)).astype(np.uint16)
    strong = np.abs(np.fft.rfft2(clean)) > 1e-3 * clean.sum() / SIDE**2

    def denoise(frames):
        return np.fft.irfft2(np.fft.rfft2(frames) * strong, s=frames.shape[1:]).astype(np.float32)

    path = tmp_path_factory.mktemp("lattice") / "raw.npy"
    np.save(path, raw)
    with open_frames(path) as frames:
        ready = preprocess.prepare(frames, DenoiseOptions())
        own = Thresholds.of(frames, ready, denoise, 0)
    return own, raw.astype(np.float32), denoise, clean.astype(np.float32)


@pytest.mark.parametrize("made", ["by the model", "perfect"])
def test_a_lattice_that_is_left_whole_is_not_missed(lattice, made: str) -> None:
    own, raw, denoise, clean = lattice
    rows = Rows(own)
    for number, frame in enumerate(raw):
        rows.add(number, frame, clean if made == "perfect" else denoise(frame[None])[0])
    table = rows.finish()
    assert table["verdict"].str.contains("over-smoothed").sum() <= 1
    assert (table["verdict"] != "within noise").sum() <= 4
    assert judge(table, own) == ()
    assert own.limits["lattice_removed"].high < 6


def test_no_limit_of_few_numbers_is_below_that_of_normal_ones(lattice) -> None:
    own = lattice[0]
    share = 0.05 / len(own.limits)
    for name in ("lattice_added", "match_removed", "band_low"):
        few = STATISTICS[name].few
        assert own.limits[name].high >= stats.norm.isf(share / few) - 1e-9


def test_replicates_are_compared_with_the_others(lattice) -> None:
    own = lattice[0]
    reference = Reference(own.bootstrap.model)
    bands = np.stack([one.bands for one in own.bootstrap.model.panels])
    for at in (0, 5):
        others = np.delete(bands, at, axis=0)
        spread = others.std(axis=0, ddof=1) * np.sqrt(1 + 1 / len(others))
        expected = (bands[at] - others.mean(axis=0)) / spread
        found = reference.scores(own.bootstrap.model.panels[at], own=True)["band_high"]
        np.testing.assert_allclose(found, expected)


def test_what_is_beyond_a_range_without_scatter_is_far_out() -> None:
    signs = {"peak_added": 0.0, "peak_y": 0.1, "peak_x": 0.1}
    [found] = findings({"peak": 2.0}, {"peak": Limits(-np.inf, 0.0, 0.0)}, signs, {})
    assert found.excess == np.inf


def test_a_place_is_told_once_and_by_the_scale_that_shows_it_best() -> None:
    names = ("blob_2", "blob_4", "run_blob_4")
    places = {name: Spot(3, 4, 4.0, -7.0, 7.0) for name in names}
    high = {name: Limits(-np.inf, 4.0, 2.0) for name in names}
    found = findings(dict(zip(names, (5.0, 7.0, 6.0), strict=True)), high, {}, places)
    words, evidence = summed_up(found, (), correlated=False)
    assert words == "structure added"
    assert evidence == (
        "blob of 4 px in the residual: 7 sigma, expected at most 4 sigma, denoised brighter "
        "than raw at row 3, column 4; blob of 4 px in the average residual of the run: 6 sigma, "
        "expected at most 4 sigma, denoised brighter than raw at row 3, column 4"
    )


def test_the_noise_outside_training_is_said_and_residuals_left_alone() -> None:
    limit = Limits(-0.1, 0.1, 0.0)
    found = findings({"lag": 0.3, "ratio": 0.2}, {"lag": limit, "ratio": limit}, {}, {})
    assert [one.verdict for one in found] == ["over-smoothed", "intensity changed"]
    words, evidence = summed_up(found, ("correlated",), correlated=True)
    assert words == "intensity changed; outside training"
    assert evidence == "mean out / mean in: 0.2, expected at most 0.1"
    # What the noise has is said of the stack: of a frame only where there is nothing else.
    assert summed_up([], ("correlated",), correlated=True) == ("outside training", "correlated")
    assert summed_up(found, (), correlated=False)[0] == "over-smoothed; intensity changed"
    assert summed_up([], (), correlated=False) == ("within noise", "")


def said(std=(), run=(), outside=(), correlated=False) -> str:
    """Judge 16 frames, with these first values, against simple thresholds."""
    limits = {"std": Limits(0.9, 1.1, 1.0), "ratio": Limits(0.99, 1.01, 1.0)}
    limits["run_blob_2"] = Limits(-np.inf, 5.0, 3.0)
    far = {"std": Limits(0.8, 1.2, 1.0), "ratio": Limits(0.98, 1.02, 1.0)}
    far["run_blob_2"] = Limits(-np.inf, 7.0, 3.0)
    own: Any = SimpleNamespace(
        limits=limits, farthest=lambda count: far, rate=0.05, run_rate=0.0075, outside=outside,
        noise=SimpleNamespace(correlated=correlated), bootstrap=SimpleNamespace(length=8),
    )  # fmt: skip
    values = {"frame": np.arange(16), "std": np.ones(16), "ratio": np.ones(16)}
    values["std"][: len(std)] = std
    values["run_blob_2"] = np.repeat((*run, 3.0, 3.0)[:2], 8)
    return "; ".join(judge(pl.DataFrame(values), own))


def test_chance_passes_and_more_does_not() -> None:
    assert said() == said(std=[1.15] * 3) == said(run=[6.0]) == ""
    assert said(std=[1.15] * 4) == (
        "4 of 16 frames stand out, each for itself: in 99 % of sound stacks at most 3 do"
    )
    assert "2 of 2 averages over a run" in said(run=[6.0, 6.0])


def test_one_frame_far_out_fails_the_stack() -> None:
    words = said(std=[1.0, 1.0, 1.25])
    assert "standard deviation of the residual: 1.25 in frame 2; " in words
    assert words.endswith("is beyond 1.2")
    assert "(and 1 more)" in said(std=[1.21, 1.0, 1.25])
    assert "in the run of frame 0" in said(run=[9.0])


def test_of_correlated_noise_only_intensities_are_judged() -> None:
    assert said(std=[2.0] * 16, run=[9.0, 9.0], correlated=True) == ""
    assert "not what the models were trained on" in said(outside=("blur",), correlated=True)


def test_local_means_are_compared_with_those_of_replicates() -> None:
    def said(slope: float, expected: float) -> str:
        lines = [Linearity(one, 0.0, 0.01, np.zeros(2), np.zeros(2)) for one in (slope, expected)]
        return "; ".join(judge_neighbours(None, None, *lines))

    # What noise adds to local means is taken away, in replicates too.
    assert said(0.83, 0.84) == said(0.95, 0.84) == said(1.02, 0.84) == said(0.9, 1.0) == ""
    assert "out 0.750 ± 0.01 times" in said(0.75, 1.0)
    assert "those of replicates 0.840 ± 0.01" in said(0.65, 0.84)
    assert said(1.2, 0.84)
    # Where they differ by noise alone, those of draws differ by more than chance.
    assert said(0.33, 0.6) == said(0.33, 0.72) == said(-11.7, -14.0) == ""
    assert judge_neighbours(None, None, None, None) == ()
