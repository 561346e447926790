"""Data sets: layout, determinism, truth, resuming."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import tifffile

from emdn_models import FormatError, OutputError
from emdn_train.dataset import Split
from emdn_train.simulate import SimulateConfig, dataset, simulate

SMALL = SimulateConfig("", frames=20, kind="mixed", size=64, images_per_structure=2, seed=5)


def make(out: Path, **changes: object) -> Path:
    return simulate(dataclasses.replace(SMALL, out=out, **changes))


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("data") / "set")


def test_layout_is_the_originals(made: Path) -> None:
    assert {p.name for p in made.iterdir()} == {"train", "test", "inference", "simulation.json"}
    for split, frames in (("train", 20), ("test", 4)):
        for name in ("clean", "noise"):
            with h5py.File(made / split / f"graphene_img_{name}.h5") as file:
                images = file["images"]
                assert (images.shape, images.dtype) == ((frames, 64, 64, 1), np.float32)
                assert images.chunks == (1, 64, 64, 1)
                assert images.attrs["units"] == "electrons"
    for part in ("raw", "truth"):
        pictures = sorted((made / "inference" / part).iterdir())
        assert [p.name for p in pictures] == ["frame_0000.tif", "frame_0001.tif"]
        frame = tifffile.imread(pictures[0])
        assert (frame.shape, frame.dtype) == ((64, 64), np.float32)


def test_table_says_how_every_frame_was_made(made: Path) -> None:
    with Split(made, "train") as split:
        table = split.table
        assert table is not None
        assert table["frame"].to_list() == list(range(20))
        assert table["structure"].n_unique() == 10
        relative = split.relative(slice(None))
        spread = relative.std((1, 2)) / relative.mean((1, 2))
        np.testing.assert_allclose(spread, table["contrast"], rtol=1e-3)
        electrons, tem = table["electrons_per_pixel"], table["mode"] == "hrtem"
        np.testing.assert_allclose(table["contrast"] * electrons**0.5, table["snr"], rtol=1e-6)
        dose = table["dose_e_per_a2"] * (10 * table["pixel_size_nm"]) ** 2
        np.testing.assert_allclose(dose.filter(tem), electrons.filter(tem), rtol=1e-6)
        assert (dose.filter(~tem) > 50 * electrons.filter(~tem)).all()
        clean, noisy = split.clean(slice(None)), split.noisy(slice(None))
        np.testing.assert_allclose(clean.mean((1, 2)), table["recorded_per_pixel"], rtol=1e-4)
        # noisy frames are the clean ones plus counting noise
        error = (noisy - clean).mean((1, 2)) / np.sqrt(clean.mean((1, 2)) / 64**2)
        assert np.median(np.abs(error)) < 2


def test_atoms_lie_on_the_columns_of_the_image(tmp_path: Path) -> None:
    out = make(tmp_path / "set", kind="stem", frames=8, images_per_structure=1, snr=(3, 3))
    with (
        Split(out, "train") as split,
        h5py.File(out / "train" / "graphene_img_structures.h5") as file,
    ):
        assert split.table is not None
        relative = split.relative(slice(None))
        for row in split.table.iter_rows(named=True):
            if row["kind"] not in ("graphene", "dichalcogenide"):
                continue
            atoms = file[f"{row['structure']}/atoms"][()]
            heavy = file[f"{row['structure']}/numbers"][()] >= 6
            x, y = np.clip(np.rint(atoms[heavy]).astype(int), 0, 63).T
            frame = relative[row["frame"]]
            assert frame[y, x].mean() > 1.02 * frame.mean()


def test_same_seed_same_frames_whatever_the_workers(made: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "set", workers=2)
    assert contents(other) == contents(made)


def test_neither_another_seed_nor_another_split_shares_a_frame(made: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "set", seed=6)
    for folder, name in ((other, "train"), (made, "test")):
        with Split(made, "train") as a, Split(folder, name) as b:
            first, second = a.relative(slice(None)), b.relative(slice(None))
        assert np.abs(first[:, None] - second).mean((2, 3)).min() > 1e-4


KILLED = """
import os, signal, sys
from pathlib import Path
from emdn_train.simulate import SimulateConfig, simulate

