"""Statistics of residuals, what white noise gives, and the thresholds of sound results."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from emdn_deploy.check.bootstrap import Limits, Population, gumbel
from emdn_deploy.check.residual import SINGLE, Camera, Reading, measure
from emdn_deploy.check.verdict import judge_stack, verdict_of

SIZE = 96, 130
CAMERA = Camera(2.5, 40.0, 0.0, False)
EVERY = np.ones(SIZE, bool)


@pytest.fixture(scope="module")
def frames():
    """Ideal denoising: raw (40, 96, 130) with counting noise, and their scene."""
    rng = np.random.default_rng(0)
    truth = 60 + 12.5 * np.sin(np.arange(SIZE[1]) / 20) * np.ones((SIZE[0], 1), np.float32)
    truth = truth.astype(np.float32)
    return np.stack([CAMERA.draw(truth, rng) for _ in range(40)]), truth


def measured(raw, denoised, good=EVERY):
    return [measure(one, denoised, CAMERA, good) for one in raw]


def values(found, name):
    return np.array([readings[name].value for readings, _ in found])


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_an_ideal_residual_is_white_with_unit_variance(frames, share) -> None:
    raw, truth = frames
    good = np.random.default_rng(1).random(SIZE) <= share
    found = measured(np.where(good, raw, 1e6), truth, good)
    root = np.sqrt(good.sum())
    assert abs(values(found, "std").mean() - 1) < (4 / 40**0.5 + 0.1) / (2**0.5 * root)
    for band in (2, 3, 4):
        assert values(found, f"radial_{band}").mean() == pytest.approx(1, abs=0.05)
    for name in ("columns", "rows"):
        assert values(found, name).mean() == pytest.approx(1, abs=0.05)
    fields = np.stack([fields for _, fields in found])
    assert fields.std(axis=(0, 2, 3)) == pytest.approx(share**0.5, abs=0.1)


def test_stripes_and_lattices_raise_their_statistics(frames) -> None:
    raw, truth = frames[0][:8], frames[1]
    ideal = measured(raw, truth)
    for name, shape in (("columns", (1, SIZE[1])), ("rows", (SIZE[0], 1))):
        stripes = np.random.default_rng(2).normal(0, 2, shape).astype(np.float32)
        assert values(measured(raw, truth + stripes), name).min() > 1.3
    lattice = 3 * np.cos(2 * np.pi * np.arange(SIZE[1]) / 5).astype(np.float32)
    removed, added = measured(raw + lattice, truth), measured(raw, truth + lattice)
    assert values(removed, "peak").min() > 3 * values(ideal, "peak").max()
    assert [one["peak"].place[1] for one, _ in removed] == pytest.approx([0.2] * 8, abs=0.01)
    assert values(added, "lattice").min() > 2 * values(ideal, "lattice").max()
    assert all(one["peak"].more for one, _ in added)


def test_the_farthest_of_all_statistics_has_the_chance_that_is_asked_for() -> None:
    """Of normal numbers, and of the largest of many, whatever their mean and scatter."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(150):
        drawn = rng.normal(3, 0.1, (96, len(SINGLE)))
        for at, name in enumerate(SINGLE):
            if name == "peak" or name.startswith("blob"):
                drawn[:, at] = rng.gumbel(4, 0.3, 96)
        readings = [dict(zip(SINGLE, map(Reading, row), strict=True)) for row in drawn[:32]]
        known = Population(0, readings)
        maxima = known.maxima
        z = maxima.mean() + maxima.std() * gumbel(0.05)
        limits = [known.range_of(name, z, 0.0) for name in SINGLE]
        low, high = ([one[end] for one in limits] for end in (0, 1))
        rates.append(((drawn[32:] < low) | (drawn[32:] > high)).any(axis=1).mean())
    assert 0.02 < np.mean(rates) < 0.08


def own_of(limits, far=None, outside=(), correlated=False) -> Any:
    return SimpleNamespace(
        limits=limits, within=lambda chance: far or limits, noise=SimpleNamespace(findings=outside),
        model=Population(8),
        names=["ratio"] if correlated else list(limits),
    )  # fmt: skip


def test_verdicts_on_a_frame() -> None:
    """Noise outside training is said."""
    limits = dict.fromkeys(("radial_1", "ratio"), Limits(-0.1, 0.1, 0.0))
    bad, good = ({"radial_1": Reading(one), "ratio": Reading(one / 2)} for one in (0.3, 0.0))
    assert verdict_of(bad, own_of(limits))[0] == "over-smoothed; intensity changed"
    outside = own_of(limits, outside=("correlated",), correlated=True)
    assert verdict_of(bad, outside)[0] == "intensity changed; outside training"
    # What the noise has is said of the stack: of a frame only where there is nothing else.
    assert verdict_of(good, outside) == ("outside training", "correlated")


def said(std=(), run=(), **facts) -> str:
    """Judge 16 frames, with these first values, against simple thresholds."""
    limits = {"std": Limits(0.9, 1.1, 1.0), "ratio": Limits(0.99, 1.01, 1.0)}
    limits["run_blob_2"] = Limits(-np.inf, 5.0, 3.0)
    far = {"std": Limits(0.8, 1.2, 1.0), "ratio": Limits(0.98, 1.02, 1.0)}
    far["run_blob_2"] = Limits(-np.inf, 7.0, 3.0)
    values = {"frame": np.arange(16), "std": np.ones(16), "ratio": np.ones(16)}
    values["std"][: len(std)] = std
    values["run_blob_2"] = np.repeat((*run, 3.0, 3.0)[:2], 8)
    return "; ".join(judge_stack(pl.DataFrame(values), own_of(limits, far, **facts)))


def test_a_stack_fails_for_more_than_chance_makes_and_for_one_frame_far_out() -> None:
    assert said() == said(std=[1.15] * 3) == ""
    assert said(std=[1.15] * 4).startswith("4 of 16 frames stand out, each for itself")
    assert "2 of 2 averages over a run" in said(run=[6.0, 6.0])
    assert said(std=[1.0, 1.0, 1.25]).endswith("sound stacks: frame 2")
    assert said(run=[9.0]).endswith("sound stacks: the run of frame 0 (and 7 more)")
    assert said(std=[2.0] * 16, run=[9.0, 9.0], correlated=True) == ""
    assert "not what the models were trained on" in said(outside=("blur",), correlated=True)
