"""Quality on a tiny split: what is measured is what was done to the frames."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import polars as pl
import pytest
from scipy import ndimage

from emdn_deploy import Denoiser
from emdn_models import MissingExtraError, pretrained
from emdn_train import quality
from emdn_train.config import QualityConfig
from emdn_train.dataset import STEM, Split
from emdn_train.quality import Example, examples, measure, score

PIXEL_NM = 0.015
SIZE = 80


def honeycomb() -> np.ndarray:
    """Sites of graphene, (n, 2) as x and y in pixels, one of them near the middle."""
    bond = 0.142 / PIXEL_NM
    i, j = (one.ravel() for one in np.mgrid[-9:10, -9:10])
    cell = np.stack([bond * 3**0.5 * (i + j / 2), bond * 1.5 * j], 1)
    sites = np.concatenate([cell, cell + np.array([0, bond])])
    sites += np.array([SIZE / 2 - 0.7, SIZE / 2 + 0.4])
    return sites[((sites > -8) & (sites < SIZE + 8)).all(1)]


def drawn(atoms: np.ndarray, depth: float = 0.5) -> np.ndarray:
    """Dark atoms on a bright beam of 1."""
    y, x = np.mgrid[:SIZE, :SIZE]
    width = 0.04 / PIXEL_NM
    frame = np.ones((SIZE, SIZE))
    for ax, ay in atoms:
        frame -= depth * np.exp(-((x - ax) ** 2 + (y - ay) ** 2) / (2 * width**2))
    return frame


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    """Two parts of two specimens at two levels; one specimen of each part has a vacancy."""
    root = tmp_path_factory.mktemp("testset")
    (root / "test").mkdir()
    sites, chance = honeycomb(), np.random.default_rng(0)
    middle = int(np.argmin(((sites - SIZE / 2) ** 2).sum(1)))
    rows, clean = [], []
    with h5py.File(root / "test" / f"{STEM}_structures.h5", "w") as file:
        for structure in range(4):
            vacant = structure % 2 == 0
            atoms = np.delete(sites, middle, 0) if vacant else sites
            group = file.create_group(str(structure))
            group["atoms"], group["numbers"] = atoms, np.full(len(atoms), 6)
            group["defects"] = sites[[middle]] if vacant else np.empty((0, 2))
            names = ["V1(5-9)"] if vacant else []
            group.create_dataset("names", data=names, dtype=h5py.string_dtype())
            for level, electrons in ((0.4, 4.0), (1.2, 36.0)):
                clean.append(drawn(atoms) * electrons)
                rows.append({
                    "structure": structure, "level": level, "pixel_size_nm": PIXEL_NM,
                    "part": "graphene" if structure < 2 else "multislice graphene",
                })  # fmt: skip
    pl.DataFrame(rows).write_parquet(root / "test" / f"{STEM}_metadata.parquet")
    frames = np.array(clean, np.float32)
    for name, images in (("clean", frames), ("noise", chance.poisson(frames).astype("f4"))):
        with h5py.File(root / "test" / f"{STEM}_{name}.h5", "w") as file:
            file["images"] = images[..., None]
    return root


@pytest.fixture(scope="module")
def frames(split: Path) -> list[Example]:
    with Split(split, "test") as opened:
        return list(examples(opened))


class Known:
    """Stands for a denoiser: knows the frames, and takes a share of the error away."""

    frames: tuple[Example, ...] = ()
    session = SimpleNamespace(info=SimpleNamespace(frames=1))

    def __init__(self, name: str, threads: int | None = None) -> None:
        self.left = {"all": 1.0, "half": 0.5, "none": 0.0}[name]
        self.calibration = None if name == "none" else "some"

    def denoise(self, stack: np.ndarray) -> np.ndarray:
        (one,) = (one for one in self.frames if np.array_equal(one.noisy, stack))
        return (one.clean + self.left * (one.noisy - one.clean)).astype(np.float32)

    def denoise_with_sigma(self, stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        clean = self.denoise(stack)
        return clean, np.full_like(clean, self.left * stack.mean() ** 0.5)


@pytest.fixture(scope="module")
def known(frames: list[Example]) -> Iterator[tuple[str, ...]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Known, "frames", tuple(frames))
        patch.setattr(quality, "Denoiser", Known)
        yield ("all", "half", "none")


@pytest.fixture(scope="module")
def rows(split: Path, known) -> pl.DataFrame:
    return measure(QualityConfig(testset=split, models=known))


def test_every_frame_is_measured_with_every_method(rows: pl.DataFrame) -> None:
    assert rows["model"].unique(maintain_order=True).to_list() == [
        "all", "half", "none", "spectrum", "gaussian", "noisy", "clean",
    ]  # fmt: skip
    assert rows.group_by("model").len()["len"].to_list() == [8] * 7
    gains = {name: part["gain_db"].to_list() for (name,), part in rows.group_by("model")}
    assert gains["all"] == gains["noisy"] == [pytest.approx(0, abs=1e-4)] * 8
    assert gains["half"] == [pytest.approx(6.02, abs=0.01)] * 8
    assert min(gains["none"]) > 100
    assert min(gains["gaussian"]) > 3
    assert min(gains["spectrum"]) > 3
    assert rows.filter(model="half")["ms"].min() > 0
    assert rows.filter(model="noisy")["ms"].null_count() == 8
    known = rows.filter(pl.col("inside_1").is_not_null())
    assert set(known["model"]) == {"all", "half"}
    assert set(known["frame"]) == {0, 1, 4, 5}
    # Errors are Poisson here, of nearly the standard deviation that is taken for sigma.
    assert known["inside_1"].mean() == pytest.approx(0.68, abs=0.06)
    assert known["inside_2"].mean() == pytest.approx(0.95, abs=0.03)


def test_tables_average_over_the_right_frames(rows: pl.DataFrame) -> None:
    seen = quality.defects(rows)
    found = dict(seen.select("model", "0.1 false 1.2").iter_rows())
    assert found["none"] == found["clean"] == 1
    assert dict(seen.select("model", "AUC 1.2").iter_rows())["clean"] == 1
    assert seen["sites"].to_list() == [2] * 7
    assert quality.by_site(rows)["clean"][1] == 1
    table = quality.summary(rows)
    assert table.filter(model="half")["within 1 sigma, %"][0] == pytest.approx(68, abs=6)
    assert table.filter(model="none")["within 1 sigma, %"][0] is None
    rows = rows.filter(pl.col("model").is_in(["half", "noisy"])).with_columns(
        gain_db=pl.when(pl.col("model") == "half").then(
            10 * pl.col("level") + pl.col("part").str.starts_with("multi").cast(pl.Float64)
        ),
        mean_ratio=pl.when(pl.col("frame") == 5).then(0.96).otherwise(1.01),
    )
    row = quality.summary(rows).row(0, named=True)
    assert (row["0.4"], row["1.2"], row["mean"], row["multislice"]) == (4.5, 12.5, 8.5, 9)
    assert (row["worst"], row["mean off by %, worst"]) == (4, pytest.approx(4))
    assert row["dose"] == pytest.approx(10**0.85, abs=0.05)
    assert quality.by_part(rows)["half"].to_list() == [8, 9]


def test_peers_are_measured_on_some_specimens_and_saved(
    split: Path, known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "PEERS", {"blur": lambda noisy: ndimage.gaussian_filter(noisy, 2)})
    monkeypatch.setattr(quality, "MODULES", ("scipy",))
    monkeypatch.setattr(quality.hops, "summary", lambda movies: movies)
    rows = measure(QualityConfig(testset=split, models=("half",), peers=1))
    assert rows.filter(model="blur")["frame"].to_list() == [0, 1, 4, 5]
    movies = pl.DataFrame({"movie": [0, 1], "frame": [0, 1]})
    paths = quality.save(rows, movies, tmp_path / "new")
    assert [path.name for path in paths] == ["quality.parquet", "movies.parquet", "quality.md"]
    assert pl.read_parquet(paths[0]).equals(rows)
    text = paths[2].read_text()
    assert "| half " in text
    assert "on the 4 frames" in text
    assert "null" not in text
    assert not list((tmp_path / "new").glob("*.partial"))
    monkeypatch.setattr(quality, "MODULES", ("nowhere",))
    with pytest.raises(MissingExtraError, match="bench-peers"):
        measure(QualityConfig(testset=split, models=("half",), peers=1))


def test_the_gain_is_entered_into_the_index_of_the_full_split_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "Denoiser", Denoiser)
    own = Path(shutil.copy(pretrained.WEIGHTS / "ffdnet.onnx", tmp_path))
    entry = {"file": own.name, "sha256": pretrained.sha256(own), "validation": {"gain_db": {}}}
    written = tmp_path / "index.json"
    written.write_text(json.dumps({"default": "ffdnet", "models": {"ffdnet": entry}}))
    config = QualityConfig(testset=tmp_path, models=(str(own),))
    levels = [0.12, 0.4, 1.2] * 132
    gains = [10 * level + n % 2 for n, level in enumerate(levels)]
    found = pl.DataFrame({"model": str(own.with_suffix("")), "level": levels, "gain_db": gains})
    assert quality.note(found[:100], config) == []
    assert json.loads(written.read_text())["models"]["ffdnet"] == entry
    assert quality.note(found, config) == [written]
    after = json.loads(written.read_text())["models"]["ffdnet"]
    assert after["quality"]["gain_db"] == {"0.12": 1.7, "0.4": 4.5, "1.2": 12.5}
    assert after.items() >= entry.items()
    written.unlink()  # a file that was copied out of its folder
    assert quality.note(found, config) == []


@pytest.mark.parametrize("method", ["spectrum", *quality.PEERS])
def test_baselines_remove_noise_and_keep_the_mean(method: str, frames: list[Example]) -> None:
    if method in quality.PEERS:
        for module in quality.MODULES:
            pytest.importorskip(module)
    found = score(frames[1], getattr(quality, method)(frames[1].noisy))
    assert found["gain_db"] > 3
    assert found["mean_ratio"] == pytest.approx(1, abs=0.02)
