"""The field that is read from a graph, against what perturbing its input shows."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from emdn_deploy import tiling
from emdn_deploy.session import open_session
from emdn_models import MODELS, pretrained
from emdn_models.nets import NETS, build
from emdn_models.nets.electrons import BLUR
from emdn_train.export import _declared
from emdn_train.field import receptive_field
from emdn_train.field.graph import seen_by_output
from emdn_train.graph import Graph, describe, to_onnx
from emdn_train.rewrite import rewritten


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_graph_sees_what_is_declared(name):
    """Trained weights, as they are packaged: no tile of an installed model is too small."""
    program = onnx.load(pretrained.onnx_path(name))
    preset = MODELS[name].presets["shipped"]
    declared = _declared(build(name), preset)
    field = receptive_field(program, preset.multiple, declared[1])
    assert (field.smallest, field.largest) == declared
    assert field.repeats
    info = open_session(pretrained.onnx_path(name), "cpu", threads=1).info
    assert info.tiling_exact
    assert tiling.halo(info) == field.halo


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_nothing_outside_the_field_changes_a_pixel(name):
    """Whatever else the frame holds, a pixel of the packaged model keeps its bits."""
    path = pretrained.onnx_path(name)
    session = open_session(path, "cpu", threads=1)
    step, field = session.info.multiple, session.info.receptive_field
    cell = max(16, step)
    size = cell, -(-(2 * field + 8 * step) // cell) * cell
    seen = seen_by_output(onnx.load(path), size, 3)
    chance = np.random.default_rng(0)
    frames = chance.poisson(20, (1, *size)).astype(np.float32)
    output = session.run(frames, 20.0, 0.0, 1.0)
    for row, column in ((0, size[1] // 2), (step // 2, size[1] // 2 + step - 1)):
        first, last = seen.first[0, 0, row, column], seen.last[0, 0, row, column]
        other = chance.poisson(60, (1, *size)).astype(np.float32)
        other[..., first : last + 1] = frames[..., first : last + 1]
        assert session.run(other, 20.0, 0.0, 1.0)[0, row, column] == output[0, row, column]
        # And what is inside of it does change it.
        other = frames.copy()
        other[..., first : last + 1] = 60
        assert session.run(other, 20.0, 0.0, 1.0)[0, row, column] != output[0, row, column]


def spreading(name: str) -> nn.Module:
    """Return a net in which what one pixel holds arrives, positive, wherever it can.

    Without biases nothing else arrives at all, so that not even 1e-30 is rounded away.
    """
    torch.manual_seed(0)
    net = NETS[name](**MODELS[name].presets["shipped"].options).eval()
    for p in net.parameters():
        p.data = torch.rand_like(p) + 0.5 if p.dim() > 1 else torch.zeros_like(p)
        if p.dim() > 1:
            p.data /= p[0].numel()
    if hasattr(net, "uses_noise"):  # the noise map is nowhere zero
        net.layers[0].weight.data[:, -1] = 0
    return net


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_single_line_reaches_all_that_see_it(name, tmp_path):
    """The field is no larger than it must be: an impulse fills exactly what sees it."""
    preset = MODELS[name].presets["shipped"]
    program = to_onnx(rewritten(Graph(spreading(name))))
    described = pretrained.onnx_path(name)
    describe(program, {p.key: p.value for p in onnx.load(described).metadata_props})
    onnx.save(program, tmp_path / "spread.onnx")
    session = open_session(tmp_path / "spread.onnx", "cpu", threads=1)
    cell = max(16, preset.multiple)
    length = -(-(2 * preset.receptive_field[1] + 8 * preset.multiple) // cell) * cell
    for along, across, size in ((2, 3, (length, cell)), (3, 2, (cell, length))):
        seen = seen_by_output(program, size, along)
        first, last = seen.first.min((0, 1, across)), seen.last.max((0, 1, across))
        for place in (length // 2, length // 2 + preset.multiple - 1):
            frames = np.zeros((1, *size), np.float32)
            np.moveaxis(frames, along - 1, 0)[place] = 1
            # Such units that a pixel of zero is zero inside, and stays so.
            output = session.run(frames, 1.0, -1.0, 1.0)
            reached = (output != 0).any((0, across - 1))
            sees = (first <= place) & (place <= last)
            if name == "msdnet":  # 40 layers away, less arrives than float32 can hold
                assert not (reached & ~sees).any()
                assert reached.sum() > sees.sum() // 2
            else:
                np.testing.assert_array_equal(reached, sees)


def test_the_noise_map_is_seen_too():
    program = onnx.load(pretrained.onnx_path("ffdnet"))
    field = receptive_field(program, 64, 256)
    assert field.largest == MODELS["ffdnet"].presets["shipped"].receptive_field[1] + BLUR - 1
