"""The command as a user meets it: what it prints, how it fails, how fast it starts."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import typer

from emdn_deploy import config
from emdn_models import pretrained
from emdn_models.checkpoint import Weights, save
from emdn_models.errors import FormatError


@pytest.fixture
def source(tmp_path: Path, lattice) -> Path:
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = lattice(20.0, (6, 32, 40)).astype(np.uint16)
        file["wave"] = np.zeros((8, 8), complex)
    return path


@pytest.fixture
def failure(call, capsys) -> Callable[..., str]:
    """Run a command that must fail with one line, and return that line."""

    def fail(*arguments: object) -> str:
        assert call(*arguments) == 1
        text = capsys.readouterr().err.strip()
        assert "Traceback" not in text
        (line,) = (line for line in text.splitlines() if line.startswith("error: "))
        assert text.splitlines()[-1] == line
        return line

    return fail


def test_denoise_says_what_it_did(source, box_model, capsys, call):
    assert call("denoise", source, "--model", box_model, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in printed.strip().splitlines())
    assert lines["frames"].startswith("6 from")
    assert lines["speed"].split()[1].startswith("frames/s")
    assert lines["model"] == "box on cpu"
    assert "e/px, gain 1, offset 0 (offset taken as 0, whole numbers" in lines["intensity"]
    assert float(lines["mean"].split()[1]) == pytest.approx(1, abs=0.01)
    assert lines["output"] == str(source.with_name("movie_denoised.h5"))
    with h5py.File(lines["output"]) as file:
        assert file["frames"].shape == (6, 32, 40)


def test_options_reach_the_run(source, box_model, tmp_path, capsys, call):
    target = tmp_path / "other.h5"
    status = call(
        "denoise", source, "-o", target, "--model", box_model, "--device", "cpu", "--batch", 4,
        "--threads", 1, "--dataset", "/frames", "--axes", "tyx", "--gain", 2, "--offset", -5,
        "--preview", tmp_path / "p.png", "--movie", tmp_path / "m.gif",
        "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert status == 0
    with h5py.File(target) as file:
        facts = dict(file["emdn"].attrs)
    assert (facts["batch"], facts["threads"], facts["gain"], facts["offset"]) == (4, 1, 2.0, -5.0)
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert f"preview    {tmp_path / 'p.png'}" in printed
    assert f"movie      {tmp_path / 'm.gif'}" in printed
    assert (tmp_path / "m.gif").read_bytes()[:4] == b"GIF8"
    assert f"report     {tmp_path / 'r.html'}" in printed
    page = (tmp_path / "r.html").read_text()
    assert "of 6 frames flagged" in page
    assert "gain given" in page


def test_errors_are_one_line(source, box_model, tmp_path, failure):
    text, cut = tmp_path / "text.h5", tmp_path / "cut.h5"
    text.write_text("not HDF5")
    (tmp_path / "sub").mkdir()
    cut.write_bytes(source.read_bytes()[:3000])
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(box_model.read_bytes()[:200])
    model = ("--model", box_model, "--device", "cpu")
    cases = [
        (("denoise", tmp_path / "none.h5", *model), "no such file"),
        (("denoise", tmp_path / "sub", *model), "no files of frames"),
        (("denoise", text, *model), "is not an HDF5 file"),
        (("denoise", cut, *model), "truncated"),
        (("denoise", source, "--dataset", "/nothing", *model), "has no dataset '/nothing'"),
        (("denoise", source, "--dataset", "/wave", *model), "complex values"),
        (("denoise", source, "--model", damaged), "onnxruntime cannot load it"),
        (("denoise", source, "--model", tmp_path / "none.onnx"), "no such ONNX file"),
        (("denoise", source, "-o", source, "--overwrite", *model), "is the input itself"),
        (("denoise", source, "-o", tmp_path / "no/out.h5", *model), "no such folder"),
        (("denoise", source, "--gain", "-1", *model), "gain is -1"),
        (("inspect", tmp_path / "none.h5"), "no such file"),
        (("inspect", damaged), "onnxruntime cannot load it"),
        (("inspect", text), "is not an HDF5 file"),
    ]
    for arguments, message in cases:
        line = failure(*arguments)
        assert message in line, (arguments, line)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cut.h5", "damaged.onnx", "movie.h5", "sub", "text.h5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [("den", "denoise"), ("denoise --mod", "--model"), ("denoise --model ff", "ffdnet")],
)
def test_a_shell_completes_commands_options_and_models(words, expected):
    line = f"emdn-deploy {words}"
    asked = {"_EMDN_DEPLOY_COMPLETE": "complete_bash", "COMP_WORDS": line}
    code = "import sys; sys.argv = ['emdn-deploy']; from emdn_deploy.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, **asked, "COMP_CWORD": str(line.count(" "))},
    )  # fmt: skip
    assert done.stdout.split() == [expected]


def test_wrong_usage_exits_2(capsys, call):
    wrong = [(), ("a.h5", "--device", "tpu"), ("a.h5", "--batch", "0"), ("a.h5", "--nonsense")]
    for arguments in [("nonsense",), *(("denoise", *one) for one in wrong)]:
        assert call(*arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_an_interrupt_leaves_no_file(source, box_model, monkeypatch, capsys, call):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emdn_deploy.denoiser.Denoiser.answer", interrupted)
    assert call("denoise", source, "--model", box_model, "--device", "cpu") == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not source.with_name("movie_denoised.h5").exists()


def test_inspect_shows_frames_models_and_checkpoints(
    shipped, source, tmp_path, box_model, lattice, capsys, call
):
    def shown(path: Path) -> str:
        assert call("inspect", path) == 0
        return capsys.readouterr().out

    printed = shown(source)
    assert "/frames (the only large numeric dataset)" in printed
    assert "6 of 32 x 40, uint16" in printed
    assert "gain 1, offset 0" in printed
    assert "bad pixels 0" in printed
    assert "unet unless --model says otherwise, uncut frames" in printed
    with mrcfile.new(tmp_path / "a.mrc", lattice(20.0, (6, 32, 40)).astype(np.uint16)) as file:
        file.set_image_stack()
        file.voxel_size = 0.5
        dose = file.data.mean() / 0.25
    assert f"{dose:.4g} e/Å² a frame" in shown(tmp_path / "a.mrc")
    printed = shown(box_model)
    assert "receptive_field  8" in printed
    assert "licence  MIT" in printed
    path = tmp_path / "em_denoise_model.h5"
    save(path, {"dncnn": Weights("paper", {"w": np.zeros((2, 3), np.float32)}, {"seed": 7})})
    printed = shown(path)
    assert "dncnn  preset paper, 1 tensors, 6 numbers" in printed
    assert "seed  7" in printed


@pytest.fixture
def shipped(box_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of two models, as emdn-train export writes it."""
    entry = {
        "file": box_model.name, "sha256": pretrained.sha256(box_model), "preset": "shipped",
        "parameters": 1_234_567, "gflop_256": 1.23456, "recipe": {},
    }  # fmt: skip
    index = {
        "default": "unet",
        "models": {"unet": {**entry, "quality": {"gain_db": {"0.4": 15.25}}}, "dncnn": entry},
    }
    monkeypatch.setattr(pretrained, "WEIGHTS", box_model.parent)
    monkeypatch.setattr(pretrained, "index", lambda: index)


