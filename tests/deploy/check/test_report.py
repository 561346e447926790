"""The command and its report: what it prints and returns, and a page that stands alone."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import tifffile

from emdn_deploy import cli
from emdn_deploy.check import check, report, verdict
from emdn_deploy.evaluate import write_table
from emdn_models.errors import OutputError

FAST = ("--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def faulty(stacks, options, tmp_path_factory):
    """Check eight frames, one of which has a spot that the raw frame lacks."""
    raw, denoised = stacks(8)
    denoised[5, 20:27, 30:37] += 25
    paths = [tmp_path_factory.mktemp("report") / name for name in ("raw <1>.npy", "made.npy")]
    for path, array in zip(paths, (raw, denoised), strict=True):
        np.save(path, array)
    return check(*paths, options, page=True)


class Page(HTMLParser):
    """Notes tags that are left open, addresses, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_names_the_frame(faulty):
    page = Page(text := report.html(faulty))
    assert page.open == []
    assert '<div class="verdict fail">FAIL: ' in text
    assert "of 8 frames flagged" in page.text
    assert "up to 2 expected by chance" in page.text
    assert f"What a pass does not say: {faulty.smallest.words}." in page.text
    assert "structure added" in faulty.flagged[5]
    assert faulty.flagged[5] in page.text
    assert verdict.MEANINGS["structure added"] in page.text
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [one["number"] for one in data["frames"] if one["flagged"]] == faulty.failing
    assert {one["number"] for one in data["frames"]} == set(range(8))


def test_files_are_not_written_through_a_link(faulty, tmp_path):
    precious = tmp_path / "movie.npy"
    precious.write_text("frames")
    for name in ("check.html", "check.csv"):
        (tmp_path / name).symlink_to(precious)
    report.write(tmp_path / "check.html", faulty)
    write_table(faulty.table, tmp_path / "check.csv")
    assert precious.read_text() == "frames"
    with pytest.raises(OutputError, match="cannot be written"):
        report.write(tmp_path / "missing" / "check.html", faulty)


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
    # The box is sound, and some dB behind the default on waves that are so long.
    assert re.search(r"verdict    (WARN|FAIL): \d of 8 frames flagged", printed)
    assert re.search(r"(warns|fails)      squared error .* that of unet \(the default\)", printed)
    assert "thresholds parametric bootstrap by box, 32 replicates (seed 0)" in printed
    table = tmp_path / "table.parquet"
    assert call("check", files / "raw.tif", files / "bright.h5", *own, "--table", table) == 3
    printed = capsys.readouterr().out
    assert "verdict    FAIL: 8 of 8 frames flagged (" in printed
    assert "frame 7: intensity changed (mean out / mean in: 1.03, expected at most 1.00" in printed
    rows = pl.read_parquet(table)
    assert rows.height == 8
    assert (rows["ratio"] > rows["ratio_high"]).all()
    assert rows["verdict"].str.starts_with("intensity changed").all()


def test_check_is_one_line_of_json(files: Path, box_model: Path, capsys) -> None:
    status = call("check", files / "raw.tif", "--model", box_model, *FAST, "--json")
    [line] = capsys.readouterr().out.strip().splitlines()
    facts = json.loads(line)
    assert facts["passed"] == (status == 0)
    assert facts["verdict"] in (("PASS", "WARN") if status == 0 else ("FAIL",))
    assert "unet (the default)" in facts["comparison"]["words"]
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
    own = files / "clean.h5", files / "truth.npy", "--noisy", files / "raw.tif", "--csv", out
    assert call("evaluate", *own) == 0
    printed = capsys.readouterr().out
    assert "data range of PSNR and SSIM: " in printed
    rows = pl.read_csv(out)
    assert rows.columns[:4] == ["frame", "data_range", "psnr_db", "ssim"]
    assert rows["gain_db"].min() > 5
    assert f"{rows['gain_db'].mean():.4f}" in printed
