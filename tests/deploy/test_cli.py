"""The command as a user meets it: what it prints, how it fails, how fast it starts."""

import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy import config
from emdn_deploy.check.stack import completed
from emdn_deploy.writers import recorded
from emdn_models import pretrained
from emdn_models.errors import FormatError

STACK = np.arange(5 * 16 * 24, dtype=np.uint16).reshape(5, 16, 24)


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


@pytest.fixture
def said(call, capsys) -> Callable[..., str]:
    """Run a command that must succeed, and return what it prints."""

    def run(*arguments: object) -> str:
        assert call(*arguments) == 0
        return capsys.readouterr().out

    return run


def test_denoise_says_what_it_did(source, box_model, said, tmp_path):
    printed = said(
        "denoise", source, "--model", box_model, "--device", "cpu", "--batch", 4, "--threads", 1,
        "--dataset", "/frames", "--axes", "tyx", "--gain", 2, "--offset", -5,
        "--preview", tmp_path / "p.png", "--movie", tmp_path / "m.gif",
        "--report", tmp_path / "r.html",
    )  # fmt: skip
    lines = dict(line.split(maxsplit=1) for line in printed.strip().splitlines())
    assert lines["frames"].startswith("6 from")
    assert lines["speed"].split()[1].startswith("frames/s")
    assert lines["model"] == "box on cpu"
    assert "e/px, gain 2, offset -5 (offset given, gain given" in lines["intensity"]
    assert float(lines["mean"].split()[1]) == pytest.approx(1, abs=0.01)
    with h5py.File(lines["output"]) as file:
        assert file["frames"].shape == (6, 32, 40)
        facts = dict(file["emdn"].attrs)
    assert (facts["batch"], facts["threads"], facts["gain"], facts["offset"]) == (4, 1, 2.0, -5.0)
    assert Path(lines["preview"]).read_bytes()[:4] == b"\x89PNG"
    assert Path(lines["movie"]).read_bytes()[:4] == b"GIF8"
    page = Path(lines["report"]).read_text()
    assert "of 6 frames flagged" in page
    assert "gain given" in page


def test_errors_are_one_line(source, box_model, tmp_path, failure):
    text, cut = tmp_path / "text.h5", tmp_path / "cut.h5"
    text.write_text("not HDF5")
    cut.write_bytes(source.read_bytes()[:3000])
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(box_model.read_bytes()[:200])
    model = ("--model", box_model, "--device", "cpu")
    cases = [
        (("denoise", tmp_path / "none.h5", *model), "no such file"),
        (("denoise", text, *model), "no H5 file"),
        (("denoise", cut, *model), "truncated"),
        (("denoise", source, "--dataset", "/nothing", *model), "'/nothing'; it offers /frames"),
        (("denoise", source, "--model", damaged), "onnxruntime cannot load it"),
        (("denoise", source, "--model", tmp_path / "none.onnx"), "no such ONNX file"),
        (("denoise", source, "-o", source, "--overwrite", *model), "is the input itself"),
        (("denoise", source, "-o", tmp_path / "no/out.h5", *model), "no such folder"),
        (("denoise", source, "--gain", "-1", *model), "gain is -1"),
        (("inspect", text), "no H5 file"),
    ]
    for arguments, message in cases:
        assert message in failure(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cut.h5", "damaged.onnx", "movie.h5", "text.h5",
    ]  # fmt: skip


