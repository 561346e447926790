"""The noise model on simulated stacks whose camera, and whose faults, are known."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import dose
from emdn_deploy.noise_level import NoiseLevel
from emdn_models.errors import EmdnError

SIMULATED = runpy.run_path(str(Path(__file__).with_name("simulated_noise.py")))
estimate, scene, FAULTS = (SIMULATED[name] for name in ("estimate", "lattice", "FAULTS"))
BLUR = FAULTS["blur, share given to 4 neighbours"][0]

CLEAR = {
    "blur, share given to 4 neighbours": 0.3,
    "trail, share left in the next of a row": 0.2,
    "rows flicker, of mean": 0.15,
    "columns flicker, of mean": 0.15,
}


def rate(dose: float, count: int = 9, side: int = 96, drift: float = 0.0):
    shifts = drift * np.arange(count)[:, None] * np.array([[1.0, 0.6]])
    return dose * scene(count, side, shifts).clip(0)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_alone(fault: str) -> None:
    make, words = FAULTS[fault]
    found = estimate(make(rate(60.0), np.random.default_rng(5), CLEAR[fault]))
    assert all(words in text for text in found.findings)
    assert len(found.findings) == 1
    assert found.findings
    assert found.correlated == (words == "correlated")


@pytest.mark.parametrize("drift", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("dose", [0.05, 2.0, 100.0])
def test_white_counts_have_no_fault(dose: float, count: int, drift: float) -> None:
    found = estimate(np.random.default_rng(2).poisson(rate(dose, count, drift=drift)))
    assert found.counting
    assert not found.correlated
    assert found.gain == pytest.approx(1, abs=0.06)
    assert found.findings == ()


def test_read_noise_lowers_an_offset_that_is_not_given() -> None:
    rng = np.random.default_rng(4)
    clean = 40 * np.linspace(0.2, 1.8, 160)[None, None, :] * np.ones((12, 160, 1))
    frames = 7.0 * rng.poisson(clean) + rng.normal(0, 28, clean.shape) + 500
    found = estimate(frames)
    # Read noise of 16 electrons^2 hides 7 * 16 of the offset.
    assert found.offset == pytest.approx(500 - 7 * 16, abs=20)
    assert found.gain == pytest.approx(7, rel=0.1)
    assert not found.counting
    assert estimate(frames, offset=500.0).offset == 500
    with pytest.raises(EmdnError, match="is not below the mean"):
        estimate(frames, offset=900.0)


def test_the_errors_are_those_of_repetition() -> None:
    rng = np.random.default_rng(6)
    clean = 20 * np.linspace(0.2, 1.8, 96)[None, None, :] * np.ones((9, 96, 1))
    found = [estimate(2.0 * rng.poisson(clean) + 300, offset=300.0) for _ in range(25)]
    distances = [(one.gain - 2) / one.gain_error for one in found]
    assert 0.6 < np.std(distances) < 1.6
    assert abs(np.mean(distances)) < 0.8


def numbers(text: str) -> list[float]:
    """Return the numbers in a finding."""
    words = text.replace("(", " ").replace("%", " ").split()
    return [float(word) for word in words if word.replace(".", "").isdigit()]


@pytest.mark.parametrize(("share", "moving"), [(0.4, False), (0.3, True)])
def test_the_correlation_is_that_of_the_blur(share: float, moving: bool) -> None:
    """Of frames of different areas as well."""
    rng = np.random.default_rng(18)
    clean = 300 * scene(9, 96, rng.uniform(-40, 40, (9, 2))) if moving else rate(60.0, side=128)
    own, near = 1 - share, share / 4
    square = own**2 + 4 * near**2
    found = estimate(BLUR(clean, rng, share))
    assert found.correlated
    x, y = numbers(found.findings[0])
    assert (x, y) == pytest.approx((2 * own * near / square,) * 2, abs=0.04)


@pytest.mark.parametrize(("share", "seen"), [(0.015, True), (0.06, False)])
def test_scans_within_and_beyond_the_training_are_told_apart(share: float, seen: bool) -> None:
    rng = np.random.default_rng(10)
    found = estimate(FAULTS["rows flicker, of mean"][0](rate(200.0), rng, share))
    assert bool(found.findings) != seen
    if not seen:
        assert numbers(found.findings[0]) == [pytest.approx(100 * share, rel=0.2)]


def test_one_frame_says_what_it_cannot_tell() -> None:
    rng = np.random.default_rng(11)
    frame = 3.0 * rng.poisson(rate(40.0, 1)).astype(np.float32)
    found = estimate(frame)
    # as it is denoised
    assert found.gain == pytest.approx(dose.estimate(NoiseLevel([frame])).gain)
    assert np.isnan(found.gain_error)
    wide = np.repeat(np.repeat(frame, 2, axis=1), 2, axis=2)
    assert estimate((wide + np.roll(wide, 1, 1) + np.roll(wide, 1, 2)) / 3).correlated


def test_frames_without_noise_repeats_and_tiny_frames_are_named() -> None:
    rng = np.random.default_rng(12)
    flat = estimate(np.full((4, 64, 64), 3.0))
    assert "no noise" in flat.findings[0]
    assert estimate(rng.poisson(20.0, (6, 12, 20))).counting


def test_bad_pixels_and_read_noise_are_no_counts() -> None:
    rng = np.random.default_rng(13)
    frames = rng.poisson(rate(30.0)).astype(float)
    bad = np.zeros(frames.shape[1:], bool)
    bad[:, 40] = bad[17, 23] = True
    frames[:, bad] = rng.uniform(0, 9000, (len(frames), 1)).round()
    found = estimate(frames, bad=bad)
    assert found.counting
    assert found.findings == ()
    counts = rng.poisson(rate(30.0))
    read = rng.normal(0, 3, counts.shape).round()
    for other in (frames, 2 * counts, counts + read, counts + 100):
        assert not estimate(other).counting
