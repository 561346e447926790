"""``emdn-deploy bench`` at tiny settings, and rounds on a clock that the test sets."""

import json

import h5py
import numpy as np
import pytest

from emdn_deploy import bench, cli
from emdn_deploy.session import open_session


def test_models_are_timed_as_text_and_json(box_model, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 12)
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", "--models", str(box_model), "--size", "32", "--rate", "100",
                  "--threads", "1", "--json"])  # fmt: skip
    assert not left.value.code
    found = bench.Bench(**json.loads(capsys.readouterr().out))
    assert found.conditions == {
        "precision": "fp32", "asked": "auto", "got": "cpu", "threads": 1, "size": "32 x 32",
    }  # fmt: skip
    (row,) = found.rows
    assert (row["model"], row["rounds"]) == ("box", 12)
    assert row["ms p50"] <= row["p90"]
    assert row["frames/s"] > 0 < row["stack frames/s"]
    assert row["keeps up"] == (max(row["frames/s"], row["stack frames/s"]) >= 100)
    text = bench.text(found)
    assert text[0].startswith(f"{found.machine['processor']}, {found.machine['cpus']} CPUs")
    assert text[-1].startswith("keep up with 100 frames/s: ")
    assert ("box" in text[-1]) == row["keeps up"]


def test_peak_memory_of_the_command_does_not_grow_with_the_stack(box_model, tmp_path) -> None:
    from benchmarks.test_speed import peak_mb  # torch

    peaks = []
    for count in (40, 400):
        source = tmp_path / f"{count}.h5"  # of a mapped file, what was read would count
        counts = np.random.default_rng(0).poisson(9, (count, 256, 256)).astype(np.uint16)
        with h5py.File(source, "w") as file:
            file.create_dataset("frames", data=counts, chunks=(1, 256, 256))
        arguments = ["denoise", source, "--model", box_model, "--device", "cpu", "--threads", 1]
        peaks.append(peak_mb(arguments))
    # 400 frames are 50 MB as they are read, and 100 MB as they are written.
    assert peaks[1] < peaks[0] + 40


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
    assert (row["p90"], row["p99"], row["rounds"], row["GFLOP/s"]) == (None, None, 3, 15.0)
    row = bench.speed([0.001 * n for n in range(1, 101)], 1, (8, 8), 1.0)
    assert (row["p90"], row["p99"]) == (90.1, 99.0)
    assert bench.speed([1.0] * 9, 1, (8, 8), 1.0)["p90"] is None
    assert bench.speed([1.0] * 99, 1, (8, 8), 1.0)["p99"] is None
