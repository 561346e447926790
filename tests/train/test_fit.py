"""The training loop: what it learns, what it leaves behind, and how it fails."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from emdn_models import MODELS, ModelError, checkpoint, pretrained
from emdn_models.nets import build
from emdn_train import fit as fitting
from emdn_train.config import RECIPES
from emdn_train.dataset import CleanFrames, Split
from emdn_train.fit import FitConfig, begin, fit, judge
from emdn_train.loss import _smooth, evaluate, loss, ranking, rate, reduced, validation

CPU = torch.device("cpu")
BENCHMARK, QUALITY = RECIPES["benchmark"], RECIPES["quality"]
KEY = "layers.0.weight"


def saved(out):
    return checkpoint.load(out / "em_denoise_model.h5")


def mean(gains):
    return sum(gains.values()) / 3


def test_defaults_are_the_benchmarks():
    default = FitConfig()
    assert (default.batch_size, default.epochs, default.recipe) == (128, 2, "benchmark")
    assert BENCHMARK.lr == 0.01
    assert default.models == default.names == tuple(MODELS)
    assert FitConfig(models=("unet",), preset="movie").names == ("unet@movie",)


def test_a_run_leaves_everything_behind_and_keeps_other_models(config, tmp_path):
    fitted = fit(config(models=("tiny", "small")))
    assert [result.status for result in fitted] == ["fitted", "fitted"]
    before = saved(tmp_path)
    assert set(before) == {"tiny", "small"}
    recipe = before["tiny"].metadata["recipe"]
    assert (recipe["steps"], recipe["recipe_details"]["lr"]) == (4, 1e-3)
    assert recipe["data"] == "32 frames of 64 x 64"
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["small"]["arguments"]["batch_size"] == 16
    assert [row["epoch"] for row in metrics["tiny"]["history"]] == [1, 2]
    assert set(metrics["tiny"]["gain_db"]) == {"0.12", "0.4", "1.2"}
    assert metrics["tiny"]["images_per_s"] > 0
    assert metrics["tiny"]["where"]["versions"]["torch"] == torch.__version__
    for seed, same in ((0, True), (1, False)):
        fit(config(models=("small",), seed=seed))
        after = saved(tmp_path)
        assert (before["tiny"].state[KEY] == after["tiny"].state[KEY]).all()
        assert (before["small"].state[KEY] == after["small"].state[KEY]).all() == same
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"tiny", "small"}
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"em_denoise_model.h5", "metrics.json"}


def test_it_learns(config):
    (result,) = fit(config(recipe="quality", lr=2e-2, epochs=24, batch_size=8))
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert mean(result.gain_db) > mean(result.start_db)
    assert result.mean_ratio == pytest.approx(1, abs=0.05)


def test_divergence_is_named_and_not_saved(config, tmp_path):
    (result,) = fit(config(lr=1e9))
    assert result.status == "diverged"
    assert not (tmp_path / "em_denoise_model.h5").exists()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["tiny"]["status"] == "diverged"


@pytest.mark.parametrize(
    ("gain", "best", "weight", "status"),
    [
        (3.0, 2.0, 0.0, "fitted"),
        (2.96, 3.0, 0.0, "fitted"),
        (2.9, 3.0, 0.0, "best kept"),
        (2.9, 3.0, 30.0, "fitted"),  # what weighs defects gives up some gain
        (1.9, 3.0, 30.0, "best kept"),
        (-1.0, 3.0, 0.0, "best kept"),
        (-2.0, -1.0, 0.0, "no gain"),  # a start that is not worth saving
        (-21.0, 3.0, 0.0, "diverged"),
        (math.nan, 3.0, 0.0, "diverged"),
    ],
)
def test_outcomes_are_named_by_their_gain(monkeypatch, gain, best, weight, status):
    monkeypatch.setattr(fitting, "evaluate", lambda *_: ({"0.4": gain}, 1.0))
    net = nn.Linear(1, 1)
    t = SimpleNamespace(name="", net=net, average=net, best=net.state_dict(),
                        best_db={"0.4": best}, history=[{}])  # fmt: skip
    judge(t, replace(QUALITY, defects=weight), {}, finite=True)
    assert t.status == status


def test_what_ends_worse_than_it_started_leaves_its_start(config, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "rate", lambda *_: 1.0)
    (result,) = fit(config(models=("ffdnet",), lr=0.01, epochs=1))
    assert (result.status, result.best_step) == ("best kept", 0)
    assert mean(result.gain_db) < mean(result.start_db) - 0.05
    weights = saved(tmp_path)["ffdnet"]
    torch.manual_seed(0)
    for key, value in build("ffdnet").state_dict().items():
        assert (weights.state[key] == value.numpy()).all(), key
    assert weights.metadata["status"] == "best kept"
    assert weights.metadata["recipe"]["kept_step"] == 0
    assert weights.metadata["validation"]["gain_db"] == pytest.approx(result.start_db, abs=0.01)


def test_schedules_rise_and_fall():
    steps = [0, 50, 100, 10_000]
    rising = [rate(BENCHMARK, 0.5, step) for step in steps]
    assert rising == pytest.approx([1e-3, 10**-1.5, 1, 1])
    assert rate(BENCHMARK, 1.0, 10**6) == 1
    assert rate(QUALITY, 0.0, 0) < 0.05
    assert rate(QUALITY, QUALITY.warmup, 50) == pytest.approx(1)
    assert rate(QUALITY, 1.0, 50) == pytest.approx(0.01)


class _Known(nn.Module):
    """Returns its input moved a share of the way towards a known answer."""

    def __init__(self, answers, share):
        super().__init__()
        self.answers, self.share = iter(answers), share

    def forward(self, x, noise=None):
        return x + self.share * (next(self.answers) - x)


@pytest.mark.parametrize(("share", "gain"), [(0.0, 0.0), (0.9, 20.0)])
def test_evaluate_measures_decibels_over_the_noisy_frame(gratings, share, gain):
    with Split(gratings, "test") as split:
        held, again = (validation(CleanFrames(split)) for _ in range(2))
        clips = validation(CleanFrames(split), 5)
    assert all(torch.equal(held[level].noisy, again[level].noisy) for level in held)
    assert held[0.4].noisy.shape == (4, 1, 64, 64)
    assert clips[0.4].noisy.shape == (4, 5, 64, 64)
    assert held[1.2].scale.mean() == pytest.approx(100 * held[0.12].scale.mean().item(), rel=1e-4)
    answers = [(b.target - b.scale) / b.scale.sqrt() for b in held.values()]
    gains, ratio = evaluate(_Known(answers, share), held, CPU)
    assert list(gains.values()) == pytest.approx([gain] * 3, abs=0.01)
    assert ratio == pytest.approx(1, abs=0.02)


def test_pixels_at_defects_count_more():
    """Two halves with the same error: the one at the defect pulls as its weight says."""
    torch.manual_seed(0)
    net, x, noise = build("unet"), torch.randn(1, 1, 64, 64), torch.ones(1, 1, 64, 64)
    with torch.no_grad():
        clean = net(x, noise)
    near = torch.zeros(1, 3, 64, 64)
    near[:, 0, :, :32], near[:, 2] = 1.0, 0.02
    left, right = (clean.where((near[:, :1] == 1) == side, clean + 1) for side in (False, True))
    recipe = replace(QUALITY, loss="mse", defects=9.0)
    for marks, share in ((None, 1.0), (near, 10.0)):
        found = [
            loss(recipe, net, x, y, noise, marks=marks).item() - base
            for y, base in ((left, 0.0), (right, 0.0))
        ]
        assert found[0] / found[1] == pytest.approx(share, rel=1e-3)
        assert sum(found) == pytest.approx(1.0, rel=1e-3)


def test_ranking_falls_as_vacancies_stand_out():
    torch.manual_seed(0)
    places, lost = torch.arange(16, 256, 24), torch.arange(40, 256, 72)
    marks, spots = torch.zeros(2, 3, 256, 256), torch.zeros(2, 1, 256, 256)
    marks[:, 2], marks[:, 1, places[:, None], places] = 0.015, 1.0
    spots[:, 0, places[:, None], places] = 50.0
    full = _smooth(spots, 3.0)
    marks[:, 1, lost[:, None], lost], spots[:, 0, lost[:, None], lost] = 11.0, 0.0
    truth, noise = _smooth(spots, 3.0), 0.5 * torch.randn_like(full)
    seen = [full + share * (truth - full) + noise for share in (-0.1, 0.0, 0.1, 9.0)]
    wrong, chance, weak, clear = (ranking(one, truth, marks).item() for one in seen)
    assert wrong > chance > weak > 0.1 > clear
    assert chance == pytest.approx(1.15, abs=0.2)  # mean of log(1 + exp(1.7 (a - b))) of noise
    assert ranking(truth, truth, marks % 10) == 0  # nothing to find


@pytest.mark.parametrize("name", ["unet", "msdnet"])
def test_half_precision_is_for_the_net_and_not_for_the_loss(name):
    torch.manual_seed(0)
    net, x = build(name), torch.randn(2, 1, 128, 128)
    y, noise, seen = 0.1 * x, torch.ones_like(x), []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.05)  # a last layer of zeros would hide the type
            layer.register_forward_hook(lambda *hooked: seen.append(hooked[2].dtype))
    whole = loss(QUALITY, net, x, y, noise)
    assert set(seen) == {torch.float32}
    seen.clear()
    half = loss(QUALITY, net, x, y, noise, half=True)
    assert set(seen) == {torch.bfloat16}
    assert half.dtype == torch.float32
    half.backward()
    # bfloat16 has eight bits.
    assert half.item() == pytest.approx(whole.item(), abs=0.03)
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("fast", [False, True])
def test_half_precision_is_for_quality_where_it_is_faster(fast, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: fast)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    places = [(recipe, device) for recipe in (QUALITY, BENCHMARK)
              for device in (torch.device("cuda", 0), CPU)]  # fmt: skip
    assert [reduced(*place, build("dncnn")) for place in places] == [True, fast, False, False]
    # Of dilated convolutions on CPUs torch makes gradients that are NaN.
    assert [reduced(*place, build("msdnet")) for place in places] == [True, False, False, False]


def test_a_start_goes_on_but_for_its_spectral_estimate(config, tmp_path):
    path = tmp_path / "start" / checkpoint.FILE_NAME
    torch.manual_seed(3)
    state = {key: value.numpy() for key, value in build("dncnn").state_dict().items()}
    weights = checkpoint.Weights("shipped", state, {"recipe": {"steps": 7}})
    checkpoint.save(path, {"dncnn": weights})
    fit(config(models=("dncnn",), start=path, patch=16, epochs=1))
    after = saved(tmp_path)["dncnn"]
    assert after.metadata["recipe"]["start"] == {"steps": 7}
    changed = {key.split(".")[0] for key in state if np.any(state[key] != after.state[key])}
    assert changed == {"net"}
    with pytest.raises(ModelError, match="paper"):
        begin("dncnn", config(start=path, preset="paper"), QUALITY, CPU)
    with pytest.raises(ModelError, match="holds no model 'unet'; it holds dncnn"):
        begin("unet", config(start=path), QUALITY, CPU)
    shipped = begin("ffdnet", config(start="shipped"), QUALITY, CPU).net.state_dict()
    for key, value in checkpoint.load(pretrained.CHECKPOINT)["ffdnet"].state.items():
        assert (value == shipped[key].numpy()).all()
