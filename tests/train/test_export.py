"""Exported files: the numbers of their nets, self-contained, described, and never wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, parser
from torch import nn

from emdn_deploy import denoise
from emdn_deploy.session import open_session
from emdn_models import MODELS, ModelError, ParityError, checkpoint, pretrained
from emdn_models.nets import NETS, build
from emdn_models.nets.architectures import DnCNN, UNet
from emdn_models.nets.scaling import BLUR
from emdn_models.spec import ModelSpec, Preset
from emdn_train import cli, onnx_graph
from emdn_train import export as exporting
from emdn_train.calibrate import Recorded
from emdn_train.export import add_precision, export, weights_sha256
from emdn_train.onnx_graph import INPUTS, TOLERANCE, Graph


def perturbed(name: str, preset: str = "shipped") -> nn.Module:
    torch.manual_seed(0)
    net = build(name, preset)
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return net.eval()


def saved(folder: Path, *names: str, preset: str = "shipped", **metadata) -> Path:
    """Save perturbed nets; the mean gain is the length of the name."""
    weights = {}
    for name in names:
        state = {key: one.numpy() for key, one in perturbed(name, preset).state_dict().items()}
        validation = {"gain_db": {"0.4": float(len(name))}}
        known = {"status": "fitted", "validation": validation, "recipe": {}} | metadata
        weights[name] = checkpoint.Weights(preset, state, known)
    path = folder / "fitted" / checkpoint.FILE_NAME
    checkpoint.save(path, weights)
    return path


def assert_computes(path: Path, net: nn.Module, size=(4, 1, 71, 130)) -> np.ndarray:
    """Compare a file with its net at sizes and batches that the exporter does not use."""
    frames = np.random.default_rng(1).poisson(6.0, size).astype(np.float32) * 2.5 + 7
    column = [torch.full((len(frames), 1, 1, 1), value) for value in (6.0, 7.0, 2.5)]
    with torch.no_grad():
        expected = Graph(net)(torch.from_numpy(frames), *column)[:, 0].numpy()
    found = open_session(path, "cpu", threads=1).run(frames, 6.0, 7.0, 2.5)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.ptp(found))
    return found


@pytest.fixture
def tiny(monkeypatch):
    """An eighth model, which exports in a second."""

    def declare(field: int, multiple: int = 1, windows=(), whole_frame: str = "") -> None:
        options = {"features": 4, "depth": 3, "shuffle": 1, "batch_norm": False}
        sizes = 228, (field, field), multiple, windows
        preset = Preset(options, *sizes, whole_frame=whole_frame)
        spec = ModelSpec("tiny", "this test", {"shipped": preset})
        monkeypatch.setitem(MODELS, "tiny", spec)

    monkeypatch.setitem(NETS, "tiny", DnCNN)
    declare(7)
    return declare


@pytest.mark.parametrize(
    "names",
    [("tiny",), pytest.param(tuple(MODELS), marks=pytest.mark.slow)],
    ids=["one", "seven"],
)
def test_a_file_computes_what_its_net_does_and_describes_itself(names, tiny, tmp_path):
    tiny(64, 8, (16,))  # behind the spectral front end
    done = export(saved(tmp_path, *names), tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    assert [one.name for one in done] == list(index["models"]) == list(names)
    assert index["default"] == max(names, key=len)  # of equals the first
    weights = checkpoint.load(tmp_path / checkpoint.FILE_NAME)
    for one in done:
        assert one.error <= TOLERANCE
        assert_computes(one.path, perturbed(one.name))
        model = onnx.load(one.path)
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
        # Only MSDNet's layers, of one or two outputs, gain from being a product and a scatter.
        operators = {node.op_type for node in model.graph.node}
        assert operators.isdisjoint({"BatchNormalization", "If", "Loop", "Einsum"})
        assert ("ConvTranspose" in operators) == (one.name == "msdnet")
        assert [value.name for value in model.graph.input] == list(INPUTS)
        described = {entry.key: entry.value for entry in model.metadata_props}
        preset = MODELS[one.name].presets["shipped"]
        expected = {
            "emdn_schema": "1", "model": one.name, "parameters": str(preset.parameters),
            "multiple": str(preset.multiple), "tiling_exact": "true",
            # With the window of the noise map, by which spectra are shrunk.
            "receptive_field": str(preset.receptive_field[1] + BLUR - 1),
            "weights_sha256": weights_sha256(weights[one.name].state),
            "quality": json.dumps({"gain_db": {"0.4": float(len(one.name))}}),
        }  # fmt: skip
        assert described.items() >= expected.items()
        for constant in model.graph.initializer:
            constant.ClearField("raw_data")  # where any bytes may stand
        content = model.SerializeToString()
        here = str(Path(__file__).parents[2]).encode()
        assert not [t for t in (here, b"site-packages", b".py", b"stack_trace") if t in content]


def test_an_index_follows_its_files(tiny, tmp_path):
    """Models for movies come last, are never the default, and what was measured may stay."""
    folder, path = tmp_path / "onnx", tmp_path / "onnx" / "index.json"
    source = saved(tmp_path, "tiny", "tiny@movie")
    (alone,) = export(source, folder, ("tiny@movie",))
    assert alone.path.name == "tiny@movie.onnx"
    assert json.loads(path.read_text())["default"] is None
    export(source, folder, ("tiny",))
    index = json.loads(path.read_text())
    assert (list(index["models"]), index["default"]) == (["tiny", "tiny@movie"], "tiny")
    assert set(checkpoint.load(folder / checkpoint.FILE_NAME)) == {"tiny", "tiny@movie"}
    weights = weights_sha256(checkpoint.load(source)["tiny"].state)
    for other in (weights, "0" * 64):
        known = {key: {"weights_sha256": other} for key in ("sigma", "quality")}
        index["models"]["tiny"] |= known
        path.write_text(json.dumps(index))
        export(source, folder, ("tiny",))
        found = json.loads(path.read_text())["models"]["tiny"]
        assert (found.items() >= known.items()) == (other == weights)


def test_a_wrong_graph_field_or_checkpoint_is_refused(tiny, tmp_path, monkeypatch, caplog):
    source, folder = saved(tmp_path, "tiny"), tmp_path / "onnx"
    with monkeypatch.context() as patch:
        exact = onnx_graph.to_onnx
        wrong = perturbed("tiny")
        wrong.layers[0].weight.data[0] *= 1.001
        patch.setattr(onnx_graph, "to_onnx", lambda *_: exact(Graph(wrong)))
        with pytest.raises(ParityError, match="tiny: onnxruntime differs from torch"):
            export(source, folder)
    tiny(3)
    with pytest.raises(ModelError, match=r"^tiny: a frame in tiles with a border of 2 "):
        export(source, folder)
    tiny(3, whole_frame="its author says so")
    export(source, tmp_path / "untiled")
    assert "tiny: not for tiles: its author says so" in caplog.text
    source = saved(tmp_path, "tiny", status="diverged")
    with pytest.raises(ModelError, match="no model to export"):
        export(source, folder)
    assert "tiny: its training ended as 'diverged'" in caplog.text
    weights = checkpoint.load(source)["tiny"]
    checkpoint.save(source, {"unet": checkpoint.Weights("paper", weights.state)})
    with pytest.raises(ModelError, match="unet: the checkpoint's tensors do not fit"):
        export(source, folder)
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_the_benchmarks_unet_is_marked_as_not_tileable(tmp_path):
    (done,) = export(saved(tmp_path, "unet", preset="paper"), tmp_path)
    info = open_session(done.path, "cpu", threads=1).info
    assert not info.tiling_exact
    assert "align_corners" in info.text["whole_frame"]


def test_a_net_of_five_frames_and_weights_in_halves(tmp_path, monkeypatch):
    options = {"features": 8, "levels": 2, "shuffle": 2, "benchmark": False}
    preset = Preset(options, 0, (128, 192), 16, (16,), frames=5)
    spec = ModelSpec("tiny", "this test", {"movie": preset})
    monkeypatch.setitem(MODELS, "tiny", spec)
    monkeypatch.setitem(NETS, "tiny", UNet)
    source = saved(tmp_path, "tiny@movie", preset="movie")
    (exact,), (half,) = (export(source, tmp_path / str(half), half=half) for half in (False, True))
    size = 3, 5, 40, 50
    found = assert_computes(exact.path, perturbed("tiny", "movie"), size)
    session = open_session(exact.path, "cpu", threads=1)
    assert session.info.frames == 5
    frames = np.random.default_rng(1).poisson(6.0, size).astype(np.float32)
    turned = (session.run(one, 6.0, 0.0, 1.0) for one in (frames, frames[:, ::-1].copy()))
    assert np.abs(np.subtract(*turned)).max() > 0.1
    # Its weights are rounded, in the file and in its checkpoint, and it computes in float32.
    net = perturbed("tiny", "movie")
    rounded = checkpoint.load(half.path.with_name(source.name))["tiny@movie"].state
    net.load_state_dict({key: torch.from_numpy(value) for key, value in rounded.items()})
    assert 0 < np.abs(assert_computes(half.path, net, size) - found).max() < 0.01 * np.ptp(found)
    for file in (half.path, half.path.with_name(source.name)):
        assert file.stat().st_size < 0.95 * (exact.path.parent / file.name).stat().st_size


FACTS = {
    "emdn_schema": "1", "model": "unet", "preset": "test", "weights_sha256": "0" * 64,
    "multiple": "1", "receptive_field": "9", "tiling_exact": "true", "parameters": "29",
    "gflop_256": "0.0035", "recipe": "{}", "quality": "{}",
}  # fmt: skip


def parsed(path: Path, text: str, **facts: object) -> Path:
    model = parser.parse_model(text)
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
    helper.set_model_props(model, FACTS | {key: str(one) for key, one in facts.items()})
    onnx.save(model, path)
    return path


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


@pytest.fixture
def unet(tmp_path, monkeypatch) -> Path:
    """A model of smoothings called unet, in a folder with an index; frames to judge it on."""
    (tmp_path / "onnx").mkdir()
    path = parsed(tmp_path / "onnx" / "unet.onnx", SMOOTH, model="unet")
    entry = {"file": path.name, "sha256": pretrained.sha256(path), "preset": "test"}
    pretrained.write_index(path.with_name("index.json"), {"models": {"unet": entry}})
    rng, made = np.random.default_rng(0), []
    for dose in np.geomspace(4, 100, 5):
        clean = (dose * (1 + 0.1 * np.cos(np.mgrid[:48, :48][0] / 5))).astype(np.float32)
        made.append(Recorded(rng.poisson(clean).astype("f4"), clean, np.ones_like(clean, bool)))
    monkeypatch.setattr(exporting, "simulated", lambda: made)
    return path


def variants(source: Path) -> dict:
    return pretrained.entries_of(source.parent, None)["unet"]["variants"]


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_a_good_precision_is_written_entered_and_used(unet: Path, kind: str) -> None:
    path = add_precision(unet, kind)
    assert path == unet.with_name(f"unet.{kind}.onnx")
    assert variants(unet) == {kind: {"file": path.name, "sha256": pretrained.sha256(path)}}
    assert {one.name for one in unet.parent.iterdir()} == {"index.json", "unet.onnx", path.name}
    made = onnx.load(path)
    halves = {one.name for one in made.graph.initializer if one.data_type == TensorProto.FLOAT16}
    inner = [node.input[1] in halves or node.input[1].endswith("DequantizeLinear_Output")
             for node in made.graph.node if node.op_type == "Conv"]  # fmt: skip
    assert inner == [False, True, True, False]
    stack = exporting.simulated()[2].noisy[None]
    outputs = [denoise(stack, one) for one in (unet, path)]
    assert np.abs(outputs[1] - outputs[0]).max() < 0.1 * np.sqrt(stack.mean())
    # A file of other weights is none of this model.
    parsed(unet, SMOOTH, model="unet", weights_sha256="1" * 64)
    assert exporting._variants(unet) == {}


def test_a_bad_one_is_refused_and_what_was_there_goes(unet: Path, monkeypatch, capsys) -> None:
    shutil.copy(unet, unet.with_name("unet.fp16.onnx"))
    done = exporting.Exported("unet", unet, 0.1, 0.0)
    monkeypatch.setattr(exporting, "export", lambda *_, **__: [done])
    monkeypatch.setattr(exporting, "_LARGEST_HALF", 3.0)
    with pytest.raises(SystemExit) as left:
        cli.main(["export", "a.h5", "--out", str(unet.parent), "--precision", "fp16"])
    assert left.value.code == 1
    assert "unet.fp16.onnx: loses " in capsys.readouterr().out
    assert sorted(one.name for one in unet.parent.iterdir()) == ["index.json", "unet.onnx"]
    assert variants(unet) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("unet@movie", "int8"), ("unet@movie", "fp16"),
                                            ("msdnet", "fp16")])  # fmt: skip
def test_shipped_models_are_as_good(tmp_path, name, kind) -> None:
    for file in (f"{name}.onnx", "index.json"):
        shutil.copy(pretrained.WEIGHTS / file, tmp_path)
    add_precision(tmp_path / f"{name}.onnx", kind)
