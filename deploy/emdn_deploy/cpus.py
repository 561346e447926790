"""How many CPUs this process may use, which is not how many the machine has.

Slurm, ``taskset`` and ``docker --cpuset-cpus`` set an affinity mask; ``docker --cpus`` and
Kubernetes limits set a quota of processor time instead, which the mask does not show: 64
threads under a quota of two CPUs run for 3 ms of every 100 and then wait, all of them.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable() -> int:
    """Return how many threads may compute: the affinity mask's CPUs, or a quota if that is less.

    A share of a CPU counts as one: a thread too many waits a little, one too few leaves
    what was granted unused.
    """
    masked = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = quota()
    return max(1, min(masked or 1, math.ceil(limit) if limit is not None else masked or 1))


def quota(root: Path = Path("/")) -> float | None:
    """Return the CPUs that the control groups of this process grant, None for no limit.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.
    """
    limits = [limit for folder in _groups(root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """List the folders of this process's control groups, with all that they lie in."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has one tree and names no controllers, version 1 one for each.
        tree = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        inside = PurePosixPath(path.lstrip("/"))
        # In a container the tree may begin at its own group, whatever the path says.
        for group in (inside, *inside.parents):
            yield tree / group


def _limit(folder: Path) -> float | None:
    """Read a group's limit in CPUs, of version 2 or else of version 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = [word for name in names for word in (folder / name).read_text().split()]
            granted, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # "max" is no number and no limit
            continue
        if granted > 0 and period > 0:
            return granted / period
    return None
