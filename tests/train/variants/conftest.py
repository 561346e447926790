"""A small net in the ONNX contract, and frames of it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from emdn_models import pretrained
from emdn_train.uncertainty import Recorded
from emdn_train.variants import Frames, gate

# Three smoothings; what lies between them is never negative.
SMOOTH = """
<ir_version: 8, opset_import: ["" : 18]>
smooth (float[n,1,h,w] frames, float[n,1,1,1] scale, float[n,1,1,1] offset, float[n,1,1,1] gain)
    => (float[n,1,h,w] denoised)
<float[1,1,3,3] k = {0.0625, 0.125, 0.0625, 0.125, 0.25, 0.125, 0.0625, 0.125, 0.0625},
 float[1] up = {9.0}, float[1] down = {-9.0}>
{
    dark = Sub(frames, offset)
    e = Div(dark, gain)
    root = Sqrt(scale)
    centred = Sub(e, scale)
    x = Div(centred, root)
    a = Conv <pads = [1, 1, 1, 1]> (x, k, up)
    b = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (b, k)
    d = Relu(c)
    y = Conv <pads = [1, 1, 1, 1]> (d, k, down)
    scaled = Mul(y, root)
    out = Add(scaled, scale)
    charged = Mul(out, gain)
    denoised = Add(charged, offset)
}
"""


@pytest.fixture(scope="session")
def smooth() -> onnx.ModelProto:
    """Three smoothings, of which the middle one can be quantised."""
    model = parser.parse_model(SMOOTH)
    told = {
        "emdn_schema": "1", "model": "unet", "preset": "test", "weights_sha256": "0" * 64,
        "multiple": "1", "receptive_field": "7", "tiling_exact": "true", "parameters": "29",
        "gflop_256": "0.0035", "recipe": "{}", "quality": "{}",
    }  # fmt: skip
    helper.set_model_props(model, told)
    return model


@pytest.fixture
def folder(tmp_path: Path, smooth: onnx.ModelProto) -> Path:
    """Export of one model called unet, with an index."""
    path = tmp_path / "onnx" / "unet.onnx"
    path.parent.mkdir()
    onnx.save(smooth, path)
    entry = {"file": path.name, "sha256": pretrained.sha256(path), "preset": "test"}
    index = {"default": "unet", "models": {"unet": entry}}
    (path.parent / "index.json").write_text(json.dumps(index))
    return path.parent


@pytest.fixture(scope="session")
def frames() -> Frames:
    """Two frames of waves at each of two doses, the same to fit and to judge."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48]
    made = []
    for level, dose in ((0.2, 4.0), (1.0, 100.0)):
        for turned in (x, y):
            clean = (dose * (1 + 0.1 * np.cos(turned / 5))).astype(np.float32)
            noisy = rng.poisson(clean).astype(np.float32)
            made.append(gate.sample(Recorded(noisy, clean, np.ones_like(clean, bool)), level))
    return Frames(made, made)
