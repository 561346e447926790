"""A run that is stopped at any moment goes on to the result of one that never was."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from emdn_models import CheckpointError, ModelError, OutputError, checkpoint, pretrained
from emdn_models.nets import build
from emdn_train import checkpointing, dataset, patches, results
from emdn_train import fit as fitting
from emdn_train.checkpointing import FILE_NAME, StateFile, start_from
from emdn_train.config import FitConfig
from emdn_train.fit import fit

pytestmark = pytest.mark.usefixtures("_no_pictures", "_tiny_net")
BATCH = patches.Simulated, "batch"


class Killed(BaseException):
    """Ends a run where nothing catches it, as SIGKILL would."""


@pytest.fixture
def config(config, tmp_path):
    """Six steps of each of two models: two epochs of three."""

    def changed(out=tmp_path, **changes) -> FitConfig:
        options = {"models": ("tiny", "small"), "recipe": "quality", "batch_size": 12, "patch": 16}
        return config(out, **(options | changes))

    return changed


@pytest.fixture
def whole(config, tmp_path_factory):
    """The result of a run that was not stopped."""
    out = tmp_path_factory.mktemp("whole")
    fit(config(out))
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
    ("place", "call"),
    [
        (BATCH, 3),  # within an epoch
        (BATCH, 4),  # at the start of one
        ((fitting, "evaluate"), 3),  # after the last step
        ((results, "weights"), 1),  # before the weights are written
        ((results, "write_results"), 1),  # after that
        ((checkpointing.os, "replace"), 3),  # while the state is being written
        (BATCH, 9),  # within the second model
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    config, whole, tmp_path, monkeypatch, place, call
):
    monkeypatch.setattr(StateFile, "due", lambda _: True)
    with monkeypatch.context() as patch:
        call_at(patch, *place, call, die)
        with pytest.raises(Killed):
            fit(config())
    fit(config())
    assert_same(result(tmp_path), whole)
    assert not list(tmp_path.glob("fit_state*"))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("options", [
    {"preset": "paper", "recipe": "benchmark"},  # with batch norm
    pytest.param({"models": ("unet",)}, marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_nets_of_all_kinds_go_on(config, tmp_path, monkeypatch, options):
    fit(config(tmp_path / "whole", **options))
    monkeypatch.setattr(StateFile, "due", lambda _: True)
    with monkeypatch.context() as patch:
        call_at(patch, *BATCH, 5, die)
        with pytest.raises(Killed):
            fit(config(tmp_path / "cut", **options))
    fit(config(tmp_path / "cut", **options))
    assert_same(result(tmp_path / "cut"), result(tmp_path / "whole"))


def test_a_full_disk_is_one_error_and_the_run_goes_on(config, whole, tmp_path, monkeypatch, room):
    monkeypatch.setattr(StateFile, "due", lambda _: True)
    for size in (0, 100, 5000, 20_000):
        with room(size), pytest.raises(OutputError, match=r"cannot be written \(File too large\)"):
            fit(config())
        assert not list(tmp_path.glob("*.partial"))
    fit(config())
    assert_same(result(tmp_path), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(config, whole, tmp_path, monkeypatch, caplog, number):
    caplog.set_level("INFO")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        call_at(patch, *BATCH, 8, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            fit(config())
    assert signal.getsignal(number) is before
    assert caplog.messages[-1] == (
        "small: stopped after step 2 and saved; repeat the command to continue"
    )
    fit(config())
    assert "tiny: fitted before, not fitted again" in caplog.messages
    assert "small: continuing after step 2" in caplog.messages
    assert_same(result(tmp_path), whole)


def test_a_run_of_other_options_or_a_damaged_one_is_refused(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        call_at(patch, *BATCH, 2, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(config())
    state = tmp_path / FILE_NAME
    before = state.read_bytes()
    with pytest.raises(CheckpointError, match=r"has lr 0.001 and not 0.5, seed 0 and not 3; rep"):
        fit(config(lr=0.5, seed=3))
    for owner, name, other, message in (
        (dataset.Split, "fingerprint", lambda _: "0123", "training data '.*' and not '0123', test"),
        (torch, "__version__", "9.9", "torch .* and not '9.9'"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            with pytest.raises(CheckpointError, match=message):
                fit(config())
    assert state.read_bytes() == before
    state.write_bytes(before[:3000])
    with pytest.raises(CheckpointError, match=r"fit_state.h5: no run .* delete it to start over"):
        fit(config())


def test_a_time_limit_counts_the_parts_of_a_run_together(config, tmp_path, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(fitting.time, "perf_counter", lambda: float(next(ticks)))
    options = {"models": ("tiny",), "epochs": 10_000, "max_minutes": 1.0}
    (once,) = fit(config(tmp_path / "whole", **options))
    steps = once.history[-1]["step"]
    with monkeypatch.context() as patch:
        call_at(patch, *BATCH, steps // 2, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(config(tmp_path / "cut", **options))
    (twice,) = fit(config(tmp_path / "cut", **options))
    assert steps > 10
    assert abs(twice.history[-1]["step"] - steps) <= 1
    assert twice.history[-1]["seconds"] == pytest.approx(60, abs=3)
    assert twice.history[-1]["lr"] < 0.05 * 1e-3


def drawn(name, seed):
    torch.manual_seed(seed)
    state = {key: value.numpy() for key, value in build(name).state_dict().items()}
    return checkpoint.Weights("shipped", state, {"status": "fitted", "recipe": {"steps": seed}})


def test_a_start_is_the_model_s_own_then_that_of_all_frames(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "from.h5"
    models = {"tiny": drawn("tiny", 4)}
    for name, seed, recipe in (("tiny@stem", 4, {"steps": 4, "model": "tiny"}),
                               ("tiny", 4, {"steps": 4}),
                               ("small@stem", 5, {"steps": 5})):  # fmt: skip
        models |= {"small@stem": drawn("small", 5)} if seed == 5 else {}
        checkpoint.save(path, models)
        net = build(name.partition("@")[0])
        assert start_from(net, name, FitConfig(start=path)) == recipe
        for key, value in net.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), drawn("tiny", seed).state[key])
    assert f"tiny@stem: starts from tiny of {path}" in caplog.messages
    with pytest.raises(ModelError, match="paper"):
        start_from(net, "tiny", FitConfig(start=path, preset="paper"))
    with pytest.raises(ModelError, match="holds no model 'unet'; it holds small@stem, tiny"):
        start_from(build("unet"), "unet", FitConfig(start=path))


def test_shipped_weights_are_a_start_by_name(tmp_path, monkeypatch):
    net = build("ffdnet")
    start_from(net, "ffdnet", FitConfig(start="shipped"))
    state = checkpoint.load(pretrained.CHECKPOINT)["ffdnet"].state
    assert all((state[key] == value.numpy()).all() for key, value in net.state_dict().items())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped").touch()  # a file of that name comes first
    with pytest.raises(CheckpointError):
        start_from(net, "ffdnet", FitConfig(start="shipped"))
