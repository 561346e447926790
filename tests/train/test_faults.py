"""Faults are what they are called, and the proof judges as ``emdn-deploy check`` does."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import ndimage
from typer.testing import CliRunner

from emdn_deploy import Denoiser
from emdn_deploy.checking import check
from emdn_deploy.options import DenoiseOptions
from emdn_train import cli, proof, proof_config, proof_table
from emdn_train.faults import FAULTS, PERIOD, Scene
from emdn_train.judging import judge_of
from emdn_train.kept import soundness
from emdn_train.proof_movies import CRYSTALS, STRANGE, movie

MODEL = "mcnn"


@pytest.fixture(scope="module")
def made():
    return movie("dichalcogenide", 1.2, 8, 64, 3)


@pytest.fixture(scope="module")
def scene(made):
    """Give the truth instead of what a model makes of it, with gain and model written on."""

    def again(raw, model, gain):
        return np.full_like(raw, gain + 10 * len(model))

    return Scene(made.raw.astype(np.float32), made.filled, again, 5)


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser(MODEL, threads=1)


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.strengths])
def test_a_stronger_fault_is_farther_from_the_honest_frames(name, scene, made):
    before = made.clean.copy()
    fault = FAULTS[name]
    planted = [fault.plant(scene, made.clean, strength) for strength in fault.strengths]
    assert {one.dtype for one in planted} == {np.dtype(np.float32)}
    assert np.array_equal(made.clean, before)
    if name not in ("Gaussian filter, no model", "wrong gain, not in the record"):
        away = [float(np.square(one - made.clean).mean()) for one in planted]
        assert away[0] > 0
        assert away == sorted(away)


def test_faults_do_what_they_say(scene, made):
    clean = made.clean

    def plant(name, strength):
        return FAULTS[name].plant(scene, clean, strength)

    assert plant("scaled", 1.01).mean() == pytest.approx(1.01 * clean.mean())
    assert plant("offset", 0.01).mean() == pytest.approx(1.01 * clean.mean())
    assert plant("blur", 2.0).std() < 0.9 * clean.std()
    assert plant("Gaussian filter, no model", 1.0).std() < scene.raw.std()
    # What all columns have in common with the pattern is left when rows are averaged.
    stripes = plant("column stripes", 0.2) - clean
    assert np.ptp(stripes, axis=1).max() < 1e-3 * clean.mean()
    assert stripes.std() == pytest.approx(0.2 * clean.mean() ** 0.5, rel=0.25)
    assert plant("another model", "two")[0, 0, 0] == 31
    assert plant("wrong gain, not in the record", 0.5)[0, 0, 0] == 0.5
    left = plant("noise left in", 0.3) - clean
    assert left == pytest.approx(0.3 * (scene.raw - clean), abs=1e-3)


def test_the_added_lattice_has_six_peaks_of_its_period(scene, made):
    added = FAULTS["added lattice"].plant(scene, made.clean, 0.3)[0] - made.clean[0]
    even = made.clean[0] - ndimage.gaussian_filter(made.clean[0], 32)
    assert added.std() == pytest.approx(0.3 * even.std(), rel=0.1)
    power = np.abs(np.fft.fft2(added)) ** 2
    y, x = (np.fft.fftfreq(side) for side in added.shape)
    near = np.abs(np.hypot(y[:, None], x) - 1 / PERIOD) < 2 / 64
    assert power[near].sum() > 0.9 * power.sum()


def test_the_filled_vacancy_is_one_atom_and_drifts_with_the_specimen(made):
    assert made.filled.shape == made.clean.shape
    size = np.square(made.filled)
    peaks = [np.unravel_index(one.argmax(), one.shape) for one in size]
    for one, (y, x) in zip(size, peaks, strict=True):
        around = np.hypot(*(np.mgrid[:64, :64] - np.array([y, x])[:, None, None])) < 16
        assert one[around].sum() > 0.6 * one.sum()
    drawn = movie("dichalcogenide", 1.2, 8, 64, 3)
    assert np.array_equal(drawn.raw, made.raw)
    assert np.ptp(np.array(peaks), axis=0).max() <= 8


@pytest.mark.parametrize("specimen", [*CRYSTALS, *STRANGE])
def test_movies_hold_counts_about_their_truth_at_the_signal_to_noise_asked_for(specimen):
    found = movie(specimen, 0.4, 4, 64, 1)
    z = (found.raw - found.clean) / np.sqrt(np.maximum(found.clean, 0.5))
    assert z.mean() == pytest.approx(0, abs=0.05)
    assert z.std() == pytest.approx(1, abs=0.05)
    assert found.clean[0].std() / found.clean.mean() ** 0.5 > 0.3
    # Of the same scene: contrast x sqrt(electrons).
    other = movie(specimen, 0.8, 4, 64, 1)
    assert other.clean == pytest.approx(4 * found.clean, rel=1e-4)
    assert other.filled == pytest.approx(4 * found.filled, rel=1e-3, abs=1e-3)
    assert bool(found.filled.any()) == (specimen in CRYSTALS)
    assert not np.array_equal(found.clean[0], found.clean[-1])


def test_a_reflection_that_a_result_lacks_or_exaggerates_is_seen(made):
    y, x = np.mgrid[:64, :64]
    wave = 20 * np.cos(2 * np.pi * (0.2 * y + 0.1 * x)).astype(np.float32)
    true = made.clean + wave
    assert soundness(true, true) == "sound"
    assert soundness(true, made.clean + 0.9 * wave) == "slight"
    assert soundness(true, made.clean + 0.6 * wave) == "wrong"
    assert soundness(true, made.clean + 1.4 * wave) == "wrong"


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
        "stack": False, "quick": False, "quick_stack": False, "error": 2.0,
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
        ("crystals", "sound", 1, 0, 0, 100),
        ("crystals", "wrong", 1, 100, 100, 0),
    ]
    assert honest["gain"] == pytest.approx(6.0)


def test_the_command_saves_what_it_prints(monkeypatch, tmp_path: Path):
    asked = []
    monkeypatch.setattr(
        proof, "measure", lambda config, progress: asked.append(config) or rows_of_two_stacks()
    )
    save, table = tmp_path / "new" / "proof.md", tmp_path / "rows.csv"
    arguments = ["proof", "--quick", "--models", MODEL, "--save", str(save), "--rows", str(table)]
    result = CliRunner().invoke(cli.app, [*arguments, "--seed", "7", "--workers", "2"])
    assert result.exit_code == 0, result.output
    text = save.read_text(encoding="utf-8")
    assert text in result.output
    assert "seed 7" in text
    assert f"{MODEL} (" in text
    assert len(pl.read_csv(table)) == 6
    assert (asked[0].workers, asked[0].size) == (2, 128)
