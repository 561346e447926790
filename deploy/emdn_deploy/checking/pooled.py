"""Means over all frames: a small fault that is in every frame shows in these first.

Only of statistics that a denoiser which takes some of the structure does not raise, so that
they say nothing of what it may take. What resampled frames differ in from the scene does not
average out: how far twicing (see `emdn_deploy.checking.null`) has moved a statistic, it may
be off on the other side (`limits.floor`).
"""

from collections.abc import Mapping
from math import sqrt
from statistics import NormalDist

import numpy as np

from emdn_deploy.checking.kinds import KINDS
from emdn_deploy.checking.limits import Reference, Shown, slack, student
from emdn_deploy.checking.null import Honest
from emdn_deploy.checking.result import Limits
from emdn_models.metrics.accept import Floats

# Which deviations of their mean fail.
POOLED: Mapping[str, str] = {
    "ratio": "both",
    "std": "low",
    "lag": "low",
}
LEAST = 8  # panels: the mean of so many is normal enough


def pooled(
    honest: Honest,
    about: Reference,
    rows: Shown,
    level: float,
    safety: float,
    uncertainty: float,
    panels: int,
) -> dict[str, Limits]:
    """Find the range of the mean of every statistic of `POOLED` over honest panels.

    Parameters
    ----------
    rows
        Of `limits.shown`.
    level
        Chance that honest frames lie outside of any (divided among them, Bonferroni).
    uncertainty
        Relative standard error of the expected noise.
    panels
        Of which the mean is taken; below `LEAST` there is no range.
    """
    if panels < LEAST:
        return {}
    extra = slack(about, 3 * uncertainty)
    share = level / len(POOLED)
    found = {}
    for name, side in POOLED.items():
        values = np.array([row[name] for row in rows]).reshape(honest.bases, -1)
        typical = float(values.mean())
        moved = abs(typical - float(np.mean([one.simple[name] for one in honest.pilots])))
        spread, freedom = _spread(values, panels)
        chance = share / 2 if side == "both" else share
        reach = safety * spread * student(NormalDist().inv_cdf(1 - chance), freedom)
        reach += 2 * moved + KINDS[name].tolerance + extra.get(name, 0.0)
        found[name] = Limits(
            typical - reach,
            np.inf if side == "low" else typical + reach,
            typical,
        )
    return found


def _spread(values: Floats, panels: int) -> tuple[float, int]:
    """Return the standard error of the mean of panels less that of ``values``, and its freedom.

    Parameters
    ----------
    values
        (bases, resamples): bases differ by more than noise, as the frames of the stack do.
    """
    bases, resamples = values.shape
    within = float(values.var(axis=1, ddof=1).mean())
    ours = within * (1 / panels + 1 / values.size)
    between = 0.0
    if bases > 1:
        between = max(0.0, float(values.mean(axis=1).var(ddof=1)) - within / resamples) / bases
    # Welch, Biometrika 34 (1947) 28.
    parts = ours**2 / (bases * (resamples - 1)) + between**2 / max(1, bases - 1)
    freedom = int((ours + between) ** 2 / parts) if parts else bases
    return sqrt(ours + between), max(3, freedom)
