"""From rounds to tables: rows, percentiles only where rounds support them, files."""

from types import SimpleNamespace

import polars as pl
import pytest

from benchmarks import tables


def one(seconds: list[float], **info: object) -> SimpleNamespace:
    """Pretend to be a finished benchmark."""
    return SimpleNamespace(extra_info=info, stats=SimpleNamespace(data=seconds))


@pytest.fixture
def table() -> pl.DataFrame:
    timed = {"table": "inference", "frames": 2, "size": [100, 200], "gflop": 1.0, "roofline": 10.0}
    found = tables.collect(
        [
            one([0.4] * 100, **timed, row={"model": "a", "threads": 2, "batch": 2}),
            one([], some="other"),
            one([0.8] * 9, **timed, row={"model": "b", "threads": 2, "batch": 2, "extra": 1}),
            one([9.9], table="profile", row={"model": "a", "dropped": 3}),
        ]
    )
    assert found["profile"].to_dicts() == [{"model": "a", "dropped": 3}]
    return found["inference"]


def test_rounds_become_rows(table: pl.DataFrame) -> None:
    first, second = table.to_dicts()
    assert (first["frames/s"], first["Mpx/s"], first["GFLOP/s"]) == (5.0, 0.1, 5.0)
    assert (first["roofline"], first["p99"], first["rounds"]) == (0.5, 200.0, 100)
    assert (second["p90"], second["p99"], second["extra"]) == (None, None, 1)
    assert first["extra"] is None


def test_a_table_is_saved_to_be_pasted_and_to_be_read(table: pl.DataFrame, tmp_path) -> None:
    text = tables.save(tmp_path / "results", "inference", table, ["A machine"])
    pasted = (tmp_path / "results" / "inference.md").read_text()
    assert pasted.splitlines()[0] == "A machine"
    assert "threads 2, batch 2" in pasted
    rows = [line.strip("| ").split(" | ") for line in pasted.splitlines() if line[0:1] == "|"]
    assert rows[0][:2] == ["model", "frames/s"]
    assert [" ".join(row) for row in rows[2:]] == [
        " ".join(line.split()) for line in text.splitlines()[-2:]
    ]
    for kind, read in (("csv", pl.read_csv), ("parquet", pl.read_parquet)):
        assert read(tmp_path / "results" / f"inference.{kind}").to_dicts() == table.to_dicts()
