"""How much faster a variant is than its model on this machine, and by which instructions."""

from pathlib import Path

import torch

from emdn_deploy.bench.rounds import Ratio, in_turn, ratio, warm
from emdn_deploy.session import open_session
from emdn_train.variants.gate import Sample

_ROUNDS = 15
# Names in Linux' list, from the fastest integers on; the words of the table.
_INSTRUCTIONS = (
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx_vnni", "AVX VNNI"),
    ("avx512bw", "AVX-512"),
    ("avx2", "AVX2"),
    ("asimddp", "NEON dot product"),
)


def measure(model: Path, variant: Path, sample: Sample) -> Ratio:
    """Time both on one frame, one thread each, in turn: the model's time over the variant's."""
    calls = {}
    for name, path in (("model", model), ("variant", variant)):
        session = open_session(path, "cpu", 1)
        calls[name] = lambda session=session: session.run(sample.noisy[None], *sample.numbers)
    for call in calls.values():
        warm(call)
    times = in_turn(calls, _ROUNDS)
    return ratio(times["model"], times["variant"])


def instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name the instructions that onnxruntime multiplies 8-bit integers by on this machine.

    Flags that the processor has but does not tell programs (`benchmarks/avx2.c`) do not count.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return "unknown instructions"
    known = {word for line in text.splitlines() if line.lower().startswith(("flags", "features"))
             for word in line.split()}  # fmt: skip
    if "avx512f" in known and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        known = {flag for flag in known if not flag.startswith(("avx512", "avx_vnni"))}
    return next((words for flag, words in _INSTRUCTIONS if flag in known), "other instructions")
