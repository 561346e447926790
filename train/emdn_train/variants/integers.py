"""A model with 8-bit integers in those of its convolutions that stand them.

Each inner convolution is put alone into integers, and what that costs is measured, on simulated
frames that are in no data set and not in the test split. The costliest then stay in float32,
as many as it takes until the sum of what the others cost is what may be lost.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnx
import polars as pl
from onnx import NodeProto

from emdn_deploy.session import open_session
from emdn_train.variants import ranges
from emdn_train.variants.gate import LARGEST_LOSS_DB, Sample, answers, verdict
from emdn_train.variants.insertion import families, inner, inserted

# Frames that a single convolution is judged on, of those that ranges come from.
_EVERY = 3


class Quantised(NamedTuple):
    """A graph with integers, and how many of its convolutions have them."""

    model: onnx.ModelProto
    integers: int


def quantised(model: onnx.ModelProto, samples: Sequence[Sample], scratch: Path) -> Quantised:
    """Return a copy of an exported graph with integers where they cost little.

    Parameters
    ----------
    samples
        Frames to measure ranges and costs on.
    scratch
        Folder for graphs that are tried.
    """
    convs = inner(model)
    if not convs:
        return Quantised(model, 0)
    names = [name for family in families(model, convs) for name in family]
    known = ranges.measure(model, names, samples, scratch)
    few = samples[::_EVERY]

    def gains(tried: onnx.ModelProto) -> pl.DataFrame:
        onnx.save(tried, scratch / "tried.onnx")
        return answers(open_session(scratch / "tried.onnx", "cpu", 1), few)

    whole = gains(model)
    costs = [verdict(whole, gains(inserted(model, [conv], known))).mean_loss_db for conv in convs]
    chosen = affordable(convs, costs)
    return Quantised(inserted(model, chosen, known), len(chosen))


def affordable(convs: Sequence[NodeProto], costs: Sequence[float]) -> list[NodeProto]:
    """Return the convolutions, cheapest first, whose costs in dB sum up to what may be lost."""
    chosen, spent = [], 0.0
    for conv, cost in sorted(zip(convs, costs, strict=True), key=lambda pair: pair[1]):
        # Less than nothing is chance, and pays for no other one.
        spent += max(cost, 0.0)
        if not spent <= LARGEST_LOSS_DB:
            break
        chosen.append(conv)
    return chosen
