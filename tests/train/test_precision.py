"""Models in int8 and fp16: what computes in them, and which are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from emdn_deploy import denoise
from emdn_deploy.session import open_session
from emdn_models import ModelError, pretrained
from emdn_train import cli, export, precision
from emdn_train.calibrate import Recorded
from emdn_train.onnx_graph import unpacked
from emdn_train.precision import LEVELS, add, halved, inner_convolutions, quantised, refusal

# Four smoothings; what lies between them is never negative.
SMOOTH = """
<ir_version: 8, opset_import: ["" : 18]>
smooth (float[n,1,h,w] frames, float[n,1,1,1] scale, float[n,1,1,1] offset, float[n,1,1,1] gain)
    => (float[n,1,h,w] denoised)
<float[1,1,3,3] k = {0.0625, 0.125, 0.0625, 0.125, 0.25, 0.125, 0.0625, 0.125, 0.0625},
 float[1,1,3,3] m = {0.0625, 0.125, 0.0625, 0.125, 0.25, 0.125, 0.0625, 0.125, 0.0625},
 float[1] up = {9.0}, float[1] down = {-9.0}>
{
    dark = Sub(frames, offset)
    e = Div(dark, gain)
    root = Sqrt(scale)
    centred = Sub(e, scale)
    x = Div(centred, root)
    a = Conv <pads = [1, 1, 1, 1]> (x, k, up)
    b = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (b, m)
    d = Relu(c)
    g = Conv <pads = [1, 1, 1, 1]> (d, m)
    h = Relu(g)
    y = Conv <pads = [1, 1, 1, 1]> (h, k, down)
    scaled = Mul(y, root)
    out = Add(scaled, scale)
    charged = Mul(out, gain)
    denoised = Add(charged, offset)
}
"""
TOLD = {
    "emdn_schema": "1", "model": "unet", "preset": "test", "weights_sha256": "0" * 64,
    "multiple": "1", "receptive_field": "9", "tiling_exact": "true", "parameters": "29",
    "gflop_256": "0.0035", "recipe": "{}", "quality": "{}",
}  # fmt: skip


def smooth(text: str = SMOOTH) -> onnx.ModelProto:
    model = parser.parse_model(text)
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
    helper.set_model_props(model, TOLD)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Export of one model called unet, with an index."""
    path = tmp_path / "onnx" / "unet.onnx"
    path.parent.mkdir()
    onnx.save(smooth(), path)
    entry = {"file": path.name, "sha256": pretrained.sha256(path), "preset": "test"}
    write(path.parent, {"default": "unet", "models": {"unet": entry}})
    return path.parent


def write(folder: Path, index: dict) -> None:
    (folder / "index.json").write_text(json.dumps(index))


def entry(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())["models"]["unet"].get("variants", {})


