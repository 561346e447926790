"""Time calls fairly: warm, in turn, and with no more percentiles than the rounds support."""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Call = Callable[[], object]
Clock = Callable[[], float]

# A call that brings less than this is no further warming up.
_GAIN = 0.05
_QUIET = 2


def warm(call: Call, limit_s: float = 2.0, clock: Clock = time.perf_counter) -> int:
    """Call until it is stable: until two calls in a row are no faster than the best so far.

    Parameters
    ----------
    limit_s
        No further call is begun after so long; two are always made.

    Returns
    -------
    int
        How many calls that took.
    """
    began, best, quiet, calls = clock(), math.inf, 0, 0
    while calls < 2 or (quiet < _QUIET and clock() - began < limit_s):
        start = clock()
        call()
        took = clock() - start
        quiet = quiet + 1 if took > (1 - _GAIN) * best else 0
        best, calls = min(best, took), calls + 1
    return calls


def in_turn(
    calls: Mapping[str, Call],
    rounds: int,
    limit_s: float = math.inf,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Time several calls, one of each a round, so that what slows the machine slows all.

    The order of each round is drawn, always the same way, so that none always follows the
    same one: threads that still spin, or a cache just filled, meet all of them.

    Parameters
    ----------
    rounds
        The most that are made.
    limit_s
        No further round is begun after so long; one is always made.

    Returns
    -------
    dict
        Name to seconds, one number a round.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    began, chance = clock(), random.Random(0)
    for number in range(rounds):
        if number and clock() - began >= limit_s:
            break
        for name in chance.sample(names, len(names)):
            start = clock()
            calls[name]()
            times[name].append(clock() - start)
    return times


def percentile(seconds: Sequence[float], share: float) -> float | None:
    """Return a quantile, or None where the rounds are too few to say it.

    One of ``n`` rounds lies beyond the quantile 1 - 1/n: a p90 needs 10 of them, a p99 100.
    """
    if len(seconds) < round(1 / (1 - share)):
        return None
    return float(np.quantile(seconds, share))


@dataclass(frozen=True)
class Ratio:
    """A ratio of times over rounds.

    Attributes
    ----------
    median, low, high
        Of the rounds' ratios: the middle, and the quartiles.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the median with its spread."""
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Divide the times of two calls of `in_turn`, round by round."""
    shares = np.asarray(above) / np.asarray(below)
    low, middle, high = (float(one) for one in np.quantile(shares, (0.25, 0.5, 0.75)))
    return Ratio(middle, low, high)
