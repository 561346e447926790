"""The table of copies: which copy each frame is counted under, and what is better or worse."""

import json

import h5py
import numpy as np
import polars as pl
import pytest

from emdn_models import ModelError, metrics
from emdn_models.errors import FormatError
from emdn_train import classes
from emdn_train.classes import measure, summary

COPIES = ("cafcn@stem", "cafcn@tem-low")


def rows(gains):
    """Frames as (class, routed, agnostic, stem's, tem-low's gain)."""
    return pl.DataFrame(
        [
            {"frame": number, "class": kind, "routed": routed, "model": name, "gain_db": gain}
            for number, (kind, routed, *found) in enumerate(gains)
            for name, gain in zip(("cafcn", *COPIES), found, strict=True)
        ],
        schema_overrides={"routed": pl.String},
    )


def test_each_frame_counts_under_its_class():
    table = summary(
        rows(
            [
                ("stem", "stem", 10.0, 12.0, 4.0),
                ("stem", None, 10.0, 9.0, 8.0),
                ("tem-low", "tem-high", 10.0, 5.0, 11.0),
                ("tem-high", "tem-low", 20.0, 13.0, 19.0),
            ]
        )
    )
    found = {row["class"]: row for row in table.to_dicts()}
    assert list(found) == ["stem", "tem-low", "tem-high", "all"]
    stem, low, high = (found[kind] for kind in ("stem", "tem-low", "tem-high"))
    assert (stem["frames"], stem["agnostic"]) == (2, 10.0)
    assert (stem["right"], stem["right, worst"]) == (0.5, -1.0)
    # One of the two had no dose that could be measured, so the model itself is taken.
    assert (stem["auto"], stem["auto, worst"]) == (1.0, 0.0)
    assert (stem["@tem-low"], stem["@tem-low, worst"]) == (-4.0, -6.0)
    assert stem["@stem"] is None, "its own copy is not a wrong one"
    # Measured across the edge: a frame goes to what is there for the other band.
    assert (low["right"], low["auto"], low["@stem"]) == (1.0, 0.0, -5.0)
    assert (high["right"], high["auto"], high["@tem-low"]) == (0.0, -1.0, -1.0)
    assert (found["all"]["frames"], found["all"]["auto"]) == (4, 0.25)
    assert found["all"]["@stem, worst"] == -7.0


class Scaled:
    """Stands for a model: gives the frame blurred to its mean by a share of its own."""

    def __init__(self, path, threads):
        self.share = {"cafcn": 0.5, "cafcn@stem": 0.9, "cafcn@tem-low": 0.1}[path.stem]

    def run(self, stack, scale):
        return stack + self.share * (stack.mean() - stack)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Flat frames: a scanned one, and TEM at 0.5 and 40 e/px; and an index of two copies."""
    clean = np.stack([np.full((64, 64, 1), dose, np.float32) for dose in (9.0, 0.5, 40.0)])
    noisy = np.random.default_rng(0).poisson(clean).astype(np.float32)
    (tmp_path / "test").mkdir()
    for name, images in (("clean", clean), ("noise", noisy)):
        with h5py.File(tmp_path / "test" / f"graphene_img_{name}.h5", "w") as file:
            file["images"] = images
    index = {"models": {name: {"file": f"{name}.onnx"} for name in ("cafcn", *COPIES)}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(classes, "Denoiser", Scaled)
    table = pl.DataFrame({"detector": ["stem", "counting", "ccd"]})
    table.write_parquet(tmp_path / "test" / "graphene_img_metadata.parquet")
    return tmp_path, noisy[..., 0], clean[..., 0]


def test_frames_are_classed_by_truth_and_routed_by_measurement(prepared):
    folder, noisy, clean = prepared
    found = measure(folder, "cafcn", folder)
    assert found["model"].to_list() == ["cafcn", *COPIES] * 3
    per_frame = found.filter(pl.col("model") == "cafcn")
    assert per_frame["class"].to_list() == ["stem", "tem-low", "tem-high"]
    assert per_frame["routed"].to_list() == ["stem", "tem-low", "tem-high"]
    for number, share in ((0, 0.9), (1, 0.1)):
        name = COPIES[number]
        gain = found.filter((pl.col("frame") == number) & (pl.col("model") == name))["gain_db"]
        blurred = noisy[number] + share * (noisy[number].mean() - noisy[number])
        expected = float(metrics.gain_db(noisy[number], blurred, clean[number]))
        assert gain.item() == pytest.approx(expected, abs=1e-4)


def test_what_is_missing_is_named(prepared, tmp_path):
    folder = prepared[0]
    with pytest.raises(ModelError, match=r"index\.json: has no unet, expected unet and copies"):
        measure(folder, "unet", folder)
    with pytest.raises(ModelError, match="cannot be read"):
        measure(folder, "cafcn", folder / "test")
    (folder / "test" / "graphene_img_metadata.parquet").unlink()
    with pytest.raises(FormatError, match="has no table of detectors"):
        measure(folder, "cafcn", folder)
