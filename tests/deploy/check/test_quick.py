"""The quick check of every run, and the smallest false spot that a check can see."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import ndimage, stats

from emdn_deploy import Denoiser
from emdn_deploy.check import check
from emdn_deploy.check.quick import BOUNDS, Quick, allowed
from emdn_deploy.check.verdict import judge_frames
from emdn_deploy.config import DenoiseOptions

EXAMPLE = Path(__file__).parents[3] / "deploy" / "examples" / "frames.h5"


def by_name(quick: Quick) -> dict[str, np.ndarray]:
    return dict(zip(BOUNDS, np.transpose(list(quick.result().numbers.values())), strict=True))


@pytest.mark.parametrize(("gain", "offset"), [(1, 0), (5, 300)])
def test_the_numbers_are_those_of_their_definitions(gain: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    truth = np.full((2, 64, 48), 50, np.float32)
    raw = rng.poisson(truth).astype(np.float32)
    quick = Quick(gain, offset)
    quick.add(0, gain * raw + offset, gain * truth + offset)
    numbers = by_name(quick)
    scaled = (raw - truth) / np.sqrt(truth)
    np.testing.assert_allclose(numbers["ratio"], truth.mean() / raw.mean(axis=(1, 2)))
    np.testing.assert_allclose(numbers["std"], scaled.std(axis=(1, 2)), rtol=1e-4)
    for frame, lag in zip(scaled, numbers["lag"], strict=True):
        pairs = [(frame[:, 1:], frame[:, :-1]), (frame[1:], frame[:-1])]
        expected = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])
        assert lag == pytest.approx(expected, abs=2e-3)
    boxes = (scaled - scaled.mean(axis=(1, 2), keepdims=True)).reshape(2, 4, 16, 3, 16)
    expected = np.abs(boxes.mean(axis=(2, 4))).max(axis=(1, 2)) * 16
    np.testing.assert_allclose(numbers["box"], expected, rtol=1e-3)


@pytest.mark.parametrize("fault", ["none", "half the noise", "blurred", "brighter"])
def test_faults_stand_out(fault: str, stacks, scene) -> None:
    raw = stacks(12)[0].astype(np.float32)
    clean = np.repeat(scene()[None].astype(np.float32), 12, axis=0)
    planted = {
        "none": clean[4],
        "half the noise": 0.5 * (raw[4] + clean[4]),
        "blurred": np.full_like(clean[4], clean[4].mean()) + 20 * (np.arange(80) > 40),
        "brighter": 1.02 * clean[4],
    }
    quick = Quick(1, 0)
    clean[4] = planted[fault]
    for start in (0, 6):
        quick.add(start, raw[start : start + 6], clean[start : start + 6])
    result = quick.result()
    assert list(result.flagged) == ([] if fault == "none" else [4])
    assert fault == "none" or "1 of 12 frames flagged (4)" in result.line


def test_filled_pixels_do_not_count(stacks, scene) -> None:
    raw = stacks(2)[0].astype(np.float32)
    clean = np.repeat(scene()[None].astype(np.float32), 2, axis=0)
    bad = np.zeros(raw.shape[1:], bool)
    bad[::3, ::2] = True
    raw[:, bad] = clean[:, bad]
    every, good = Quick(1, 0), Quick(1, 0, bad=bad)
    for one in (every, good):
        one.add(0, raw, clean)
    assert by_name(every)["std"].max() < BOUNDS["std"].low < by_name(good)["std"].min()


def test_nine_in_ten_of_the_smallest_are_found(atom, saved) -> None:
    with h5py.File(EXAMPLE) as file:
        frames = file["entry/data/frames"][:, 64:192, 64:192]
    model, rng = Denoiser(threads=1), np.random.default_rng(1)
    thresholds = check(*saved(frames), options=DenoiseOptions(threads=1)).thresholds
    raw = np.stack([thresholds.camera.draw(one, rng) for one in model.denoise(frames)[:2]])
    clean = model.denoise(raw)
    found = thresholds.smallest(raw[0], clean[0])
    assert found["run_percent"] < found["percent"]
    detail = clean[0] - ndimage.gaussian_filter(clean[0], 12.8)
    middle, *ends = np.quantile(detail, (0.5, 0.01, 0.99))
    height = 0.75 * found["percent"] / 100 * max(abs(end - middle) for end in ends)
    rng = np.random.default_rng(2)
    seen = []
    for number in range(30):
        y, x = rng.uniform(10, 117, 2)
        one = atom(raw.shape[1:], y, x, found["width_px"]) * height * rng.choice([-1, 1])
        pair = raw[number % 2], (clean[number % 2] + one).astype(np.float32)
        seen.append(judge_frames([(0, *pair)], thresholds)["verdict"][0] != "within noise")
    # Of 30, at 90 %: fewer than 23 by a chance of 1 %.
    assert 23 <= sum(seen) < 30
    correlated = replace(thresholds, noise=thresholds.noise._replace(correlated=True))
    assert correlated.smallest(raw[0], clean[0]) is None


@pytest.mark.parametrize("shape", [(1, 1), (15, 400), (16, 16)])
def test_odd_frames_have_an_answer(shape: tuple[int, int]) -> None:
    raw = np.random.default_rng(0).poisson(9, (2, *shape)).astype(np.float32)
    for made in (raw, np.full_like(raw, 9), np.full_like(raw, np.nan)):  # nothing was done; all was
        quick = Quick(1, 0)
        quick.add(0, raw, made)
        assert quick.result().line
    assert quick.result().line.startswith("FAIL: 2 of 2")
    assert Quick(1, 0).result().line == "no frames"


@pytest.mark.parametrize("count", [1, 16, 60_000])
def test_what_chance_allows_is_binomial(count: int) -> None:
    for rate in (0.0075, 0.3):
        most = allowed(count, rate)
        assert stats.binom.sf(most, count, rate) < 0.01
        assert most == 0 or stats.binom.sf(most - 1, count, rate) >= 0.01
