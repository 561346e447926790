"""The proof judges as ``emdn-deploy check`` does, and its tables count what they say."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats
from typer.testing import CliRunner

from emdn_deploy import Denoiser
from emdn_deploy.checking import check
from emdn_deploy.intensity import Intensity
from emdn_deploy.options import DenoiseOptions
from emdn_train import cli, proof, proof_config, proof_summary, proof_table
from emdn_train.faults import FAULTS, Scene
from emdn_train.judging import Remembered, judge_of
from emdn_train.proof_movies import movie
from emdn_train.righted import Righted

MODEL = "mcnn"


@pytest.fixture(scope="module")
def made():
    return movie("dichalcogenide", 1.2, 8, 64, 3)


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser(MODEL, threads=1)


def test_the_judge_says_what_check_says(made, denoiser, tmp_path):
    raw, after = tmp_path / "raw.npy", tmp_path / "after.npy"
    np.save(raw, made.raw)
    judge = judge_of(raw, denoiser, seed=4)
    clean = np.concatenate([denoiser.run(one[None], judge.scale) for one in judge.raw])
    scene = Scene(judge.raw, made.filled, lambda *_: clean, 5)
    faulty = clean.copy()
    faulty[2:4] = FAULTS["added lattice"].plant(scene, clean, 1.0)[2:4]
    np.save(after, faulty)
    options = DenoiseOptions(model=MODEL, device="cpu", threads=1)
    expected = check(raw, after, options, seed=4)
    found = judge.judge(faulty)
    assert found.verdicts == tuple(expected.table["verdict"])
    assert found.findings == expected.facts.findings
    assert dict(judge.grounds.ranges) == pytest.approx(dict(expected.thresholds.limits))
    assert all("structure added" in found.verdicts[frame] for frame in (2, 3))
    assert found.own[2:4].all()
    assert found.quick[2:4].all()


def test_one_job_plants_faults_in_some_frames_and_in_all(monkeypatch):
    few = {name: FAULTS[name] for name in ("scaled", "filled vacancy", "another model")}
    monkeypatch.setattr(proof, "FAULTS", few)
    monkeypatch.setattr(proof_config, "FAULTS", few)
    config = proof_config.ProofConfig((MODEL, "dncnn"), size=32, frames=4, levels=(1.2,), faulty=1)
    job = next(proof_config.jobs(config))
    rows = pl.DataFrame(proof.run(job), infer_schema_length=None)
    per = rows.group_by("fault", "strength", "place").agg(pl.len(), pl.col("planted").sum())
    assert set(per["len"]) == {4}
    assert len(per) == 1 + 2 * (3 + 3 + 1)
    assert set(per.filter(pl.col("place") == proof.ONE)["planted"]) == {1}
    table = proof_table.found(rows)
    assert table["error"][0] == 1
    clear = table.filter(pl.col("fault") == "scaled", pl.col("strength").str.contains("1.05"))
    assert clear["frames 1.2"].to_list() == [100, 100]
    assert {text[:17] for text in clear["called"]} == {"intensity changed"}


def row(**changes):
    return {
        "label": "graphene", "specimen": "graphene", "snr": 0.4, "seed": 0, "faults": True,
        "model": MODEL, "fault": "blur", "strength": "1 px", "place": proof.ALL, "result": 0,
        "frame": 0, "planted": True, "verdict": "within noise", "flagged": False, "own": False,
        "stack": False, "why": "", "quick": False, "quick_stack": False, "error": 2.0,
        "noise": 8.0, "truth": None,
    } | changes  # fmt: skip


def rows_of_two_stacks() -> pl.DataFrame:
    seen = {"verdict": "over-smoothed; structure removed", "flagged": True, "stack": True}
    faulty = [row(frame=0, error=6.0, **seen), row(frame=1, stack=True)]
    none = [row(fault=proof.NONE, strength="", result=1, frame=frame) for frame in (0, 1)]
    honest = [
        row(
            fault=proof.NONE,
            strength="",
            faults=False,
            seed=500,
            result=2,
            quick_stack=True,
            truth="sound",
        ),
        row(
            fault=proof.NONE,
            strength="",
            faults=False,
            seed=501,
            result=3,
            frame=1,
            truth="wrong",
            **seen,
        ),
    ]
    return pl.DataFrame([*faulty, *none, *honest])


def test_tables_count_frames_and_stacks():
    rows = rows_of_two_stacks()
    found = {one["fault"]: one for one in proof_table.found(rows).to_dicts()}
    assert (found["blur"]["frames 0.4"], found["blur"]["stacks 0.4"]) == (50, 100)
    assert found["blur"]["called"] == "over-smoothed 100 %"
    assert found["blur"]["error"] == 2
    assert (found["none"]["frames 0.4"], found["none"]["error"]) == (0, 1)
    [honest] = proof_table.flagged(rows).to_dicts()
    assert (honest["frames 0.4"], honest["alone"], honest["quick stacks"]) == (50, 0, 50)
    assert proof_table.by_truth(rows).rows() == [
        ("crystals", "sound", 1, 0, 0, "0 to 98", 100),
        ("crystals", "wrong", 1, 100, 1, "3 to 100", 0),
    ]
    assert honest["gain"] == pytest.approx(6.0)
    said = proof_summary.false_alarms(rows)
    assert said == "False alarms of sound stacks: 0 of 1 fail (0 to 98 %) of crystals."


def test_a_fault_counts_as_found_where_frames_or_stacks_are_at_every_level():
    one, every = proof.PLACES
    shares = [(100, 0, 0, 100), (100, 94, 0, 0), (50, 100, 100, 0), (0, 0, 0, 0)]
    kinds = [("1 px", one), ("1 px", every), ("2 px", one), ("0.5 px", every)]
    rows = [
        dict(zip(("frames 0.4", "frames 1.2", "stacks 0.4", "stacks 1.2"), share, strict=True))
        | {"fault": "blur", "strength": strength, "place": place, "error": 1.5}
        for share, (strength, place) in zip(shares, kinds, strict=True)
    ]
    none = rows[0] | {"fault": proof.NONE, "strength": ""}
    [blur] = proof_summary.detected(pl.DataFrame([none, *rows])).to_dicts()
    assert blur == {
        "fault": "blur", f"found, {one}": "1 px, 2 px", f"found, {every}": "-",
        "not found": "0.5 px (error x 1.5)",
    }  # fmt: skip


def test_false_alarms_are_those_of_sound_stacks_with_their_reasons():
    honest = {"fault": proof.NONE, "strength": "", "faults": False, "truth": "sound"}
    rows = [row(result=n, stack=n == 0, why="too far" if n == 0 else "", **honest) for n in (0, 1)]
    rows += [row(result=2, label=proof_config.RIGHTED, **honest)]
    rows += [row(result=3, stack=True, why="rightly", **honest | {"truth": "wrong"})]
    rows += [row(result=4, stack=True, why="found", faults=True, truth=None)]
    said = proof_summary.false_alarms(pl.DataFrame(rows, infer_schema_length=None))
    assert "1 of 2 fail (1 to 99 %) of crystals; 0 of 1 fail" in said
    assert said.endswith(".\n- too far")
    low, high = proof_summary.interval(1, 40)
    assert 100 * stats.binom.sf(0, 40, low / 100) == pytest.approx(2.5)
    assert 100 * stats.binom.cdf(1, 40, high / 100) == pytest.approx(2.5)


def test_the_command_saves_what_it_prints(monkeypatch, tmp_path: Path):
    asked = []
    monkeypatch.setattr(
        proof, "measure", lambda config, *_: asked.append(config) or rows_of_two_stacks()
    )
    arguments = ["proof", "--quick", "--models", MODEL, "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(cli.app, [*arguments, "--seed", "7", "--workers", "2"])
    assert result.exit_code == 0, result.output
    [tables] = (tmp_path / "new").glob("proof-*.md")
    text = tables.read_text(encoding="utf-8")
    assert text in result.output
    assert "seed 7" in text
    assert f"{MODEL} (" in text
    assert (asked[0].workers, asked[0].size) == (2, 128)


def test_answers_are_remembered_by_content_and_the_oldest_forgotten():
    asked = []
    product = Remembered(lambda a, b, c: asked.append(float(a[0])) or a * b + c, 2)
    one, two, three = (np.full(3, value, np.float32) for value in (1, 2, 3))
    assert product(one, two, 1).tolist() == [3, 3, 3]
    assert product(one.copy(), two.copy(), 1).tolist() == [3, 3, 3]
    assert product(two, one, 1).tolist() == [3, 3, 3]
    product(one, two, 1)
    product(three, one, 1)
    product(one, two, 1)
    product(two, one, 1)
    assert asked == [1, 2, 3, 2]


def test_what_is_put_right_is_right_on_average(denoiser):
    made = movie("particle", 0.4, 48, 32, 3, still=True)
    mean = float(made.clean.mean())
    scale = Intensity(mean, 1.0, 0.0, mean**0.5, "")
    righted = Righted(denoiser, made.clean[0], 1)
    raw = made.raw.astype(np.float32)
    ours, models = (
        np.square(
            np.mean([one.run(frame[None], scale)[0] for frame in raw], axis=0) - made.clean[0]
        )
        for one in (righted, denoiser)
    )
    assert ours.mean() < 0.75 * models.mean()
