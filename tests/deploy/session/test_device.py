"""The whole way of ``--device cuda``, but for the kernels."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser, session, tiling
from emdn_deploy.checking import record
from emdn_deploy.job import run
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.session import open_session
from emdn_models.errors import DeviceError, DeviceMemoryError

from .conftest import HostMemory


def noisy(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(9, shape).astype(np.float32)


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_frames_go_through_the_device(box_model: Path, pretended: HostMemory, device) -> None:
    opened = open_session(box_model, device)
    assert (opened.device, opened.precision) == (device, "fp32")
    # TensorRT has no onnxruntime graphs.
    assert pretended.asked == [(device, opened.threads, "fp32", {"graphs": device == "cuda"})]
    assert opened.single is opened.handle
    frames = noisy(3, 21, 34)
    expected = open_session(box_model, "cpu").run(frames, 9.0, 0.0, 1.0)
    np.testing.assert_array_equal(opened.run(frames, 9.0, 0.0, 1.0, alone=True), expected)
    assert pretended.copied_in == 4
    with pytest.raises(DeviceError, match="out is"):
        opened.run(frames, 9.0, 0.0, 1.0, out=np.zeros((2, 21, 34), np.float32))


def test_auto_takes_a_gpu_and_stays_on_the_cpu_where_it_fails(
    box_model: Path, pretended: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_session(box_model, "auto").device == "cuda"
    opens = session.open_handle

    def fails(path: Path, device: str, *rest: object, **more: object) -> object:
        if device == "cuda":
            raise DeviceError("CUDA is not available: onnxruntime fell back")
        return opens(path, device, *rest, **more)

    monkeypatch.setattr(session, "open_handle", fails)
    assert open_session(box_model, "auto").device == "cpu"
    with pytest.raises(DeviceError, match="fell back"):
        open_session(box_model, "cuda")


def test_tf32_is_used_under_its_own_name_only(box_model: Path, pretended: HostMemory) -> None:
    assert open_session(box_model, "cuda", precision="tf32").precision == "tf32"
    assert pretended.asked[-1][2] == "tf32"
    for device in ("cpu", "tensorrt"):
        with pytest.raises(DeviceError, match=f"tf32 is CUDA's, and the device is {device}"):
            open_session(box_model, device, precision="tf32")


def test_batches_are_powers_of_two_in_two_lanes(box_model: Path, pretended: HostMemory) -> None:
    pretended.free = 10**9
    denoiser = Denoiser(box_model, "cuda")
    assert denoiser.batch_for((256, 256)) == 64
    assert denoiser.batch_for((200, 300)) == 64
    assert denoiser.batch_for((3000, 3000)) == 1
    assert denoiser.lanes(64, (256, 256)) == 1
    assert denoiser.lanes(65, (256, 256)) == 2
    # Of 20 MB a half, at the 64 bytes a pixel that are taken for granted.
    pretended.free = 20 * 10**6
    assert Denoiser(box_model, "cuda").batch_for((128, 128)) == 8


def test_memory_that_is_free_bounds_a_run(
    box_model: Path, pretended: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = noisy(5, 96, 96)
    expected = Denoiser(box_model, "cpu").denoise(frames)
    pretended.free = 2 * 64 * 4000
    denoiser = Denoiser(box_model, "cuda")
    assert denoiser.room.pixels == 4000
    np.testing.assert_array_equal(denoiser.denoise(frames), expected)
    assert denoiser.room.note == ""
    # Frames too large for the CPU's limit are cut here, too.
    monkeypatch.setattr(tiling, "WHOLE_PIXELS", 64 * 64)
    monkeypatch.setattr(tiling, "TILE_PIXELS", 64 * 64)
    pretended.free = 10**9
    np.testing.assert_array_equal(Denoiser(box_model, "cuda").denoise(frames), expected)


def test_a_device_that_runs_out_of_memory_gets_less(
    box_model: Path, pretended: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = noisy(9, 64, 64)
    expected = Denoiser(box_model, "cpu").denoise(frames)
    pretended.free = 10**9
    denoiser = Denoiser(box_model, "cuda")
    assert denoiser.batch_for((64, 64)) == 64
    real, tried = pretended.empty, []

    def empty(shape: tuple[int, ...]) -> np.ndarray:
        tried.append(shape)
        if np.prod(shape) > 64 * 64 * 2:
            raise MemoryError("cuMemHostAlloc: out of memory")
        return real(shape)

    monkeypatch.setattr(pretended, "empty", empty)
    np.testing.assert_array_equal(denoiser.denoise(frames), expected)
    assert denoiser.room.note == "ran out of memory: at most 8192 pixels a run"
    assert [shape[0] for shape in tried if len(shape) == 3][:3] == [8, 4, 2]
    with pytest.raises(DeviceMemoryError, match="box failed on cuda for 4 frames of 64 x 64"):
        denoiser.session.run(frames[:4], 9.0, 0.0, 1.0)


def test_a_file_is_denoised_on_the_device(
    box_model: Path, pretended: HostMemory, tmp_path: Path
) -> None:
    source = tmp_path / "movie.h5"
    with h5py.File(source, "w") as file:
        file["frames"] = noisy(21, 48, 64).astype(np.uint16)

    def made(device: str, **more: object) -> np.ndarray:
        output = tmp_path / f"{device}.h5"
        options = DenoiseOptions(output=output, model=str(box_model), device=device, **more)
        report = run(source, options)
        assert report.device == record.of(output)["device"] == device
        with h5py.File(output) as file:
            return file["frames"][()]

    expected = made("cpu")
    # 8 frames, 8 and 5: that is 4 and 1, of which the last has waited for nobody.
    np.testing.assert_array_equal(made("cuda", batch=8), expected)
    np.testing.assert_array_equal(made("tensorrt"), expected)
    assert record.of(tmp_path / "tensorrt.h5")["batch"] == 64


def test_a_broken_off_run_goes_on_with_another_batch(
    box_model: Path, pretended: HostMemory, tmp_path: Path
) -> None:
    source, output = tmp_path / "movie.h5", tmp_path / "out.h5"
    with h5py.File(source, "w") as file:
        file["frames"] = noisy(12, 32, 32).astype(np.uint16)

    def options(batch: int) -> DenoiseOptions:
        return DenoiseOptions(output=output, model=str(box_model), device="cuda", batch=batch)

    def breaks(done: int, _: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, options(4), breaks)
    report = run(source, options(2))
    assert report.resumed == 8
