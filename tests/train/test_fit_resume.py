"""A run that is stopped at any moment goes on to the result of one that never was."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from emdn_models import CheckpointError, OutputError, checkpoint
from emdn_train import config as configs
from emdn_train import fit as fitting
from emdn_train import outputs, resume, source
from emdn_train.cli import main
from emdn_train.config import FitConfig
from emdn_train.fit import fit


class Killed(BaseException):
    """Ends a run where nothing catches it, as SIGKILL would."""


def config(gratings, out, **changes) -> FitConfig:
    defaults = {
        "data": gratings, "out": out, "models": ("ffdnet", "unet"), "recipe": "quality",
        "batch_size": 12, "patch": 16, "epochs": 2, "device": "cpu",
    }  # fmt: skip
    return FitConfig(**(defaults | changes))


@pytest.fixture(autouse=True, scope="module")
def _no_pictures():
    """Leave loss.png out: it would take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "draw_losses", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def whole(gratings, tmp_path_factory):
    """The result of a run that was not stopped: six steps a model, two epochs of three."""
    out = tmp_path_factory.mktemp("whole")
    fit(config(gratings, out))
    return result(out)


def result(out):
    """All that a run leaves, without times."""
    models = checkpoint.load(out / checkpoint.FILE_NAME)
    metrics = json.loads((out / "metrics.json").read_text())
    rows = [line.split(",") for line in (out / "history.csv").read_text().splitlines()]
    column = rows[0].index("seconds")
    history = [row[:column] + row[column + 1 :] for row in rows]
    return {name: weights.state for name, weights in models.items()}, metrics, history


def assert_same(found, expected):
    assert found[1:] == expected[1:]
    assert list(found[0]) == list(expected[0])
    for name, state in expected[0].items():
        for key, array in state.items():
            np.testing.assert_array_equal(found[0][name][key], array, err_msg=f"{name} {key}")


def call_at(monkeypatch, owner, name, call, what):
    """Do something at the n-th call of a function, counted from one."""
    original, calls = getattr(owner, name), []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            what()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)


def die():
    raise Killed


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (source.Simulated, "batch", 1),  # before anything is saved
        (source.Simulated, "batch", 3),  # within an epoch
        (source.Simulated, "batch", 4),  # at the start of one
        (fitting, "evaluate", 3),  # after the last step
        (checkpoint, "save", 1),  # before the weights are written
        (outputs, "write_results", 1),  # after that
        (resume.os, "replace", 3),  # while the state is being written
        (source.Simulated, "batch", 9),  # within the second model
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    gratings, whole, tmp_path, monkeypatch, owner, name, call
):
    monkeypatch.setattr(resume.StateFile, "due", lambda _: True)
    with monkeypatch.context() as patch:
        call_at(patch, owner, name, call, die)
        with pytest.raises(Killed):
            fit(config(gratings, tmp_path))
    fit(config(gratings, tmp_path))
    assert_same(result(tmp_path), whole)
    assert not list(tmp_path.glob("fit_state*"))
    assert not list(tmp_path.glob("*.partial"))


def test_a_net_with_batch_norm_goes_on_too(gratings, tmp_path, monkeypatch):
    options = {"models": ("unet",), "preset": "paper", "recipe": "benchmark", "lr": 1e-3}
    fit(config(gratings, tmp_path / "whole", **options))
    monkeypatch.setattr(resume.StateFile, "due", lambda _: True)
    with monkeypatch.context() as patch:
        call_at(patch, source.Simulated, "batch", 5, die)
        with pytest.raises(Killed):
            fit(config(gratings, tmp_path / "cut", **options))
    fit(config(gratings, tmp_path / "cut", **options))
    assert_same(result(tmp_path / "cut"), result(tmp_path / "whole"))


def test_a_process_that_is_killed_leaves_no_damage(gratings, tmp_path):
    start = (
        "import os, signal; from emdn_train import resume\n"
        "resume.StateFile.due = lambda _: True\n"
        "replace, states = os.replace, []\n"
        "def last(source, target):\n"
        "    states.append(1) if str(target).endswith('fit_state.h5') else None\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if len(states) > 5 else replace(source, target)\n"
        "os.replace = last\n"
        "from emdn_train.cli import main; main()"
    )
    arguments = [
        "fit", "--data", gratings, "--out", tmp_path / "cut", "--models", "ffdnet", "--epochs",
        "8", "--batch-size", "12", "--patch", "16", "--recipe", "quality", "--device", "cpu",
    ]  # fmt: skip
    state = tmp_path / "cut" / resume.FILE_NAME
    done = subprocess.run([sys.executable, "-c", start, *map(str, arguments)], check=False)
    assert done.returncode == -signal.SIGKILL
    options = {"models": ("ffdnet",), "epochs": 8}
    with h5py.File(state) as file:
        assert json.loads(file["training"].asstr()[()])["step"] == 5
    fit(config(gratings, tmp_path / "cut", **options))
    fit(config(gratings, tmp_path / "whole", **options))
    assert_same(result(tmp_path / "cut"), result(tmp_path / "whole"))


def test_a_full_disk_is_one_error_and_the_run_goes_on(gratings, whole, tmp_path, monkeypatch, room):
    monkeypatch.setattr(resume.StateFile, "due", lambda _: True)
    for size in (0, 100, 5000, 1_000_000, 4_000_000):
        with room(size), pytest.raises(OutputError, match=r"cannot be written \(File too large\)"):
            fit(config(gratings, tmp_path))
        assert not list(tmp_path.glob("*.partial"))
    fit(config(gratings, tmp_path))
    assert_same(result(tmp_path), whole)


