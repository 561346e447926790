"""What is known of an output only when all of its frames are written."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Sums:
    """What is summed up over the frames written so far, for the record."""

    pixels: int = 0
    before: float = 0.0
    after: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")
    saturated: int = 0

    def add(self, before: NDArray[np.float32], after: NDArray[Any]) -> None:
        """Count in a block (k, H, W) of input and output."""
        wide = after.astype(np.float64)
        self.pixels += after.size
        self.before += float(before.sum(dtype=np.float64))
        self.after += float(wide.sum())
        self.squares += float((wide * wide).sum())
        self.low, self.high = min(self.low, float(after.min())), max(self.high, float(after.max()))

    def facts(self, offset: float) -> dict[str, int | float]:
        """Return the statistics of the whole output, and mean(out) / mean(in)."""
        mean, dark = self.after / self.pixels, self.before / self.pixels - offset
        return {
            # Above the offset, the ratio keeps its meaning where the mean is near zero.
            "intensity_ratio": (mean - offset) / dark if dark else 1.0,
            "output_min": self.low,
            "output_max": self.high,
            "output_mean": mean,
            "saturated_pixels": self.saturated,
            "output_std": max(0.0, self.squares / self.pixels - mean * mean) ** 0.5,
        }
