"""``emdn-deploy bench`` at tiny settings, and rounds on a clock that the test sets."""

import json
import sys
from itertools import pairwise
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from emdn_deploy import bench, cli
from emdn_deploy.session import open_session
from emdn_models import MODELS
from emdn_models.errors import EmdnError


def timed(model: object, **changes: object) -> bench.Bench:
    return bench.bench([str(model)], **{"size": 32, "device": "cpu", "seconds": 0.3} | changes)


def test_a_model_is_timed_and_said_to_keep_up(box_model) -> None:
    found = timed(box_model, rate=100.0, threads=1)
    (row,) = found.rows
    assert (row["model"], row["got"], row["threads"]) == ("box", "cpu", 1)
    assert row["rounds"] > 10
    assert row["ms p50"] <= row["p90"]
    assert row["frames/s"] > 0 < row["stack frames/s"]
    assert row["keeps up"] == (max(row["frames/s"], row["stack frames/s"]) >= 100)
    assert row["peak MB"] is None or row["peak MB"] > 20
    text = bench.text(found)
    assert found.machine["processor"] in text[0]
    assert text[-1].startswith("keep up with 100 frames/s of 32 x 32: ")
    assert ("box" in text[-1]) == row["keeps up"]


def test_all_seven_are_opened_if_none_is_named_and_auto_is_asked_once(monkeypatch) -> None:
    asked = []

    def opened(name: str, device: str, *others: object):
        asked.append((name, device))
        return SimpleNamespace(session=SimpleNamespace(device="cpu"))

    monkeypatch.setattr(bench, "Denoiser", opened)
    monkeypatch.setattr(bench, "machine", lambda: sys.exit())
    with pytest.raises(SystemExit):
        bench.bench()
    assert asked == [(name, "cpu" if number else "auto") for number, name in enumerate(MODELS)]


@pytest.mark.parametrize("changes", [{"size": 4}, {"rate": 0.0}, {"rate": -1.0}])
def test_impossible_settings_are_refused(changes) -> None:
    with pytest.raises(EmdnError, match="expected"):
        bench.bench(**changes)


def test_the_command_prints_json(box_model, monkeypatch, capsys) -> None:
    asked, measured = [], timed(box_model)
    monkeypatch.setattr(bench, "bench", lambda *given: asked.append(given) or measured)
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", "--models", "unet,mcnn", "--size", "64", "--rate", "25", "--threads",
                  "2", "--device", "cpu", "--precision", "int8", "--json"])  # fmt: skip
    assert not left.value.code
    assert asked == [(["unet", "mcnn"], 64, 25.0, "cpu", 2, "int8")]
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"][0]["model"] == "box"
    assert facts["machine"]["cpus"] >= 1


def test_peak_memory_of_the_command_does_not_grow_with_the_stack(box_model, tmp_path) -> None:
    peaks = []
    for count in (40, 400):
        source = tmp_path / f"{count}.h5"  # of a mapped file, what was read would count
        counts = np.random.default_rng(0).poisson(9, (count, 256, 256)).astype(np.uint16)
        with h5py.File(source, "w") as file:
            file.create_dataset("frames", data=counts, chunks=(1, 256, 256))
        arguments = ["denoise", source, "--model", box_model, "--device", "cpu", "--threads", "1"]
        peaks.append(bench.command_peak_mb(arguments))
    assert len(list(tmp_path.iterdir())) == 4
    # 400 frames are 50 MB as they are read, and 100 MB as they are written.
    assert None in peaks or peaks[1] < peaks[0] + 40
    assert bench.command_peak_mb(["denoise", tmp_path / "none.h5"]) is None


def test_a_row_says_what_ran(make_model, tmp_path) -> None:
    path = make_model(tmp_path / "box.onnx", precision="int8")
    session = open_session(path, "cpu", 2)
    assert bench.about(session, "auto", 4, (64, 128)) == {
        "model": "box", "precision": "int8", "asked": "auto", "got": "cpu", "threads": 2,
        "batch": 4, "size": "64 x 128",
    }  # fmt: skip
    assert bench.gflop_of(session, (64, 128)) == pytest.approx(0.0035 / 8)


def test_a_gain_belongs_to_weights(make_model, tmp_path) -> None:
    assert bench.gain_db(open_session("unet", "cpu", 1)) > 10
    path = make_model(
        tmp_path / "unet.onnx", model="unet", weights_sha256="0" * 64,
        quality='{"gain_db": {"0.12": 10.0, "0.4": 14.0}}',
    )  # fmt: skip
    assert bench.gain_db(open_session(path, "cpu", 1)) is None


