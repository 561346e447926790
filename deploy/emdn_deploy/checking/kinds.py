"""Which statistics there are, how each is judged, and what it is called."""

from dataclasses import dataclass

from emdn_deploy.checking.panel import SCALES


@dataclass(frozen=True)
class Kind:
    """How a statistic is judged.

    Attributes
    ----------
    sides
        Which deviations fail: ``high`` or ``both``.
    largest
        Whether it is the largest of many numbers, with the tail of such.
    tolerance
        Deviation from the typical value that never fails, in its own units.
    words
        What it is, in plain words.
    unit
        Of its values; empty for a number that speaks for itself.
    least
        The lowest upper limit: for what honest denoisers have less of than white noise.
    """

    sides: str
    largest: bool
    tolerance: float
    words: str
    unit: str = ""
    least: float = 0.0

    def said(self, value: float) -> str:
        """Write a value with its unit."""
        return f"{value:.3g} {self.unit}" if self.unit else f"{value:.4g}"


# A denoiser that keeps a lattice whole leaves nothing of it to scatter. The largest of 16 peaks of
# white noise is above 3.6 in one frame of 400, the level of one of 20 statistics.
_SIGMA, _POWER = "sigma", "times the noise's"
KINDS: dict[str, Kind] = {
    "ratio": Kind("both", False, 0.002, "mean out / mean in"),
    "std": Kind("both", False, 0.004, "standard deviation of the residual"),
    "lag": Kind("both", False, 0.005, "correlation of neighbouring pixels of the residual"),
    "columns": Kind("high", True, 0, "largest column mean of the residual", _SIGMA),
    "rows": Kind("high", True, 0, "largest row mean of the residual", _SIGMA),
    "band_high": Kind(
        "high", True, 0, "residual power above that of honest ones, in a band", _SIGMA
    ),
    "band_low": Kind(
        "high", True, 0, "residual power below that of honest ones, in a band", _SIGMA
    ),
    "tile_high": Kind("high", True, 0, "residual of a tile above honest ones", _SIGMA),
    "tile_low": Kind("high", True, 0, "residual of a tile below honest ones", _SIGMA),
    "peak": Kind("high", True, 0, "largest peak in the residual's power", _POWER),
    "lattice_removed": Kind(
        "high",
        True,
        0,
        "a lattice's peak weaker than in the raw frame, beyond 15 % of it",
        _SIGMA,
        3.6,
    ),
    "lattice_added": Kind(
        "high", True, 0, "a lattice's peak stronger than in the raw frame", _SIGMA, 4.5
    ),
    "match_removed": Kind("high", True, 0, "residual like the denoised frame", _SIGMA),
    "match_added": Kind("high", True, 0, "residual like the denoised frame's negative", _SIGMA),
    **{
        f"{part}blob_{scale:g}": Kind(
            "high", True, 0, f"blob of {scale:g} px in the {name}", _SIGMA
        )
        for part, name in (("", "residual"), ("run_", "average residual of the run"))
        for scale in SCALES
    },
}
