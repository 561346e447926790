"""The training loop: what it learns, what it leaves behind, and how it fails."""

import json
import math
import os
import signal
from contextlib import nullcontext
from dataclasses import replace

import polars as pl
import pytest
import torch
from torch import nn

from emdn_models import MODELS, DeviceError, ModelError, OutputError, checkpoint
from emdn_models.files import locked
from emdn_models.nets import build
from emdn_train import fit as fitting
from emdn_train.batches import Specimens
from emdn_train.config import warm_up
from emdn_train.data import open_split
from emdn_train.fit import FitConfig, fit
from emdn_train.parallel import Processes, pick_device
from emdn_train.recipes import RECIPES, loss, memory_format, rate, reduced
from emdn_train.validate import LEVELS, SEED, evaluate, validation

CPU = torch.device("cpu")


def config(gratings, out, **changes) -> FitConfig:
    defaults = {
        "data": gratings, "out": out, "models": ("ffdnet",), "batch_size": 16, "patch": 32,
        "epochs": 2, "device": "cpu", "lr": 1e-3,
    }  # fmt: skip
    return FitConfig(**(defaults | changes))


def test_defaults_are_the_benchmarks():
    default = FitConfig()
    assert (default.batch_size, default.epochs) == (128, 2)
    assert default.recipe == "benchmark"
    assert RECIPES["benchmark"].lr == 0.01
    assert len(default.models) == 7


def test_a_run_leaves_everything_behind(gratings, tmp_path):
    results = fit(config(gratings, tmp_path, models=("ffdnet", "msdnet")))
    assert [result.status for result in results] == ["fitted", "fitted"]
    weights = checkpoint.load(tmp_path / "em_denoise_model.h5")
    assert list(weights) == ["ffdnet", "msdnet"]
    assert weights["ffdnet"].metadata["recipe"]["steps"] == 4
    assert weights["ffdnet"].metadata["recipe"]["recipe_details"]["lr"] == 1e-3
    history = pl.read_csv(tmp_path / "history.csv")
    assert history["model"].to_list() == ["ffdnet"] * 2 + ["msdnet"] * 2
    assert history["epoch"].to_list() == [1, 2, 1, 2]
    assert history["loss"].is_finite().all()
    arguments = json.loads((tmp_path / "arguments.json").read_text())
    assert arguments["msdnet"]["batch_size"] == 16
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["ffdnet"]["gain_db"]) == {"0.12", "0.4", "1.2"}
    throughput = json.loads((tmp_path / "throughput.json").read_text())
    assert throughput["ffdnet"]["images_per_s"] > 0
    assert throughput["ffdnet"]["versions"]["torch"] == torch.__version__
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.partial"))


def test_a_second_run_keeps_the_other_models(gratings, tmp_path):
    fit(config(gratings, tmp_path, models=("ffdnet", "msdnet"), epochs=1))
    before = checkpoint.load(tmp_path / "em_denoise_model.h5")
    fit(config(gratings, tmp_path, models=("msdnet",), epochs=2, seed=1))
    after = checkpoint.load(tmp_path / "em_denoise_model.h5")
    key = "net.layers.0.weight"
    assert (before["ffdnet"].state[key] == after["ffdnet"].state[key]).all()
    assert (before["msdnet"].state[key] != after["msdnet"].state[key]).any()
    assert pl.read_csv(tmp_path / "history.csv")["model"].to_list() == ["ffdnet"] + ["msdnet"] * 2
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"ffdnet", "msdnet"}


@pytest.mark.slow
def test_one_seed_gives_one_result(gratings, tmp_path):
    states = [_state(gratings, tmp_path / str(n), seed) for n, seed in enumerate((4, 4, 5))]
    assert (states[0] == states[1]).all()
    assert (states[0] != states[2]).any()


def _state(gratings, out, seed):
    fit(config(gratings, out, seed=seed))
    return checkpoint.load(out / "em_denoise_model.h5")["ffdnet"].state["net.layers.2.weight"]


