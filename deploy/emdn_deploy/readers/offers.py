"""Files with several stacks: what there is, and how to choose."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emdn_models.errors import FormatError

_LISTED = 8  # in an error, which is one line


@dataclass(frozen=True)
class Offer:
    """One of several stacks.

    Attributes
    ----------
    dataset
        What ``--dataset`` calls it.
    chunks
        How it is cut into pieces, None where it is not.
    label
        Another name for it that ``--dataset`` takes, such as the detector's.
    """

    dataset: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None = None
    label: str = ""

    @classmethod
    def of(cls, dataset: str, array: Any, label: str = "") -> "Offer":
        """Describe an array, or anything with a shape and a dtype."""
        chunks = getattr(array, "chunks", None)
        return cls(dataset, tuple(array.shape), str(array.dtype), chunks, label)

    @property
    def name(self) -> str:
        """Return path and label."""
        return f"{self.dataset} ({self.label})" if self.label else self.dataset


def only_stack(offers: list[Offer]) -> tuple[int | None, str]:
    """Return which of several is the only one of more than a single frame, and why, in words."""
    stacks = [one for one in offers if len(one.shape) > 2 and math.prod(one.shape[:-2]) > 1]
    single = [one for one in offers if one not in stacks]
    if len(stacks) != 1 or any(len(one.shape) > 3 for one in stacks):
        return None, ""
    listed = ", ".join(f"{one.dataset} {one.shape}" for one in single)
    return offers.index(stacks[0]), f"the only stack {stacks[0].shape}; single frames: {listed}"


class SeveralStacks(FormatError):
    """A file that holds several stacks and does not say which are the frames.

    Attributes
    ----------
    kind
        What they are, in words.
    offers
        In the file's order.
    more
        What else can be done, after the list.
    """

    def __init__(self, path: Path, kind: str, offers: list[Offer], more: str = "") -> None:
        what = "NUMBER" if offers[0].dataset.isdigit() else "PATH"
        listed = "; ".join(f"{one.name} {one.shape} {one.dtype}" for one in offers[:_LISTED])
        if len(offers) > _LISTED:
            listed += f"; and {len(offers) - _LISTED} more (emdn-deploy inspect lists all)"
        if any(one.label for one in offers):
            what += " or the name in brackets"
        super().__init__(
            f"{path}: holds {len(offers)} {kind}: {listed}; choose one with --dataset {what}{more}"
        )
        self.kind, self.offers = kind, offers
