"""Layers that count for nothing: found by their gradient, named, and drawn anew at a start."""

import pytest
import torch
from torch import nn

from emdn_models import MODELS, checkpoint
from emdn_models.nets import build
from emdn_train.batches import Specimens
from emdn_train.config import FitConfig
from emdn_train.data import open_split
from emdn_train.fit import fit
from emdn_train.idle import idle, redraw, told
from emdn_train.recipes import RECIPES
from emdn_train.validate import LEVELS, validation

QUALITY = RECIPES["quality"]


@pytest.fixture(scope="module")
def held(gratings):
    with open_split(gratings, "test") as split:
        return validation(Specimens.of(split), LEVELS, 2, 32, 0)


def drawn(name):
    torch.manual_seed(5)
    return build(name)


def kill(net):
    """Let the U-Net's deepest joining layer be negative whatever comes in, which is never so."""
    inner = net.net
    with torch.no_grad():
        inner.up[0][0].weight.fill_(-1.0)
        inner.up[0][0].bias.fill_(-1.0)
        inner.up[0][2].bias.fill_(0.1)
        nn.init.normal_(inner.up[1][0].weight, std=0.05)
        nn.init.normal_(inner.last.weight, std=0.05)
    return net


@pytest.mark.parametrize("name", MODELS)
def test_of_a_net_as_drawn_nothing_is_idle(held, name):
    assert idle(drawn(name), QUALITY, held) == []


def test_all_that_a_dead_layer_cuts_off_is_named(held):
    net = kill(drawn("unet"))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    names = idle(net.train(), QUALITY, held)
    # What lies below it, itself and what it feeds; the bias of the latter still adds a constant.
    assert {name.rsplit(".", 2)[0] for name in names} == {"net.down.1", "net.down.2", "net.up.0"}
    assert "net.up.0.2.weight" in names
    assert "net.up.0.2.bias" not in names
    assert net.training
    assert all(value.grad is None for value in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert (
        told(names)
        == "net.down.1.0, net.down.1.2, net.down.2.0, net.down.2.2, net.up.0.0, net.up.0.2"
    )


def test_without_frames_nothing_is_found():
    assert idle(kill(drawn("unet")), QUALITY, []) == []


def test_only_what_is_named_is_drawn_anew(held):
    net, fresh = kill(drawn("unet")), drawn("unet").state_dict()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    names = idle(net, QUALITY, held)
    redraw(net, names, fresh)
    for name, value in net.state_dict().items():
        assert torch.equal(value, fresh[name] if name in names else before[name]), name


def test_a_fit_that_starts_from_dead_layers_revives_and_records_them(gratings, tmp_path, caplog):
    state = {key: value.numpy() for key, value in kill(drawn("unet")).state_dict().items()}
    path = tmp_path / checkpoint.FILE_NAME
    checkpoint.save(path, {"unet": checkpoint.Weights("shipped", state, {})})
    config = FitConfig(
        data=gratings, out=tmp_path / "out", models=("unet",), recipe="quality", start=str(path),
        patch=32, batch_size=16, epochs=1, device="cpu",
    )  # fmt: skip
    fit(config)
    assert any(
        "net.down.2.0, net.down.2.2" in text and "drawn anew" in text for text in caplog.messages
    )
    assert not any("count for nothing; --from" in text for text in caplog.messages)
    saved = checkpoint.load(tmp_path / "out" / checkpoint.FILE_NAME)["unet"]
    redrawn = saved.metadata["recipe"]["start"]["redrawn"]
    assert "net.up.0.0.weight" in redrawn
    assert saved.state["net.up.0.0.weight"].any()


def test_a_fit_that_ends_with_dead_layers_says_so(gratings, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("emdn_train.fit.build", lambda name, preset: kill(drawn(name)))
    config = FitConfig(
        data=gratings, out=tmp_path, models=("unet",), patch=32, batch_size=16, epochs=1, lr=1e-6,
        device="cpu",
    )  # fmt: skip
    fit(config)
    assert any("count for nothing; --from draws them anew" in text for text in caplog.messages)
