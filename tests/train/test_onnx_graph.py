"""Rewrites against the nets that they replace; what files say of their field, and what is seen."""

import logging
import re
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper, parser

from emdn_deploy.session import open_session
from emdn_models import MODELS, ModelError
from emdn_models.nets.architectures import MCNN, MSDNet, REDNet
from emdn_models.nets.scaling import BLUR
from emdn_train.onnx_graph import REWRITES, check_field, rewritten, tiled

NETS = {
    "rednet": lambda: REDNet(8, 8, 2),
    "mcnn": lambda: MCNN(4, 4, widest=2),
    "msdnet": lambda: MSDNet(23, 2, 2, dilations=3),
    "msdnet, one block": lambda: MSDNet(6, 1, 1, dilations=3),
}

GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
eighth (float[n,1,h,w] frames, float[n,1,1,1] scale, float[n,1,1,1] offset, float[n,1,1,1] gain)
    => (float[n,1,h,w] denoised)
<float[1,1,3,3] k = {1, 2, 1, 2, 4, 2, 1, 2, 1}, float[4] twice = {1, 1, 2, 2},
 int64[2] axes = {2, 3}, int64[2] start = {0, 0}, int64[8] one = {0, 0, 1, 1, 0, 0, 1, 1}>
{
    x = Div(frames, gain)
    y = Conv <pads = [1, 1, 1, 1]> (x, k)
    BODY
}
"""
# Each with the multiple, the field and the border that are right for it.
LOCAL = {
    "one convolution": ("denoised = Identity(y)", 1, 3, 1),
    "dilated": ("denoised = Conv <pads = [5, 5, 5, 5], dilations = [5, 5]> (y, k)", 1, 13, 6),
    "mirrored edges": ('z = Pad <mode = "reflect"> (y, one)  denoised = Conv(z, k)', 1, 5, 2),
    "an hourglass": (
        "z = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (y)"
        '  u = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",'
        ' nearest_mode = "floor"> (z, , twice)'
        "  size = Shape <start = 2> (y)  denoised = Slice(u, start, size, axes)", 2, 4, 2,
    ),
}  # fmt: skip
WHOLE = {
    "a mean": "m = ReduceMean(y, axes)  denoised = Sub(y, m)",
    "a maximum of rows": "m = ReduceMax(y, axes)  denoised = Sub(y, m)",
    # A share of the neighbours that there are: a tile's edge passes for the frame's.
    "where constants end": (
        "z = Sub(y, y)  u = Cos(z)  s = Conv <pads = [9, 9, 9, 9], dilations = [9, 9]> (u, k)"
        "  denoised = Mul(y, s)"
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(32, 48), (21, 5), (1, 3)])
def test_a_rewritten_net_computes_the_same_and_the_net_stays(name: str, size) -> None:
    torch.manual_seed(0)
    net = NETS[name]().double().eval()
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    faster, x = rewritten(net), torch.randn(2, 1, *size).double()
    with torch.no_grad():
        torch.testing.assert_close(faster(x), net(x))
    assert not any(type(module) in REWRITES or module.training for module in faster.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def model(folder: Path, body: str, multiple: int, field: int, **told: str) -> Path:
    made = parser.parse_model(GRAPH.replace("BODY", body))
    facts = {
        "emdn_schema": "1", "model": "eighth", "preset": "test", "multiple": str(multiple),
        "receptive_field": str(field), "tiling_exact": "true", "parameters": "9",
        "gflop_256": "0", "recipe": "{}", "quality": "{}",
    }  # fmt: skip
    helper.set_model_props(made, facts | told)
    onnx.save(made, folder / "eighth.onnx")
    return folder / "eighth.onnx"


@pytest.mark.parametrize("case", LOCAL)
def test_borders_that_are_known(case: str, tmp_path: Path) -> None:
    body, multiple, field, needed = LOCAL[case]
    path = model(tmp_path, body, multiple, field, halo=str(needed))
    check_field(path)
    # Without a border of its own, what follows from the field suffices; more does no harm.
    check_field(model(tmp_path, body, multiple, field))
    check_field(model(tmp_path, body, multiple, field + 4))
    few = rf"^eighth: a frame in tiles with a border of {needed - multiple} pixels differs"
    with pytest.raises(ModelError, match=few):
        check_field(model(tmp_path, body, multiple, field, halo=str(needed - multiple)))


def test_a_wrong_multiple_is_refused(tmp_path: Path) -> None:
    body, _, field, border = LOCAL["an hourglass"]
    with pytest.raises(ModelError, match=r"^eighth: a frame in tiles .* multiple or halo"):
        check_field(model(tmp_path, body, 1, field + 8, halo=str(border + 5)))


@pytest.mark.parametrize("case", WHOLE)
def test_what_sees_the_whole_frame_is_refused_or_says_so(case: str, tmp_path: Path, caplog) -> None:
    with pytest.raises(ModelError, match=r"^eighth: a frame in tiles .* or give it whole_frame$"):
        check_field(model(tmp_path, WHOLE[case], 1, 5))
    told = {"tiling_exact": "false", "whole_frame": f"it has {case}"}
    with caplog.at_level(logging.WARNING):
        check_field(model(tmp_path, WHOLE[case], 1, 5, **told))
    assert re.search(f"eighth: not for tiles: it has {case}", caplog.text)


@pytest.mark.parametrize(
    "name",
    [name if name == "unet" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_the_shipped_files_see_what_is_declared(name: str) -> None:
    preset = MODELS[name].presets["shipped"]
    session = open_session(name, "cpu", threads=1)
    assert session.info.receptive_field == preset.receptive_field[1] + BLUR - 1
    assert session.info.halo == preset.halo
    assert tiled(session) == 0
