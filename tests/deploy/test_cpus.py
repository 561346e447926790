import os
from pathlib import Path

import pytest

from emdn_deploy import cpus


def group(root: Path, line: str, files: dict[str, str]) -> Path:
    """Write what Linux says of a process and its control group."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        # The strictest of all that a group lies in.
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        # Seen from a container: the path is the host's, the tree is the container's own.
        ("0::/docker/123\n", {"cpu.max": "400000 100000"}, 4),
        (
            "3:cpuset:/\n1:cpu,cpuacct:/job\n",
            {"cpu/job/cpu.cfs_quota_us": "50000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": ""}, None),
        ("0::/\n", {}, None),
    ],
)
def test_a_quota_is_read(
    tmp_path: Path, line: str, files: dict[str, str], expected: float | None
) -> None:
    assert cpus.quota(group(tmp_path, line, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpus.quota(tmp_path) is None


@pytest.mark.parametrize(
    ("masked", "quota", "expected"),
    [(64, 2.0, 2), (64, 1.5, 2), (4, 0.1, 1), (3, 8.0, 3), (5, None, 5)],
)
def test_the_smaller_of_mask_and_quota_counts(
    monkeypatch: pytest.MonkeyPatch, masked: int, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(masked)), raising=False)
    monkeypatch.setattr(cpus, "quota", lambda: quota)
    assert cpus.usable() == expected
