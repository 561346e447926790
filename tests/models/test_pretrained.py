"""What is shipped: complete, undamaged, made of the packaged checkpoint, and any good."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from emdn_deploy import Denoiser
from emdn_deploy.session import open_session
from emdn_models import MODELS, ModelError, checkpoint, metrics, pretrained
from emdn_models.nets import build, load_state
from emdn_models.nets.scaling import BLUR
from emdn_models.spec import spec_of
from emdn_train.calibrate import denoise, recordings
from emdn_train.export import weights_sha256
from emdn_train.onnx_graph import Graph

SHIPPED = list(pretrained.index()["models"])


def test_all_seven_and_the_model_for_movies_are_shipped():
    index = pretrained.index()
    assert [*MODELS, pretrained.movie_model()] == SHIPPED
    files = {path.name for path in pretrained.WEIGHTS.glob("*.onnx")}
    assert files == {entry["file"] for entry in index["models"].values()}
    assert pretrained.default_model() in MODELS
    assert sum(path.stat().st_size for path in pretrained.WEIGHTS.iterdir()) < 30e6
    for name, entry in index["models"].items():
        preset = spec_of(name).presets[entry["preset"]]
        assert entry["parameters"] == preset.parameters
        assert set(entry["quality"]["gain_db"]) == {"0.12", "0.4", "1.2"}
        assert {"recipe", "data", "steps", "minutes", "seed", "hardware"} <= set(entry["recipe"])
    assert index["checkpoint"]["sha256"] == pretrained.sha256(pretrained.CHECKPOINT)


@pytest.mark.parametrize("readme", ["models/README.md", "benchmarks/results/quality.md"])
def test_the_tables_have_the_gains_of_the_index(readme):
    text = (Path(__file__).parents[2] / readme).read_text(encoding="utf-8")
    for name in SHIPPED:
        gains = pretrained.index()["models"][name]["quality"]["gain_db"].values()
        mean = sum(gains) / len(gains)
        row = re.search(rf"^\| {name} +\|(( +[\d.]+ \|){{4}})", text, re.MULTILINE)
        found = [float(cell) for cell in row[1].split("|")[:-1]]
        assert found == pytest.approx([*gains, mean], abs=0.011)


@pytest.mark.parametrize("name", SHIPPED)
def test_onnx_and_checkpoint_are_the_same_model(name):
    session = open_session(name, "cpu", 1)
    weights = checkpoint.load(pretrained.CHECKPOINT)[name]
    assert session.info.text["weights_sha256"] == weights_sha256(weights.state)
    preset = spec_of(name).presets[weights.preset]
    assert session.info.receptive_field == preset.receptive_field[1] + BLUR - 1
    assert (session.info.halo, session.info.multiple) == (preset.halo, preset.multiple)
    net = build(name, weights.preset)
    load_state(net, name, weights)
    size = 2, preset.frames, 50, 67
    frames = np.random.default_rng(0).poisson(30.0, size).astype(np.float32)
    column = [torch.full((2, 1, 1, 1), value) for value in (30.0, 0.0, 1.0)]
    with torch.no_grad():
        expected = Graph(net.eval())(torch.from_numpy(frames), *column)[:, 0].numpy()
    found = session.run(frames, 30.0, 0.0, 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(frames))


@pytest.fixture(scope="module")
def unseen():
    """Frames that no training saw, of all kinds of specimens and doses."""
    return list(recordings(6, 128))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_denoise_what_they_never_saw(name, unseen):
    denoiser = Denoiser(name, threads=1)
    for one in unseen:
        denoised, _ = denoise(denoiser, one.noisy, one.clean)
        assert metrics.gain_db(one.noisy, denoised, one.clean, one.valid) > 5
        assert denoised.mean() == pytest.approx(one.noisy.mean(), rel=0.01)


def test_unknown_and_damaged_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no shipped model is called 'resnet'"):
        pretrained.onnx_path("resnet")
    index = {"default": "unet", "models": {"unet": {"file": "unet.onnx", "sha256": "0" * 64}}}
    (tmp_path / "unet.onnx").write_bytes(b"cut short")
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    monkeypatch.setattr(pretrained, "index", lambda: index)
    with pytest.raises(ModelError, match="missing or damaged; reinstall emdn"):
        pretrained.onnx_path("unet")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"models": []}', '{"models": {"a": {"sha256": "0"}}}',
        '{"models": {"a": {"file": "../a.onnx"}}}', "\udcff",
        '{"models": {"a": {"file": "a.onnx", "variants": {"int8": {}}}}}',
    ],
)  # fmt: skip
def test_damaged_indexes_are_one_line(tmp_path, text):
    (tmp_path / pretrained.INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"index\.json: cannot be read .*emdn-train export$"):
        pretrained.entries_of(tmp_path, None)
