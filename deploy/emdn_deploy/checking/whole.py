"""The verdict on a stack: whether it shows more than honest stacks of as many frames do.

Of honest frames `grounds.LEVEL` may stand out each for itself, so that of a long stack some
do. A stack fails for more of them than that, for a frame or run so far out that hardly any
honest stack has one, and for means over all frames (`pooled`). Each of these four has
`chance.SHARE` of false alarms.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy.checking.chance import allowed
from emdn_deploy.checking.kinds import KINDS
from emdn_deploy.checking.result import Limits

REASONS = 4

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Bounds:
    """What honest stacks of as many frames keep to.

    Attributes
    ----------
    ranges
        Of every statistic of a frame.
    clear
        The same for the farthest of all frames.
    pooled
        Of means over all frames; empty for few.
    rate
        Share of honest frames beyond ``ranges`` by a statistic of their own.
    run_rate
        Share of honest runs beyond.
    length
        Frames of a run; 0 for no runs.
    correlated
        Whether the noise is correlated: only intensities are judged then.
    """

    ranges: Mapping[str, Limits]
    clear: Mapping[str, Limits]
    pooled: Mapping[str, Limits]
    rate: float
    run_rate: float
    length: int
    correlated: bool


def findings(
    table: pl.DataFrame, means: Mapping[str, float], bounds: Bounds, outside: tuple[str, ...]
) -> tuple[str, ...]:
    """Say why the stack fails; nothing if it passes.

    Parameters
    ----------
    table
        Of `emdn_deploy.checking.result.CheckResult`.
    means
        Of statistics over all frames.
    outside
        What the noise has that the models have not seen.
    """
    found = []
    if outside:
        found.append("the noise is not what the models were trained on: nothing can be vouched for")
    names = ["ratio"] if bounds.correlated else list(bounds.ranges)
    own = [name for name in names if not name.startswith("run_")]
    count = table.height
    frames = beyond(table, bounds.ranges, own)
    most = allowed(count, bounds.rate)
    if frames.sum() > most:
        found.append(
            f"{frames.sum()} of {count} frames stand out, each for itself: in 99 % of honest "
            f"stacks of {count} at most {most} do"
        )
    together = [name for name in names if name.startswith("run_")]
    if together:
        runs = beyond(table, bounds.ranges, together)[:: bounds.length]
        most = allowed(len(runs), bounds.run_rate)
        if runs.sum() > most:
            found.append(
                f"{runs.sum()} of {len(runs)} averages over a run of frames stand out: in 99 % of "
                f"honest stacks at most {most} do"
            )
    for name in names:
        far = np.flatnonzero(beyond(table, bounds.clear, [name]))
        if far.size:
            found.append(_far(name, table, far, bounds.clear[name]))
    for name, limit in bounds.pooled.items():
        if name in names and not limit.low <= means[name] <= limit.high:
            bound = limit.high if means[name] > limit.high else limit.low
            found.append(
                f"{KINDS[name].words}: {means[name]:.4g} on average over all frames, in honest "
                f"stacks {'at most' if means[name] > limit.high else 'at least'} {bound:.4g}"
            )
    return tuple(found)


def _far(name: str, table: pl.DataFrame, far: NDArray[np.intp], limit: Limits) -> str:
    kind, values = KINDS[name], table[name].to_numpy()[far]
    worst = int(np.abs(values - limit.typical).argmax())
    bound = limit.high if values[worst] > limit.high else limit.low
    number = table["frame"][int(far[worst])]
    where = f"the run of frame {number}" if name.startswith("run_") else f"frame {number}"
    more = f" (and {far.size - 1} more)" if far.size > 1 else ""
    return (
        f"{kind.words}: {kind.said(values[worst])} in {where}{more}; in 99 % of honest stacks no "
        f"frame is beyond {kind.said(bound)}"
    )


def beyond(table: pl.DataFrame, limits: Mapping[str, Limits], names: Iterable[str]) -> Flags:
    """Say of every frame (N,) whether any of these statistics is outside of its range."""
    out = np.zeros(table.height, bool)
    for name in names:
        values = table[name].to_numpy()
        out |= (values < limits[name].low) | (values > limits[name].high)
    return out
