"""The commands as a user meets them: what they print, write and return."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import tifffile

from emdn_deploy import cli

FAST = ("--device", "cpu", "--threads", "1")


def call(*arguments: object) -> int:
    """Run the command in this process and return its exit status."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory, stacks, scene) -> Path:
    """Write a stack as TIFF, and as HDF5 what it was denoised to, once with a fault."""
    folder = tmp_path_factory.mktemp("files")
    raw, clean = stacks(8)
    tifffile.imwrite(folder / "raw.tif", raw, photometric="minisblack")
    for name, frames in (("clean", clean), ("bright", 1.03 * clean), ("short", clean[:2])):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["frames"] = frames
    np.save(folder / "truth.npy", scene()[None])
    return folder


def test_check_passes_or_names_the_frames(files: Path, box_model: Path, tmp_path, capsys) -> None:
    own = ("--model", box_model, *FAST)
    assert call("check", files / "raw.tif", files / "clean.h5", *own) in (0, 3)
    printed = capsys.readouterr().out
    # The box is honest, and 9 dB behind the default on waves that are so long.
    assert re.search(r"verdict    FAIL: \d of 8 frames flagged", printed)
    assert re.search(r"fails      squared error .* that of unet \(the default\)", printed)
    assert "thresholds parametric bootstrap by box, 32 replicates (seed 0)" in printed
    table = tmp_path / "table.parquet"
    assert call("check", files / "raw.tif", files / "bright.h5", *own, "--table", table) == 3
    printed = capsys.readouterr().out
    assert "verdict    FAIL: 8 of 8 frames flagged (" in printed
    assert (
        "frame 7: intensity changed (mean out / mean in: 1.03, in honest ones at most 1.00"
        in printed
    )
    rows = pl.read_parquet(table)
    assert rows.height == 8
    assert (rows["ratio"] > rows["ratio_high"]).all()
    assert rows["verdict"].str.starts_with("intensity changed").all()


def test_check_is_one_line_of_json(files: Path, box_model: Path, capsys) -> None:
    status = call("check", files / "raw.tif", "--model", box_model, *FAST, "--json")
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1
    facts = json.loads(lines[0])
    assert facts["passed"] == (status == 0)
    assert facts["verdict"] in (("PASS", "WARN") if status == 0 else ("FAIL",))
    assert facts["comparison"]["name"] == "unet"
    assert facts["smallest_defect"]["words"]
    assert facts["model"] == "box"
    assert facts["limits"]["std"][0] < 1
    assert facts["heldout"]["pairs"] == 7


def test_errors_and_usage_have_their_own_status(files: Path, box_model: Path, capsys) -> None:
    own = ("--model", box_model, *FAST)
    assert call("check", files / "raw.tif", files / "short.h5", *own) == 1
    assert "found 2 frames" in capsys.readouterr().err
    assert call("check") == 2
    assert call("check", files / "raw.tif", "--seed", "-1") == 2
    bad = files / "table.txt"
    assert call("evaluate", files / "clean.h5", files / "truth.npy", "--csv", bad) == 1
    assert "give .csv or .parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "name"), [("--csv", "a.csv"), ("--table", "a.parquet"), ("--report", "a.html")]
)
def test_no_file_is_replaced_unasked(
    files: Path, box_model: Path, tmp_path: Path, capsys, option: str, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    if option == "--csv":
        run = ("evaluate", files / "clean.h5", files / "truth.npy")
    else:
        run = ("check", files / "raw.tif", "--model", box_model, *FAST)
    assert call(*run, option, tmp_path / name) == 1
    assert f"{name}: exists already; add --overwrite" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
    assert call(*run, option, tmp_path / name, "--overwrite") in (0, 3)
    assert (tmp_path / name).read_bytes() != b"mine"


def test_evaluate_prints_and_writes(files: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "rows.csv"
    status = call(
        "evaluate", files / "clean.h5", files / "truth.npy", "--noisy", files / "raw.tif",
        "--csv", out,
    )  # fmt: skip
    assert status == 0
    printed = capsys.readouterr().out
    assert "data range of PSNR and SSIM: that of each frame of the truth" in printed
    rows = pl.read_csv(out)
    assert rows.columns[:4] == ["frame", "data_range", "psnr_db", "ssim"]
    assert rows["gain_db"].min() > 5
    assert f"{rows['gain_db'].mean():.4f}" in printed
