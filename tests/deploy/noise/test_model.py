"""The noise model on simulated stacks whose camera, and whose faults, are known."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import intensity, sampling
from emdn_deploy.noise import model as noise_model
from emdn_models.errors import EmdnError

# The stacks on which thresholds and power were measured.
SIMULATED = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "noise_power.py"))
estimate, scene, FAULTS = (SIMULATED[name] for name in ("estimate", "lattice", "FAULTS"))

# Strength, and whether the models saw it.
CLEAR = {
    "blur, share given to 4 neighbours": (0.3, False),
    "trail, share left in the next of a row": (0.2, False),
    "rows flicker, of mean": (0.15, False),
    "columns flicker, of mean": (0.15, False),
    "columns fixed, of mean": (0.1, False),
    "lines jitter, px": (0.8, True),
    "wave, amplitude of mean": (0.1, False),
    "frames blink, of mean": (0.1, True),
}


def rate(dose: float, count: int = 9, side: int = 96, drift: float = 0.0):
    shifts = drift * np.arange(count)[:, None] * np.array([[1.0, 0.6]])
    return dose * scene(count, side, shifts).clip(0)


def measure(frames, **known):
    stack = np.asarray(frames, np.float32)
    return noise_model.estimate(
        lambda a, b: stack[a:b].copy(), len(stack), stack.shape[1:], **known
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_alone_and_judged(fault: str) -> None:
    make, words = FAULTS[fault]
    strength, in_training = CLEAR[fault]
    found = estimate(make(rate(60.0), np.random.default_rng(5), strength))
    assert any(words in text for text in found.findings)
    others = [text for text in found.findings if words not in text]
    # Lines that flicker change the mean of their frame, too.
    assert all("mean of the frames" in text for text in others)
    assert found.in_training == in_training
    assert found.correlated == (words == "correlated")


@pytest.mark.parametrize("drift", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("dose", [0.05, 2.0, 100.0])
def test_white_counts_have_no_fault(dose: float, count: int, drift: float) -> None:
    found = estimate(np.random.default_rng(2).poisson(rate(dose, count, drift=drift)))
    assert found.in_training
    assert found.counting
    assert not found.correlated
    assert found.gain == pytest.approx(1, abs=0.06)
    if not drift:
        assert found.findings == ()


def test_vibration_and_blinking_do_not_reach_the_gain() -> None:
    """Neighbours differ as much as frames two apart: lags alone do not show this motion."""
    rng = np.random.default_rng(3)
    shaken = rng.poisson(50 * scene(9, 96, rng.normal(0, 1.5, (9, 2))))
    assert estimate(shaken).gain == pytest.approx(1, abs=0.05)
    bright = rng.poisson(rate(50.0) * rng.uniform(0.85, 1.15, (9, 1, 1)))
    assert estimate(bright * 3.0).gain == pytest.approx(3, abs=0.12)
    assert estimate(bright * 3.0).brightness == pytest.approx(0.09, abs=0.04)


def test_a_camera_with_a_known_offset_has_its_read_noise() -> None:
    rng = np.random.default_rng(4)
    clean = 40 * np.linspace(0.2, 1.8, 160)[None, None, :] * np.ones((12, 160, 1))
    frames = 7.0 * rng.poisson(clean) + rng.normal(0, 28, clean.shape) + 500
    found = measure(frames, offset=500.0)
    assert abs(found.gain - 7) < 4 * found.gain_error < 1
    distance = abs(found.read_noise_electrons - 4)
    assert distance < 4 * found.read_noise_electrons_error < 1.5
    assert not found.counting
    unknown = measure(frames)
    assert np.isnan(unknown.read_noise_electrons)
    # Read noise of 16 electrons^2 hides 7 * 16 of the offset.
    assert abs(unknown.offset - (500 - 7 * 16)) < 4 * unknown.offset_error
    assert any("cannot be told apart" in text for text in unknown.not_identifiable)


def test_the_errors_are_those_of_repetition() -> None:
    rng = np.random.default_rng(6)
    clean = 20 * np.linspace(0.2, 1.8, 96)[None, None, :] * np.ones((9, 96, 1))
    found = [measure(2.0 * rng.poisson(clean) + 300, offset=300.0) for _ in range(25)]
    distances = [(one.gain - 2) / one.gain_error for one in found]
    assert 0.6 < np.std(distances) < 1.6
    assert abs(np.mean(distances)) < 0.8


@pytest.mark.parametrize("count", [3, 12])
def test_fine_lattices_that_move_are_no_interference(count: int) -> None:
    """Sharp atoms have harmonics beyond where an image's information usually ends."""
    rng = np.random.default_rng(17)
    x = np.arange(96)[None, None, :] + 1.3 * np.arange(count)[:, None, None]
    y = np.arange(96)[None, :, None]
    phase = 2 * np.pi * (x + 0.4 * y) / 6.5
    rate = 80 * (1 + 0.3 * np.cos(phase) + 0.2 * np.cos(2 * phase))
    found = estimate(rng.poisson(rate))
    assert found.peaks == ()
    assert found.in_training
    assert found.counting


