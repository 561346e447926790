"""Packages for other programs: read by their own libraries, and the frames of emdn itself."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from emdn_deploy import Denoiser
from emdn_models import MissingExtraError, ModelError, pretrained
from emdn_train import packages
from emdn_train.cli import main

MODELS = ("ffdnet", "unet@movie")


def counts(frames: int, height: int = 97, width: int = 131) -> np.ndarray:
    """Record a drifting lattice, (frames, height, width), at 9 electrons a pixel."""
    y, x = np.mgrid[:height, :width]
    drift = 0.4 * np.arange(frames)[:, None, None]
    clean = 9 * (1 + 0.3 * np.cos((x + drift) / 1.7) * np.cos(y / 2.1 + x / 4))
    return np.random.default_rng(1).poisson(clean).astype(np.uint16)


@pytest.fixture(scope="module", params=MODELS)
def graph(request):
    """A model, and its graph that takes one tensor as a function of frames (F, H, W)."""
    model = packages.one_tensor(onnx.load(pretrained.onnx_path(request.param)))
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    assert [one.name for one in model.graph.input] == ["frames"]
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(frames: np.ndarray) -> np.ndarray:
        return session.run(None, {"frames": frames[None].astype(np.float32)})[0][0, 0]

    return Denoiser(request.param, threads=1), run


def assert_same(found: np.ndarray, denoiser: Denoiser, frames: np.ndarray) -> None:
    """Compare with the middle frame of emdn, which measures a movie's scale on three frames."""
    wanted = denoiser.denoise(frames)[len(frames) // 2]
    share = 2e-5 if len(frames) == 1 else 2e-3
    np.testing.assert_allclose(found, wanted, atol=share * np.ptp(wanted))


def test_counts_give_the_frames_of_emdn(graph) -> None:
    denoiser, run = graph
    frames = counts(denoiser.session.info.frames)
    assert_same(run(frames), denoiser, frames)


@pytest.mark.parametrize(("gain", "offset"), [(1e-20, 0.0), (3.0, -200)])
def test_other_units_are_measured(graph, gain: float, offset: float) -> None:
    """Within a fifth of the noise that is left: scale is measured on one frame, not given."""
    denoiser, run = graph
    frames = counts(denoiser.session.info.frames, 256, 256)
    wanted = denoiser.denoise(frames, gain=1, offset=0)[len(frames) // 2]
    found = (run(frames * np.float64(gain) + offset) - offset) / gain
    assert (found - wanted).std() < 0.05 * 3  # of the noise of a pixel
    assert found.mean() == pytest.approx(frames[len(frames) // 2].mean(), rel=1e-4)


@pytest.mark.parametrize("level", [0.0, 7.0, -7.0, 1e20])
def test_a_frame_without_noise_stays(graph, level: float) -> None:
    denoiser, run = graph
    frames = np.full((denoiser.session.info.frames, 64, 64), level)
    np.testing.assert_allclose(run(frames), frames[0], rtol=1e-5, atol=1e-30)


def test_what_is_missing_is_named(monkeypatch) -> None:
    model = onnx.load(pretrained.onnx_path("ffdnet"))
    model.graph.node[-1].op_type = "Gelu"
    with pytest.raises(ModelError, match="ffdnet: not in ONNX's operator set 17"):
        packages.one_tensor(model)
    monkeypatch.setitem(sys.modules, "bioimageio", None)
    with pytest.raises(MissingExtraError, match=r"\[bioimageio\]"):
        packages.bioimage_io(pretrained.onnx_path("ffdnet"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("name", MODELS)
def test_bioimageio_core_runs_a_package_to_the_same_frames(name, tmp_path) -> None:
    core = pytest.importorskip("bioimageio.core")
    source = shutil.copy(pretrained.onnx_path(name), tmp_path)  # as export has written it
    package = packages.bioimage_io(Path(source))
    summary = core.test_model(package, devices=["cpu"])
    assert summary.status == "passed", summary.format()
    # Nobody has an account to be named by.
    warnings = [str(one) for part in summary.details for one in part.warnings if one.severity > 20]
    assert all("github_user" in one for one in warnings), warnings
    denoiser = Denoiser(name, threads=1)
    frames = counts(denoiser.session.info.frames)
    described = core.load_model_description(package)
    pipeline = core.create_prediction_pipeline(described, devices=["cpu"])
    made = core.predict(model=pipeline, inputs=frames[None])
    (found,) = made.as_arrays().values()
    assert_same(found[0, 0], denoiser, frames)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_command_writes_both_from_the_shipped_weights(tmp_path, capsys) -> None:
    pytest.importorskip("bioimageio.spec")
    options = ["--models", "ffdnet", "--bioimage-io", "--triton", str(tmp_path / "served")]
    with pytest.raises(SystemExit, match="0"):
        main(["export", "shipped", "--out", str(tmp_path), *options])
    said = capsys.readouterr().out.splitlines()[1:]
    written = "ffdnet.bioimageio.zip", "served/ffdnet/config.pbtxt"
    assert said == [f"saved {tmp_path / one}" for one in written]


@pytest.mark.parametrize(("name", "frames"), [("ffdnet", 1), ("unet@movie", 5)])
@pytest.mark.filterwarnings("ignore")  # of older generated code
def test_triton_reads_the_configuration(name: str, frames: int, tmp_path: Path) -> None:
    client = pytest.importorskip("tritonclient")
    # By its path: the package that holds it imports grpc, which no message needs.
    path = Path(client.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    messages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(messages)
    from google.protobuf import text_format

    source = pretrained.onnx_path(name)
    for _ in range(2):  # in place of itself
        path = packages.triton(source, tmp_path)
    assert len(list(tmp_path.rglob("*.*"))) == 2
    config = text_format.Parse(path.read_text(), messages.ModelConfig())
    assert config.name == path.parent.name == name.replace("@", "-")
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 8
    assert config.HasField("dynamic_batching")
    assert {one.name: list(one.dims) for one in config.input} == {
        "frames": [frames, -1, -1], "scale": [1, 1, 1], "offset": [1, 1, 1], "gain": [1, 1, 1],
    }  # fmt: skip
    assert {one.name: list(one.dims) for one in config.output} == {"denoised": [1, -1, -1]}
    tensors = [*config.input, *config.output]
    assert {messages.DataType.Name(one.data_type) for one in tensors} == {"TYPE_FP32"}
    served = path.parent / "1" / "model.onnx"
    assert served.read_bytes() == source.read_bytes()
    onnx.checker.check_model(served)
