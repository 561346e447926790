"""A run that is stopped at any moment goes on to the result of one that never was."""

import json
import os

import numpy as np
import pytest
import torch

from emdn_models import CheckpointError, OutputError, checkpoint
from emdn_train import dataset
from emdn_train import fit as fitting
from emdn_train.checkpointing import StateFile
from emdn_train.config import FitConfig
from emdn_train.fit import fit

pytestmark = pytest.mark.usefixtures("_tiny_net")
STEP = torch.nn.utils, "clip_grad_norm_"


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
    for known in metrics.values():
        for name in ("elapsed", "trained", "images_per_s", "arguments", "where"):
            del known[name]
        for row in known["history"]:
            del row["seconds"]
    return {name: weights.state for name, weights in models.items()}, metrics


def assert_same(found, expected):
    assert found[1] == expected[1]
    assert list(found[0]) == list(expected[0])
    for name, state in expected[0].items():
        for key, array in state.items():
            np.testing.assert_array_equal(found[0][name][key], array, err_msg=f"{name} {key}")


def killed_at(monkeypatch, owner, name, call, action):
    """End an action at the n-th call of a function, counted from one."""
    original, calls = getattr(owner, name), []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counted)
        with pytest.raises(Killed):
            action()


@pytest.mark.parametrize(
    ("place", "call"),
    [
        (STEP, 3),  # within an epoch
        (STEP, 4),  # at the start of one
        ((fitting, "evaluate"), 3),  # after the last step
        ((fitting, "save_weights"), 1),  # before the weights are written
        ((fitting, "write_results"), 1),  # after that
        ((os, "replace"), 3),  # while the state is being written
        (STEP, 9),  # within the second model
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    config, whole, tmp_path, monkeypatch, place, call
):
    monkeypatch.setattr(StateFile, "due", lambda _: True)
    killed_at(monkeypatch, *place, call, lambda: fit(config()))
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
    killed_at(monkeypatch, *STEP, 5, lambda: fit(config(tmp_path / "cut", **options)))
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


def test_a_run_of_other_options_or_a_damaged_one_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(StateFile, "due", lambda _: True)
    killed_at(monkeypatch, *STEP, 2, lambda: fit(config()))
    state = tmp_path / "fit_state.h5"
    before = state.read_bytes()
    with pytest.raises(CheckpointError, match=r"has lr 0.001 and not 0.5, seed 0 and not 3; rep"):
        fit(config(lr=0.5, seed=3))
    with monkeypatch.context() as patch:
        patch.setattr(dataset.Split, "fingerprint", lambda _: "0123")
        patch.setattr(torch, "__version__", "9.9")
        with pytest.raises(CheckpointError, match="and not '0123'") as refused:
            fit(config())
    assert "and not '9.9'" in str(refused.value)
    assert state.read_bytes() == before
    state.write_bytes(before[:3000])
    with pytest.raises(CheckpointError, match=r"fit_state.h5: no run .* delete it to start over"):
        fit(config())


def test_a_time_limit_counts_the_parts_of_a_run_together(config, tmp_path, monkeypatch):
    monkeypatch.setattr(StateFile, "due", lambda _: True)
    ticks = iter(range(10**6))
    monkeypatch.setattr(fitting.time, "perf_counter", lambda: float(next(ticks)))
    options = {"models": ("tiny",), "epochs": 10_000, "max_minutes": 1.0}
    (once,) = fit(config(tmp_path / "whole", **options))
    cut = config(tmp_path / "cut", **options)
    killed_at(monkeypatch, *STEP, once.step // 2, lambda: fit(cut))
    (twice,) = fit(cut)
    assert once.step > 10
    assert abs(twice.step - once.step) <= 1
    assert twice.elapsed == pytest.approx(60, abs=3)
    assert twice.history[-1]["lr"] < 0.05 * 1e-3
