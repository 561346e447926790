"""Calibrated standard deviations: the fit finds what is there, and files keep it honestly."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from emdn_deploy import Denoiser
from emdn_deploy.intensity import Intensity
from emdn_models import ModelError, checkpoint, pretrained
from emdn_train import export, index, reliability, uncertainty
from emdn_train.uncertainty import Answer, Recorded, calibrate, coverage, fit, recordings

UNIT = Intensity(1.0, 1.0, 0.0, 1.0, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The shipped U-Net, calibrated on a few small frames."""
    folder = tmp_path_factory.mktemp("weights")
    index = json.loads((pretrained.WEIGHTS / "index.json").read_text())
    for entry in index["models"].values():
        entry.pop("sigma", None)
    (folder / "index.json").write_text(json.dumps(index))
    shutil.copy(pretrained.WEIGHTS / "unet.onnx", folder)
    calibrate(folder, ("unet",), frames=12, size=64)
    return folder


def test_coverage_of_gaussian_errors() -> None:
    rng = np.random.default_rng(0)
    sigma = rng.uniform(1, 9, (4, 100, 100)).astype(np.float32)
    clean = np.full(sigma.shape, 50, np.float32)
    denoised = clean + sigma * rng.normal(size=sigma.shape).astype(np.float32)
    valid = rng.random(sigma.shape) < 0.5
    denoised[~valid] = 1e6
    assert coverage(denoised, sigma, clean, valid) == pytest.approx((0.683, 0.954), abs=0.01)
    assert coverage(denoised, 2 * sigma, clean, valid)[0] == pytest.approx(0.954, abs=0.01)


def test_the_fit_finds_the_factors() -> None:
    rng = np.random.default_rng(0)
    spread = rng.lognormal(-6, 1.5, 200_000).astype(np.float32)
    noise = rng.uniform(0.2, 3, 200_000).astype(np.float32)
    errors = (17 * spread + 0.004 * noise) * rng.chisquare(1, 200_000).astype(np.float32)
    assert fit(errors, (spread, noise)) == pytest.approx((17, 0.004), rel=0.03)
    alone = fit(errors, (noise,))[0]
    assert np.mean(errors / (alone * noise)) == pytest.approx(1, rel=1e-3)


def test_a_useless_term_gets_nothing() -> None:
    rng = np.random.default_rng(0)
    spread = rng.lognormal(0, 1, 50_000).astype(np.float32)
    noise = np.ones_like(spread)
    found = fit(3 * spread * rng.chisquare(1, 50_000).astype(np.float32), (spread, noise))
    assert found[0] == pytest.approx(3, rel=0.05)
    assert 0 <= found[1] < 0.05


def test_frames_are_the_same_every_time_and_of_all_detectors() -> None:
    first, again = list(recordings(7, 64)), list(recordings(7, 64))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.noisy, other.noisy)
        assert one.noisy.shape == one.clean.shape == (64, 64)
        assert np.isfinite(one.noisy).all()
    counts = [np.array_equal(one.noisy, np.rint(one.noisy)) for one in first]
    assert set(counts) == {False, True}  # a CCD gives no whole numbers of electrons
    assert len({one.clean.tobytes() for one in first}) == 7


def test_faulty_pixels_are_filled_and_do_not_count() -> None:
    clean = np.full((16, 16), 100, np.float32)
    noisy = np.random.default_rng(0).poisson(clean).astype(np.float32)
    noisy[3, 4], noisy[9, 9] = 5000, 0
    mended = uncertainty.mended(noisy, clean)
    assert np.argwhere(~mended.valid).tolist() == [[3, 4], [9, 9]]
    assert 60 < mended.noisy[3, 4] < 140
    assert noisy[3, 4] == 5000


