"""Triton model repositories: a configuration that its own protobuf reads, and that fits."""

import importlib.util
from pathlib import Path

import onnx
import pytest

from emdn_models import OutputError, pretrained
from emdn_train import triton


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
    path = triton.write(source, tmp_path)
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
    triton.write(source, tmp_path)  # in place of itself
    assert len(list(tmp_path.rglob("*.*"))) == 2


def test_a_repository_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ffdnet").touch()
    with pytest.raises(OutputError, match="ffdnet"):
        triton.write(pretrained.onnx_path("ffdnet"), tmp_path)
