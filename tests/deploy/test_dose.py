"""Gain, offset, dose and kind of noise, on simulated stacks whose camera is known."""

import numpy as np
import pytest

from emdn_deploy import dose
from emdn_deploy.dose import Intensity, NoiseLevel, NoiseModel, sample
from emdn_models.errors import EmdnError


def level(frames, bad=None) -> NoiseLevel:
    stack = np.asarray(frames, np.float32)
    return NoiseLevel(sample(lambda a, b: stack[a:b], len(stack), stack.shape[1:]), bad)


def measure(frames, gain: float | None = None, offset: float | None = None) -> Intensity:
    return dose.estimate(level(frames), gain, offset)


def kind(frames, offset: float | None = None, bad=None) -> NoiseModel:
    return dose.noise_model(level(frames, bad), offset)


def drift(count: int, step: float):
    return step * np.arange(count)[:, None] * np.array([[1.0, 0.6]])


def scene(count: int, side: int, shifts):
    """Return expected frames of mean 1, (count, side, side), a lattice shifted by (count, 2)."""
    y, x = (grid[None].astype(float) for grid in np.mgrid[:side, :side])
    y, x = y + shifts[:, :1, None], x + shifts[:, 1:, None]
    waves = sum(
        np.cos(2 * np.pi / 9 * (np.cos(angle) * y + np.sin(angle) * x))
        for angle in np.deg2rad((10, 70, 130))
    )
    return (1 + 0.2 * waves + 0.3 * (x / side - 0.5)).clip(0)


def ramp(count: int, side: int):
    return np.linspace(0.2, 1.8, side)[None, None, :] * np.ones((count, side, 1))


def blurred(rate, rng, share: float):
    """Give a share of every electron to the four neighbours."""
    frames = rng.poisson(rate).astype(float)
    near = sum(np.roll(frames, step, axis) for step in (-1, 1) for axis in (1, 2))
    return (1 - share) * frames + share / 4 * near


def trailed(rate, rng, share: float):
    """Leave a share of every pixel in the next of its row."""
    frames = rng.poisson(rate).astype(float)
    return (1 - share) * frames + share * np.roll(frames, 1, 2)


def flickering(rate, rng, share: float):
    """Make rows brighter and darker, by a share of the mean RMS, from frame to frame."""
    return rng.poisson((rate * (1 + rng.normal(0, share, (*rate.shape[:2], 1)))).clip(0))


def recorded(count: int, size: int, dose: float, image: float):
    """Record electrons by a CCD: the noise has the root of the MTF (Gatan US1000, 80 kV)."""
    rng = np.random.default_rng(9)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    transfer = (1 + (radius / 0.1375) ** 2.11) ** -0.5
    shade = 1 + image * np.sin(np.arange(size) / 1.1)  # a lattice within what images hold
    counts = np.fft.rfft2(rng.poisson(dose * shade, (count, size, size)))
    return np.fft.irfft2(counts * transfer, s=(size, size))


