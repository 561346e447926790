"""emdn-train as a user meets it: one line on error, the right exit code, no traceback."""

import os
import subprocess
import sys

import pytest

from emdn_models import MODELS, checkpoint
from emdn_train import cli


def run(capfd, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.mark.usefixtures("_tiny_net")
def test_fit_then_export(gratings, tmp_path, capfd):
    code, out, err = run(
        capfd, "fit", "--data", gratings, "--out", tmp_path, "--models", "tiny,small",
        "-b", "epochs=1", "--benchmark-specific", "batch_size=16,lr=0.001", "--patch", 32,
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "tiny" in out
    assert "em_denoise_model.h5" in out
    used = checkpoint.load(tmp_path / "em_denoise_model.h5")["tiny"].metadata["recipe"]
    assert (used["epochs"], used["batch_size"], used["recipe_details"]["lr"]) == (1, 16, 0.001)
    code, out, err = run(capfd, "export", tmp_path / "em_denoise_model.h5", "--models", "tiny")
    assert code == 0, err
    assert [p.name for p in (tmp_path / "onnx").glob("*.onnx")] == ["tiny.onnx"]
    assert "of torch" in out


@pytest.mark.parametrize("pair", [("epochs", "3"), ("epochs=3",)])
@pytest.mark.parametrize("spelling", ["-b", "--benchmark-specific", "--benchmark_specific"])
def test_the_benchmarks_spelling_wins_over_the_flags(spelling, pair, monkeypatch, capfd):
    seen = []
    monkeypatch.setattr("emdn_train.fit.fit", lambda config: seen.append(config) or [])
    run(capfd, "fit", spelling, *pair, "-b", "lr=0.5", "-b", "use_gpu", "False", "--epochs", 5)
    assert (seen[0].epochs, seen[0].lr, seen[0].batch_size) == (3, 0.5, 128)
    assert seen[0].models == tuple(MODELS)
    assert seen[0].device == "cpu"


@pytest.mark.parametrize(
    ("code", "arguments", "told"),
    [
        (2, ("fit", "--models", ","), "names no model"),
        (2, ("fit", "-b", "epochs=many"), "--epochs"),
        (2, ("fit", "-b", "epochs"), "--epochs"),
        (2, ("fit", "-b", "epoch=3"), "--epochs"),
        (1, ("fit", "--data", "nowhere"), "graphene_img_clean.h5"),
        (1, ("fit", "--models", "resnet"), "there are cafcn"),
        (1, ("fit", "--recipe", "best"), "benchmark, quality"),
        (1, ("export", "nowhere.h5"), "nowhere.h5"),
    ],
)
def test_errors_have_their_exit_code(code, arguments, told, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capfd, *arguments)
    assert found == code
    assert told in err
    assert "Traceback" not in err
    if code == 1:
        assert err.strip().splitlines()[-1].startswith("error: ")


def test_without_torch_the_extra_is_named(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    done = subprocess.run(
        [sys.executable, "-m", "emdn_train", "fit"],
        env=os.environ
        | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert 'needs torch; pip install ".[train]"' in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from emdn_train.cli import main\n"
        "try:\n    main(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'onnx', 'h5py', 'polars', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
