import logging
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from emdn_deploy.session import cuda_obstacle, handles
from emdn_deploy.session.providers import CPU, CUDA
from emdn_models.errors import DeviceError


def pretend(*kinds: tuple[str, str], providers: tuple[str, ...] = (CUDA, CPU)) -> SimpleNamespace:
    """Make a session that says which provider has which operators."""

    def part(provider: str, kind: str) -> SimpleNamespace:
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: [SimpleNamespace(op_type=kind)])

    parts = [part(*one) for one in kinds]
    return SimpleNamespace(
        get_providers=lambda: list(providers), get_provider_graph_assignment_info=lambda: parts
    )


@pytest.mark.skipif(not cuda_obstacle(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_silent_fallback_is_refused(box_model: Path, device, tmp_path, monkeypatch) -> None:
    # onnxruntime itself opens a session here, on the CPU.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DeviceError, match="fell back to CPUExecutionProvider"):
        handles.open_handle(box_model, device, 1)


def test_convolutions_on_the_cpu_are_refused_under_another_name() -> None:
    handle = pretend((CUDA, "Add"), (CPU, "FusedConv"), (CPU, "Conv"), (CPU, "Shape"))
    with pytest.raises(DeviceError, match=r"would run 2 convolutions of a\.onnx on another device"):
        handles.check(handle, "cuda", "a.onnx")
    # Under TensorRT, CUDA is another device too.
    handle = pretend((CUDA, "Conv"), providers=(handles.PROVIDERS["tensorrt"], CUDA, CPU))
    with pytest.raises(DeviceError, match="TensorRT is not available"):
        handles.check(handle, "tensorrt", "a.onnx")


def test_operators_that_run_on_the_cpu_are_named(caplog: pytest.LogCaptureFixture) -> None:
    handle = pretend((CUDA, "Conv"), (CPU, "Resize"), (CPU, "Pad"), (CPU, "Resize"), (CPU, "Mod"))
    with caplog.at_level(logging.WARNING):
        handles.check(handle, "cuda", "a.onnx")
    assert "a.onnx: not on CUDA but elsewhere run 1 Pad, 2 Resize" in caplog.text


def test_the_arithmetic_of_sizes_is_no_cause_for_a_warning(caplog) -> None:
    handles.check(pretend((CUDA, "Conv"), (CPU, "Shape"), (CPU, "Concat")), "cuda", "a.onnx")
    assert not caplog.text


def test_operators_are_found_where_onnxruntime_says(box_model: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(handles._ASSIGNMENT, "1")
    handle = onnxruntime.InferenceSession(str(box_model), options, providers=[CPU])
    if not hasattr(handle, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime does not tell")
    found = handles.elsewhere(handle, CUDA)
    assert found["Conv"] == 3
    assert "Shape" not in found
    assert not handles.elsewhere(handle, CPU)


def test_an_onnxruntime_that_does_not_tell_is_believed() -> None:
    handles.check(SimpleNamespace(get_providers=lambda: [CUDA, CPU]), "cuda", "a.onnx")


def test_a_model_that_cannot_be_recorded_is_opened_without_graphs(
    box_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    handle = pretend((CUDA, "Conv"))

    def session(path: str, options: object, providers: list) -> object:
        asked.append(providers[0][1]["enable_cuda_graph"])
        if asked[-1] == "1":
            raise RuntimeError(
                "This session cannot use the graph capture feature as requested by the user as all "
                "compute graph nodes have not been partitioned to the CUDAExecutionProvider"
            )
        return handle

    monkeypatch.setattr(handles.ort, "InferenceSession", session)
    assert handles.open_handle(box_model, "cuda", 1, graphs=True) is handle
    assert asked == ["1", "0"]
