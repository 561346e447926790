"""One stack of frames on its way into a file that is laid out already."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.sums import Sums
from emdn_deploy.writers.integers import storable
from emdn_deploy.writers.layout import Layout


@dataclass(frozen=True)
class Saved:
    """What an interrupted run says of one stack.

    Attributes
    ----------
    packed
        Whether the frames are compressed; the layout then holds nothing but their places.
    """

    layout: Layout
    packed: bool
    sums: Sums

    @classmethod
    def of(cls, arrays: Mapping[str, Any], name: str) -> "Saved":
        """Take up what `Filling.state` gave for ``name``."""
        layout = Layout(
            arrays[f"{name}_offsets"],
            str(arrays[f"{name}_dtype"]),
            bool(arrays[f"{name}_transposed"]),
        )
        sums = Sums(**json.loads(str(arrays[f"{name}_sums"])))
        return cls(layout, bool(arrays[f"{name}_packed"]), sums)


class Filling:
    """Put frames where a layout says that they belong.

    Parameters
    ----------
    partial
        The file that was laid out.
    spool
        Where compressed frames wait, whose places are not known before all are made.
    """

    def __init__(self, layout: Layout, partial: Path, spool: Path, sums: Sums) -> None:
        self.layout, self.spool, self.sums = layout, spool, sums
        place = spool if layout.packing else partial
        self.file = place.open("r+b" if place.exists() else "w+b", buffering=0)

    def write(self, start: int, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
        """Write frames (k, H, W), the first of which is number ``start``."""
        layout = self.layout
        stored, saturated = storable(after, np.dtype(layout.dtype))
        for number, frame in enumerate(stored, start):
            turned = frame.T if layout.transposed else frame
            pixels = np.ascontiguousarray(turned, np.dtype(layout.dtype))
            left = pixels.data.cast("B")
            if layout.packing:
                left = memoryview(layout.packing.encode(pixels))
                layout.offsets[number + 1] = layout.offsets[number] + len(left)
            self.file.seek(int(layout.offsets[number]))
            while left:
                left = left[self.file.write(left) :]
        self.sums.add(before, stored)
        self.sums.saturated += saturated

    def state(self, name: str) -> dict[str, Any]:
        """Return arrays from which a later run can continue."""
        layout = self.layout
        return {
            f"{name}_offsets": layout.offsets,
            f"{name}_dtype": layout.dtype,
            f"{name}_transposed": layout.transposed,
            f"{name}_packed": layout.packing is not None,
            f"{name}_sums": json.dumps(asdict(self.sums)),
        }

    def sync(self) -> None:
        """Make what is written durable."""
        os.fsync(self.file.fileno())

    def complete(self) -> None:
        """Bring compressed frames to their places, and close."""
        if self.layout.packing:
            self.layout.packing.fill(self._packed())
        self.file.close()

    def _packed(self) -> Iterator[bytes]:
        """Read the compressed frames back, one by one."""
        for start, stop in pairwise(self.layout.offsets.tolist()):
            self.file.seek(start)
            yield self.file.read(stop - start)