def test_speeds_are_of_the_median_round_and_a_frame() -> None:
    row = bench.speed([0.4, 0.2, 9.0], 2, (500, 1000), gflop=3.0)
    assert (row["frames/s"], row["Mpx/s"], row["ms p50"]) == (5.0, 2.5, 200.0)
    assert row["GFLOP/s"] == 15.0
    assert (row["p90"], row["p99"], row["rounds"]) == (None, None, 3)
    row = bench.speed([0.001 * n for n in range(1, 101)], 1, (8, 8))
    assert (row["p90"], row["p99"]) == (90.1, 99.0)
    assert bench.speed([1.0] * 9, 1, (8, 8))["p90"] is None
    assert bench.speed([1.0] * 99, 1, (8, 8))["p99"] is None
    assert "GFLOP/s" not in row


def test_what_rows_share_stands_above_them_and_what_is_unknown_is_a_dash() -> None:
    head, names, cells = bench.cells(
        [
            {"model": "a", "threads": 2, "batch": 1, "ms": 1.25, "p99": None, "ok": True},
            {"model": "b", "threads": 2, "batch": 4, "ms": None, "p99": None, "ok": False},
            {"model": "c", "threads": 2, "batch": 4, "ms": 310.0},
        ]
    )
    assert (head, names) == ("threads 2", ["model", "batch", "ms", "ok"])
    assert cells == [["a", "1", "1.25", "yes"], ["b", "4", "-", "no"], ["c", "4", "310", "-"]]


def test_the_machine_is_named() -> None:
    facts = bench.machine("pytest", "no-such-package")
    assert facts["processor"]
    assert facts["versions"]["pytest"] == pytest.__version__
    assert "no-such-package" not in facts["versions"]
    assert sum(name.startswith("onnxruntime") for name in facts["versions"]) == 1
    assert bench.machine_line(facts).startswith(f"{facts['processor']}, {facts['cpus']} CPUs")


class Clock:
    """A clock that calls move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def call(self, *seconds: float):
        """Return a call that takes so long, the last time again and again."""
        left = list(seconds)

        def work() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return work


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(bench, "time", clock := Clock())
    return clock


@pytest.mark.parametrize(
    ("seconds", "limit_s", "calls"),
    [((1.0, 0.5, 0.3, 0.1, 0.1, 0.101), 100, 6), ((10.0, 5.0, 2.0, 1.0), 4.0, 1)],
    ids=["no faster", "no time, but one call"],
)
def test_warming_up_ends(clock: Clock, seconds, limit_s: float, calls: int) -> None:
    assert bench.warm(clock.call(*seconds), limit_s) == calls


def test_calls_take_turns_and_none_always_follows_the_same() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = bench.in_turn(calls, 60)
    assert {name: len(one) for name, one in times.items()} == {"a": 60, "b": 60, "c": 60}
    each = ["".join(order[start : start + 3]) for start in range(0, 180, 3)]
    assert {"".join(sorted(one)) for one in each} == {"abc"}
    before = {(one, two) for round_ in each for one, two in pairwise(round_)}
    assert len(before) == 6, "every one follows every other"
    assert {one[0] for one in each} == set("abc")


@pytest.mark.parametrize(("limit_s", "rounds"), [(1000.0, 5), (9.0, 3), (0.0, 1)])
def test_times_belong_to_their_call_and_rounds_end_in_time(
    clock: Clock, limit_s: float, rounds: int
) -> None:
    calls = {"slow": clock.call(3.0), "fast": clock.call(1.0)}
    times = bench.in_turn(calls, 5, limit_s)
    assert times == {"slow": [3.0] * rounds, "fast": [1.0] * rounds}


def test_a_ratio_is_that_of_the_rounds() -> None:
    # A machine that slows down by half changes the times and not the ratio.
    assert bench.ratio([2.0, 4.0, 4.2, 1.9], [1.0, 2.0, 2.0, 1.0]) == "2.00 (1.98-2.02)"


def test_frames_are_noisy_and_differ() -> None:
    found = bench.noisy(3, 60, 48)
    assert (found.shape, found.dtype) == ((3, 60, 48), np.float32)
    assert found.mean() == pytest.approx(bench.SCALE.scale, rel=0.02)
    assert (found == 0).mean() < 0.01
    noise = (found[0] - found[1]).std() / 2**0.5
    assert noise == pytest.approx(bench.SCALE.sigma, rel=0.05)
