"""Data sets, movies and the fixed test split: layout, determinism, truth, resuming."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import tifffile
from scipy import ndimage

from emdn_models import FormatError, OutputError
from emdn_train.dataset import STEM, Split
from emdn_train.simulate import SimulateConfig, dataset, simulate

MULTISLICE = Path(__file__).parents[1] / "data" / "multislice.h5"
SMALL = SimulateConfig("", frames=20, kind="mixed", size=64, images_per_structure=2, seed=5)


def make(out: Path, **changes: object) -> Path:
    return simulate(dataclasses.replace(SMALL, out=out, **changes))


def contents(out: Path) -> dict[Path, bytes]:
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("data") / "set")


def test_layout_is_the_originals(made):
    assert {p.name for p in made.iterdir()} == {"train", "test", "inference", "simulation.json"}
    for split, frames in (("train", 20), ("test", 4)):
        for name in ("clean", "noise"):
            with h5py.File(made / split / f"graphene_img_{name}.h5") as file:
                images = file["images"]
                assert (images.shape, images.dtype) == ((frames, 64, 64, 1), np.float32)
    for part in ("raw", "truth"):
        pictures = sorted((made / "inference" / part).iterdir())
        assert [p.name for p in pictures] == ["frame_0000.tif", "frame_0001.tif"]
        frame = tifffile.imread(pictures[0])
        assert (frame.shape, frame.dtype) == ((64, 64), np.float32)


def test_table_says_how_every_frame_was_made(made):
    with Split(made, "train") as split:
        table = split.table
        every = slice(None)
        relative, clean, noisy = split.relative(every), split.clean(every), split.noisy(every)
    assert table["frame"].to_list() == list(range(20))
    assert table["structure"].n_unique() == 10
    spread = relative.std((1, 2)) / relative.mean((1, 2))
    np.testing.assert_allclose(spread, table["contrast"], rtol=1e-3)
    electrons, tem = table["electrons_per_pixel"], table["mode"] == "hrtem"
    np.testing.assert_allclose(table["contrast"] * electrons**0.5, table["snr"], rtol=1e-6)
    dose = table["dose_e_per_a2"] * (10 * table["pixel_size_nm"]) ** 2
    np.testing.assert_allclose(dose.filter(tem), electrons.filter(tem), rtol=1e-6)
    np.testing.assert_allclose(clean.mean((1, 2)), table["recorded_per_pixel"], rtol=1e-4)
    # noisy frames are the clean ones plus counting noise
    error = (noisy - clean).mean((1, 2)) / np.sqrt(clean.mean((1, 2)) / 64**2)
    assert np.median(np.abs(error)) < 2


def test_atoms_lie_on_the_columns_of_the_image(tmp_path):
    out = make(tmp_path / "set", kind="stem", frames=8, images_per_structure=1, snr=(3, 3))
    with Split(out, "train") as split, h5py.File(out / "train" / f"{STEM}_structures.h5") as file:
        frames = split.relative(slice(None))
        kinds = pl.col("kind").is_in(["graphene", "dichalcogenide"])
        for row in split.table.filter(kinds).iter_rows(named=True):
            atoms = file[f"{row['structure']}/atoms"][()]
            heavy = file[f"{row['structure']}/numbers"][()] >= 6
            x, y = np.clip(np.rint(atoms[heavy]).astype(int), 0, 63).T
            frame = frames[row["frame"]]
            assert frame[y, x].mean() > 1.02 * frame.mean()


def test_same_seed_same_frames_whatever_the_workers(made, tmp_path):
    assert contents(make(tmp_path / "set", workers=2)) == contents(made)


def test_neither_another_seed_nor_another_split_shares_a_frame(made, tmp_path):
    other = make(tmp_path / "set", seed=6)
    for folder, name in ((other, "train"), (made, "test")):
        with Split(made, "train") as a, Split(folder, name) as b:
            first, second = a.relative(slice(None)), b.relative(slice(None))
        assert np.abs(first[:, None] - second).mean((2, 3)).min() > 1e-4


# Goes on with one data set in processes that are killed before they touch files for the n-th time.
KILLED = """
import os, signal, sys
from emdn_train.simulate import SimulateConfig, simulate

