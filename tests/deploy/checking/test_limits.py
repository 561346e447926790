"""The limits hold for numbers with the tails that they assume, and for few draws."""

import numpy as np
import pytest

from emdn_deploy.checking import limits
from emdn_deploy.checking.local import Spot
from emdn_deploy.checking.result import Limits
from emdn_deploy.checking.verdict import findings, summed_up


@pytest.mark.parametrize("largest", [False, True])
def test_a_further_draw_stays_inside(largest: bool) -> None:
    rng = np.random.default_rng(0)
    draws, chance = 32, 0.01
    count = 20000
    take = rng.gumbel if largest else rng.normal
    known, further = take(size=(count, draws)), take(size=count)
    reach = limits._factor(largest, chance, draws, draws)
    high = known.mean(axis=1) + reach * known.std(axis=1, ddof=1)
    rate = float((further > high).mean())
    # Of few draws, the spread of a skewed number is itself uncertain.
    assert 0.3 * chance < rate < 1.6 * chance


def test_students_quantiles() -> None:
    # Abramowitz, Stegun, Handbook of Mathematical Functions, table 26.10.
    assert limits.student(1.959964, 10) == pytest.approx(2.228, abs=0.002)
    assert limits.student(2.575829, 30) == pytest.approx(2.750, abs=0.002)


def test_own_draws_are_compared_with_the_others() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=12)
    mean, spread = values.mean(), values.std(ddof=1)
    inner = limits._studentised((values - mean) / spread, 12, True)
    for at, value in enumerate(values):
        others = np.delete(values, at)
        left_out = (value - others.mean()) / (others.std(ddof=1) * np.sqrt(1 + 1 / 11))
        assert inner[at] == pytest.approx(left_out)


def test_a_place_is_told_once_and_by_the_scale_that_shows_it_best() -> None:
    names = ("blob_2", "blob_4", "run_blob_4")
    places = {name: Spot(3, 4, 4.0, -7.0) for name in names}
    high = {name: Limits(-np.inf, 4.0, 2.0) for name in names}
    found = findings(dict(zip(names, (5.0, 7.0, 6.0), strict=True)), high, {}, places)
    words, evidence = summed_up(found, (), correlated=False)
    assert words == "structure added"
    assert evidence == (
        "blob of 4 px in the residual: 7 sigma, in honest ones at most 4 sigma, denoised brighter "
        "than raw at row 3, column 4; blob of 4 px in the average residual of the run: 6 sigma, in "
        "honest ones at most 4 sigma, denoised brighter than raw at row 3, column 4"
    )


def test_the_noise_outside_training_is_said_and_residuals_left_alone() -> None:
    limit = limits.Limits(-0.1, 0.1, 0.0)
    found = findings({"lag": 0.3, "ratio": 0.2}, {"lag": limit, "ratio": limit}, {}, {})
    assert [one.verdict for one in found] == ["over-smoothed", "intensity changed"]
    words, evidence = summed_up(found, ("correlated",), correlated=True)
    assert words == "intensity changed; outside training"
    assert evidence == "mean out / mean in: 0.2, in honest ones at most 0.1"
    # What the noise has is said of the stack: of a frame only where there is nothing else.
    assert summed_up([], ("correlated",), correlated=True) == ("outside training", "correlated")
    assert summed_up(found, (), correlated=False)[0] == "over-smoothed; intensity changed"
    assert summed_up([], (), correlated=False) == ("within noise", "")
