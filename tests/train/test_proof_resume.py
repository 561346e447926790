"""A proof that is stopped at any moment goes on to the tables of one that never was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from emdn_models import EmdnError
from emdn_train import proof, proof_rows
from emdn_train.proof_config import ProofConfig, jobs
from emdn_train.proof_rows import Saved
from emdn_train.remaining import Remaining

CONFIG = ProofConfig(("mcnn",), honest=2, faulty=1, righted=1)
FACTS = {"seed": 0}

# A job's rows follow from the job. A child ignores SIGINT where the shell that started pytest did.
SCRIPT = """
import signal, sys, time
from pathlib import Path
from emdn_train import proof
from emdn_train.proof_config import ProofConfig
from emdn_train.proof_rows import SCHEMA, Saved

done = []

def run(job):
    done.append(job)
    time.sleep(3600 if len(done) > 1 else 0)  # a worker is killed at its second job
    rows = [dict.fromkeys(SCHEMA) | {"result": n % 2, "seed": job.seed, "label": job.label,
            "frame": n // 2} for n in range(4)]
    return [{name: row[name] for name in SCHEMA if name != "job"} for row in rows]

proof.run = run
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = ProofConfig(("mcnn",), honest=2, faulty=1, righted=1, workers=int(sys.argv[2]))
    proof.measure(config, Saved(Path(sys.argv[1]), {"seed": 0}), lambda share: print("done"))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_proof_that_is_killed_is_continued(number, tmp_path, monkeypatch):
    script = tmp_path / "prove.py"
    script.write_text(SCRIPT)
    saved = Saved(tmp_path, FACTS)
    command = [sys.executable, script, tmp_path, "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            while not saved.path.exists():
                assert process.poll() is None
                time.sleep(0.02)
            os.kill(process.pid, number)
            # Workers hold the pipe too: one whose parent is gone has nobody to work for.
            process.stdout.read()
        finally:
            process.kill()
    assert process.returncode != 0
    known: dict[str, Any] = {"__name__": "prove"}
    monkeypatch.setattr(proof, "run", proof.run)
    exec(SCRIPT, known)
    monkeypatch.setattr(known["time"], "sleep", lambda seconds: None)
    told: list[float] = []
    left = len(list(jobs(CONFIG))) - len(Saved(tmp_path, FACTS).done)
    table = proof.measure(CONFIG, Saved(tmp_path, FACTS), told.append)
    assert 0 < left < len(list(jobs(CONFIG)))
    assert len(told) == left
    assert told[-1] == pytest.approx(1)
    assert_frame_equal(table, proof.measure(CONFIG, Saved(tmp_path / "whole", FACTS)))


def test_what_is_done_is_not_done_again_nor_mixed_with_another_proof(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "run", lambda job: [row(job.seed, frame) for frame in (1, 0)])
    first = proof.measure(CONFIG, Saved(tmp_path, FACTS))
    assert first["frame"].to_list() == [0, 1] * (len(first) // 2)
    assert first["result"].to_list() == sorted([*range(len(first) // 2)] * 2)
    monkeypatch.setattr(proof, "run", None)
    assert_frame_equal(proof.measure(CONFIG, Saved(tmp_path, FACTS)), first)
    assert Saved(tmp_path, {"seed": 1}).done == set()


def test_a_torn_write_leaves_the_rows_before(tmp_path, monkeypatch):
    saved = Saved(tmp_path, FACTS)
    saved.add(3, [row(0, 0)])

    def torn(self, file):
        file.write(b"PAR1")
        raise KeyboardInterrupt

    monkeypatch.setattr(pl.DataFrame, "write_parquet", torn)
    with pytest.raises(KeyboardInterrupt):
        saved.add(4, [row(0, 0)])
    assert Saved(tmp_path, FACTS).done == {3}


def row(seed: int, frame: int) -> dict[str, object]:
    values = {pl.String: "", pl.Int64: 0, pl.Float64: 0.5, pl.Boolean: False}
    made = {name: values[kind] for name, kind in proof_rows.SCHEMA.items() if name != "job"}
    return made | {"seed": seed, "frame": frame}


def test_identity_holds_weights_options_and_code_but_not_the_workers(monkeypatch):
    facts = proof_rows.identity(CONFIG)
    assert facts == proof_rows.identity(ProofConfig(**vars(CONFIG) | {"workers": 7}))
    assert facts != proof_rows.identity(ProofConfig(**vars(CONFIG) | {"seed": 1}))
    assert len(facts["models"]["mcnn"]) == 64
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"other")
    assert facts["code"] != proof_rows.identity(CONFIG)["code"]


def test_rows_that_cannot_be_read_are_named(tmp_path):
    Saved(tmp_path, FACTS).path.write_bytes(b"no parquet")
    with pytest.raises(EmdnError, match=r"proof-.*parquet.*delete"):
        Saved(tmp_path, FACTS)


def test_what_remains_is_told_by_what_is_done():
    now, said = [100.0], []
    note = Remaining(said.append, lambda: now[0])
    for share in (0.25, 0.255, 0.5, 1.0):
        now[0] += 30
        note(share)
    assert said == [
        " 25% done in 0:30 min, about 1:30 min left",
        " 50% done in 1:30 min, about 1:30 min left",
        "100% done in 2:00 min, about 0:00 min left",
    ]