out, kind = sys.argv[1:]
for last in (1, 2, 3, 4, 5, 6, 15, 40):
    if pid := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        continue
    seen = []
    def hook(event, arguments):
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            if str(arguments[0]).startswith(out):
                seen.append(event)
                if len(seen) == last:
                    os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    simulate(SimulateConfig(out, frames=5, kind=kind, size=32, images_per_structure=4))
    os._exit(0)
"""


@pytest.mark.parametrize("kind", ["graphene", "movie"])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path, kind):
    command = [sys.executable, "-c", KILLED, tmp_path / "cut", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split().count("-9") >= 6, done.stdout + done.stderr
    config = SimulateConfig("", frames=5, kind=kind, size=32, images_per_structure=4)
    cut, whole = (dataclasses.replace(config, out=tmp_path / name) for name in ("cut", "whole"))
    assert contents(simulate(cut)) == contents(simulate(whole))


def test_workers_end_with_their_parent_who_locks_the_folder(tmp_path):
    out = tmp_path / "set"
    code = (
        "from emdn_train.simulate import SimulateConfig, simulate\n"
        f"simulate(SimulateConfig({str(out)!r}, frames=4000, size=32, workers=2))\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            while not list(out.glob("train/*.partial")):
                assert process.poll() is None
                time.sleep(0.02)
            with pytest.raises(OutputError, match="at work"):
                make(out)
        finally:
            process.kill()
        process.stdout.read()  # until the last worker, who holds the pipe too, is gone


@pytest.mark.parametrize("options", [{"kind": "mixed"}, {"kind": "movie", "frames": 12}], ids=str)
def test_a_full_disk_is_one_error_and_the_rest_is_made_when_there_is_room(tmp_path, options, room):
    whole = contents(make(tmp_path / "whole", **options))
    for size in (0, 3000, max(map(len, whole.values())) - 1):
        out = tmp_path / str(size)
        with room(size), pytest.raises(OutputError, match="File too large"):
            make(out, **options)
        assert contents(make(out, **options)) == whole


def test_a_finished_set_is_neither_made_again_nor_mixed_with_another(made, tmp_path, monkeypatch):
    before = contents(made)
    monkeypatch.setattr(dataset, "record", None)
    make(made)
    (tmp_path / "mine.txt").write_text("mine")
    for out, changes, error in (
        (made, {"seed": 99}, OutputError),
        (tmp_path, {}, OutputError),
        (tmp_path, {"snr": (1.0, 0.5)}, FormatError),
        (tmp_path, {"dose_e_per_a2": (0.0, 5.0)}, FormatError),
        (tmp_path, {"states": 3}, FormatError),
    ):
        with pytest.raises(error):
            make(out, **changes)
    assert contents(made) == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module", params=[0, 1], ids=["vacancy", "adatom"])
def movie(request, tmp_path_factory):
    known = {"dose_e_per_a2": (8000.0, 8000.0), "pixel_size_nm": (0.012, 0.012)}
    known |= {"kind": "movie", "frames": 24, "size": 128, "seed": request.param}
    out = make(tmp_path_factory.mktemp("movie"), **known)
    with h5py.File(out / "movie.h5") as file, h5py.File(out / "movie_truth.h5") as truth:
        yield file, truth


def test_a_movie_is_calibrated_and_has_counting_noise_about_its_truth(movie):
    file, truth = movie
    data = file[file.attrs["default"]][file["entry"].attrs["default"]]
    frames, valid = data[data.attrs["signal"]][()], truth["valid"][()]
    assert (frames.dtype, frames.shape) == (np.uint16, (24, 128, 128))
    assert [data[name].attrs["units"] for name in data.attrs["axes"]] == ["s", "nm", "nm"]
    assert data["x"][1] - data["x"][0] == pytest.approx(0.012)
    assert data.attrs["dose_e_per_a2"] == pytest.approx(8000)
    assert truth.attrs["electrons_per_pixel"] == pytest.approx(8000 * 0.12**2)
    expected = truth["expected"][()][:, valid]
    residual = (frames[:, valid] - expected) / np.sqrt(expected)
    assert residual.mean() == pytest.approx(0, abs=0.01)
    assert residual.std() == pytest.approx(1, abs=0.01)
    assert not valid.all()  # and what is faulty holds still
    assert (frames[:, ~valid].std(0) < 0.05 * frames.mean()).all()


def test_a_defect_hops_by_one_bond_and_the_truth_shows_it_where_it_says(movie):
    truth = movie[1]
    drift, expected = truth["drift"][()], truth["expected"]
    rest = truth["defect"][()] - drift
    hops = np.hypot(*np.diff(rest, axis=0).T) * 0.12
    assert (drift[0] == 0).all()
    assert 0.1 < np.abs(np.diff(drift, axis=0)).max() < 1.0
    still = hops < 0.01
    assert 0.4 < still.mean() < 1.0
    np.testing.assert_allclose(hops[~still], 1.42, atol=0.06)
    # Without the drift, frames differ at the defect's two places and not where the lattice goes on.
    other = int(np.argmax(np.hypot(*(rest - rest[0]).T)))
    aligned = ndimage.shift(expected[other], -drift[other, ::-1], order=5)
    y, x = inner = np.mgrid[20:108, 20:108]
    difference = np.abs(aligned - expected[0])[tuple(inner)]
    near = np.minimum(*(np.hypot(x - rest[t, 0], y - rest[t, 1]) for t in (0, other))) < 12
    assert difference[near].mean() > 2 * difference[~near].mean()


@pytest.fixture(scope="module")
def fixed(tmp_path_factory) -> Path:
    return dataset.write_test_split(tmp_path_factory.mktemp("split"), MULTISLICE, scenes=1)


def test_the_fixed_split_has_every_part_at_every_level(fixed):
    with Split(fixed, "test") as split:
        table = split.table
        assert split.shape == (256, 256)
        relative, clean = split.relative(slice(None)), split.clean(slice(None))
    levels = table.group_by("part").agg(pl.col("level").unique().sort())
    assert all(found == list(dataset.LEVELS) for found in levels["level"].to_list())
    names = {f"multislice {name}" for name in ("graphene", "MoS2", "gold particle")}
    assert set(table["part"]) == set(dataset.PARTS) | names
    with h5py.File(fixed / "test" / f"{STEM}_structures.h5") as file:
        assert set(file) == {str(n) for n in table["structure"]}
    snr = table.filter(pl.col("electrons_per_pixel") > 0.06)
    np.testing.assert_allclose(snr["snr"], snr["level"], rtol=1e-6)
    for _, group in table.filter(detector="counting").group_by("structure"):
        frames = group["frame"].to_list()
        # one clean image, at three doses and under three beams
        np.testing.assert_allclose(relative[frames[0]], relative[frames[2]], rtol=1e-4)
        means = clean[frames].mean((1, 2))
        assert means[0] < means[1] < means[2]


def test_the_fixed_split_is_the_same_every_time_and_never_overwritten(fixed, tmp_path):
    before = contents(fixed)
    assert contents(dataset.write_test_split(tmp_path / "again", MULTISLICE, scenes=1)) == before
    with pytest.raises(OutputError, match="exists"):
        dataset.write_test_split(fixed)
    assert contents(fixed) == before
    with pytest.raises(FormatError, match="no file of multislice frames"):
        dataset.write_test_split(tmp_path / "new", fixed / "test" / f"{STEM}_clean.h5", scenes=1)