def test_wrong_usage_exits_2(capsys, call):
    wrong = [(), ("a.h5", "--device", "tpu"), ("a.h5", "--batch", "0"), ("a.h5", "--nonsense")]
    wrong.append(("a.h5", "b.h5", "--preview", "p.png"))
    for arguments in [("nonsense",), *(("denoise", *one) for one in wrong)]:
        assert call(*arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_an_interrupt_leaves_no_file(source, box_model, monkeypatch, capsys, call):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emdn_deploy.denoiser.Denoiser.answer", interrupted)
    assert call("denoise", source, "--model", box_model, "--device", "cpu") == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted; run the same")
    assert not source.with_name("movie_denoised.h5").exists()


def test_inspect_shows_frames_and_models(shipped, source, tmp_path, box_model, lattice, said):
    printed = said("inspect", source)
    assert "/frames (the only" in printed
    assert "6 of 32 x 40, uint16" in printed
    assert "gain 1, offset 0" in printed
    assert "bad pixels 0" in printed
    assert "unet unless --model says otherwise, uncut frames" in printed
    with mrcfile.new(tmp_path / "a.mrc", lattice(20.0, (6, 32, 40)).astype(np.uint16)) as file:
        file.set_image_stack()
        file.voxel_size = 0.5
        dose = file.data.mean() / 0.25
    assert f"{dose:.4g} e/Å² a frame" in said("inspect", tmp_path / "a.mrc")
    printed = said("inspect", box_model)
    assert "receptive_field  8" in printed
    assert "licence  MIT" in printed


def test_of_several_stacks_inspect_lists_all_and_denoise_takes_none(tmp_path, said, failure):
    path, series = tmp_path / "two.h5", tmp_path / "two.tif"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=STACK, chunks=(1, 16, 24))
        file["b/frames"] = STACK[:4].astype(np.float32)
    with tifffile.TiffWriter(series) as file:
        file.write(STACK, photometric="minisblack")
        file.write(STACK[:2, :8].astype(np.float32), photometric="minisblack")
    assert "  /b/frames  (4, 16, 24)  float32" in said("inspect", path).splitlines()
    assert "  1  (2, 8, 24)  float32" in said("inspect", series).splitlines()
    line = failure("denoise", path)
    assert "holds 2 stacks (plain HDF5): /a (5, 16, 24) uint16; /b/frames" in line
    assert sorted(tmp_path.iterdir()) == [path, series]


def test_models_are_listed_and_the_default_is_used(shipped, source, said, failure):
    names, _, default, other, *_ = said("models").splitlines()
    assert names.split()[-3:] == ["GFLOP", "dB", "0.4"]
    assert default.split() == ["unet", "*", "fp32,", "int8", "0.00", "1,234,567", "1.23", "15.2"]
    assert other.split()[-1] == "-"
    assert "model      unet on cpu" in said("denoise", source, "--device", "cpu")
    printed = said("denoise", source, "--overwrite", "--precision", "int8", "--device", "cpu")
    assert "model      unet in int8 on cpu" in printed
    facts = recorded(source.with_name("movie_denoised.h5"))
    assert facts["precision"] == "int8"
    assert facts["model_sha256"] == pretrained.sha256(shipped / "unet.int8.onnx")
    # A later check denoises as the run did.
    options = completed(config.DenoiseOptions(), facts)
    assert (options.model, options.precision) == ("unet", "int8")
    line = failure("denoise", source, "--overwrite", "--model", "nonet")
    assert "no shipped model is called 'nonet'; shipped are unet, dncnn" in line


def test_several_files_of_one_frame_and_their_pictures(tmp_path, box_model, lattice, said):
    for number, frame in enumerate(lattice(20.0, (2, 32, 40)).astype(np.uint16)):
        np.save(tmp_path / f"{number}.npy", frame)
    (folder := tmp_path / "pictures").mkdir()
    printed = said(
        "denoise", tmp_path / "0.npy", tmp_path / "1.npy", "--model", box_model, "--device", "cpu",
        "--preview", folder, "--movie", folder, "--report", folder,
    )  # fmt: skip
    assert "2 files of one frame each, denoised one by one" in printed
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{number}_denoised.{kind}" for number in (0, 1) for kind in ("gif", "html", "png")
    ]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FormatError("a.h5: two\nlines"), "error: a.h5: two lines"),
        (PermissionError(13, "Permission denied", "out.h5"), "error: [Errno 13]"),
        (MemoryError(), "error: out of memory"),
    ],
)
@pytest.mark.parametrize("word", [None, "-q", "-v"])
def test_more_or_less_is_said(word, error, line, capfd, caplog):
    app, log = config.new_app("An app."), logging.getLogger("emdn_deploy.some")

    @app.command()
    def some() -> None:
        log.warning("a warning")
        log.info("an info")
        raise error

    with pytest.raises(SystemExit) as left:
        config.run_app(app, [*filter(None, [word]), "some"])
    assert left.value.code == 1
    assert caplog.messages[-1] == ("a warning" if word == "-q" else "an info")
    told = capfd.readouterr().err
    assert told.count("Traceback") == (word == "-v")
    assert told.strip().splitlines()[-1].startswith(line)


def test_the_version_is_printed_and_bugs_keep_their_traceback(capfd):
    app = config.new_app("An app.")

    @app.command()
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as left:
        config.run_app(app, ["--version"])
    assert not left.value.code
    assert capfd.readouterr().out == f"emdn {version('emdn')}\n"
    with pytest.raises(ZeroDivisionError):
        config.run_app(app, ["fail"])
