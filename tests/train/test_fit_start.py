"""Starting from the weights of another model: what is taken, and what is recorded."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from emdn_models import ModelError, checkpoint
from emdn_models.nets import build
from emdn_train.config import FitConfig
from emdn_train.fit import fit
from emdn_train.start import split_start, start_from, transplant


def chain(*channels, bias=True):
    torch.manual_seed(sum(channels))
    net = nn.Sequential(*(nn.Conv2d(a, b, 3, bias=bias) for a, b in pairwise(channels)))
    for layer in net:
        nn.init.normal_(layer.weight)
        if bias:
            nn.init.normal_(layer.bias)
    return net


def test_convolutions_go_in_order_where_shapes_are_equal():
    net, source = chain(2, 5, 5, 5, 1), chain(1, 5, 5, 5, 5, 1)
    first = net[0].weight.clone()
    assert transplant(net, source) == (3, 4)
    assert torch.equal(net[0].weight, first)
    for to, of in ((1, 1), (2, 2), (3, 4)):
        assert torch.equal(net[to].weight, source[of].weight)
        assert torch.equal(net[to].bias, source[of].bias)


def test_a_longer_net_keeps_the_rest_as_drawn():
    net, source = chain(1, 5, 5, 5), chain(1, 5, 5, bias=False)
    bias, last = net[0].bias.clone(), net[2].weight.clone()
    assert transplant(net, source) == (2, 3)
    assert torch.equal(net[1].weight, source[1].weight)
    assert torch.equal(net[0].bias, bias)
    assert torch.equal(net[2].weight, last)


def test_a_transposed_convolution_is_another_kind():
    net, source = chain(4, 4), nn.Sequential(nn.ConvTranspose2d(4, 4, 3))
    assert transplant(net, source) == (0, 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A DnCNN and an MCNN as drawn, with a recipe."""
    path = tmp_path_factory.mktemp("saved") / checkpoint.FILE_NAME
    models = {}
    for name in ("dncnn", "mcnn"):
        torch.manual_seed(3)
        state = {key: value.numpy() for key, value in build(name).state_dict().items()}
        models[name] = checkpoint.Weights("shipped", state, {"recipe": {"steps": 7}})
    checkpoint.save(path, models)
    return path


def test_a_run_says_what_it_took(gratings, saved, tmp_path, caplog):
    caplog.set_level("INFO")
    config = FitConfig(
        data=gratings, out=tmp_path, models=("ffdnet",), start=f"{saved}:dncnn", patch=16,
        epochs=1, lr=1e-7, device="cpu",
    )  # fmt: skip
    net, dncnn = build("ffdnet"), checkpoint.load(saved)["dncnn"].state
    share = start_from(net, "ffdnet", config)["convolutions"]
    taken, count = (int(word) for word in share.split(" of "))
    assert 0 < taken < count
    assert any(
        torch.equal(value, torch.from_numpy(dncnn["net.layers.2.weight"]))
        for key, value in net.state_dict().items()
        if value.shape == dncnn["net.layers.2.weight"].shape
    )
    fit(config)
    assert f"ffdnet: {share} convolutions start from dncnn of {saved}" in caplog.messages
    recipe = checkpoint.load(tmp_path / checkpoint.FILE_NAME)["ffdnet"].metadata["recipe"]
    assert recipe["start"] == {
        "steps": 7, "model": "dncnn", "convolutions": share
    }  # fmt: skip


def test_nothing_to_take_is_an_error(gratings, saved, tmp_path):
    config = FitConfig(data=gratings, out=tmp_path, models=("dncnn",), start=f"{saved}:mcnn")
    with pytest.raises(ModelError, match=r"no convolution of mcnn \(shipped\) has the shape"):
        start_from(build("dncnn"), "dncnn", config)
    with pytest.raises(ModelError, match="holds no model 'unet'; it holds dncnn, mcnn"):
        start_from(
            build("dncnn"), "dncnn", FitConfig(data=gratings, out=tmp_path, start=f"{saved}:unet")
        )


def test_a_file_with_a_colon_is_a_file(tmp_path):
    assert split_start("a/b.h5:unet") == ("a/b.h5", "unet")
    assert split_start("C:/a.h5") == ("C:/a.h5", None)
    assert split_start("a/b.h5:resnet") == ("a/b.h5:resnet", None)
    (tmp_path / "x:unet").touch()
    assert split_start(str(tmp_path / "x:unet")) == (str(tmp_path / "x:unet"), None)
