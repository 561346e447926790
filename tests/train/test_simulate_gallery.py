"""The gallery picture: every row shows what its title says."""

from pathlib import Path

import matplotlib.image
import pytest

from emdn_train.simulate import gallery


@pytest.mark.parametrize(
    ("row", "material", "defect"),
    [
        (0, "graphene sheet", "V2(5-8-5)"),
        (1, "graphene grain boundary", "grain boundary"),
        (2, "graphene edge", ""),
        (3, "graphene bilayer", ""),
        (4, "MoS2", "vacancy of Z=16"),
        (5, "gold particle", ""),
        (6, "SrTiO3", ""),
        (7, "graphene sheet", "silicon"),
    ],
)
def test_a_row_shows_what_its_title_says(row: int, material: str, defect: str) -> None:
    # Otherwise specimens have changed: rows need other numbers, train/gallery.png a new drawing.
    scene, shot = gallery.drawn(gallery.ROWS[row])
    assert scene.structure.material == material
    limit = gallery.SIZE * scene.field.pixel_a * 0.3
    near = [d.name for d in scene.structure.defects if max(abs(d.x), abs(d.y)) < limit]
    assert not defect or defect in near
    # A heavy adatom would outshine all else in the picture.
    assert not any("adatom" in d.name for d in scene.structure.defects)
    assert shot.contrast > 0.01


def test_the_gallery_has_a_panel_a_row_and_column(tmp_path: Path) -> None:
    path = gallery.draw_gallery(tmp_path / "gallery.png")
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > len(gallery.ROWS) * gallery.SIZE
    assert picture.shape[1] > (1 + len(gallery.COLUMNS)) * gallery.SIZE
    assert path.stat().st_size < 400_000
    assert [p.name for p in tmp_path.iterdir()] == ["gallery.png"]