@pytest.fixture(autouse=True)
def frames(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Waves at five doses, the same to fit and to judge."""
    rng = np.random.default_rng(0)
    made = []
    for dose in np.geomspace(4, 100, len(LEVELS)):
        clean = (dose * (1 + 0.1 * np.cos(np.mgrid[:48, :48][0] / 5))).astype(np.float32)
        noisy = rng.poisson(clean).astype(np.float32)
        made.append(Recorded(noisy, clean, np.ones_like(clean, bool)))
    monkeypatch.setattr(precision, "judged_on", lambda: made)
    monkeypatch.setattr(precision, "ranged_by", lambda: made)
    return made


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_a_good_one_is_written_entered_and_used(folder: Path, frames, kind: str) -> None:
    made = add(folder, "unet", kind)
    assert made.refusal == ""
    assert made.path == folder / f"unet.{kind}.onnx"
    known = entry(folder)[kind]
    assert known["sha256"] == pretrained.sha256(made.path)
    assert known["weights_sha256"] == "0" * 64
    assert abs(made.loss_db) <= 0.1
    assert {one.name for one in folder.iterdir()} == {"index.json", "unet.onnx", made.path.name}
    stack, model = frames[2].noisy[None], folder / "unet.onnx"
    if kind == "int8":
        convs = [node for node in onnx.load(made.path).graph.node if node.op_type == "Conv"]
        integers = [node.input[1].endswith("DequantizeLinear_Output") for node in convs]
        assert integers == [False, True, True, False]
    outputs = [denoise(stack, model, precision=one) for one in ("fp32", kind)]
    assert np.abs(outputs[1] - outputs[0]).max() < 0.1 * np.sqrt(stack.mean())


def test_a_bad_one_is_refused_and_nothing_is_kept(folder: Path, monkeypatch, capsys) -> None:
    (folder / "unet.fp16.onnx").write_bytes(b"of an earlier run")
    index = json.loads((folder / "index.json").read_text())
    index["models"]["unet"]["variants"] = {
        "fp16": {"file": "unet.fp16.onnx"},
        "other": {"file": "a.onnx"},
    }
    write(folder, index)
    done = export.Exported("unet", folder / "unet.onnx", 1, 0.1, 0.0)
    monkeypatch.setattr(export, "export", lambda *_, **__: [done])
    monkeypatch.setattr(precision, "_LARGEST_HALF", 3.0)
    with pytest.raises(SystemExit) as left:
        cli.main(["export", "a.h5", "--out", str(folder), "--precision", "fp16"])
    assert left.value.code == 1
    assert "unet.fp16.onnx: refused: loses" in capsys.readouterr().out
    assert sorted(one.name for one in folder.iterdir()) == ["index.json", "unet.onnx"]
    assert entry(folder) == {"other": {"file": "a.onnx"}}


@pytest.mark.parametrize(
    ("loss", "shift", "told"),
    [
        (0.1, 0.005, ""),
        (0.11, 0.0, "loses 0.11 dB, more than 0.1"),
        (0.2, 0.01, "loses 0.20 dB, more than 0.1, mean off by 1.00 %, more than 0.5 %"),
        (np.nan, 0.0, "loses nan dB, more than 0.1"),
        (0.0, np.nan, "mean off by nan %, more than 0.5 %"),
    ],
)
def test_what_is_refused(loss: float, shift: float, told: str) -> None:
    assert refusal(loss, shift) == told


def test_what_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ModelError, match="has no dncnn; it has unet"):
        add(folder, "dncnn", "int8")


@pytest.mark.parametrize("name", ["unet", "msdnet"])
def test_the_net_is_halves_and_spectra_are_not(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.onnx"
    assert halved(pretrained.onnx_path(name), path)
    made = onnx.load(path)
    constants = {one.name: one for one in made.graph.initializer}
    convs = [constants[node.input[1]] for node in made.graph.node
             if "Conv" in node.op_type and node.input[1] in constants]  # fmt: skip
    halves = [one.data_type == TensorProto.FLOAT16 for one in convs]
    count = len(inner_convolutions(unpacked(onnx.load(pretrained.onnx_path(name)))))
    assert halves == [False] * (len(convs) - count - 1) + [True] * count + [False]
    noisy = np.random.default_rng(0).poisson(9.0, (1, 67, 50)).astype(np.float32)
    whole, half = (open_session(one, "cpu", 1) for one in (name, path))
    expected, found = (one.run(noisy, 9.0, 0.0, 1.0) for one in (whole, half))
    assert np.abs(found - expected).max() < 0.06
    clips = [node for node in made.graph.node if node.op_type == "Clip"]
    assert all(node.output[0].endswith(".clipped") for node in clips[-1:])


def test_transposed_convolutions_have_no_integers(tmp_path: Path) -> None:
    assert not quantised(pretrained.onnx_path("msdnet"), tmp_path / "a.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_a_model_of_five_frames_is_judged_amid_its_neighbours(tmp_path, kind, monkeypatch) -> None:
    for file in ("unet@movie.onnx", "index.json"):
        shutil.copy(pretrained.WEIGHTS / file, tmp_path)
    assert add(tmp_path, "unet@movie", kind).refusal == ""
