"""Small graphs whose fields are known, and such as must not be cut into tiles."""

import logging
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from emdn_models import ModelError
from emdn_models.nets import build
from emdn_models.nets.blocks import pad_to_multiple
from emdn_models.nets.spectral import FittedGain, SpectralShrinkage
from emdn_train.field import described, receptive_field
from emdn_train.field.values import NotLocalError
from emdn_train.graph import Graph, to_onnx


class Net(nn.Module):
    """A 3 x 3 convolution and what a test does with it."""

    def __init__(self, body, **layers):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.back = nn.Conv2d(4, 1, 1)
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x, noise=None):
        return self.back(self.body(self, self.conv(x)))


def graph_of(body, **layers):
    return to_onnx(Graph(Net(body, **layers)))


def plain(net, y):
    return y


def judging():
    """Return a shrinkage whose gains are no longer as they are drawn."""
    gain = FittedGain(8, 2)
    for weight in gain.parameters():
        nn.init.normal_(weight)
    return SpectralShrinkage(8, gain)


LOCAL = {
    "the convolution alone": (plain, {}, 1, (3, 3)),
    "a gap in the kernel": (
        lambda net, y: net.wide(y), {"wide": nn.Conv2d(4, 4, 3, padding=5, dilation=5)}, 1, (13, 13)
    ),
    "groups": (
        lambda net, y: net.deep(y), {"deep": nn.Conv2d(4, 4, 3, padding=1, groups=4)}, 1, (5, 5)
    ),
    "mirrored edges": (lambda net, y: functional.avg_pool2d(
        functional.pad(y, (2, 2, 2, 2), mode="reflect"), 5, 1), {}, 1, (7, 7)),
    "edges that are mirrored again and again": (lambda net, y: functional.avg_pool2d(
        pad_to_multiple(y, 8, margin=8), 17, 1), {}, 8, (19, 19)),
    "rows and columns of blocks times a matrix": (
        lambda net, y: (net.mix.weight @ (
            y.unflatten(3, (-1, 8)) @ net.mix.weight
        ).flatten(3).unflatten(2, (-1, 8))).flatten(2, 3), {"mix": nn.Linear(8, 8)}, 8, (10, 10)
    ),
    "spectra, judged by those of windows beside": (
        lambda net, y: net.shrink(y.sum(1, keepdim=True)).expand(-1, 4, -1, -1),
        {"shrink": judging()}, 4, (30, 30)
    ),
    "over channels": (lambda net, y: y * torch.sigmoid(y.mean(1, keepdim=True)), {}, 1, (3, 3)),
    "an hourglass": (
        lambda net, y: functional.interpolate(functional.max_pool2d(y, 2), scale_factor=2),
        {}, 2, (4, 4),
    ),
    "half-way between pixels": (
        lambda net, y: functional.interpolate(
            functional.avg_pool2d(y, 2), scale_factor=2, mode="bilinear"),
        {}, 2, (6, 6),
    ),
    "a strided transposed convolution": (
        lambda net, y: net.up(functional.max_pool2d(y, 2)),
        {"up": nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1)}, 2, (6, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LOCAL)
def test_fields_that_are_known(case):
    body, layers, multiple, expected = LOCAL[case]
    program = graph_of(body, **layers)
    # Also where the search begins with a frame that is too short.
    for guess in (expected[1], 1):
        field = receptive_field(program, multiple, guess)
        assert (field.smallest, field.largest) == expected
        assert field.repeats


def test_taps_of_weight_zero_do_not_count():
    net = Net(lambda net, y: net.wide(y), wide=nn.Conv2d(4, 4, 3, padding=3, dilation=3))
    net.wide.weight.data[..., 0] = net.wide.weight.data[..., 0, :] = 0
    field = receptive_field(to_onnx(Graph(net)), 1, 3)
    # Pixels -1 to +4 only, but a tile has the same border on both sides.
    assert (field.smallest, field.largest, field.halo) == (6, 6, 4)


def test_where_a_padded_image_of_constants_ends_is_an_edge():
    """A share of the neighbours that there are: a tile's edge would pass for the frame's."""
    program = graph_of(lambda net, y: y * functional.avg_pool2d(torch.ones_like(y), 9, 1, 4))
    field = receptive_field(program, 1, 3)
    assert (field.smallest, field.largest, field.halo) == (3, 3, 4)


def test_a_net_of_zeros_has_a_field_of_one():
    net = Net(plain)
    nn.init.zeros_(net.back.weight)
    assert described(to_onnx(Graph(net)), "eighth", 1, (3, 3))["receptive_field"] == "1"


WHOLE = {
    "GlobalAveragePool|ReduceMean": lambda net, y: y * y.mean((2, 3), keepdim=True),
    "ReduceMax": lambda net, y: y - y.amax(3, keepdim=True),
    "Resize": lambda net, y: functional.interpolate(
        functional.max_pool2d(y, 2), scale_factor=2, mode="bilinear", align_corners=True
    ),
    "MatMul": lambda net, y: y @ (y.transpose(2, 3) @ y),
    "Mul": lambda net, y: y * torch.arange(y.shape[-1], dtype=y.dtype),
    "Div": lambda net, y: y / y.shape[-2],
}


@pytest.mark.parametrize("operator", WHOLE)
def test_a_node_that_sees_the_whole_frame_is_named(operator, caplog):
    with caplog.at_level(logging.WARNING):
        found = described(graph_of(WHOLE[operator]), "eighth", 2, (3, 3))
    assert (found["receptive_field"], found["tiling_exact"]) == ("3", "false")
    assert re.match(rf"({operator}) \(", found["whole_frame"])
    assert f"eighth: not for tiles: {found['whole_frame']}" in caplog.text


def test_the_benchmarks_unet_names_its_resize():
    with pytest.raises(NotLocalError, match=r"^Resize \(.*places pixels by .*\(align_corners\)"):
        receptive_field(to_onnx(Graph(build("unet", "paper"))), 8, 116)


def test_a_turned_frame_is_no_field_that_repeats():
    assert not receptive_field(graph_of(lambda net, y: y.flip(3)), 1, 3).repeats


def test_what_is_declared_wrongly_is_an_error_with_the_right_number():
    five = graph_of(lambda net, y: net.more(y), more=nn.Conv2d(4, 4, 3, padding=1))
    assert described(five, "eighth", 1, (5, 5)) == {
        "receptive_field": "5", "halo": "2", "tiling_exact": "true"
    }  # fmt: skip
    # Less than declared does no harm, and tiles are cut for what it is.
    assert described(five, "eighth", 1, (9, 9))["receptive_field"] == "5"
    with pytest.raises(ModelError, match=r"^eighth: .* up to 5 pixels, and 3 .* of \(5, 5\)"):
        described(five, "eighth", 1, (3, 3))
    body, layers, _, expected = LOCAL["an hourglass"]
    with pytest.raises(ModelError, match=r"^eighth: .* does not repeat every 1 pixels"):
        described(graph_of(body, **layers), "eighth", 1, expected)
