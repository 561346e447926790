"""Kills and full disks, seeded; `python benchmarks/kills.py` tries more of them."""

import random

import pytest

from benchmarks import kills

SHORT = ["HDF5, mirrored", "TIFF with sigma", "npy with sigma", "folder to TIFF", kills.FOLLOWED]


@pytest.mark.parametrize("form", SHORT)
def test_a_killed_run_and_a_full_disk_lose_nothing(tmp_path, box_model, form: str) -> None:
    case = kills.Case(form, tmp_path, str(box_model), kills.movie(12, 32))
    chance = random.Random(SHORT.index(form))
    first, late = sorted(chance.randint(1, len(case.events)) for _ in range(2))
    limit = int(case.size * chance.uniform(0.05, 0.4))
    for disturbances in (
        [((first, 0.0), 0), ((late, 0.0), 0), ((late, 3e-4), 0)],
        [(None, limit)],
    ):
        tally = case.tried(disturbances)
        assert tally.disturbed
        assert not tally.lost


def test_a_kill_while_names_are_given(tmp_path, box_model) -> None:
    """Several files get their names; a kill between these is mended, and leaves nothing."""
    case = kills.Case("npy with sigma", tmp_path, str(box_model), kills.movie(12, 32))
    renames = [n for n, what in enumerate(case.events, 1) if what.startswith("os.rename")]
    renames = [n for n in renames if case.events[n - 1].endswith(".npy.partial")]
    assert len(renames) == 2
    tally = case.tried([((renames[0] + 1, 0.0), 0)])
    assert tally.disturbed
    assert not tally.lost
