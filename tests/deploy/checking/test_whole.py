"""The rule for stacks: more than honest ones show, and no less than a fault shows."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from emdn_deploy.checking import check, summary, whole
from emdn_deploy.checking.chance import allowed
from emdn_deploy.checking.result import Limits
from emdn_deploy.checking.whole import Bounds
from emdn_deploy.config import DenoiseOptions
from emdn_models.metrics import Linearity


@pytest.mark.parametrize("count", [1, 2, 16, 64, 1000, 60_000])
@pytest.mark.parametrize("rate", [0.0075, 0.05, 0.3])
def test_what_chance_allows_is_binomial(count: int, rate: float) -> None:
    most = allowed(count, rate)
    assert stats.binom.sf(most, count, rate) < 0.01
    assert most == 0 or stats.binom.sf(most - 1, count, rate) >= 0.01


def bounds(**changes: Any) -> Bounds:
    ranges = {"std": Limits(0.9, 1.1, 1.0), "ratio": Limits(0.99, 1.01, 1.0)}
    ranges["run_blob_2"] = Limits(-np.inf, 5.0, 3.0)
    clear = {"std": Limits(0.8, 1.2, 1.0), "ratio": Limits(0.98, 1.02, 1.0)}
    clear["run_blob_2"] = Limits(-np.inf, 7.0, 3.0)
    facts: dict[str, Any] = {
        "ranges": ranges, "clear": clear, "pooled": {"std": Limits(0.99, np.inf, 1.0)},
        "rate": 0.05, "run_rate": 0.0075, "length": 8, "correlated": False,
    }  # fmt: skip
    return Bounds(**facts | changes)


def said(std=(), run=(), mean=1.0, outside=(), **changes: Any) -> str:
    count = 16
    values = {"frame": np.arange(count), "std": np.ones(count), "ratio": np.ones(count)}
    values["std"][: len(std)] = std
    values["run_blob_2"] = np.repeat((*run, 3.0, 3.0)[:2], 8)
    table = pl.DataFrame(values)
    return "; ".join(whole.findings(table, {"std": mean}, bounds(**changes), outside))


def test_chance_passes_and_more_does_not() -> None:
    assert said() == said(std=[1.15] * 3) == said(run=[6.0]) == ""
    assert said(std=[1.15] * 4) == (
        "4 of 16 frames stand out, each for itself: in 99 % of honest stacks of 16 at most 3 do"
    )
    assert "2 of 2 averages over a run" in said(run=[6.0, 6.0])


def test_one_frame_far_out_fails_the_stack() -> None:
    words = said(std=[1.0, 1.0, 1.25])
    assert "standard deviation of the residual: 1.25 in frame 2; " in words
    assert words.endswith("is beyond 1.2")
    assert "(and 1 more)" in said(std=[1.21, 1.0, 1.25])
    assert "in the run of frame 0" in said(run=[9.0])


def test_the_mean_over_all_frames_counts() -> None:
    assert ": 0.98 on average over all frames, in honest stacks at least 0.99" in said(mean=0.98)
    assert said(mean=1.05) == ""


def test_of_correlated_noise_only_intensities_are_judged() -> None:
    assert said(std=[2.0] * 16, run=[9.0, 9.0], mean=0.5, correlated=True) == ""
    assert "not what the models were trained on" in said(outside=("blur",), correlated=True)


def test_local_means_are_compared_with_those_of_honest_denoisings() -> None:
    def said(slope: float, honest: float) -> str:
        lines = [Linearity(one, 0.0, 0.01, np.zeros(2), np.zeros(2)) for one in (slope, honest)]
        return "; ".join(summary.findings(None, None, *lines))

    # What noise adds to local means is taken away, in honest denoisings too.
    assert said(0.83, 0.84) == said(0.95, 0.84) == said(1.02, 0.84) == said(0.9, 1.0) == ""
    assert "out 0.750 ± 0.01 times" in said(0.75, 1.0)
    assert "honest denoisings 0.840 ± 0.01" in said(0.65, 0.84)
    assert said(1.2, 0.84)
    # Where they differ by noise alone, those of draws differ by more than chance.
    assert said(0.33, 0.6) == said(0.33, 0.72) == said(-11.7, -14.0) == ""
    assert summary.findings(None, None, None, None) == ()


def test_a_little_noise_in_every_frame_shows_in_the_mean(
    stacks, saved, options: DenoiseOptions
) -> None:
    raw, clean = stacks(24)
    honest = check(*saved(raw, clean), options)
    assert honest.passed, honest.facts.findings
    result = check(*saved(raw, clean + 0.03 * (raw - clean)), options)
    assert any("on average over all frames" in one for one in result.facts.findings)
