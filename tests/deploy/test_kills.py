"""Kills and full disks, seeded; `python benchmarks/kills.py` tries more of them."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import kills

SHORT = ["HDF5, mirrored", "TIFF with sigma", "npy with sigma", "folder to TIFF", kills.FOLLOWED]


@pytest.fixture
def tried(tmp_path: Path, box_model: Path) -> Callable[..., tuple[kills.Case, kills.Reference]]:
    """Run a form undisturbed, and get another case of it ready."""

    def prepare(form: str) -> tuple[kills.Case, kills.Reference]:
        counts = kills.movie(12, 32)
        whole, case = (
            kills.Case(form, tmp_path / name, tmp_path / f"{name} out", str(box_model))
            for name in ("whole", "cut")
        )
        whole.prepare(counts)
        case.prepare(counts)
        return case, kills.Reference.of(whole)

    return prepare


@pytest.mark.parametrize("form", SHORT)
def test_a_killed_run_loses_nothing(tried, form: str) -> None:
    case, wanted = tried(form)
    chance, tally = random.Random(SHORT.index(form)), kills.Tally()
    first, late = sorted(chance.randint(1, len(wanted.events)) for _ in range(2))
    kills.killed(case, wanted, [(first, None), (late, None), (-300, None)], tally)
    assert tally.ended
    assert not tally.lost


def test_a_kill_while_names_are_given(tried) -> None:
    """Four files get their names; a kill before any of these is mended, and leaves nothing."""
    case, wanted = tried("npy with sigma")
    tally = kills.Tally()
    renames = [n for n, what in enumerate(wanted.events, 1) if what.endswith(".npy.partial")]
    renames = [n for n in renames if wanted.events[n - 1].startswith("os.rename")]
    assert len(renames) == 2
    kills.killed(case, wanted, [(renames[0] + 1, None)], tally)
    assert tally.ended
    assert not tally.lost


@pytest.mark.parametrize("form", SHORT)
def test_a_full_disk_loses_nothing(tried, form: str, monkeypatch) -> None:
    """By the largest size that a file may have, as mounting is not for everybody."""
    monkeypatch.setattr(
        kills.subprocess, "run", lambda *_, **__: kills.argparse.Namespace(returncode=1)
    )
    case, wanted = tried(form)
    chance, tally = random.Random(SHORT.index(form)), kills.Tally()
    kills.filled(case, wanted, int(wanted.size * chance.uniform(0.05, 0.4)), tally)
    assert tally.ended
    assert not tally.lost
