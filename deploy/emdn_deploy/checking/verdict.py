"""From statistics and their limits to a verdict in plain words, with the evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import get_args

from emdn_deploy.checking.kinds import KINDS
from emdn_deploy.checking.local import Spot
from emdn_deploy.checking.result import Limits, Verdict

MEANINGS: Mapping[Verdict, str] = {
    "over-smoothed": "the residual holds a pattern of which the denoised frame holds too little",
    "structure removed": "at one place or line the denoised frame is darker than the raw one "
    "allows",
    "structure added": "at one place or line the denoised frame is brighter than the raw one "
    "allows, or it has a lattice that the raw one does not have",
    "noise left in": "less was taken away than there is noise",
    "intensity changed": "the mean is not what it was",
    "outside training": "the noise is not what the models were trained on: nothing is vouched for",
}
"""What a microscopist should take a verdict for, in one line each."""

BEYOND: Mapping[str, str] = {
    "ratio": "intensity changed",
    "std": "above: structure removed; below: noise left in",
    "lag": "above: over-smoothed; below: noise left in",
    "columns": "structure added or removed, along a column",
    "rows": "structure added or removed, along a row",
    "band_high": "over-smoothed",
    "band_low": "noise left in",
    "tile_high": "structure removed",
    "tile_low": "noise left in",
    "peak": "a lattice over-smoothed or added",
    "lattice_removed": "over-smoothed",
    "lattice_added": "structure added",
    "match_removed": "over-smoothed, or noise left in",
    "match_added": "structure added",
    "blob": "structure added or removed at one place: an atom invented or filled in",
}
"""What a statistic beyond its threshold means; all sizes of blobs together."""

_ORDER: tuple[Verdict, ...] = get_args(Verdict)
_STRUCTURE = ("over-smoothed", "structure removed", "structure added")
_MOST = 4  # pieces of evidence that are shown

_HIGH: Mapping[str, Verdict] = {
    "ratio": "intensity changed",
    "lag": "over-smoothed",
    "band_low": "noise left in",
    "tile_low": "noise left in",
    "lattice_removed": "over-smoothed",
    "lattice_added": "structure added",
    "match_added": "structure added",
}
# More residual than there should be: of the kind that something else says it is.
_EXCESS: Mapping[str, Verdict] = {
    "std": "structure removed",
    "band_high": "over-smoothed",
    "tile_high": "structure removed",
}
_LOW: Mapping[str, Verdict] = {
    "ratio": "intensity changed",
    "std": "noise left in",
    "lag": "noise left in",
}


@dataclass(frozen=True)
class Finding:
    """A statistic beyond its limits; ``test`` is its name without the scale, of blobs."""

    test: str
    verdict: Verdict
    excess: float
    words: str


def findings(
    values: Mapping[str, float],
    limits: Mapping[str, Limits],
    signs: Mapping[str, float],
    spots: Mapping[str, Spot],
) -> list[Finding]:
    """Return what lies outside of its limits, the farthest first.

    Parameters
    ----------
    values
        Statistics by name.
    signs
        ``columns_added``, ``rows_added``, ``peak_added``, ``peak_y``, ``peak_x`` and
        ``match_noise``.
    spots
        The places of ``blob_2`` and so on.
    """
    beyond = []
    for name, value in values.items():
        limit = limits[name]
        if not limit.low <= value <= limit.high:
            bound = limit.high if value > limit.high else limit.low
            # Where honest frames do not scatter at all, whatever is beyond is far out.
            reach = bound - limit.typical
            excess = (value - limit.typical) / reach if reach else inf
            beyond.append((excess, name, value, bound))
    beyond.sort(reverse=True)
    named = {name: value > bound for _, name, value, bound in beyond}
    # A blob is one thing at every scale: the scale that shows it best says what it is.
    blobs = [spots[name].added for name in named if name in spots]
    kinds = {name: _of(name, above, signs, blobs) for name, above in named.items()}
    clear = [kinds[name] for name, above in named.items() if not (above and name in _EXCESS)]
    cause = next((one for one in clear if one in _STRUCTURE), None)
    return [
        Finding(
            name.split("blob_")[0] + "blob" if name in spots else name,
            (cause or kinds[name]) if named[name] and name in _EXCESS else kinds[name],
            excess, _words(name, value, bound, signs, spots),
        )
        for excess, name, value, bound in beyond
    ]  # fmt: skip


def _of(name: str, above: bool, signs: Mapping[str, float], blobs: Sequence[bool]) -> Verdict:
    if not above:
        return _LOW[name]
    if name in _EXCESS:
        return _EXCESS[name]
    if name in _HIGH:
        return _HIGH[name]
    if name == "match_removed":
        return "noise left in" if signs["match_noise"] else "over-smoothed"
    if signs.get(f"{name}_added", blobs[0] if "blob" in name else False):
        return "structure added"
    return "over-smoothed" if name == "peak" else "structure removed"


def _words(
    name: str,
    value: float,
    bound: float,
    signs: Mapping[str, float],
    spots: Mapping[str, Spot],
) -> str:
    kind = KINDS[name]
    limit = ("at most" if value > bound else "at least", kind.said(bound))
    text = f"{kind.words}: {kind.said(value)}, in honest ones {' '.join(limit)}"
    if name in spots:
        spot = spots[name]
        than = "brighter" if spot.z < 0 else "darker"
        return f"{text}, denoised {than} than raw at row {spot.y}, column {spot.x}"
    if name == "peak":
        return f"{text}, at ({signs['peak_y']:.3f}, {signs['peak_x']:.3f}) cycles/pixel"
    return text


def summed_up(
    found: Sequence[Finding], outside: Sequence[str], correlated: bool
) -> tuple[str, str]:
    """Return the verdict, its kinds joined by ``; ``, and the evidence.

    Parameters
    ----------
    outside
        What the noise has that the models have not seen; empty for nothing.
    correlated
        Whether the noise is correlated from pixel to pixel: residuals are then not what
        the tests expect, and only the intensities are judged.
    """
    if correlated:
        found = [one for one in found if one.verdict == "intensity changed"]
    kinds = {one.verdict for one in found} | ({"outside training"} if outside else set())
    if not kinds:
        return _ORDER[0], ""
    strongest = [one.verdict for one in found]
    ordered = list(dict.fromkeys(strongest))
    if outside:
        ordered.append("outside training")
    # What stands out at one scale does so at others: the one that shows it best will do.
    best: dict[str, Finding] = {}
    for one in found:
        best.setdefault(one.test, one)
    # What the noise has is said of the stack, once, where a frame has more to say.
    evidence = [one.words for one in list(best.values())[:_MOST]] or list(outside)
    return "; ".join(ordered), "; ".join(evidence)
