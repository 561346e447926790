"""Faults are what they are called, and movies hold what their truth says."""

import numpy as np
import pytest
from scipy import ndimage

from emdn_train.faults import FAULTS, PERIOD, Scene
from emdn_train.kept import farthest, soundness
from emdn_train.proof_movies import CRYSTALS, MORE, STRANGE, movie


@pytest.fixture(scope="module")
def made():
    return movie("dichalcogenide", 1.2, 8, 64, 3)


@pytest.fixture(scope="module")
def scene(made):
    """Give the truth instead of what a model makes of it, with gain and model written on."""

    def again(raw, model, gain):
        return np.full_like(raw, gain + 10 * len(model))

    return Scene(made.raw.astype(np.float32), made.filled, again, 5)


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.strengths])
def test_a_stronger_fault_is_farther_from_the_honest_frames(name, scene, made):
    before = made.clean.copy()
    fault = FAULTS[name]
    planted = [fault.plant(scene, made.clean, strength) for strength in fault.strengths]
    assert {one.dtype for one in planted} == {np.dtype(np.float32)}
    assert np.array_equal(made.clean, before)
    if name not in ("Gaussian filter, no model", "wrong gain, not in the record"):
        away = [float(np.square(one - made.clean).mean()) for one in planted]
        assert away[0] > 0
        assert away == sorted(away)


def test_faults_do_what_they_say(scene, made):
    clean = made.clean

    def plant(name, strength):
        return FAULTS[name].plant(scene, clean, strength)

    assert plant("scaled", 1.01).mean() == pytest.approx(1.01 * clean.mean())
    assert plant("offset", 0.01).mean() == pytest.approx(1.01 * clean.mean())
    assert plant("blur", 2.0).std() < 0.9 * clean.std()
    assert plant("Gaussian filter, no model", 1.0).std() < scene.raw.std()
    # What all columns have in common with the pattern is left when rows are averaged.
    stripes = plant("column stripes", 0.2) - clean
    assert np.ptp(stripes, axis=1).max() < 1e-3 * clean.mean()
    assert stripes.std() == pytest.approx(0.2 * clean.mean() ** 0.5, rel=0.25)
    assert plant("another model", "two")[0, 0, 0] == 31
    assert plant("wrong gain, not in the record", 0.5)[0, 0, 0] == 0.5
    left = plant("noise left in", 0.3) - clean
    assert left == pytest.approx(0.3 * (scene.raw - clean), abs=1e-3)


def test_the_added_lattice_has_six_peaks_of_its_period(scene, made):
    added = FAULTS["added lattice"].plant(scene, made.clean, 0.3)[0] - made.clean[0]
    even = made.clean[0] - ndimage.gaussian_filter(made.clean[0], 32)
    assert added.std() == pytest.approx(0.3 * even.std(), rel=0.1)
    power = np.abs(np.fft.fft2(added)) ** 2
    y, x = (np.fft.fftfreq(side) for side in added.shape)
    near = np.abs(np.hypot(y[:, None], x) - 1 / PERIOD) < 2 / 64
    assert power[near].sum() > 0.9 * power.sum()


def test_the_filled_vacancy_is_one_atom_and_drifts_with_the_specimen(made):
    assert made.filled.shape == made.clean.shape
    size = np.square(made.filled)
    peaks = [np.unravel_index(one.argmax(), one.shape) for one in size]
    for one, (y, x) in zip(size, peaks, strict=True):
        around = np.hypot(*(np.mgrid[:64, :64] - np.array([y, x])[:, None, None])) < 16
        assert one[around].sum() > 0.6 * one.sum()
    drawn = movie("dichalcogenide", 1.2, 8, 64, 3)
    assert np.array_equal(drawn.raw, made.raw)
    assert np.ptp(np.array(peaks), axis=0).max() <= 8


@pytest.mark.parametrize("specimen", [*CRYSTALS, *STRANGE, *MORE])
def test_movies_hold_counts_about_their_truth_at_the_signal_to_noise_asked_for(specimen):
    found = movie(specimen, 0.4, 4, 64, 1)
    z = (found.raw - found.clean) / np.sqrt(np.maximum(found.clean, 0.5))
    assert z.mean() == pytest.approx(0, abs=0.05)
    assert z.std() == pytest.approx(1, abs=0.05)
    assert found.clean[0].std() / found.clean.mean() ** 0.5 > 0.3
    # Of the same scene: contrast x sqrt(electrons).
    other = movie(specimen, 0.8, 4, 64, 1)
    assert other.clean == pytest.approx(4 * found.clean, rel=1e-4)
    assert other.filled == pytest.approx(4 * found.filled, rel=1e-3, abs=1e-3)
    assert bool(found.filled.any()) == (specimen in CRYSTALS)
    assert not np.array_equal(found.clean[0], found.clean[-1])
    still = movie(specimen, 0.4, 4, 64, 1, still=True)
    assert np.ptp(still.clean, axis=0).max() == 0
    assert not np.array_equal(still.raw[0], still.raw[-1])


def test_a_reflection_that_a_result_lacks_or_exaggerates_is_seen(made):
    y, x = np.mgrid[:64, :64]
    wave = 20 * np.cos(2 * np.pi * (0.2 * y + 0.1 * x)).astype(np.float32)
    true = made.clean + wave

    def right(drawn):
        return true

    assert soundness(true, true, right) == "sound"
    assert soundness(true, made.clean + 0.9 * wave, right) == "slight"
    assert soundness(true, made.clean + 0.6 * wave, right) == "wrong"
    assert soundness(true, made.clean + 1.4 * wave, right) == "wrong"


def test_an_atom_that_all_results_lack_is_seen_where_no_reflection_is_off(made):
    y, x = np.mgrid[:64, :64]
    atom = np.exp(-((y - 20) ** 2 + (x - 40) ** 2) / 8)  # a Gaussian of 2 pixels
    atom *= np.sqrt(made.clean.mean() / np.square(atom).sum())  # one deviation of a frame

    def model(strength, noise):
        return lambda drawn: made.clean + strength * atom + noise * (drawn - made.clean)

    for strength in (3.0, -3.0):
        # The mean of eight frames is off by the root of eight times as much.
        found = farthest(made.clean, model(strength, 0.1))
        assert found == pytest.approx(3 * 8**0.5, rel=0.1)
        assert soundness(made.clean, made.clean, model(strength, 0.1)) == "wrong"
    # What a result keeps of a frame's noise is nothing that the model is wrong by.
    assert farthest(made.clean, model(0.0, 0.5)) < 2.5
    assert soundness(made.clean, made.clean, model(0.5, 0.5)) == "sound"
