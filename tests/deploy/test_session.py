import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import session
from emdn_deploy.session import open_session
from emdn_models.errors import DeviceError, EmdnError, ModelError


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 7), (2, 31, 64), (1, 65, 33)])
def test_frames_come_back_in_their_own_size(box_model: Path, shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).poisson(9, shape).astype(np.float32)
    output = open_session(box_model, "cpu").run(frames, 9.0, 0.0, 1.0)
    assert output.shape == shape
    assert output.dtype == np.float32


def test_threads_follow_the_affinity_mask(box_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    opened = open_session(box_model, "cpu")
    assert opened.threads == 3
    assert opened.handle.get_session_options().intra_op_num_threads == 3
    assert open_session(box_model, "cpu", threads=1).threads == 1


def test_a_lane_has_one_thread(box_model: Path) -> None:
    opened = open_session(box_model, "cpu", threads=3)
    assert opened.single.get_session_options().intra_op_num_threads == 1
    assert opened.single is opened.single
    alone = open_session(box_model, "cpu", threads=1)
    assert alone.single is alone.handle


def test_results_are_written_where_they_belong(box_model: Path) -> None:
    opened = open_session(box_model, "cpu")
    frames = np.random.default_rng(0).poisson(9, (4, 24, 31)).astype(np.float32)
    into = np.zeros((6, 24, 31), np.float32)
    made = opened.run(frames, 9.0, 0.0, 1.0, out=into[1:5])
    assert np.shares_memory(made, into)
    np.testing.assert_array_equal(into[1:5], opened.run(frames, 9.0, 0.0, 1.0, alone=True))
    assert not into[[0, 5]].any()
    # A buffer that does not fit would be written past its end.
    for wrong in (into[:2], np.zeros((4, 24, 31)), np.zeros((4, 24, 62), np.float32)[:, :, ::2]):
        with pytest.raises(DeviceError, match="out is"):
            opened.run(frames, 9.0, 0.0, 1.0, out=wrong)


def test_frames_may_lie_anyhow_in_memory(box_model: Path) -> None:
    opened = open_session(box_model, "cpu")
    frames = np.random.default_rng(0).poisson(9, (2, 20, 30)).astype(np.float32)
    turned = np.ascontiguousarray(frames.transpose(0, 2, 1)).transpose(0, 2, 1)
    expected = opened.run(frames, 9.0, 0.0, 1.0)
    np.testing.assert_array_equal(opened.run(turned, 9.0, 0.0, 1.0), expected)


@pytest.mark.parametrize("alone", [False, True])
def test_options_keep_the_cores_free(box_model: Path, alone: bool) -> None:
    opened = open_session(box_model, "cpu", threads=2)
    options = (opened.single if alone else opened.handle).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


def test_a_missing_library_is_named(box_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "obstacle", lambda _: "libexample.so.1 cannot be loaded")
    with pytest.raises(DeviceError, match=r"CUDA is not available: libexample\.so\.1"):
        open_session(box_model, "cuda")


def test_auto_says_what_it_took(
    box_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "obstacle", lambda device: "no GPU" if device == "cuda" else "")
    with caplog.at_level(logging.INFO):
        assert open_session(box_model, "auto").device == "cpu"
    assert "device: cpu (CUDA is not available: no GPU)" in caplog.text


def test_an_unknown_device_is_refused(box_model: Path) -> None:
    with pytest.raises(DeviceError, match="auto, cpu, cuda, tensorrt"):
        open_session(box_model, "tpu")  # type: ignore[arg-type]
    with pytest.raises(EmdnError, match="threads is 0"):
        open_session(box_model, "cpu", threads=0)


def test_a_damaged_file_is_refused(box_model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    half.write_bytes(box_model.read_bytes()[:300])
    with pytest.raises(ModelError, match=r"half\.onnx: is damaged or no ONNX file"):
        open_session(half, "cpu")
    with pytest.raises(ModelError, match="no such ONNX file"):
        open_session(tmp_path / "none.onnx", "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emdn_schema": None}, "not a model exported by emdn"),
        ({"emdn_schema": "2"}, "has emdn_schema 2, this emdn reads 1"),
        ({"multiple": None}, "incomplete"),
        ({"recipe": "{"}, "incomplete or damaged"),
    ],
)
def test_foreign_metadata_is_refused(
    make_model, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        open_session(make_model(tmp_path / "foreign.onnx", **changes), "cpu")


def test_metadata_is_read(box_model: Path) -> None:
    info = open_session(box_model, "cpu").info
    assert (info.name, info.multiple, info.receptive_field) == ("box", 2, 8)
    assert info.tiling_exact is True
    assert info.quality == {"psnr_db": 20.0}
    assert len(info.sha256) == 64


def test_a_failed_run_is_one_of_our_errors(box_model: Path) -> None:
    with pytest.raises(DeviceError, match="box failed on cpu"):
        open_session(box_model, "cpu").run(np.zeros((1, 8, 8), np.float64), 1, 0, 1)  # type: ignore[arg-type]


def test_a_session_is_ready_within_a_second(box_model: Path) -> None:
    code = (
        "from emdn_deploy.session import open_session; import sys; open_session(sys.argv[1], 'cpu')"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, str(box_model)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, which other work on the machine does not lengthen.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
