"""The scale on simulated stacks whose gain, offset and dose are known."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import intensity, moments, sampling, spectrum
from emdn_models.errors import EmdnError

# The stacks on which the noise model's power is measured.
_SIMULATED = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "noise_power.py"))
SCENE, FAULTS = _SIMULATED["lattice"], _SIMULATED["FAULTS"]


def measure(frames, gain: float | None = None, offset: float | None = None) -> intensity.Intensity:
    stack = np.asarray(frames, np.float32)
    return intensity.estimate(
        lambda start, stop: stack[start:stop], len(stack), stack.shape[1:], gain, offset
    )


@pytest.mark.parametrize("drift", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize("dose", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize(("gain", "offset"), [(7.3, 0.0), (0.02, 0.0), (2.5, 100.0)])
def test_the_noise_is_found(lattice, dose, count, gain, offset, drift) -> None:
    frames = gain * lattice(dose, (count, 128, 128), drift=drift) + offset
    found = measure(frames)
    tolerance = 0.07 if count == 1 else 0.03
    assert found.sigma == pytest.approx(gain * np.sqrt(dose), rel=tolerance)
    known = measure(frames, offset=offset)
    assert known.gain == pytest.approx(gain, rel=2.2 * tolerance)
    assert known.scale == pytest.approx(dose, rel=2.2 * tolerance)


@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize("dose", [0.1, 1.0, 10.0, 1000.0])
def test_counts_are_recognised(lattice, dose: float, count: int) -> None:
    frames = lattice(dose, (count, 128, 128))
    found = measure(frames)
    assert (found.gain, found.offset) == (1.0, 0.0)
    assert found.scale == pytest.approx(frames.mean(), rel=1e-2)
    assert "counts" in found.note


def test_a_bright_offset_is_fitted_where_the_contrast_allows(lattice) -> None:
    found = measure(2.5 * lattice(10.0, (60, 128, 128)) + 100)
    assert found.offset == pytest.approx(100, abs=3)
    assert found.gain == pytest.approx(2.5, rel=0.1)
    assert "variance-mean" in found.note


def test_hot_pixels_do_not_change_the_scale(lattice) -> None:
    frames = 4.0 * lattice(50.0)
    clean = measure(frames).sigma
    frames[:, 5::37, 3::41] = 65535
    frames[:, 9::41, 7::53] = 0
    assert measure(frames).sigma == pytest.approx(clean, rel=0.03)


def test_a_cosmic_ray_does_not_change_the_scale(lattice) -> None:
    """One pixel, in one frame, must not decide by how much the beam has changed."""
    frames = 4.0 * lattice(50.0)
    clean = measure(frames).sigma
    frames[::4, 60, 61] = 65535
    assert measure(frames).sigma == pytest.approx(clean, rel=0.03)


def test_a_beam_that_blinks_does_not_change_the_scale(lattice) -> None:
    rng = np.random.default_rng(2)
    steady, dim = (lattice(dose, seed=seed) for dose, seed in ((50.0, 0), (42.0, 1)))
    frames = np.where(rng.uniform(size=(12, 1, 1)) < 0.5, steady, dim)
    assert measure(4 * frames + 300, offset=300.0).gain == pytest.approx(4, rel=0.03)


def test_data_around_zero_get_an_offset() -> None:
    rng = np.random.default_rng(0)
    for mean in (-2.0, 0.0, 0.5):
        frames = rng.normal(mean, 3.0, (6, 96, 96))
        found = measure(frames)
        assert found.sigma == pytest.approx(3.0, rel=0.03)
        assert found.offset < mean - 3
        assert found.scale > 1
        assert "darkest" in found.note


def test_correlated_noise_is_not_taken_for_motion() -> None:
    """The camera's blur lowers the high-passed part; the pixels' noise is what counts."""
    white = np.random.default_rng(1).normal(0, 5.0, (12, 130, 130))
    blurred = (white[:, 1:-1, 1:-1] + white[:, :-2, 1:-1] + white[:, 1:-1, :-2]) / np.sqrt(3)
    found = measure(blurred + 200)
    assert found.sigma == pytest.approx(5.0, rel=0.03)


@pytest.mark.parametrize("dose", [2.0, 30.0, 300.0])
@pytest.mark.parametrize("count", [3, 6, 20])
@pytest.mark.parametrize("how", ["drift of 3 px", "drift of 5 px", "vibration"])
def test_fast_motion_is_not_taken_for_correlated_noise(how: str, count: int, dose: float) -> None:
    """Frames two apart then differ no more than neighbours do."""
    rng = np.random.default_rng(5)
    shifts = np.arange(count)[:, None] * np.array([[1.0, 0.6]])
    shifts *= 3 if how == "drift of 3 px" else 5
    if how == "vibration":
        shifts = rng.normal(0, 1.5, (count, 2))
    found = measure(3 * rng.poisson(dose * SCENE(count, 128, shifts).clip(0)))
    assert found.offset == 0
    assert found.gain == pytest.approx(3, rel=0.06)


def test_flicker_and_jitter_of_lines_are_not_the_noise_of_pixels() -> None:
    rng = np.random.default_rng(6)
    still = 300 * SCENE(9, 128, np.zeros((9, 2)))
    for name, strength in (("rows flicker, of mean", 0.1), ("lines jitter, px", 0.8)):
        frames = 3 * FAULTS[name][0](still, rng, strength)
        assert measure(frames).gain == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("pixels", [0.0, 0.3, 1.0, 3.0, 5.0])
@pytest.mark.parametrize("count", [2, 6])
def test_correlated_noise_is_found_in_frames_that_move(count: int, pixels: float) -> None:
    rng = np.random.default_rng(7)
    shifts = pixels * np.arange(count)[:, None] * np.array([[1.0, 0.6]])
    blur = FAULTS["blur, share given to 4 neighbours"][0]
    frames = 3 * blur(100 * SCENE(count, 128, shifts).clip(0), rng, 0.3)
    variance = 0.7**2 + 4 * (0.3 / 4) ** 2
    found = measure(frames)
    # Of what an electron gives, each pixel's noise holds half, that of many pixels all.
    assert found.gain == pytest.approx(3, rel=0.25)
    assert found.pixel_gain == pytest.approx(3 * variance, rel=0.25)


@pytest.mark.parametrize("pixels", [0.0, 0.3, 1.0, 3.0])
def test_an_offset_is_found_where_the_frames_move(pixels: float) -> None:
    rng = np.random.default_rng(8)
    shifts = pixels * np.arange(60)[:, None] * np.array([[1.0, 0.6]])
    frames = 3 * rng.poisson(20 * SCENE(60, 128, shifts).clip(0)) + 100
    found = measure(frames)
    assert found.offset == pytest.approx(100, abs=6)
    assert found.gain == pytest.approx(3, rel=0.12)


@pytest.mark.parametrize("seed", range(3))
def test_interpolated_single_frames_keep_their_noise(lattice, seed: int) -> None:
    """A frame drawn twice as large: a high-pass filter would see a sixth of its noise."""
    frame = lattice(30.0, (1, 128, 128), seed=seed)[0]
    wide = np.repeat(np.repeat(frame, 2, axis=0), 2, axis=1)
    for axis in (0, 1):
        wide = (wide + np.roll(wide, 1, axis)) / 2
    variance = 0.75**2 * 30.0  # of the mean of one or two pixels, along both axes
    found = measure(wide[None] * 2.0)
    assert found.sigma == pytest.approx(2 * np.sqrt(variance), rel=0.35)
    assert found.gain == pytest.approx(2 * 4, rel=0.35)  # of four pixels, one electron's
    assert np.sqrt(np.median(moments.high_pass(wide[None]) ** 2)) < 0.25 * np.sqrt(variance)


def recorded(count: int, size: int, dose: float, image: float = 0.0):
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


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [32, 64, 256])
def test_white_noise_is_not_spread_whatever_the_image(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    film = np.fft.irfft2(
        np.fft.rfft2(rng.normal(size=(size, size))) * (radius < 0.2), s=(size, size)
    )
    assert spectrum.noise(rng.normal(size=(size, size)) + 3 * film)[1] == 1


def test_hot_pixels_do_not_change_the_scale_of_one_frame(lattice) -> None:
    frames = 4.0 * lattice(50.0, (1, 128, 128))
    clean = measure(frames).sigma
    frames[:, 5::37, 3::41] = 65535
    assert measure(frames).sigma == pytest.approx(clean, rel=0.05)


def test_given_values_are_taken(lattice) -> None:
    found = measure(3.0 * lattice(40.0) + 10, gain=3.0, offset=10.0)
    assert (found.gain, found.offset) == (3.0, 10.0)
    assert found.note == "offset given, gain given"
    assert found.sigma == pytest.approx(3 * np.sqrt(40), rel=0.02)


@pytest.mark.parametrize("value", [5.0, 0.0, -3.0, 1e-30])
@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 64, 64), (3, 40, 40), (1, 1, 1), (4, 1, 50)])
def test_a_constant_stack_is_named(shape: tuple[int, int, int], value: float) -> None:
    found = measure(np.full(shape, value))
    assert found.sigma == 0
    assert "no noise found" in found.note
    assert found.scale > 0
    assert measure(np.full(shape, value), gain=2.5).gain == 2.5


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 0.02, 1e12, 1e30])
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
        assert getattr(other, name) / factor == pytest.approx(getattr(plain, name), rel=5e-3)
    assert other.scale == pytest.approx(plain.scale, rel=5e-3)


def test_counts_in_another_unit_are_recognised(lattice) -> None:
    found = measure(80 * lattice(20.0))
    assert found.gain == pytest.approx(80, rel=1e-6)
    assert "multiples of 80" in found.note
    assert sampling.common_step(np.array([-3.5, 7.0, 10.5], np.float32)) == pytest.approx(3.5)
    assert sampling.common_step(np.random.default_rng(0).random(1000, np.float32)) == 0
    assert sampling.common_step(np.zeros(1, np.float32)) == 0


def test_a_large_offset_does_not_round_the_noise_away(lattice) -> None:
    counts = lattice(20.0, (3, 64, 64))
    found = measure(counts + 1e6, offset=0.0)
    assert found.scale > 1e9
    scale, offset, gain = found.numbers
    assert offset + gain * scale == pytest.approx(1e6 + counts.mean())
    assert gain * np.sqrt(scale) == pytest.approx(found.sigma)
    assert scale < 1000


def test_frames_that_are_not_finite_are_named() -> None:
    frames = np.ones((3, 20, 20))
    frames[2, 4, 4] = np.inf
    with pytest.raises(EmdnError, match="frame 2 has pixels"):
        measure(frames)


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (3, 3), (17, 5)])
def test_tiny_frames_have_a_scale(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).poisson(30, (8, *size))
    found = measure(frames)
    assert np.isfinite([found.scale, found.gain, found.offset]).all()
    assert found.scale > 0


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 1000])
@pytest.mark.parametrize("size", [(64, 64), (512, 512), (4096, 4096)])
def test_samples_are_bounded_and_spread(count: int, size: tuple[int, int]) -> None:
    starts, run = sampling.sample_starts(count, size)
    assert len(starts) * run <= sampling.MAX_FRAMES
    pixels = size[0] * size[1]
    assert len(starts) * run * pixels <= max(sampling.MAX_PIXELS, run * pixels)
    assert run == min(3, count)
    assert starts[0] == 0
    assert max(starts) + run <= count
    if count == 1000 and size == (64, 64):
        assert starts[-1] == 997
        assert len(starts) == 21


def test_lanes_do_not_matter(lattice) -> None:
    frames = (3 * lattice(20.0, (40, 64, 90), drift=0.4) + 7).astype(np.float32)
    bad = np.zeros(frames.shape[1:], bool)
    bad[::9, 4::13] = True
    one, several = (
        sampling.collect(lambda a, b: frames[a:b], 40, (64, 90), bad, lanes=lanes)
        for lanes in (1, 3)
    )
    for name in ("level", "mean", "temporal", "lagged", "temporal_high", "high", "low", "single"):
        np.testing.assert_array_equal(getattr(one, name), getattr(several, name))


def test_a_long_stack_is_looked_at_in_bands_all_over() -> None:
    """Looking takes a few per cent of the time that denoising takes, and misses no place."""
    rows, every = sampling._bands(256, 3 * 256, 21, 64 * 256 * 256)
    looked = -(-21 // every) * rows * 3 * 256
    assert 2**18 <= looked <= 2 * 2**18
    assert sampling._bands(64, 3 * 64, 4, 12 * 64 * 64) == (64, 1)  # small stacks: all of it
    rows = np.arange(512, dtype=np.float32)[None, :, None] * np.ones((1, 1, 64), np.float32)
    found = sampling.collect(lambda start, stop: rows.repeat(stop - start, 0), 100, (512, 64))
    assert found.mean.size < 0.3 * 2 * 21 * (512 * 64 / 256)
    assert found.mean.min() < 40
    assert found.mean.max() > 470
    assert not found.temporal.any()
