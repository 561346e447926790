"""What is known of an output only when all of its frames are written."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Sums:
    """What is summed up over the frames written so far, for the record.

    Attributes
    ----------
    pixels
        Such as were denoised: without gaps, saturated areas and frames without values.
    saturated
        Of the output, outside the range of its type.
    kept, filled
        Pixels of the input that are saturated, and such as were filled in in single frames.
    empty
        Numbers of the frames without any value.
    """

    pixels: int = 0
    before: float = 0.0
    after: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")
    saturated: int = 0
    shift: float = 0.0
    largest: float = 0.0
    kept: int = 0
    filled: int = 0
    empty: list[int] = field(default_factory=list)

    def add(self, before: NDArray[np.float32], after: NDArray[Any]) -> None:
        """Count in a block (k, H, W) of input and output, but for what is NaN in the input."""
        if not (counted := np.isfinite(before)).all():
            before, after = before[counted], after[counted]
            if not after.size:
                return
        flat = after.astype(np.float64).ravel()
        self.pixels += after.size
        self.before += float(before.sum(dtype=np.float64))
        self.after += float(flat.sum())
        # Not by @, whose threads would take the cores from the computation.
        self.squares += float(np.einsum("i,i->", flat, flat))
        self.low, self.high = min(self.low, float(after.min())), max(self.high, float(after.max()))

    def add_kept(self, saturated: int, filled: int, empty: list[int]) -> None:
        """Count in what a block keeps of the input, and the numbers of its empty frames."""
        self.kept += saturated
        self.filled += filled
        self.empty += empty

    def add_shifts(self, shifts: NDArray[np.float64], pixels: int) -> None:
        """Count in what was added to frames of so many pixels for the sake of their means."""
        self.shift += pixels * float(shifts.sum())
        self.largest = max(self.largest, float(np.abs(shifts).max()))

    def facts(self, offset: float) -> dict[str, int | float | str]:
        """Return the statistics of the whole output, and what the means did.

        ``intensity_ratio`` is mean(out) / mean(in) of what is stored, ``net_intensity_ratio``
        that of the net, before frames were shifted to their means, and ``largest_shift`` the
        largest of these shifts, in units of mean(in).
        """
        pixels = max(1, self.pixels)
        mean, dark = self.after / pixels, self.before / pixels - offset
        low, high = (self.low, self.high) if self.pixels else (0.0, 0.0)
        more: dict[str, int | float | str] = {
            name: value
            for name, value in (
                ("saturated_input_pixels", self.kept),
                ("filled_in_single_frames", self.filled),
                ("frames_without_values", ", ".join(map(str, self.empty))),
            )
            if value
        }
        return {
            # Above the offset, ratios keep their meaning where the mean is near zero.
            "intensity_ratio": (mean - offset) / dark if dark else 1.0,
            "net_intensity_ratio": 1 - self.shift / pixels / dark if dark else 1.0,
            "largest_shift": self.largest / abs(dark) if dark else 0.0,
            "output_min": low,
            "output_max": high,
            "output_mean": mean,
            "saturated_pixels": self.saturated,
            "output_std": max(0.0, self.squares / pixels - mean * mean) ** 0.5,
            **more,
        }
