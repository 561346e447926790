"""The fixed test split and the multislice frames in it."""

from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from emdn_models import FormatError, OutputError
from emdn_train.dataset import Split
from emdn_train.simulate import dataset

MULTISLICE = Path(__file__).parents[1] / "data" / "multislice.h5"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset.write_test_split(tmp_path_factory.mktemp("split"), MULTISLICE, scenes=1)


def test_every_part_comes_at_every_level(made: Path) -> None:
    with Split(made, "test") as split:
        table = split.table
        assert table is not None
        assert split.shape == (256, 256)
        levels = table.group_by("part").agg(pl.col("level").unique().sort())
        assert all(found == list(dataset.LEVELS) for found in levels["level"].to_list())
        names = {f"multislice {name}" for name in ("graphene", "MoS2", "gold particle")}
        assert set(levels["part"]) == set(dataset.PARTS) | names
        relative, clean = split.relative(slice(None)), split.clean(slice(None))
    enough = table["electrons_per_pixel"] > 0.06
    snr = table.filter(enough)
    np.testing.assert_allclose(snr["snr"], snr["level"], rtol=1e-6)
    for _, group in table.filter(table["detector"] == "counting").group_by("structure"):
        frames = group["frame"].to_list()
        # one clean image, at three doses and under three beams
        np.testing.assert_allclose(relative[frames[0]], relative[frames[2]], rtol=1e-4)
        means = clean[frames].mean((1, 2))
        assert means[0] < means[1] < means[2]


def test_structures_belong_to_their_frames(made: Path) -> None:
    with (
        Split(made, "test") as split,
        h5py.File(made / "test" / "graphene_img_structures.h5") as file,
    ):
        assert split.table is not None
        assert set(file) == {str(n) for n in split.table["structure"]}
        gold = split.table.filter(pl.col("part") == "multislice gold particle")
        for row in gold.unique("structure").iter_rows(named=True):
            atoms = file[f"{row['structure']}/atoms"][()]
            frame = split.relative([row["frame"]])[0]
            y, x = np.mgrid[:256, :256]
            centre = atoms.mean(0)
            far = np.hypot(x - centre[0], y - centre[1]) > 1.5 * np.abs(atoms - centre).max()
            assert frame[~far].std() > 5 * frame[far].std()


def test_same_split_every_time(made: Path, tmp_path: Path) -> None:
    again = dataset.write_test_split(tmp_path, MULTISLICE, scenes=1)
    for path in sorted((made / "test").iterdir()):
        assert path.read_bytes() == (again / "test" / path.name).read_bytes(), path.name


def test_is_not_overwritten_and_wants_the_right_file(made: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"):
        dataset.write_test_split(made)
    wrong = tmp_path / "wrong.h5"
    with h5py.File(wrong, "w") as file:
        file["images"] = np.zeros((1, 256, 256))
    with pytest.raises(FormatError, match="no file of multislice frames"):
        dataset.write_test_split(tmp_path, wrong, scenes=1)
    assert not (tmp_path / "test").exists()
