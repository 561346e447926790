"""Whether a variant is as good as its model: both on the same frames, at doses far apart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy import intensity
from emdn_deploy.session import Session
from emdn_models import metrics
from emdn_train.simulate.testset import first_specimens
from emdn_train.uncertainty import Recorded, mended

LARGEST_LOSS_DB = 0.1
LARGEST_MEAN_SHIFT = 0.005
LEVELS = (0.05, 0.12, 0.4, 1.2, 3.0)
"""Signal to noise per pixel: those of the fixed test split, and the ends of what is trained on."""


class Sample(NamedTuple):
    """A frame with its truth, (H, W) each, in electrons.

    ``valid`` is true where pixels work; ``numbers`` are scale, offset and gain as a deployment
    measures them on this frame alone.
    """

    level: float
    noisy: NDArray[np.float32]
    clean: NDArray[np.float32]
    valid: NDArray[np.bool_]
    numbers: tuple[float, float, float]


@dataclass(frozen=True)
class Verdict:
    """A variant beside its model.

    Attributes
    ----------
    loss_db
        Gain of the model less that of the variant, mean over the frames of each level.
    mean_loss_db
        The same over all frames.
    mean_shift
        |mean(variant) / mean(model) - 1| of what the nets give, before a deployment corrects
        the mean: mean over the frames of the level at which it is largest.
    """

    loss_db: dict[float, float]
    mean_loss_db: float
    mean_shift: float

    @property
    def refusal(self) -> str:
        """Say what speaks against the variant; empty if nothing does."""
        # Written so that a NaN is refused.
        grounds = {
            f"loses {self.mean_loss_db:.2f} dB": self.mean_loss_db <= LARGEST_LOSS_DB,
            f"mean off by {100 * self.mean_shift:.2f} %": self.mean_shift <= LARGEST_MEAN_SHIFT,
        }
        return ", ".join(words for words, good in grounds.items() if not good)


def samples() -> list[Sample]:
    """Simulate the frames to judge by: nine kinds, one specimen each, at each of ``LEVELS``.

    The specimens are the first ones of the fixed test split.
    """
    return [
        sample(mended(exposure.noisy, exposure.clean), float(exposure.row["level"]))
        for exposure in first_specimens(LEVELS)
    ]


def sample(recorded: Recorded, level: float) -> Sample:
    """Measure scale, offset and gain of a frame, which lies alone in its stack."""
    stack = recorded.noisy[None]
    found = intensity.estimate(
        lambda start, stop: stack[start:stop], 1, (stack.shape[1], stack.shape[2])
    )
    return Sample(level, *recorded, (found.scale, found.offset, found.gain))


def answers(session: Session, frames: Iterable[Sample]) -> pl.DataFrame:
    """Denoise frames; return a row each: ``level``, ``gain_db`` and ``mean``."""
    rows = []
    for one in frames:
        made = session.run(one.noisy[None], *one.numbers)[0]
        rows.append({
            "level": one.level,
            "gain_db": float(metrics.gain_db(one.noisy, made, one.clean, one.valid)),
            "mean": float(made.mean(dtype=np.float64)),
        })  # fmt: skip
    return pl.DataFrame(rows)


def verdict(model: pl.DataFrame, variant: pl.DataFrame) -> Verdict:
    """Compare `answers` of a variant with those of its model to the same frames."""
    frames = pl.DataFrame({
        "level": model["level"],
        "loss": model["gain_db"] - variant["gain_db"],
        "shift": (variant["mean"] / model["mean"] - 1).abs(),
    })  # fmt: skip
    levels = frames.group_by("level").agg(pl.col("loss", "shift").mean()).sort("level")
    return Verdict(
        dict(zip(levels["level"], levels["loss"], strict=True)),
        _mean(frames["loss"].to_list()),
        # numpy's: that of polars passes over a NaN.
        float(levels["shift"].to_numpy().max()),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
