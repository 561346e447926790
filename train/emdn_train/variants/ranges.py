"""How large activations get: measured on simulated noisy frames, at all doses of training.

Two things speak against each other. A range that is too small clips bright frames; one that is
too large leaves few of the 256 levels to dim ones, which are most in need of them. In each
frame the outermost values, one in ten thousand, are left out; of all frames the largest counts.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from emdn_deploy.session import open_session
from emdn_train.variants.gate import Sample
from emdn_train.variants.insertion import Range

_OUTSIDE = 1e-4


def measure(
    model: onnx.ModelProto, names: Sequence[str], samples: Iterable[Sample], scratch: Path
) -> dict[str, Range]:
    """Run a graph on noisy frames and return the range of each of some tensors.

    Parameters
    ----------
    scratch
        Folder for a graph that gives these tensors out.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    path = scratch / "watched.onnx"
    onnx.save(watched, path)
    handle = open_session(path, "cpu", 1).handle
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for sample in samples:
        numbers = zip(("scale", "offset", "gain"), sample.numbers, strict=True)
        feed = {name: np.full((1, 1, 1, 1), value, np.float32) for name, value in numbers}
        made = handle.run(list(names), {"frames": sample.noisy[None, None], **feed})
        for name, values in zip(names, made, strict=True):
            if not values.size:  # edges that a frame of this size does not need
                continue
            bottom, top = np.quantile(values, (_OUTSIDE, 1 - _OUTSIDE))
            low[name] = min(low[name], float(bottom))
            high[name] = max(high[name], float(top))
    return {name: (low[name], high[name]) for name in names}