def test_models_are_listed_and_the_default_is_used(shipped, source, capsys, call, failure):
    assert call("models") == 0
    printed = capsys.readouterr().out
    assert "unet *" in printed
    assert "1,234,567" in printed
    assert "15.2" in printed
    assert call("denoise", source, "--device", "cpu") == 0
    line = failure("denoise", source, "--overwrite", "--model", "nonet")
    assert "no shipped model is called 'nonet'; shipped are unet, dncnn" in line


def test_models_and_help_fit_80_columns(monkeypatch, capsys, call):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in [("models",), ("--help",), ("denoise", "--help")]:
        assert call(*arguments) == 0
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines()[:10])) <= 80
    assert config.text_table(["model", "ratio"], [["unet *", "0.36 (0.34-0.41)"], ["cafcn", "-"]])


def test_frames_given_one_by_one_are_told_that_a_stack_is_better(
    tmp_path, box_model, lattice, capsys, call
):
    for number, frame in enumerate(lattice(20.0, (2, 32, 40)).astype(np.uint16)):
        np.save(tmp_path / f"{number}.npy", frame)
    both = tmp_path / "0.npy", tmp_path / "1.npy"
    assert call("denoise", *both, "--model", box_model, "--device", "cpu") == 0
    assert "2 files of one frame each, denoised one by one" in capsys.readouterr().out


def test_pictures_go_into_a_folder_under_the_outputs_name(source, box_model, tmp_path, call):
    (tmp_path / "pictures").mkdir()
    other = source.with_name("other.h5")
    other.write_bytes(source.read_bytes())
    folder = tmp_path / "pictures"
    status = call(
        "denoise", source, other, "--model", box_model, "--device", "cpu",
        "--preview", folder, "--movie", folder, "--report", folder,
    )  # fmt: skip
    assert status == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "movie_denoised.gif", "movie_denoised.html", "movie_denoised.png",
        "other_denoised.gif", "other_denoised.html", "other_denoised.png",
    ]  # fmt: skip
    assert call("denoise", source, other, "--preview", tmp_path / "p.png") == 2


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FormatError("a.h5: two\nlines"), 1, "error: a.h5: two lines"),
        (PermissionError(13, "Permission denied", "out.h5"), 1, "error: [Errno 13]"),
        (MemoryError("Unable to allocate 3 TiB"), 1, "error: Unable to allocate"),
        (MemoryError(), 1, "error: out of memory"),
    ],
)
def test_errors_become_one_line(error, code, line, capfd):
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        config.run_app(app, [])
    assert left.value.code == code
    told = capfd.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith(line)


@pytest.mark.parametrize(
    ("word", "said", "traced"), [(None, "an info", 0), ("-q", "a warning", 0), ("-v", "an info", 1)]
)
def test_more_or_less_is_said(word, said, traced, capfd, caplog):
    app, log = config.new_app("An app."), logging.getLogger("emdn_deploy.some")

    @app.command()
    def some() -> None:
        log.warning("a warning")
        log.info("an info")
        raise FormatError("bad")

    with pytest.raises(SystemExit):
        config.run_app(app, [*filter(None, [word]), "some"])
    assert caplog.messages[-1] == said
    told = capfd.readouterr().err
    assert told.count("Traceback") == traced
    assert told.endswith("error: bad\n")


def test_the_version_is_told(capfd):
    app = config.new_app("An app.")
    app.command()(lambda: None)
    with pytest.raises(SystemExit) as left:
        config.run_app(app, ["--version"])
    assert not left.value.code
    assert capfd.readouterr().out == f"emdn {version('emdn')}\n"


def test_bugs_keep_their_traceback():
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        config.run_app(app, [])
