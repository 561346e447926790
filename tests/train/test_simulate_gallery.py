"""The gallery picture: every row shows what its title says."""

from pathlib import Path

import matplotlib.image

from emdn_train.simulate import gallery


def test_gallery_is_drawn_from_the_specimens_it_names(tmp_path: Path) -> None:
    # The search starts at its result; a later one would mean that specimens have changed
    # and that train/gallery.png is to be drawn again.
    for row in gallery.ROWS:
        attempt, shot = gallery.find(row)
        assert attempt == row.start, row.title
        assert shot.contrast > 0.01
    path = gallery.draw_gallery(tmp_path / "gallery.png")
    picture = matplotlib.image.imread(path)
    # one panel a row and column, each at least as large as its frame
    assert picture.shape[0] > len(gallery.ROWS) * gallery.SIZE
    assert picture.shape[1] > (1 + len(gallery.COLUMNS)) * gallery.SIZE
    assert path.stat().st_size < 400_000
    assert [p.name for p in tmp_path.iterdir()] == ["gallery.png"]