out, kind, points = Path(sys.argv[1]), sys.argv[2], [int(one) for one in sys.argv[3:]]

def config(name):
    return SimulateConfig(out / name, frames=5, kind=kind, size=32, images_per_structure=4)

def child(name, last=None):
    \"\"\"Simulate in a process that is killed before it touches its files for the n-th time.\"\"\"
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = []
    def hook(event, arguments):
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            if str(arguments[0]).startswith(str(out / name)):
                seen.append(event)
                if len(seen) == last:
                    os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    try:
        simulate(config(name))
        code = 0
    except BaseException as error:
        print(last, error, file=sys.stderr)
        code = 1
    os._exit(code)

def contents(name):
    folder = out / name
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}

assert child("whole") == 0
whole = contents("whole")
for last in points:
    first = child(f"cut{last}", last)
    assert first in (0, -signal.SIGKILL), (last, first)
    print(last, first)
    while child(f"cut{last}", 40) == -signal.SIGKILL and last % 2:
        pass  # every other one is killed again and again
    assert child(f"cut{last}") == 0, last
    assert contents(f"cut{last}") == whole, last
"""


@pytest.mark.parametrize("kind", ["graphene", "movie"])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path, kind: str) -> None:
    points = [1, 2, 3, 4, 5, 6, 15, 40]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, kind, *map(str, points)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" -9\n") >= 6, done.stdout


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom emdn_train.simulate import SimulateConfig, simulate\n"
        "if __name__ == '__main__':\n"
        "    simulate(SimulateConfig(sys.argv[1], frames=4000, size=32, workers=2))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    out = tmp_path / "set"
    with subprocess.Popen(
        [sys.executable, script, out], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not list(out.glob("train/*.partial")):
                assert process.poll() is None
                time.sleep(0.02)
            with pytest.raises(OutputError, match=f"{out}: .* at work"):
                simulate(SimulateConfig(out, frames=4000, size=32))
            process.kill()
            assert process.stdout is not None
            process.stdout.read()  # until the last worker, who holds the pipe too, is gone
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["mixed", "movie"])
def test_a_full_disk_is_one_error_and_the_rest_is_made_when_there_is_room(
    tmp_path: Path, kind: str, room: Callable[[int], AbstractContextManager[None]]
) -> None:
    options = {"kind": kind, "frames": 12 if kind == "movie" else 20}
    whole = contents(make(tmp_path / "whole", **options))
    largest = max(map(len, whole.values()))
    for size in (0, 3000, largest // 2, largest - 1):
        out = tmp_path / str(size)
        with room(size), pytest.raises(OutputError, match=r"cannot be written \(File too large"):
            make(out, **options)
        assert not [path for path in out.rglob("*.partial") if path.is_file()]
        assert contents(make(out, **options)) == whole


def test_a_finished_set_is_neither_made_again_nor_mixed_with_another(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(made)
    monkeypatch.setattr(dataset, "record", None)
    make(made)
    with pytest.raises(OutputError, match="other settings"):
        make(made, seed=99)
    assert contents(made) == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        make(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "wrong", [{"snr": (1.0, 0.5)}, {"dose_e_per_a2": (0.0, 5.0)}, {"states": 3}]
)
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        make(tmp_path, **wrong)


def test_dose_can_be_asked_for(tmp_path: Path) -> None:
    out = make(tmp_path / "set", frames=6, dose_e_per_a2=(500.0, 4000.0), detector="ccd")
    table = pl.read_parquet(out / "train" / "graphene_img_metadata.parquet")
    tem = table.filter(pl.col("mode") == "hrtem")
    assert tem["dose_e_per_a2"].is_between(499, 4001).all()
    assert set(tem["detector"]) == {"ccd"}
    settings = json.loads((out / "simulation.json").read_text())
    assert settings["dose_e_per_a2"] == [500.0, 4000.0]
