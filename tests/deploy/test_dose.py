"""The scale on simulated stacks whose gain, offset and dose are known."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import dose
from emdn_deploy.dose import Intensity
from emdn_deploy.noise_level import NoiseLevel, sample
from emdn_models.errors import EmdnError

_SIMULATED = runpy.run_path(str(Path(__file__).with_name("simulated_noise.py")))
SCENE, FAULTS = _SIMULATED["lattice"], _SIMULATED["FAULTS"]
BLUR = FAULTS["blur, share given to 4 neighbours"][0]


def measure(frames, gain: float | None = None, offset: float | None = None) -> Intensity:
    stack = np.asarray(frames, np.float32)
    runs = sample(lambda start, stop: stack[start:stop], len(stack), stack.shape[1:])
    return dose.estimate(NoiseLevel(runs), gain, offset)


def drifting(count: int, step: float):
    return step * np.arange(count)[:, None] * np.array([[1.0, 0.6]])


@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize("dose", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize(
    ("gain", "offset", "drift"), [(7.3, 0.0, 0.0), (0.02, 0.0, 0.3), (2.5, 100.0, 0.3)]
)
def test_the_noise_is_found(lattice, dose, count, gain, offset, drift) -> None:
    frames = gain * lattice(dose, (count, 128, 128), drift=drift) + offset
    found = measure(frames)
    tolerance = 0.07 if count == 1 else 0.03
    assert found.sigma == pytest.approx(gain * np.sqrt(dose), rel=tolerance)
    known = measure(frames, offset=offset)
    assert known.gain == pytest.approx(gain, rel=2.2 * tolerance)
    assert known.scale == pytest.approx(dose, rel=2.2 * tolerance)


@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize("dose", [0.1, 10.0, 1000.0])
def test_counts_are_recognised(lattice, dose: float, count: int) -> None:
    frames = lattice(dose, (count, 128, 128))
    found = measure(frames)
    assert (found.gain, found.offset) == (1.0, 0.0)
    assert found.scale == pytest.approx(frames.mean(), rel=1e-2)
    assert "whole numbers" in found.note


def test_what_disturbs_some_pixels_or_frames_does_not_change_the_scale(lattice) -> None:
    steady, dim = (lattice(dose, seed=seed) for dose, seed in ((50.0, 0), (42.0, 1)))
    blinking = np.random.default_rng(2).uniform(size=(12, 1, 1)) < 0.5
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
        "rows that flicker": FAULTS["rows flicker, of mean"][0](
            50 * SCENE(12, 128, np.zeros((12, 2))), np.random.default_rng(6), 0.1
        ),
    }
    for name, frames in stacks.items():
        found = measure(4 * frames + 300, offset=300.0)
        tolerance = 0.08 if len(frames) == 1 else 0.04
        dose = np.median(frames) if name != "a beam that blinks" else frames.mean()
        assert found.sigma == pytest.approx(4 * np.sqrt(dose), rel=tolerance), name


def test_frames_that_repeat_the_one_before_do_not_count(lattice) -> None:
    """A video that holds every frame twice, or three times."""
    frames = 3.3 * lattice(20.0, (8, 96, 96))
    for times in (2, 3):
        assert measure(np.repeat(frames, times, axis=0)).gain == pytest.approx(3.3, rel=0.06)


def test_data_around_zero_get_an_offset() -> None:
    rng = np.random.default_rng(0)
    for mean in (-2.0, 0.0, 0.5):
        found = measure(rng.normal(mean, 3.0, (6, 96, 96)))
        assert found.sigma == pytest.approx(3.0, rel=0.03)
        assert found.offset < mean - 3
        assert found.scale > 1
        assert "darkest" in found.note


@pytest.mark.parametrize("dose", [2.0, 30.0, 300.0])
@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("how", ["drift of 3 px", "drift of 5 px", "vibration"])
def test_fast_motion_is_not_taken_for_correlated_noise(how: str, count: int, dose: float) -> None:
    """Frames two apart then differ no more than neighbours do."""
    rng = np.random.default_rng(5)
    shifts = drifting(count, 3 if how == "drift of 3 px" else 5)
    if how == "vibration":
        shifts = rng.normal(0, 1.5, (count, 2))
    found = measure(3 * rng.poisson(dose * SCENE(count, 128, shifts).clip(0)))
    assert found.offset == 0
    assert found.gain == pytest.approx(3, rel=0.06)


@pytest.mark.parametrize("pixels", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("count", [2, 6])
def test_correlated_noise_is_found_in_frames_that_move(count: int, pixels: float) -> None:
    rng = np.random.default_rng(7)
    frames = 3 * BLUR(100 * SCENE(count, 128, drifting(count, pixels)).clip(0), rng, 0.3)
    variance = 0.7**2 + 4 * (0.3 / 4) ** 2
    found = measure(frames)
    # Of what an electron gives, each pixel's noise holds half, that of many pixels all.
    assert found.gain == pytest.approx(3, rel=0.25)
    assert found.pixel_gain == pytest.approx(3 * variance, rel=0.25)


@pytest.mark.parametrize("pixels", [0.0, 0.3, 1.0, 3.0])
def test_an_offset_is_found_where_the_contrast_allows(pixels: float) -> None:
    rng = np.random.default_rng(8)
    frames = 3 * rng.poisson(20 * SCENE(60, 128, drifting(60, pixels)).clip(0)) + 100
    found = measure(frames)
    assert found.offset == pytest.approx(100, abs=6)
    assert found.gain == pytest.approx(3, rel=0.12)
    assert "variance-mean" in found.note


def recorded(count: int, size: int, dose: float, image: float):
    """Record electrons by a CCD: the noise has the root of the MTF (Gatan US1000, 80 kV)."""
    rng = np.random.default_rng(9)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    transfer = (1 + (radius / 0.1375) ** 2.11) ** -0.5
    shade = 1 + image * np.sin(np.arange(size) / 1.1)  # a lattice within what images hold
    counts = np.fft.rfft2(rng.poisson(dose * shade, (count, size, size)))
    return np.fft.irfft2(counts * transfer, s=(size, size))


@pytest.mark.parametrize("image", [0.0, 0.2])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_electrons_are_counted_where_pixels_share_them(count: int, image: float) -> None:
    found = measure(7 * recorded(count, 128, 40.0, image))
    # A pixel's noise alone would say 0.15; one frame does not show how far the rest goes.
    assert (0.45 if count < 3 else 0.75) < found.gain / 7 < 1.1
    assert found.pixel_gain < 0.2 * 7
    assert "the noise is correlated" in found.note


def test_given_values_are_taken_or_refused(lattice) -> None:
    found = measure(3.0 * lattice(40.0) + 10, gain=3.0, offset=10.0)
    assert (found.gain, found.offset) == (3.0, 10.0)
    assert found.note == "offset given, gain given"
    assert found.sigma == pytest.approx(3 * np.sqrt(40), rel=0.02)
    frames = lattice(4.0, (3, 32, 32))
    for gain in (0.0, -1.0, float("nan")):
        with pytest.raises(EmdnError, match="gain is"):
            measure(frames, gain=gain)
    with pytest.raises(EmdnError, match="not below the mean"):
        measure(frames, offset=100.0)


@pytest.mark.parametrize("value", [5.0, 0.0, -3.0, 1e-30])
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 40, 40), (1, 1, 1), (4, 1, 50)])
def test_constant_stacks_are_named_and_tiny_ones_have_a_scale(shape, value: float) -> None:
    noisy = measure(np.random.default_rng(0).poisson(30, shape))
    assert np.isfinite([noisy.scale, noisy.gain, noisy.offset]).all()
    assert noisy.scale > 0
    found = measure(np.full(shape, value))
    assert found.sigma == 0
    assert "no noise found" in found.note
    assert found.scale > 0
    assert measure(np.full(shape, value), gain=2.5).gain == 2.5


@pytest.mark.parametrize("factor", [1e-12, 0.02, 1e12])
@pytest.mark.parametrize("kind", ["counts", "offset", "around zero", "one frame", "drift"])
def test_the_unit_of_the_intensity_does_not_matter(lattice, kind: str, factor: float) -> None:
    frames = {
        "counts": lambda: lattice(20.0),
        "offset": lambda: 2.5 * lattice(10.0, (60, 96, 96)) + 100,
        "around zero": lambda: np.random.default_rng(0).normal(-2, 3, (6, 96, 96)),
        "one frame": lambda: 1.7 * lattice(30.0, (1, 128, 128)),
        "drift": lambda: lattice(20.0, drift=0.4),
    }[kind]()
    plain, other = measure(frames), measure(frames * factor)
    # Blocks at the edge of a bin may fall on its other side.
    for name in ("gain", "offset", "sigma"):
        assert getattr(other, name) / factor == pytest.approx(getattr(plain, name), rel=1e-2)
    assert other.scale == pytest.approx(plain.scale, rel=1e-2)


def test_a_large_offset_does_not_round_the_noise_away(lattice) -> None:
    counts = lattice(20.0, (3, 64, 64))
    found = measure(counts + 1e6, offset=0.0)
    assert found.scale > 1e9
    scale, offset, gain = found.numbers
    assert offset + gain * scale == pytest.approx(1e6 + counts.mean())
    assert gain * np.sqrt(scale) == pytest.approx(found.sigma)
    assert scale < 1000