def test_it_learns(gratings, tmp_path):
    (result,) = fit(
        config(
            gratings, tmp_path, models=("unet",), recipe="quality", lr=4e-3, epochs=12, batch_size=8
        )
    )
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert sum(result.gain_db.values()) / 3 > 1.5
    assert result.mean_ratio == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_starting_from_a_checkpoint_goes_on_where_it_was(gratings, tmp_path):
    fit(config(gratings, tmp_path / "a", epochs=3))
    saved = tmp_path / "a" / "em_denoise_model.h5"
    net = build("ffdnet")
    fitting.start_from(net, "ffdnet", config(gratings, tmp_path, start=saved))
    state = checkpoint.load(saved)["ffdnet"].state
    assert all((state[key] == value.numpy()).all() for key, value in net.state_dict().items())
    fit(config(gratings, tmp_path / "c", epochs=1, start=saved))
    recipe = checkpoint.load(tmp_path / "c" / "em_denoise_model.h5")["ffdnet"].metadata["recipe"]
    assert recipe["start"]["steps"] == 6
    assert recipe["start"]["start"] is None
    with pytest.raises(ModelError, match="paper"):
        fitting.start_from(net, "ffdnet", config(gratings, tmp_path, start=saved, preset="paper"))
    with pytest.raises(ModelError, match="holds no model 'unet'"):
        fit(config(gratings, tmp_path / "b", models=("unet",), start=saved))


def test_a_time_limit_completes_the_schedule(gratings, tmp_path, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(fitting.time, "perf_counter", lambda: float(next(ticks)))
    (result,) = fit(
        config(gratings, tmp_path, recipe="quality", epochs=100_000, max_minutes=1.0, lr=1e-3)
    )
    last = result.history[-1]
    assert last["seconds"] == pytest.approx(60, abs=4)
    assert last["lr"] < 0.3 * 1e-3
    assert last["gain_db"] is not None


def test_divergence_is_named_and_not_saved(gratings, tmp_path):
    (result,) = fit(config(gratings, tmp_path, models=("rednet",), lr=1e6))
    assert result.status == "diverged"
    assert not (tmp_path / "em_denoise_model.h5").exists()


def test_outcomes_are_named_by_their_gain():
    outcomes = [fitting.judge(gain) for gain in (3.0, -0.1, -19.0, -21.0, math.nan)]
    assert outcomes == ["fitted", "no gain", "no gain", "diverged", "diverged"]
    later = [fitting.judge(gain, 3.0) for gain in (3.1, 2.96, 2.9, -1.0, -21.0, math.nan)]
    assert later == ["fitted", "fitted", "best kept", "best kept", "diverged", "diverged"]
    # A start that is no better than the noisy frame is not worth keeping.
    assert [fitting.judge(gain, -1.0) for gain in (1.0, -2.0)] == ["fitted", "no gain"]


@pytest.mark.parametrize("cut", [False, True])
def test_what_ends_worse_than_it_started_leaves_its_start(gratings, tmp_path, monkeypatch, cut):
    """Also if the run was stopped and continued on the way."""
    monkeypatch.setattr(fitting, "warm_up", lambda *_: 1.0)
    options = {"lr": 0.01, "epochs": 1}
    if cut:
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "signals_noted", lambda: nullcontext([signal.SIGINT]))
            with pytest.raises(KeyboardInterrupt):
                fit(config(gratings, tmp_path, **options))
    (result,) = fit(config(gratings, tmp_path, **options))
    assert result.status == "best kept"
    before, after = (sum(gains.values()) / 3 for gains in (result.start_db, result.gain_db))
    assert after < before - 0.05
    assert before > 3
    saved = checkpoint.load(tmp_path / "em_denoise_model.h5")["ffdnet"]
    torch.manual_seed(0)
    for key, value in build("ffdnet").state_dict().items():
        assert (saved.state[key] == value.numpy()).all(), key
    assert saved.metadata["status"] == "best kept"
    assert saved.metadata["validation"]["gain_db"] == pytest.approx(result.start_db, abs=0.01)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["ffdnet"]
    assert metrics["start_db"] == result.start_db == result.best_db
    assert result.best_step == 0
    assert metrics["gain_db"] == result.gain_db