def test_read_noise_and_gain_are_no_counts() -> None:
    rng = np.random.default_rng(7)
    counts = rng.poisson(rate(30.0))
    assert not measure(2 * counts).counting
    assert not measure(counts + rng.normal(0, 3, counts.shape).round()).counting
    assert not measure(counts + 100).counting


def test_motion_hides_no_blur() -> None:
    found = estimate(FAULTS["blur, share given to 4 neighbours"][0](
        rate(60.0, drift=0.4), np.random.default_rng(8), 0.3
    ))  # fmt: skip
    assert found.moves
    assert found.correlated
    assert not found.in_training
    assert found.correlation_x > 0.05


def test_frames_of_different_areas_do_not_add_to_the_correlation() -> None:
    rng = np.random.default_rng(18)
    shifts = rng.uniform(-40, 40, (9, 2))
    scenes = 300 * scene(9, 96, shifts)
    found = estimate(FAULTS["blur, share given to 4 neighbours"][0](scenes, rng, 0.3))
    own, near = 0.7, 0.075
    assert found.correlated
    expected = 2 * own * near / (own**2 + 4 * near**2)
    assert found.correlation_x == pytest.approx(expected, abs=0.03)


def test_the_correlation_is_that_of_the_blur() -> None:
    make, _ = FAULTS["blur, share given to 4 neighbours"]
    found = estimate(make(rate(60.0, side=128), np.random.default_rng(9), 0.4))
    own, near = 0.6, 0.1
    square = own**2 + 4 * near**2
    assert found.correlation_x == pytest.approx(2 * own * near / square, abs=0.04)
    assert found.correlation_y == pytest.approx(2 * own * near / square, abs=0.04)
    assert found.area_px == pytest.approx(1 / square, rel=0.15)


def test_scans_within_and_beyond_the_training_are_told_apart() -> None:
    rng = np.random.default_rng(10)
    for share, seen in ((0.015, True), (0.06, False)):
        found = estimate(FAULTS["rows flicker, of mean"][0](rate(200.0), rng, share))
        assert found.row_flicker == pytest.approx(share, rel=0.2)
        assert found.in_training == seen
    for pixels, seen in ((0.5, True), (1.6, False)):
        found = estimate(FAULTS["lines jitter, px"][0](rate(200.0), rng, pixels))
        assert found.jitter_px == pytest.approx(pixels, rel=0.1)
        assert found.in_training == seen
        assert found.counting


def test_one_frame_says_what_it_cannot_tell() -> None:
    rng = np.random.default_rng(11)
    found = measure(rng.poisson(rate(40.0, 1)))
    told = found.as_dict()
    assert told["read_noise_electrons"] is None
    assert told["gain_error"] is None
    assert any("one frame" in text for text in found.not_identifiable)
    wide = np.repeat(np.repeat(rng.poisson(rate(40.0, 1)), 2, axis=1), 2, axis=2)
    smooth = (wide + np.roll(wide, 1, 1) + np.roll(wide, 1, 2)) / 3
    assert measure(smooth).correlated


def test_frames_without_noise_repeats_and_tiny_frames_are_named() -> None:
    rng = np.random.default_rng(12)
    flat = measure(np.full((4, 64, 64), 3.0))
    assert not flat.in_training
    assert "no noise" in flat.findings[0]
    twice = measure(np.repeat(rng.poisson(rate(20.0, 4)), 2, axis=0))
    assert any("repeat the one before" in text for text in twice.findings)
    tiny = measure(rng.poisson(20.0, (6, 12, 20)))
    assert tiny.counting
    assert any("below 32 pixels" in text for text in tiny.not_identifiable)


def test_bad_pixels_do_not_count() -> None:
    rng = np.random.default_rng(13)
    frames = rng.poisson(rate(30.0)).astype(float)
    bad = np.zeros(frames.shape[1:], bool)
    bad[:, 40] = bad[17, 23] = True
    frames[:, bad] = rng.uniform(0, 9000, (len(frames), 1))
    found = measure(frames.round(), bad=bad)
    assert found.counting
    assert found.findings == ()
    assert not measure(frames.round()).counting


def test_json_holds_it_and_the_sample_is_bounded() -> None:
    stack = np.random.default_rng(14).poisson(5.0, (300, 32, 40)).astype(np.float32)
    asked: list[int] = []

    def read(start: int, stop: int):
        asked.append(stop - start)
        return stack[start:stop].copy()

    found = noise_model.estimate(read, len(stack), stack.shape[1:])
    assert json.loads(json.dumps(found.as_dict()))["frames"] == sum(asked) <= sampling.MAX_FRAMES
    assert max(asked) <= sampling.RUN


def test_an_offset_above_the_mean_is_refused() -> None:
    with pytest.raises(EmdnError, match="is not below the mean"):
        measure(np.random.default_rng(15).poisson(5.0, (4, 40, 40)), offset=9.0)


def test_one_frame_is_scaled_as_it_is_denoised() -> None:
    frame = 3.0 * np.random.default_rng(16).poisson(rate(25.0, 1)).astype(np.float32)
    scale = intensity.estimate(lambda a, b: frame[a:b], 1, frame.shape[1:])
    assert measure(frame).gain == scale.gain
