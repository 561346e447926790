"""The picture of gain against time."""

from itertools import combinations
from pathlib import Path

import polars as pl

from emdn_train import frontier
from emdn_train.frontier import draw_frontier


def test_the_picture_takes_models_that_lie_on_one_another(tmp_path: Path, monkeypatch) -> None:
    from emdn_models import pretrained

    names = [*pretrained.index()["models"], "gaussian"]
    rows = pl.DataFrame(
        [{"model": name, "frame": 0, "gain_db": 14.0, "ms": 70.0} for name in names]
    )
    boxes = []

    def labelled(figure, axes, labels) -> None:
        label(figure, axes, labels)
        assert all(axes.bbox.contains(*t.get_window_extent().max) for t in axes.texts)
        boxes.extend(text.get_window_extent() for text in axes.texts)

    label = frontier._label
    monkeypatch.setattr(frontier, "_label", labelled)
    draw_frontier(rows, tmp_path / "frontier.png")
    assert len(boxes) == len(names)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    data = (tmp_path / "frontier.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 150_000
