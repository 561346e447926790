"""Rows of timings, and how they are laid out."""

import polars as pl
import pytest

from emdn_deploy import inspect
from emdn_deploy.bench import machine, report, rows
from emdn_deploy.session import open_session


def test_a_row_says_what_ran(make_model, tmp_path) -> None:
    path = make_model(tmp_path / "box.onnx", precision="int8")
    session = open_session(path, "cpu", 2)
    assert rows.about(session, "auto", 4, (64, 128)) == {
        "model": "box", "precision": "int8", "asked": "auto", "got": "cpu", "threads": 2,
        "batch": 4, "size": "64 x 128",
    }  # fmt: skip
    assert rows.gflop_of(session, (64, 128)) == pytest.approx(0.0035 / 8)


def test_the_measured_gain_is_the_mean_over_the_levels_that_are_listed() -> None:
    listed = (
        inspect.models_table()
        .filter(pl.col("name") == "unet *")
        .select(pl.col("^dB at .*$"))
        .row(0)
    )
    assert len(listed) == 3
    found = rows.gain_db(open_session("unet", "cpu", 1))
    assert found == pytest.approx(sum(listed) / 3, abs=0.1)


def test_a_gain_belongs_to_weights_and_not_to_names(make_model, tmp_path) -> None:
    path = make_model(
        tmp_path / "unet.onnx", model="unet", weights_sha256="0" * 64,
        quality='{"gain_db": {"0.12": 10.0, "0.4": 14.0}}',
    )  # fmt: skip
    assert rows.gain_db(open_session(path, "cpu", 1)) is None


def test_speeds_are_of_the_median_round_and_a_frame() -> None:
    row = rows.speed([0.4, 0.2, 9.0], 2, (500, 1000), gflop=3.0, roofline=30.0)
    assert row["frames/s"] == 5.0
    assert row["Mpx/s"] == 2.5
    assert row["ms p50"] == 200.0
    assert row["GFLOP/s"] == 15.0
    assert row["roofline"] == 0.5
    assert (row["p90"], row["p99"], row["rounds"]) == (None, None, 3)


def test_percentiles_come_with_enough_rounds() -> None:
    seconds = [0.001 * n for n in range(1, 101)]
    row = rows.speed(seconds, 1, (8, 8))
    assert row["p90"] == pytest.approx(90.1)
    assert row["p99"] == pytest.approx(99.0)
    assert "GFLOP/s" not in row


def test_a_table_writes_what_is_unknown_as_a_dash() -> None:
    rows = [{"model": "a", "ms": 1.25, "ok": True}, {"model": "b", "ms": None, "ok": False}]
    assert [line.split() for line in report.table(rows).splitlines() if "-----" not in line] == [
        [], ["model", "ms", "ok"], ["a", "1.25", "yes"], ["b", "-", "no"],
    ]  # fmt: skip


def test_what_rows_share_stands_above_them_and_empty_columns_are_left_out() -> None:
    head, body = report.markdown(
        [
            {"model": "a", "threads": 2, "batch": 1, "ms": 1.25, "p99": None},
            {"model": "b", "threads": 2, "batch": 4, "ms": 310.0, "p99": None},
        ]
    )
    assert head == "threads 2"
    assert body.splitlines() == [
        "| model | batch | ms |", "| ---: | ---: | ---: |", "| a | 1 | 1.25 |", "| b | 4 | 310 |",
    ]  # fmt: skip


def test_the_machine_is_named() -> None:
    facts = machine.facts("pytest", "no-such-package")
    assert facts["processor"]
    assert facts["versions"]["pytest"] == pytest.__version__
    assert "no-such-package" not in facts["versions"]
    assert sum(name.startswith("onnxruntime") for name in facts["versions"]) == 1
    assert machine.line(facts).startswith(f"{facts['processor']}, {facts['cpus']} CPUs")
