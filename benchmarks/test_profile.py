"""Where a frame's time goes: the operators of each graph, as onnxruntime's own profiler tells."""

import json
from collections import defaultdict

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.cases import CASES
from emdn_deploy.bench import ELECTRONS
from emdn_deploy.session import session_options, usable_cpus
from emdn_models import pretrained

KINDS = {
    "convolutions": ("Conv", "FusedConv", "ConvTranspose"),
    "matrix products": ("MatMul", "FusedMatMul", "Gemm", "FusedGemm"),
    "logarithms": ("Log",),
    "means": ("AveragePool", "ReduceMean"),
    "moving": (
        "Slice", "Concat", "Split", "Pad", "Expand", "Gather", "Reshape", "Transpose", "Unsqueeze",
        "Squeeze", "DepthToSpace", "SpaceToDepth", "Col2Im", "ReorderInput", "ReorderOutput",
    ),
}  # fmt: skip
"""Operators by kind; all others work on one number at a time (``elementwise``)."""
ROUNDS = 12


@pytest.mark.parametrize(
    "case", [one for one in CASES if one.device == "cpu" and one.precision == "fp32"], ids=str
)
def test_profile(benchmark, ring, tmp_path, case):
    options = session_options("cpu", usable_cpus())
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    path = pretrained.onnx_path(case.model)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    numbers = {"scale": ELECTRONS, "offset": 0.0, "gain": 1.0}
    feed = {name: np.full((1, 1, 1, 1), one, np.float32) for name, one in numbers.items()}
    feed["frames"] = ring[:1, None]
    benchmark.pedantic(session.run, (None, feed), rounds=ROUNDS, warmup_rounds=2)

    with open(session.end_profiling(), encoding="utf-8") as file:
        events = json.load(file)
    times = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    assert times
    share = dict.fromkeys((*KINDS, "elementwise"), 0.0)
    for (operator, _), found in times.items():
        kind = next((kind for kind, names in KINDS.items() if operator in names), "elementwise")
        share[kind] += float(np.median(found))
    total = sum(share.values())
    row = {"threads": usable_cpus(), "size": "256 x 256", "model": case.model}
    row |= {"ms": round(total, 1)}
    row |= {f"{kind}, %": round(100 * one / total) for kind, one in share.items()}
    benchmark.extra_info.update(table="profile", row=row)
