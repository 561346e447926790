import os
import sys
from pathlib import Path

import onnxruntime
import pytest

from emdn_deploy.session import providers
from emdn_deploy.session.providers import CPU, CUDA, PROVIDERS, obstacle, options_of

TENSORRT = PROVIDERS["tensorrt"]


def test_float32_is_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    for precision, tf32, channels_last in (("fp32", "0", "0"), ("tf32", "1", "1"),
                                           ("fp16", "0", "1")):  # fmt: skip
        (name, options), last = options_of("cuda", precision, "", graphs=False)
        assert (name, last) == (CUDA, CPU)
        assert (options["use_tf32"], options["prefer_nhwc"]) == (tf32, channels_last)
    (name, options), (second, cuda), _ = options_of("tensorrt", "fp32", "0" * 64, graphs=False)
    assert (name, second) == (TENSORRT, CUDA)
    assert (options["trt_fp16_enable"], cuda["use_tf32"]) == ("0", "0")
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert options_of("tensorrt", "fp16", "0" * 64, graphs=False)[0][1]["trt_fp16_enable"] == "1"


def test_graphs_are_asked_for(tmp_path: Path) -> None:
    for graphs in (False, True):
        (_, options), _ = options_of("cuda", "fp32", "", graphs=graphs)
        assert options["enable_cuda_graph"] == str(int(graphs))
    assert options_of("cpu", "fp32", "", graphs=False) == [CPU]


@pytest.mark.skipif(sys.platform == "win32", reason="other folders there")
def test_engines_of_other_models_and_precisions_lie_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = {providers.engines(digest * 32, precision)
               for digest in ("ab", "cd") for precision in ("fp32", "fp16")}  # fmt: skip
    assert len(folders) == 4
    assert all(one.is_dir() and one.parent == tmp_path / "emdn/tensorrt" for one in folders)
    (_, options), *_ = options_of("tensorrt", "fp16", "ab" * 32, graphs=False)
    assert Path(options["trt_engine_cache_path"]) in folders
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert (tmp_path / "home/.cache/emdn") in providers.engines("ab" * 32, "fp32").parents


def test_onnxruntime_knows_every_option(box_model: Path, tmp_path: Path) -> None:
    # Where the provider is built in, its own list of defaults has the names.
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA")
    folder = Path(onnxruntime.__file__).parent / "capi"
    for name, device in (("cuda", "cuda"), ("tensorrt", "tensorrt")):
        library = next(iter(folder.glob(f"*onnxruntime_providers_{name}.*"))).read_bytes()
        for option in options_of(device, "fp32", "0" * 64, graphs=True)[0][1]:
            assert option.encode() in library, option


def test_a_wheel_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    assert "no CUDA provider" in obstacle("cuda")
    assert "no TensorRT provider" in obstacle("tensorrt")
    assert obstacle("cpu") == ""


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Let every library be loaded but those in the set, and a driver be there."""
    missing: set[str] = set()

    def unloadable(library: str) -> str:
        return next((one for one in missing if one in library), "")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(providers, "_unloadable", unloadable)
    monkeypatch.setattr(providers, "open_driver", object)
    return missing


def test_what_is_missing_is_named(libraries: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle("cuda") == ""
    assert obstacle("tensorrt") == ""
    # onnxruntime starts without it and gives the convolutions to the CPU.
    libraries.add("cudnn")
    assert obstacle("cuda").startswith('cudnn cannot be loaded; pip install ".[cuda]"')
    assert obstacle("tensorrt") == obstacle("cuda")
    libraries.clear()
    monkeypatch.setattr(providers, "open_driver", lambda: None)
    assert obstacle("cuda") == "no NVIDIA driver or GPU found"


def test_tensorrt_needs_more_than_cuda(libraries: set[str]) -> None:
    if not list((Path(onnxruntime.__file__).parent / "capi").glob("*providers_tensorrt*")):
        pytest.skip("this onnxruntime is built without TensorRT")
    libraries.add("providers_tensorrt")
    assert obstacle("cuda") == ""
    assert "install NVIDIA's TensorRT" in obstacle("tensorrt")


def test_the_name_of_the_missing_library_is_taken_from_the_loader() -> None:
    assert providers._unloadable("libnowhere.so.7") == "libnowhere.so.7"


def test_a_gpu_is_known_by_its_drivers_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setattr(providers.shutil, "which", lambda _: None)
    assert not providers.nvidia_there()
    monkeypatch.setattr(providers.shutil, "which", lambda name: name)
    assert providers.nvidia_there()
