"""Statistics against honest denoisings: how they are compared, and their limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, pi, sqrt
from statistics import NormalDist

import numpy as np

from emdn_deploy.checking.kinds import KINDS
from emdn_deploy.checking.null import Honest
from emdn_deploy.checking.panel import SCALES
from emdn_deploy.checking.result import Limits
from emdn_deploy.checking.statistics import Measured
from emdn_models.metrics.accept import Floats

Shown = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Reference:
    """Mean and standard deviation of what the honest denoisings have many of.

    Attributes
    ----------
    bands, match, strength, tiles
        (2, K) each: means, and standard deviations.
    least
        (K,) each, by the name of the attribute: the lowest mean of bands, match and tiles that a
        scene without the noise that the model has left in the base frames can have.
    draws
        Honest denoisings behind them.
    """

    bands: Floats
    match: Floats
    strength: Floats
    tiles: Floats
    least: Mapping[str, Floats]
    draws: int

    def named(self, one: Measured, own: bool = False) -> dict[str, float]:
        """Return every statistic of `KINDS` of a panel but those of the run.

        Parameters
        ----------
        own
            Whether the panel is one of the honest ones: it is then compared with the
            others only (the externally studentised residual).
        """
        count = self.draws
        bands = _studentised((one.bands - self.bands[0]) / self.bands[1], count, own)
        low = {name: getattr(self, name)[0] if own else self.least[name] for name in self.least}
        less = _studentised((one.bands - low["bands"]) / self.bands[1], count, own)
        removed = _studentised((one.match - self.match[0]) / self.match[1], count, own)
        # A denoiser that takes less of the structure than the model does adds none by that.
        anchor = self.match[0] if own else np.minimum(low["match"], 0)
        added = _studentised((anchor - one.match) / self.match[1], count, own)
        at = int(removed.argmax())
        tiles, fewer = (
            (one.tiles - mean[:, None]) / self.tiles[1][:, None]
            for mean in (self.tiles[0], low["tiles"])
        )
        found = {name: one.simple[name] for name in KINDS if name in one.simple}
        found |= {
            "band_high": max(0.0, float(bands.max())),
            "band_low": max(0.0, float(-less.min())),
            "match_removed": max(0.0, float(removed.max())),
            "match_added": max(0.0, float(added.max())),
            # What residual and denoised frame share is noise where this holds more than it should.
            "match_noise": float(one.strength[at] > self.strength[0][at]),
            "tile_high": max(0.0, float(tiles.max(initial=0.0))),
            "tile_low": max(0.0, float(-fewer.min(initial=0.0))),
        }
        return found | {f"blob_{spot.scale:g}": abs(spot.z) for spot in one.spots}


def _studentised(deviations: Floats, count: int, own: bool) -> Floats:
    if not own:
        return deviations / sqrt(1 + 1 / count)
    inner = deviations / sqrt(1 - 1 / count)
    return np.asarray(inner * np.sqrt((count - 2) / np.maximum(count - 1 - inner**2, 1e-3)))


def reference(honest: Sequence[Measured], pilots: Sequence[Measured]) -> Reference:
    """Sum up honest denoisings.

    The model leaves some noise in the base frames, which twicing makes more, and takes a part
    of it out again: residuals then hold more than those of the scene itself. As much as twicing
    has added may be absent below what there was before it (`floor`).

    Parameters
    ----------
    pilots
        Those from before twicing.
    """

    def about(rows: Floats) -> Floats:
        return np.stack([rows.mean(axis=0), np.maximum(rows.std(axis=0, ddof=1), 1e-9)])

    def taken(name: str, panels: Sequence[Measured]) -> Floats:
        if name == "tiles":
            return np.concatenate([one.tiles for one in panels], axis=1).T
        return np.stack([getattr(one, name) for one in panels])

    least = {
        name: floor(taken(name, honest).mean(axis=0), taken(name, pilots).mean(axis=0))
        for name in ("bands", "match", "tiles")
    }
    bands, match, strength, tiles = (
        about(taken(name, honest)) for name in ("bands", "match", "strength", "tiles")
    )
    return Reference(bands, match, strength, tiles, least, len(honest))


def floor(after: Floats, before: Floats) -> Floats:
    """Go as far below the mean before twicing as that is below the one after it."""
    return np.asarray(np.minimum(after, 2 * before - after))


def shown(honest: Honest, about: Reference) -> Shown:
    """Name every statistic of each honest panel, compared with the others."""
    return [about.named(one, own=True) for one in honest.panels]


def limits(
    honest: Honest,
    about: Reference,
    rows: Shown,
    level: float,
    safety: float,
    uncertainty: float,
) -> dict[str, Limits]:
    """Find the range of every statistic.

    The level is divided by the number of statistics (Bonferroni). The tail beyond the
    resampled frames is that of a normal number, or of the largest of many (Gumbel) for
    statistics that are such, widened as Student's t is for what few draws leave open.

    Parameters
    ----------
    rows
        Of `shown`.
    level
        Chance that an honest panel lies outside of any.
    uncertainty
        Relative standard error of the expected noise.
    """
    extra = slack(about, 3 * uncertainty)
    kinds = {
        name: kind for name, kind in KINDS.items() if honest.length or not name.startswith("run_")
    }
    share = level / len(kinds)
    found = {}
    for name, kind in kinds.items():
        alone = np.array([row[name.removeprefix("run_")] for row in rows])
        values = honest.runs[:, _column(name)] if name.startswith("run_") else alone
        spread = max(float(alone.std(ddof=1)), float(values.std()))
        typical = float(values.mean())
        chance = share / 2 if kind.sides == "both" else share
        reach = safety * spread * _factor(kind.largest, chance, len(alone), len(values))
        reach += kind.tolerance + extra.get(name, 0.0)
        low = typical - reach if kind.sides == "both" else -np.inf
        if name in ("std", "lag"):
            before = np.mean([one.simple[name] for one in honest.pilots])
            low -= typical - float(floor(np.array(typical), np.array(before)))
        found[name] = Limits(low, max(kind.least, typical + reach), typical)
    return found


def _column(name: str) -> int:
    return [f"run_blob_{scale:g}" for scale in SCALES].index(name)


def slack(about: Reference, error: float) -> Mapping[str, float]:
    """How far an error of the expected noise's standard deviation moves statistics."""
    band, tile = 2 * error / float(about.bands[1].min()), error / float(about.tiles[1][0])
    return {"std": error, "band_high": band, "band_low": band, "tile_high": tile, "tile_low": tile}


def _factor(largest: bool, chance: float, draws: int, means: int) -> float:
    """Standard deviations above the mean that a further draw exceeds with a chance."""
    normal = NormalDist().inv_cdf(1 - chance)
    reach = (-log(-log(1 - chance)) - np.euler_gamma) * sqrt(6) / pi if largest else normal
    return float(reach * student(normal, draws - 1) / normal * sqrt(1 + 1 / means))


def student(z: float, freedom: int) -> float:
    """Turn a normal quantile into Student's (Fisher, Cornish, Technometrics 2, 1960)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
