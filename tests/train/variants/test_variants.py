"""From exported models to variants beside them: kept if they are good, and gone if not."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from emdn_deploy import cli as deploy
from emdn_deploy.session import open_session
from emdn_models import ModelError, checkpoint, pretrained
from emdn_train import cli, export, variants
from emdn_train.variants import make, speed
from emdn_train.variants.table import table


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch, frames) -> None:
    monkeypatch.setattr(variants, "simulated", lambda: frames)


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let halves be of a net that takes a hundredth of the brightness away."""
    good = variants.halved

    def bad(model: onnx.ModelProto) -> onnx.ModelProto:
        made = good(model)
        for one in made.graph.initializer:
            if one.name == "down.half":
                values = numpy_helper.to_array(one) - np.float16(0.5)
                one.CopyFrom(numpy_helper.from_array(values, one.name))
        return made

    monkeypatch.setattr(variants, "halved", bad)


def entry(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "index.json").read_text())["models"]["unet"].get("variants", {})


def run(main, *arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_good_variant_is_written_entered_and_used(
    folder: Path, frames, tmp_path: Path, capsys, precision: str
) -> None:
    (found,) = make(folder, (precision,))
    assert found.refusal == ""
    assert found.path == folder / f"unet.{precision}.onnx"
    assert found.convolutions == ((1, 3) if precision == "int8" else (3, 3))
    assert (found.speed is None) == (precision == "fp16")
    known = entry(folder)[precision]
    assert known["sha256"] == pretrained.sha256(found.path)
    assert 0 < abs(known["mean_loss_db"]) <= 0.1
    written = {one.name for one in folder.iterdir()}
    assert written == {"index.json", "unet.onnx", f"unet.{precision}.onnx"}
    source = tmp_path / "movie.h5"
    with h5py.File(source, "w") as file:
        file["frames"] = np.stack([one.noisy for one in frames.judged[:2]])
    done = run(
        deploy.main, "denoise", source, "--model", folder / "unet.onnx",
        "--precision", precision, "--device", "cpu",
    )  # fmt: skip
    assert done == 0
    assert f"unet in {precision} on cpu" in capsys.readouterr().out


def test_a_bad_variant_is_refused_and_nothing_is_kept(folder: Path, damaged, capsys) -> None:
    (folder / "unet.fp16.onnx").write_bytes(b"of an earlier run")
    index = json.loads((folder / "index.json").read_text())
    index["models"]["unet"]["variants"] = {"fp16": {"file": "unet.fp16.onnx"}, "other": {"a": 1}}
    (folder / "index.json").write_text(json.dumps(index))
    assert run(cli.main, "variants", folder, "--models", "unet", "--precision", "fp16") == 1
    out = capsys.readouterr().out
    assert "refused: loses" in out
    assert "mean off by" in out
    assert "unet.fp16.onnx" not in out
    assert sorted(one.name for one in folder.iterdir()) == ["index.json", "unet.onnx"]
    assert entry(folder) == {"other": {"a": 1}}


def test_integers_that_do_not_fit_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(model: onnx.ModelProto, names: list[str], *_: object) -> dict:
        return dict.fromkeys(names, (0.0, 8.0))

    monkeypatch.setattr(variants.integers.ranges, "measure", small)
    (found,) = make(folder, ("int8",))
    assert found.refusal == "no convolution stands it"
    assert found.verdict is None
    # Nor do they pass the gate.
    monkeypatch.setattr(variants.integers, "affordable", lambda convs, _: convs)
    (found,) = make(folder, ("int8",))
    assert found.refusal.startswith("loses ")
    assert found.path is None
    assert not (folder / "unet.int8.onnx").exists()
    assert entry(folder) == {}


def test_the_command_exits_with_0_if_all_are_accepted(folder: Path, capsys) -> None:
    assert run(cli.main, "variants", folder) == 0
    out = capsys.readouterr().out
    assert out.count("accepted") == 2
    assert f"saved {folder / 'unet.int8.onnx'}" in out
    assert speed.instructions() in out


def test_the_table_has_a_row_a_variant(folder: Path, damaged) -> None:
    results = list(make(folder))
    # One of which nothing is known comes first.
    made = table([replace(results[0], verdict=None, speed=None, refusal="none"), *results])
    assert made.columns[2:5] == ["0.2", "1", "mean"]
    assert made.row(0)[2:6] == ("-",) * 4
    made = made[1:]
    assert made["model"].to_list() == ["unet", "unet"]
    assert made["precision"].to_list() == ["int8", "fp16"]
    assert made["convolutions"].to_list() == ["1 of 3", "3 of 3"]
    assert made[""][0] == "accepted"
    assert made[""][1].startswith("refused: loses ")


def test_a_variant_says_what_it_was_made_of(folder: Path) -> None:
    for found in make(folder):
        info = open_session(found.path, "cpu", 1).info
        assert info.precision == found.precision
        assert info.text["fp32_sha256"] == pretrained.sha256(folder / "unet.onnx")


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no dncnn; it has unet"):
        list(make(folder, names=("dncnn",)))
    with pytest.raises(ModelError, match=r"index\.json: cannot be read .* emdn-train export"):
        list(make(tmp_path))


def test_an_export_keeps_variants_of_the_same_weights_only(tmp_path: Path) -> None:
    copied = tmp_path / checkpoint.FILE_NAME
    copied.write_bytes(b"weights")
    (tmp_path / "unet.int8.onnx").write_bytes(b"variant")
    path = tmp_path / "index.json"

    def write(value: float) -> dict:
        weights = checkpoint.Weights("shipped", {"w": np.full(3, value, np.float32)}, {})
        entry = {"file": "unet.onnx", "validation": {}}
        export._write_index(tmp_path, {"unet": entry}, copied, {"unet": weights})
        return json.loads(path.read_text())["models"]["unet"]

    index = {"models": {"unet": write(1.0)}}
    state = {"w": np.full(3, 1.0, np.float32)}
    known = {"int8": {"file": "unet.int8.onnx", "weights_sha256": export.weights_sha256(state)}}
    index["models"]["unet"]["variants"] = known
    path.write_text(json.dumps(index))
    assert write(1.0)["variants"] == known
    assert (tmp_path / "unet.int8.onnx").exists()
    assert "variants" not in write(2.0)
    assert not (tmp_path / "unet.int8.onnx").exists()


def test_instructions_are_named_by_what_the_processor_has(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: avx512_vnni\nflags\t\t: sse avx2 fma\n")
    assert speed.instructions(path) == "AVX2"
    path.write_text("flags\t\t: avx2 avx_vnni avx512bw\nflags\t\t: avx512_vnni\n")
    assert speed.instructions(path) == "AVX-512 VNNI"
    path.write_text("flags\t\t: sse\n")
    assert speed.instructions(path) == "other instructions"
    assert speed.instructions(tmp_path / "none") == "unknown instructions"


def test_instructions_that_the_processor_hides_do_not_count(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("flags\t\t: avx2 avx512f avx512bw avx_vnni avx512_vnni\n")
    for told, expected in (("AVX512", "AVX-512 VNNI"), ("AVX2", "AVX2")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda told=told: told)
        assert speed.instructions(path) == expected
