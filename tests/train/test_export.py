"""Exported graphs: the numbers of their nets, self-contained, described, and never wrong."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from emdn_deploy.session import open_session
from emdn_models import MODELS, ModelError, ParityError, checkpoint
from emdn_models.errors import OutputError
from emdn_models.nets import NETS, build
from emdn_models.nets.architectures import DnCNN, UNet
from emdn_models.nets.scaling import BLUR
from emdn_models.spec import ModelSpec, Preset
from emdn_train import export as exporting
from emdn_train.export import export
from emdn_train.onnx_graph import INPUTS, TOLERANCE, Graph, compare, to_onnx, unpacked


def perturbed(name: str, preset: str = "shipped") -> nn.Module:
    torch.manual_seed(0)
    net = build(name, preset)
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return net


def weights_of(name: str, preset: str = "shipped", **metadata) -> checkpoint.Weights:
    state = {key: value.numpy() for key, value in perturbed(name, preset).state_dict().items()}
    validation = {"gain_db": {"0.4": float(len(name))}}
    return checkpoint.Weights(
        preset, state, {"status": "fitted", "validation": validation, "recipe": {}} | metadata
    )


@pytest.fixture
def tiny(monkeypatch):
    """An eighth model, which exports in a second."""

    def declare(field: int) -> None:
        preset = Preset({"features": 4, "depth": 3, "batch_norm": False}, 228, (field, field), 1)
        spec = ModelSpec("tiny", "Tiny", "this test", {"paper": preset})
        monkeypatch.setitem(MODELS, "tiny", spec)

    monkeypatch.setitem(NETS, "tiny", DnCNN)
    declare(7)
    return declare


@pytest.fixture(
    scope="module",
    params=[("dncnn", "msdnet"), pytest.param(tuple(MODELS), marks=pytest.mark.slow)],
    ids=["two", "seven"],
)
def exported(request, tmp_path_factory):
    """Two, and in the slow tests all seven, exported once."""
    folder = tmp_path_factory.mktemp("exported")
    source = folder / "fitted" / checkpoint.FILE_NAME
    checkpoint.save(source, {name: weights_of(name) for name in request.param})
    return folder, {done.name: done for done in export(source, folder)}


def test_the_file_computes_what_the_net_does(exported):
    folder, done = exported
    for name in done:
        assert done[name].error <= TOLERANCE
        # An independent check, at sizes and batches that the exporter does not use.
        session = open_session(folder / f"{name}.onnx", "cpu", threads=1)
        frames = np.random.default_rng(1).poisson(6.0, (4, 71, 130)).astype(np.float32) * 2.5 + 7
        column = [torch.full((4, 1, 1, 1), value) for value in (6.0, 7.0, 2.5)]
        with torch.no_grad():
            expected = Graph(perturbed(name).eval())(torch.from_numpy(frames)[:, None], *column)
        found = session.run(frames, 6.0, 7.0, 2.5)
        np.testing.assert_allclose(found, expected[:, 0].numpy(), atol=1e-5 * np.ptp(found))


def test_a_full_disk_is_said_of_the_file(tmp_path, monkeypatch):
    def full(program, path):
        Path(path).write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(OutputError, match=r"msdnet\.onnx: cannot be written \(No space left"):
        exporting.export_one("msdnet", weights_of("msdnet"), tmp_path / "msdnet.onnx")
    assert not list(tmp_path.iterdir())


def test_the_file_is_plain_described_and_free_of_this_machine(exported):
    folder, done = exported
    for name in done:
        path = folder / f"{name}.onnx"
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
        # Only MSDNet's layers, of one or two outputs, gain from being a product and a scatter.
        operators = {node.op_type for node in model.graph.node}
        assert operators.isdisjoint({"BatchNormalization", "If", "Loop"})
        assert ("ConvTranspose" in operators) == (name == "msdnet")
        assert [value.name for value in model.graph.input] == list(INPUTS)
        assert [value.name for value in model.graph.output] == ["denoised"]
        described = {entry.key: entry.value for entry in model.metadata_props}
        for constant in model.graph.initializer:
            constant.ClearField("raw_data")  # where any bytes may stand
        content = model.SerializeToString()
        for trace in (
            str(Path(__file__).parents[2]).encode(),
            b"site-packages",
            b".py",
            b"stack_trace",
        ):
            assert trace not in content
        preset = MODELS[name].presets["shipped"]
        assert described["emdn_schema"] == "1"
        assert described["model"] == name
        assert int(described["parameters"]) == preset.parameters
        assert int(described["multiple"]) == preset.multiple
        # With the window of the noise map, by which spectra are shrunk.
        assert int(described["receptive_field"]) == preset.receptive_field[1] + BLUR - 1
        assert described["tiling_exact"] == "true"
        assert described["weights_sha256"] == exporting.weights_sha256(weights_of(name).state)
        assert json.loads(described["quality"]) == {"gain_db": {"0.4": len(name)}}


def test_index_names_files_and_default(exported):
    folder, done = exported
    index = json.loads((folder / "index.json").read_text())
    assert list(index["models"]) == [name for name in MODELS if name in done]
    # The gain of the weights made here is the length of the name; of equals the first counts.
    assert index["default"] == max(index["models"], key=len)
    assert index["models"]["dncnn"]["gflop_256"] == pytest.approx(done["dncnn"].gflop_256, abs=1e-3)
    assert set(checkpoint.load(folder / checkpoint.FILE_NAME)) == set(done)


def test_models_for_a_class_come_last_and_are_never_the_default(tiny, tmp_path):
    source = tmp_path / "a.h5"
    better = weights_of("tiny", "paper", validation={"gain_db": {"0.4": 99.0}})
    checkpoint.save(source, {"tiny@stem": better, "tiny": weights_of("tiny", "paper")})
    index_path = tmp_path / "onnx" / "index.json"
    (alone,) = export(source, tmp_path / "onnx", ("tiny@stem",))
    assert alone.path.name == "tiny@stem.onnx"
    assert json.loads(index_path.read_text())["default"] is None
    export(source, tmp_path / "onnx", ("tiny",))
    index = json.loads(index_path.read_text())
    assert list(index["models"]) == ["tiny", "tiny@stem"]
    assert index["default"] == "tiny"
    assert set(checkpoint.load(tmp_path / "onnx" / checkpoint.FILE_NAME)) == set(index["models"])
    assert open_session(alone.path, "cpu", threads=1).info.name == "tiny@stem"


def test_a_graph_that_differs_is_not_kept(tiny, tmp_path, monkeypatch):
    def broken(net):
        net.layers[0].weight.data[0] *= 1.001
        return net

    monkeypatch.setattr(exporting, "rewritten", lambda _: Graph(broken(perturbed("tiny", "paper"))))
    source = tmp_path / "a.h5"
    checkpoint.save(source, {"tiny": weights_of("tiny", "paper")})
    with pytest.raises(ParityError, match="nothing was written"):
        export(source, tmp_path / "onnx")
    assert not list((tmp_path / "onnx").iterdir())


def test_a_model_that_declares_a_wrong_field_is_refused(tiny, tmp_path):
    tiny(3)
    source = tmp_path / "a.h5"
    checkpoint.save(source, {"tiny": weights_of("tiny", "paper")})
    with pytest.raises(ModelError, match=r"^tiny: a frame in tiles with a border of 2 "):
        export(source, tmp_path / "onnx")
    assert not list((tmp_path / "onnx").iterdir())


def test_what_diverged_is_not_exported(tmp_path, caplog):
    source = tmp_path / "a.h5"
    checkpoint.save(source, {"unet": weights_of("unet", status="diverged")})
    with pytest.raises(ModelError, match="no model to export"):
        export(source, tmp_path / "onnx")
    assert "unet: not exported" in caplog.text


def test_tensors_that_do_not_fit_are_named(tmp_path):
    source = tmp_path / "a.h5"
    weights = weights_of("unet")
    checkpoint.save(source, {"unet": checkpoint.Weights("paper", weights.state, weights.metadata)})
    with pytest.raises(ModelError, match="unet: the checkpoint's tensors do not fit"):
        export(source, tmp_path / "onnx")


def test_batch_norm_folds_into_the_convolutions():
    torch.manual_seed(0)
    net = DnCNN(6, 4, 1).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    model = to_onnx(Graph(net))
    operators = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Conv") == 4


@pytest.mark.slow
def test_the_benchmarks_unet_is_marked_as_not_tileable(tmp_path):
    net = build("unet", "paper")
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    source = tmp_path / "a.h5"
    checkpoint.save(source, {"unet": checkpoint.Weights("paper", state, {"status": "fitted"})})
    (done,) = export(source, tmp_path / "onnx")
    info = open_session(done.path, "cpu", threads=1).info
    assert not info.tiling_exact
    assert "align_corners" in info.text["whole_frame"]
    assert compare(net.eval(), done.path) <= TOLERANCE


def test_a_net_that_sees_five_frames_is_exported_and_checked(tmp_path, monkeypatch):
    options = {"features": 8, "levels": 2, "shuffle": 2, "benchmark": False}
    preset = Preset(options, 0, (128, 192), 16, (16,), frames=5)
    spec = ModelSpec("tiny", "Tiny", "this test", {"movie": preset})
    monkeypatch.setitem(MODELS, "tiny", spec)
    monkeypatch.setitem(NETS, "tiny", UNet)
    source = tmp_path / checkpoint.FILE_NAME
    checkpoint.save(source, {"tiny@movie": weights_of("tiny", "movie")})
    (done,) = export(source, tmp_path)
    assert done.error <= TOLERANCE
    session = open_session(done.path, "cpu", threads=1)
    assert session.info.frames == 5
    frames = np.random.default_rng(1).poisson(6.0, (3, 5, 40, 50)).astype(np.float32)
    column = [torch.full((3, 1, 1, 1), value) for value in (6.0, 0.0, 1.0)]
    with torch.no_grad():
        expected = Graph(perturbed("tiny", "movie").eval())(torch.from_numpy(frames), *column)
    found = session.run(frames, 6.0, 0.0, 1.0)
    np.testing.assert_allclose(found, expected[:, 0].numpy(), atol=1e-5 * np.ptp(found))
    assert np.abs(found - session.run(frames[:, ::-1].copy(), 6.0, 0.0, 1.0)).max() > 0.1


def test_weights_in_halves_take_half_the_space_and_compute_the_same(tmp_path):
    source = tmp_path / checkpoint.FILE_NAME
    checkpoint.save(source, {"dncnn": weights_of("dncnn")})
    (whole,) = export(source, tmp_path / "whole")
    (half,) = export(source, tmp_path / "half", half=True)
    sizes = [(one.path.stat().st_size, one.path.with_name(source.name).stat().st_size)
             for one in (half, whole)]  # fmt: skip
    assert sizes[0][0] < 0.75 * sizes[1][0]  # the matrices of the spectra are no halves
    assert sizes[0][1] < 0.6 * sizes[1][1]
    kept = checkpoint.load(half.path.with_name(source.name))["dncnn"].state
    frames = np.random.default_rng(1).poisson(6.0, (2, 64, 64)).astype(np.float32)
    rounded, exact = (open_session(one.path, "cpu", 1).run(frames, 6.0, 0.0, 1.0)
                      for one in (half, whole))  # fmt: skip
    assert 0 < np.abs(rounded - exact).max() < 0.01 * np.ptp(exact)
    net = build("dncnn", "shipped")
    net.load_state_dict({key: torch.from_numpy(value) for key, value in kept.items()})
    column = [torch.full((2, 1, 1, 1), value) for value in (6.0, 0.0, 1.0)]
    with torch.no_grad():
        expected = Graph(net.eval())(torch.from_numpy(frames)[:, None], *column)[:, 0].numpy()
    np.testing.assert_allclose(rounded, expected, atol=1e-5 * np.ptp(expected))
    # What other precisions start from is the same graph with float32 constants.
    plain = tmp_path / "plain.onnx"
    onnx.save(unpacked(onnx.load(half.path)), plain)
    assert plain.stat().st_size > 1.3 * sizes[0][0]
    np.testing.assert_array_equal(open_session(plain, "cpu", 1).run(frames, 6.0, 0.0, 1.0), rounded)