@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize("dose", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize(
    ("gain", "offset", "step"), [(7.3, 0.0, 0.0), (0.02, 0.0, 0.3), (2.5, 100.0, 0.3)]
)
def test_the_noise_is_found(lattice, dose, count, gain, offset, step) -> None:
    frames = gain * lattice(dose, (count, 128, 128), drift=step) + offset
    tolerance = 0.07 if count == 1 else 0.03
    assert measure(frames).sigma == pytest.approx(gain * np.sqrt(dose), rel=tolerance)
    known = measure(frames, offset=offset)
    assert known.gain == pytest.approx(gain, rel=2.2 * tolerance)
    assert known.scale == pytest.approx(dose, rel=2.2 * tolerance)


@pytest.mark.parametrize("step", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("electrons", [0.05, 2.0, 100.0])
def test_counts_are_recognised_and_have_no_fault(electrons: float, count: int, step: float) -> None:
    frames = np.random.default_rng(2).poisson(electrons * scene(count, 96, drift(count, step)))
    found, noise = measure(frames), kind(frames)
    assert (found.gain, found.offset) == (1.0, 0.0)
    assert found.scale == pytest.approx(frames.mean(), rel=1e-2)
    assert noise.counting
    assert noise.gain == pytest.approx(1, abs=0.06)
    assert (noise.findings, noise.correlated) == ((), False)


def test_what_disturbs_some_pixels_or_frames_does_not_change_the_scale(lattice) -> None:
    rng = np.random.default_rng(6)
    steady, dim = (lattice(dose, seed=seed) for dose, seed in ((50.0, 0), (42.0, 1)))
    blinking = rng.uniform(size=(12, 1, 1)) < 0.5
    hot = steady.copy()
    hot[:, 5::37, 3::41] = 16000
    hot[:, 9::41, 7::53] = 0
    cosmic = steady.copy()
    cosmic[::4, 60, 61] = 16000
    stacks = {
        "hot and dead pixels": hot,
        "hot and dead pixels, one frame": hot[:1],
        "cosmic rays": cosmic,
        "a beam that blinks": np.where(blinking, steady, dim),
        "rows that flicker": flickering(50 * scene(12, 128, drift(12, 0)), rng, 0.1),
        "frames that repeat": np.repeat(steady, 2, axis=0),
        "frames that repeat twice": np.repeat(steady, 3, axis=0),
    }
    for name, frames in stacks.items():
        found = measure(4 * frames + 300, offset=300.0)
        if name == "hot and dead pixels":  # which brighten the mean until they are known
            assert found.sigma == pytest.approx(4 * np.sqrt(50), rel=0.04)
        else:
            assert found.gain == pytest.approx(4, rel=0.08), name


def test_data_around_zero_get_an_offset() -> None:
    rng = np.random.default_rng(0)
    for mean in (-2.0, 0.0, 0.5):
        found = measure(rng.normal(mean, 3.0, (6, 96, 96)))
        assert found.sigma == pytest.approx(3.0, rel=0.03)
        assert found.offset < mean - 3
        assert found.scale > 1


@pytest.mark.parametrize("dose", [2.0, 30.0, 300.0])
@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("step", [3.0, 5.0, None])
def test_fast_motion_is_not_taken_for_correlated_noise(step, count: int, dose: float) -> None:
    """Frames two apart then differ no more than neighbours do; None vibrates."""
    rng = np.random.default_rng(5)
    shifts = drift(count, step) if step else rng.normal(0, 1.5, (count, 2))
    found = measure(3 * rng.poisson(dose * scene(count, 128, shifts)))
    assert found.offset == 0
    assert found.gain == pytest.approx(3, rel=0.06)


@pytest.mark.parametrize("image", [0.0, 0.2])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_electrons_are_counted_where_pixels_share_them(count: int, image: float) -> None:
    found = measure(7 * recorded(count, 128, 40.0, image))
    # A pixel's noise alone would say 0.15; one frame does not show how far the rest goes.
    assert (0.45 if count < 3 else 0.75) < found.gain / 7 < 1.1
    assert found.pixel_gain < 0.2 * 7
    assert "the noise is correlated" in found.note


@pytest.mark.parametrize("pixels", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("dose", [0.2, 2.0, 20.0])
def test_an_offset_is_found_where_the_contrast_allows(dose: float, pixels: float) -> None:
    """Also where many pixels have no electron, so that the darkest is the offset itself."""
    rng = np.random.default_rng(8)
    found = measure(3 * rng.poisson(dose * scene(60, 128, drift(60, pixels))) + 100)
    assert found.offset == pytest.approx(100, abs=6)
    assert found.gain == pytest.approx(3, rel=0.12)
    assert "variance-mean" in found.note


def test_read_noise_lowers_an_offset_that_is_not_given() -> None:
    rng = np.random.default_rng(4)
    clean = 40 * ramp(12, 160)
    frames = 7.0 * rng.poisson(clean) + rng.normal(0, 28, clean.shape) + 500
    found = kind(frames)
    # Read noise of 16 electrons^2 hides 7 * 16 of the offset.
    assert found.offset == pytest.approx(500 - 7 * 16, abs=20)
    assert found.gain == pytest.approx(7, rel=0.1)
    assert not found.counting
    assert kind(frames, offset=500.0).offset == 500


def test_the_errors_are_those_of_repetition() -> None:
    rng = np.random.default_rng(6)
    found = [kind(2.0 * rng.poisson(20 * ramp(9, 96)) + 300, offset=300.0) for _ in range(25)]
    distances = [(one.gain - 2) / one.gain_error for one in found]
    assert 0.6 < np.std(distances) < 1.6
    assert abs(np.mean(distances)) < 0.8


def numbers(text: str) -> list[float]:
    words = text.replace("(", " ").replace("%", " ").split()
    return [float(word) for word in words if word.replace(".", "").isdigit()]


@pytest.mark.parametrize(
    ("make", "share", "seen", "said"),
    [
        (blurred, 0.3, "correlated", (0.205, 0.205)),
        (trailed, 0.2, "correlated", (0.235, 0.0)),
        (flickering, 0.15, "rows flicker", (15,)),
        (flickering, 0.06, "rows flicker", (6,)),
        (flickering, 0.015, "", ()),  # as in the training
    ],
)
def test_faults_are_found_alone_with_their_size(make, share: float, seen: str, said) -> None:
    found = kind(make(200 * scene(9, 128, drift(9, 0)), np.random.default_rng(5), share))
    assert len(found.findings) == bool(seen)
    assert found.correlated == (seen == "correlated")
    for text in found.findings:
        assert seen in text
        tolerance = {"rel": 0.2, "abs": 0.04}
        assert numbers(text) == [pytest.approx(one, **tolerance) for one in said]


def test_bad_pixels_and_read_noise_are_no_counts() -> None:
    rng = np.random.default_rng(13)
    frames = rng.poisson(30 * scene(9, 96, drift(9, 0))).astype(float)
    counts, bad = frames.copy(), np.zeros(frames.shape[1:], bool)
    bad[:, 40] = bad[17, 23] = True
    frames[:, bad] = rng.uniform(0, 9000, (len(frames), 1)).round()
    found = kind(frames, bad=bad)
    assert found.counting
    assert found.findings == ()
    read = rng.normal(0, 3, counts.shape).round()
    for other in (frames, 2 * counts, counts + read, counts + 100):
        assert not kind(other).counting
    assert kind(rng.poisson(20.0, (6, 12, 20))).counting


def test_given_values_are_taken_or_refused(lattice) -> None:
    found = measure(3.0 * lattice(40.0) + 10, gain=3.0, offset=10.0)
    assert (found.gain, found.offset) == (3.0, 10.0)
    assert found.sigma == pytest.approx(3 * np.sqrt(40), rel=0.02)
    frames = lattice(4.0, (3, 32, 32))
    for gain in (0.0, -1.0, float("nan")):
        with pytest.raises(EmdnError, match="gain is"):
            measure(frames, gain=gain)
    with pytest.raises(EmdnError, match="not below the mean"):
        measure(frames, offset=100.0)
    with pytest.raises(EmdnError, match="another unit"):
        measure(1e-20 * frames)


@pytest.mark.parametrize("value", [5.0, 0.0, -3.0, 1e-30])
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 40, 40), (1, 1, 1), (4, 1, 50)])
def test_constant_stacks_are_named_and_tiny_ones_have_a_scale(shape, value: float) -> None:
    noisy = measure(np.random.default_rng(0).poisson(30, shape))
    assert np.isfinite([noisy.scale, noisy.gain, noisy.offset]).all()
    assert noisy.scale > 0
    found = measure(np.full(shape, value))
    assert (found.sigma, found.note) == (0, dose.NO_NOISE)
    assert found.scale > 0
    assert "no noise" in kind(np.full(shape, value)).findings[0]


@pytest.mark.parametrize(("count", "side"), [(1, 64), (2, 512), (64, 4096), (1000, 64)])
def test_samples_are_bounded_and_spread(count: int, side: int) -> None:
    spans = dose.sample(lambda start, stop: (start, stop), count, (side, side))
    run = spans[0][1] - spans[0][0]
    assert len(spans) * run <= dose.MAX_FRAMES
    assert len(spans) * run * side**2 <= max(dose.MAX_PIXELS, run * side**2)
    assert run == min(3, count)
    assert spans[0][0] == 0
    assert max(stop for _, stop in spans) <= count
    if count == 1000:
        assert (len(spans), spans[-1][0]) == (21, 997)
