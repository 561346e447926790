"""Where and with what numbers were made."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from emdn_deploy.pipeline import usable_cpus

# One of the two is installed, as the platform has it.
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


def processor() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(*more: str) -> dict[str, str]:
    """Return the versions of emdn, numpy, onnxruntime and ``more`` that are installed."""
    found = {}
    for name in ("emdn", "numpy", *_RUNTIMES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def facts(*more: str) -> dict[str, Any]:
    """Describe the machine: processor, CPUs that may be used, load, system, versions."""
    return {
        "processor": processor(),
        "cpus": usable_cpus(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(*more),
    }


def line(found: dict[str, Any]) -> str:
    """Put `facts` into one line."""
    load = "" if found["load"] is None else f", load {found['load']:.1f}"
    listed = ", ".join(f"{name} {one}" for name, one in found["versions"].items())
    return f"{found['processor']}, {found['cpus']} CPUs{load}, {listed}"