def test_a_calibration_is_used_and_leaves_the_index_alone(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    entry = index["models"]["unet"].pop("sigma")
    shipped = json.loads((pretrained.WEIGHTS / "index.json").read_text())
    for one in shipped["models"].values():
        one.pop("sigma", None)
    assert index == shipped
    denoiser = Denoiser(folder / "unet.onnx", threads=1)
    assert denoiser.calibration is not None
    assert denoiser.calibration.spread == entry["spread"] > 1
    assert denoiser.calibration.noise == entry["noise"] > 0
    assert entry["frames"] == 12
    assert entry["inside"] == pytest.approx([0.683, 0.954], abs=0.1)


def test_sigma_holds_on_frames_it_was_not_fitted_to(folder: Path) -> None:
    denoiser = Denoiser(folder / "unet.onnx", threads=1)
    shares = []
    for one in list(recordings(20, 64))[12:]:
        denoised, sigma = denoiser.denoise_with_sigma(one.noisy[None])
        shares.append(coverage(denoised[0], sigma[0], one.clean, one.valid))
    assert np.mean(shares, 0) == pytest.approx((0.683, 0.954), abs=0.15)


def test_what_cannot_be_calibrated_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"index\.json: cannot be read .* emdn-train export"):
        calibrate(tmp_path)
    with pytest.raises(ModelError, match="has no resnet; it has cafcn, dncnn"):
        calibrate(folder, ("resnet",))
    with pytest.raises(ModelError, match="unet was exported anew meanwhile"):
        index.add(folder / "index.json", "unet", "0" * 64, {})


@pytest.mark.parametrize("key", ["sigma", "quality"])
def test_an_export_keeps_what_was_measured_of_the_same_weights_only(
    tmp_path: Path, key: str
) -> None:
    copied = tmp_path / checkpoint.FILE_NAME
    copied.write_bytes(b"weights")
    path = tmp_path / "index.json"

    def write(value: float) -> dict:
        weights = checkpoint.Weights("shipped", {"w": np.full(3, value, np.float32)}, {})
        entry = {"file": "unet.onnx", "validation": {}}
        export._write_index(tmp_path, {"unet": entry}, copied, {"unet": weights})
        return json.loads(path.read_text())["models"]["unet"]

    assert key not in write(1.0)
    state = {"w": np.full(3, 1.0, np.float32)}
    index = json.loads(path.read_text())
    known = {"spread": 2.0, "noise": 0.1, "weights_sha256": export.weights_sha256(state)}
    index["models"]["unet"][key] = known
    path.write_text(json.dumps(index))
    assert write(1.0)[key] == known
    assert key not in write(2.0)


def test_the_measurement_compares_three_predictions(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(reliability, "Denoiser", lambda name, threads: Denoiser(folder / name))
    frames = list(recordings(3, 64))
    (tmp_path / "test").mkdir()
    for name in ("clean", "noise"):
        stack = [one.clean if name == "clean" else one.noisy for one in frames]
        with h5py.File(tmp_path / f"test/graphene_img_{name}.h5", "w") as file:
            file["images"] = np.stack(stack)[..., None]
    table = pl.DataFrame({"part": ["a", "b", "a"], "level": [0.1, 0.1, 1.0]})
    table.write_parquet(tmp_path / "test/graphene_img_metadata.parquet")
    rows = reliability.measure(tmp_path, ("unet.onnx",))
    assert len(rows) == 9
    total = reliability.summary(rows)
    assert total["prediction"].to_list() == ["calibrated", "spread", "noise only"]
    inside = dict(zip(total["prediction"], total["inside 1"], strict=True))
    assert inside["spread"] < inside["calibrated"] - 10
    assert len(reliability.summary(rows, "part")) == 6
    denoised, sigma = Denoiser(folder / "unet.onnx").denoise_with_sigma(frames[1].noisy[None])
    share = coverage(denoised[0], sigma[0], frames[1].clean, frames[1].valid)
    row = rows.filter(pl.col("part") == "b", pl.col("prediction") == "calibrated")
    assert (row["inside_1"].item(), row["inside_2"].item()) == pytest.approx(share, abs=1e-3)


def test_the_correlation_of_gaussian_errors_is_the_ideal_one() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(20):
        sigma = rng.lognormal(0, 0.7, (100, 100)).astype(np.float32)
        error = (sigma * rng.normal(size=sigma.shape)).astype(np.float32)
        frame = Recorded(error, np.zeros_like(error), np.ones_like(error, bool))
        made = Answer(error, sigma, sigma, sigma, UNIT)
        rows.append(
            {"model": "m", "prediction": "p", **reliability._statistics(frame, made, sigma)}
        )
    total = reliability.summary(pl.DataFrame(rows)).row(0, named=True)
    assert total["correlation"] == pytest.approx(total["ideal"], abs=0.01)
    assert total["ideal"] == pytest.approx(0.7 / np.sqrt(0.7**2 + np.pi**2 / 8), abs=0.01)
    assert (total["inside 1"], total["inside 2"]) == pytest.approx((68.3, 95.4), abs=0.5)
    assert total["rms"] == pytest.approx(1, abs=0.01)