def test_what_ends_worse_than_an_epoch_before_leaves_that(gratings, tmp_path, monkeypatch):
    """The learning rate rises to what throws the net away, in the second of two epochs."""
    monkeypatch.setattr(fitting, "warm_up", lambda _, step: 1.0 if step < 2 else 60.0)
    (result,) = fit(config(gratings, tmp_path, lr=1e-3))
    assert (result.status, result.best_step) == ("best kept", 2)
    before, best, after = (
        sum(gains.values()) / 3 for gains in (result.start_db, result.best_db, result.gain_db)
    )
    assert after < before < best == result.history[0]["gain_db"]
    saved = checkpoint.load(tmp_path / "em_denoise_model.h5")["ffdnet"]
    assert saved.metadata["recipe"]["kept_step"] == 2
    assert saved.metadata["validation"]["gain_db"] == pytest.approx(result.best_db, abs=0.01)
    net = build("ffdnet")
    net.load_state_dict({key: torch.from_numpy(value) for key, value in saved.state.items()})
    with open_split(gratings, "test") as split:
        held = validation(Specimens.of(split), LEVELS, 16, 256, SEED)
    assert evaluate(net, held, CPU)[0] == pytest.approx(result.best_db, abs=1e-3)


def test_the_benchmarks_learning_rate_is_reached_after_a_rise():
    benchmark, quality = RECIPES["benchmark"], RECIPES["quality"]
    steps = [0, 50, 100, 10_000]
    assert [warm_up(benchmark, step) for step in steps] == pytest.approx([1e-3, 10**-1.5, 1, 1])
    assert [warm_up(quality, step) for step in steps] == [1, 1, 1, 1]


def test_a_forecast_counts_every_step_of_every_net(gratings, tmp_path, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(fitting.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(fitting, "micro_batch", lambda *_: 4)
    asked = config(gratings, tmp_path, models=("ffdnet", "unet"), batch_size=16, epochs=3)
    # A tick for 4 patches: 4 a step, 2 steps an epoch.
    seconds = fitting.forecast(asked.names, 32, asked, RECIPES["benchmark"], Processes(CPU))
    assert seconds == 2 * 3 * 2 * 4
    limited = replace(asked, max_minutes=0.25)
    seconds = fitting.forecast(asked.names, 32, limited, RECIPES["benchmark"], Processes(CPU))
    assert seconds == 2 * 15


def test_a_second_fit_into_the_folder_is_told_who_is_at_work(gratings, tmp_path, caplog):
    fit(config(gratings, tmp_path, epochs=1))
    before = (tmp_path / "em_denoise_model.h5").read_bytes()
    with (
        locked(tmp_path / "fit.lock", tmp_path),
        pytest.raises(OutputError, match=rf"{tmp_path}: process {os.getpid()} on .* is at work"),
    ):
        fit(config(gratings, tmp_path, models=("msdnet",)))
    assert (tmp_path / "em_denoise_model.h5").read_bytes() == before
    assert not (tmp_path / "fit.lock").exists()


def test_a_loss_that_is_not_finite_ends_the_model(gratings, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "loss", lambda *_: torch.tensor(math.nan, requires_grad=True))
    (result,) = fit(config(gratings, tmp_path))
    assert result.status == "diverged"
    assert not (tmp_path / "em_denoise_model.h5").exists()
    assert json.loads((tmp_path / "metrics.json").read_text())["ffdnet"]["status"] == "diverged"


def test_unknown_names_are_told_at_once(gratings, tmp_path):
    with pytest.raises(ModelError, match="no model is called 'resnet'"):
        config(gratings, tmp_path, models=("resnet",))
    with pytest.raises(ModelError, match="benchmark, quality"):
        config(gratings, tmp_path, recipe="best")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the refusal without a GPU")
def test_cuda_is_never_replaced_silently():
    assert pick_device("auto").type == "cpu"
    with pytest.raises(DeviceError, match="--device cpu"):
        pick_device("cuda")


class _Known(nn.Module):
    """Returns its input moved a share of the way towards a known answer."""

    def __init__(self, answers, share):
        super().__init__()
        self.answers, self.share, self.calls = answers, share, 0

    def forward(self, x, noise=None):
        y = self.answers[self.calls]
        self.calls += 1
        return x + self.share * (y - x)


@pytest.mark.parametrize(("share", "gain"), [(0.0, 0.0), (0.9, 20.0)])
def test_evaluate_measures_decibels_over_the_noisy_frame(gratings, share, gain):
    with open_split(gratings, "test") as split:
        held = validation(Specimens.of(split), LEVELS, 4, 64, seed=0)
    answers = [(b.target - b.scale) / b.scale.sqrt() for b in held]
    gains, ratio = evaluate(_Known(answers, share), held, CPU)
    assert list(gains.values()) == pytest.approx([gain] * 3, abs=0.01)
    assert ratio == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_runs_of_any_seed_are_validated_on_the_same_noise(gratings, tmp_path, monkeypatch):
    seen = []

    def kept(*arguments):
        seen.append(validation(*arguments))
        return seen[-1]

    monkeypatch.setattr(fitting, "validation", kept)
    for seed in (0, 1):
        fit(config(gratings, tmp_path / str(seed), seed=seed, epochs=1))
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one.noisy, other.noisy)


@pytest.mark.parametrize("name", ["cafcn", "dncnn", "ffdnet", "unet", "rednet", "msdnet"])
def test_micro_batches_add_up_to_the_batch(name):
    torch.manual_seed(0)
    net, x, y = build(name), torch.randn(6, 1, 32, 32), torch.randn(6, 1, 32, 32)
    noise, recipe = torch.ones(6, 1, 32, 32), RECIPES["quality"]
    loss(recipe, net, x, y, noise).backward()
    whole = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for part in (slice(0, 4), slice(4, 6)):
        (loss(recipe, net, x[part], y[part], noise[part]) * len(x[part]) / 6).backward()
    for expected, p in zip(whole, net.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected, atol=2e-4, rtol=1e-3)


def test_deep_supervision_reaches_every_scale():
    net, x = build("mcnn"), torch.randn(2, 1, 64, 64)
    loss(RECIPES["benchmark"], net, x, x, torch.ones_like(x)).backward()
    assert all(head.conv.weight.grad.abs().sum() > 0 for head in net.net.heads)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_is_for_the_net_and_not_for_the_loss(name):
    torch.manual_seed(0)
    net, x = build(name), torch.randn(2, 1, 128, 128)
    y, noise, recipe, seen = 0.1 * x, torch.ones_like(x), RECIPES["quality"], []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.05)  # a last layer of zeros would hide the type
            layer.register_forward_hook(lambda *hooked: seen.append(hooked[2].dtype))
    whole = loss(recipe, net, x, y, noise)
    assert set(seen) == {torch.float32}
    seen.clear()
    half = loss(recipe, net, x, y, noise, True)
    assert set(seen) == {torch.bfloat16}
    assert half.dtype == torch.float32
    half.backward()
    # bfloat16 has eight bits.
    assert half.item() == pytest.approx(whole.item(), abs=0.03)
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.float32}