def test_on_a_disk_that_is_full_a_command_says_so_in_a_line(
    gratings, whole, small_disk, capfd, monkeypatch
):
    monkeypatch.setattr(resume.StateFile, "due", lambda _: True)
    out, ballast = small_disk / "out", small_disk / "ballast"
    command = [
        "fit", "--data", gratings, "--out", out, "--models", "ffdnet,unet", "--recipe", "quality",
        "--batch-size", 12, "--patch", 16, "--device", "cpu",
    ]  # fmt: skip

    def run():
        with pytest.raises(SystemExit) as left:
            main([str(one) for one in command])
        return left.value.code, capfd.readouterr().err

    ballast.touch()
    for free in (0, 8192, 1 << 20):
        with ballast.open("ab") as file, contextlib.suppress(OSError):
            while True:  # until not a page is left
                os.write(file.fileno(), bytes(4096))
        os.truncate(ballast, ballast.stat().st_size - free)
        code, told = run()
        assert code == 1
        assert "No space left on device" in told.splitlines()[-1]
        assert "Traceback" not in told
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    code, told = run()
    assert code in (0, None), told
    assert_same(result(out), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(gratings, whole, tmp_path, monkeypatch, caplog, number):
    caplog.set_level("INFO")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        call_at(patch, source.Simulated, "batch", 8, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            fit(config(gratings, tmp_path))
    assert signal.getsignal(number) is before
    assert caplog.messages[-1] == (
        "unet: stopped after step 2 and saved; repeat the command to continue"
    )
    fit(config(gratings, tmp_path))
    assert "ffdnet: fitted before, not fitted again" in caplog.messages
    assert "unet: continuing after step 2" in caplog.messages
    assert_same(result(tmp_path), whole)


@pytest.fixture
def unfinished(gratings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        call_at(patch, source.Simulated, "batch", 2, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(config(gratings, tmp_path))
    return tmp_path


def test_a_run_of_other_options_is_refused(gratings, unfinished, monkeypatch):
    before = (unfinished / resume.FILE_NAME).read_bytes()
    with pytest.raises(CheckpointError, match=r"has lr 0.002 and not 0.5, seed 0 and not 3; rep"):
        fit(config(gratings, unfinished, lr=0.5, seed=3))
    with monkeypatch.context() as patch:
        patch.setattr(configs, "fingerprint", lambda _: "0123")
        with pytest.raises(CheckpointError, match=r"training data '.*' and not '0123', test data"):
            fit(config(gratings, unfinished))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        with pytest.raises(CheckpointError, match=r"torch .* and not '9.9'"):
            fit(config(gratings, unfinished))
    assert (unfinished / resume.FILE_NAME).read_bytes() == before


def test_a_damaged_state_is_named(gratings, unfinished):
    state = unfinished / resume.FILE_NAME
    state.write_bytes(state.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match=r"fit_state.h5: no run .* delete it to start over"):
        fit(config(gratings, unfinished))


def test_data_are_known_by_their_frames(gratings, tmp_path):
    with source_split(gratings) as split:
        digest = source.fingerprint(split)
    for kind in ("clean", "noise"):
        path = gratings / "train" / f"graphene_img_{kind}.h5"
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / path.name).write_bytes(path.read_bytes())
    with source_split(tmp_path) as split:
        assert source.fingerprint(split) == digest
    with h5py.File(tmp_path / "train" / "graphene_img_clean.h5", "r+") as file:
        file["images"][31, 5, 5] += 1
    with source_split(tmp_path) as split:
        assert source.fingerprint(split) != digest


def source_split(path):
    return fitting.open_split(path, "train")


def test_saving_takes_less_than_two_percent(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(resume.time, "perf_counter", lambda: clock[0])
    state = resume.StateFile(tmp_path / resume.FILE_NAME, {})
    clock[0] = resume.EVERY_S + 1
    assert state.due()
    call_at(monkeypatch, resume.os, "fsync", 1, lambda: clock.insert(0, clock[0] + 4.0))
    state.save()
    clock[0] += resume.EVERY_S + 1
    assert not state.due()
    clock[0] += 50 * 4.0 - resume.EVERY_S
    assert state.due()


def test_a_time_limit_counts_the_parts_of_a_run_together(gratings, tmp_path, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(fitting.time, "perf_counter", lambda: float(next(ticks)))
    options = {"models": ("ffdnet",), "epochs": 10_000, "max_minutes": 1.0}
    (once,) = fit(config(gratings, tmp_path / "whole", **options))
    steps = once.history[-1]["step"]
    with monkeypatch.context() as patch:
        call_at(patch, source.Simulated, "batch", steps // 2, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(config(gratings, tmp_path / "cut", **options))
    (twice,) = fit(config(gratings, tmp_path / "cut", **options))
    assert steps > 15
    assert abs(twice.history[-1]["step"] - steps) <= 1
    assert twice.history[-1]["seconds"] == pytest.approx(60, abs=3)
    assert twice.history[-1]["lr"] < 0.05 * 2e-3
    assert math.isfinite(twice.history[-1]["gain_db"])
