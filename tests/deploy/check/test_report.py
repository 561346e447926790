"""The commands ``check`` and ``evaluate``: what they print, write and return."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import tifffile

FAST = ("--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def files(tmp_path_factory, stacks, scene, atom) -> Path:
    """Write a stack as TIFF, and as HDF5 what it was denoised to, also with faults."""
    folder = tmp_path_factory.mktemp("files")
    raw, clean = stacks(8)
    tifffile.imwrite(folder / "raw.tif", raw, photometric="minisblack")
    spot = clean.copy()
    spot[5] += 25 * atom(clean.shape[1:], 23, 33, 3)
    made = {"clean": clean, "spot": spot, "bright": 1.03 * clean, "short": clean[:2]}
    for name, frames in made.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["frames"] = frames
    np.save(folder / "truth.npy", scene()[None])
    return folder


def test_check_passes_or_names_the_frames(
    files: Path, box_model: Path, tmp_path: Path, call, capsys
) -> None:
    own, table = ("--model", box_model, *FAST), tmp_path / "table.parquet"
    assert call("check", files / "raw.tif", files / "clean.h5", *own) in (0, 3)
    assert re.search(r"verdict +(WARN|FAIL): \d of 8 frames flagged", capsys.readouterr().out)
    assert call("check", files / "raw.tif", files / "bright.h5", *own, "--table", table) == 3
    assert "FAIL: 8 of 8 frames flagged" in capsys.readouterr().out
    rows = pl.read_parquet(table)
    assert rows.height == 8
    assert (rows["ratio"] > rows["ratio_high"]).all()
    assert rows["verdict"].str.starts_with("intensity changed").all()


def test_the_page_and_the_line_of_json_name_the_frame(
    files: Path, box_model: Path, tmp_path: Path, call, capsys
) -> None:
    page, own = tmp_path / "check.html", ("--model", box_model, *FAST, "--json", "--report")
    precious = tmp_path / "movie.npy"
    precious.write_text("frames")
    page.symlink_to(precious)
    status = call("check", files / "raw.tif", files / "spot.h5", *own, page, "--overwrite")
    [line] = capsys.readouterr().out.strip().splitlines()
    facts = json.loads(line)
    assert facts["passed"] == (status == 0)
    assert facts["verdict"] == "FAIL"
    assert facts["smallest"]["percent"] > 0
    assert (facts["model"], facts["heldout"]["comparisons"]) == ("box", 7)
    assert facts["flagged"]["5"].startswith("structure added")
    assert precious.read_text() == "frames"  # not written through a link
    text = page.read_text(encoding="utf-8")
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [one["number"] for one in data["frames"] if one["flagged"]] == facts["failing"]


def test_errors_and_usage_have_their_own_status(files: Path, call, capsys) -> None:
    assert call("check", files / "raw.tif", files / "short.h5", *FAST) == 1
    assert "found 2 frames" in capsys.readouterr().err
    assert call("check", files / "raw.tif", "--seed", "-1") == 2


@pytest.mark.parametrize("option", ["--table", "--report"])
def test_no_file_is_replaced_unasked(files: Path, tmp_path: Path, call, capsys, option) -> None:
    mine = tmp_path / {"--table": "a.parquet", "--report": "a.html"}[option]
    mine.write_text("mine")
    assert call("check", files / "raw.tif", option, mine) == 1
    assert f"{mine.name}: exists already; add --overwrite" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def test_evaluate_prints_and_writes(files: Path, tmp_path: Path, call, capsys) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("mine")
    own = files / "clean.h5", files / "truth.npy", "--noisy", files / "raw.tif", "--csv", out
    assert call("evaluate", *own, "--overwrite") == 0
    printed = capsys.readouterr().out
    assert "data range of PSNR and SSIM: " in printed
    rows = pl.read_csv(out)
    assert rows.columns[:4] == ["frame", "data_range", "psnr_db", "ssim"]
    assert rows["gain_db"].min() > 5
    assert f"{rows['gain_db'].mean():.4f}" in printed