def test_half_precision_learns_the_same(gratings, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "reduced", lambda *_: False)
    (whole,) = fit(config(gratings, tmp_path / "whole", recipe="quality", epochs=4))
    monkeypatch.setattr(fitting, "reduced", lambda *_: True)
    (half,) = fit(config(gratings, tmp_path / "half", recipe="quality", epochs=4))
    losses = [[row["loss"] for row in result.history] for result in (whole, half)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.03)
    assert half.gain_db == pytest.approx(whole.gain_db, abs=0.1)


@pytest.mark.parametrize("fast", [False, True])
def test_half_precision_is_for_quality_where_it_is_faster(fast, monkeypatch):
    monkeypatch.setattr("emdn_train.recipes._multiplies_bfloat16", lambda: fast)
    gpu, quality, benchmark = torch.device("cuda", 0), RECIPES["quality"], RECIPES["benchmark"]
    assert [reduced(r, d) for r in (quality, benchmark) for d in (gpu, CPU)] == [
        True,
        fast,
        False,
        False,
    ]
    last, plain = torch.channels_last, torch.contiguous_format
    formats = [memory_format(r, d) for r in (quality, benchmark) for d in (gpu, CPU)]
    assert formats == [last, last, plain, last]


def test_schedules():
    quality, benchmark = RECIPES["quality"], RECIPES["benchmark"]
    assert [rate(benchmark, p) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]
    assert rate(quality, 0.0) < 0.05
    assert rate(quality, quality.warmup) == pytest.approx(1)
    assert rate(quality, 1.0) == pytest.approx(0.01)
