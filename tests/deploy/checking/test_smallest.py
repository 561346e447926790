"""What a pass does not say: the smallest defect that is seen, and that nine in ten of it are."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser
from emdn_deploy.checking import smallest
from emdn_deploy.checking.camera import Camera
from emdn_deploy.checking.grounds import grounds_of
from emdn_deploy.checking.quick import Quick
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.correction import prepare
from emdn_deploy.readers import open_frames

EXAMPLE = Path(__file__).parents[3] / "deploy" / "examples" / "frames.h5"
COUNTS = Camera(1.0, 0.0, 0.0, 0.0, True)
A = 20.0  # pixels, of the lattices

BASES = {
    "square": ([[A, 0], [0, A]], [[0, 0]], 1.0),
    # One atom a spot that has six neighbours is taken for two.
    "close-packed": ([[A, 0], [A / 2, A * 3**0.5 / 2]], [[0, 0]], 0.5**0.5),
    # Its neighbours overlap so far that a part of an atom does not vary: it does not count.
    "honeycomb": ([[A, 0], [A / 2, A * 3**0.5 / 2]], [[0, 0], [A / 2, A / 12**0.5]], 0.65),
}


def lattice(name: str, width: float, height: float, atom) -> np.ndarray:
    vectors, basis, _ = BASES[name]
    steps = np.array([(i, j) for i in range(-16, 17) for j in range(-16, 17)]) @ np.array(vectors)
    frame = np.full((160, 160), 100.0)
    for x, y in (steps[:, None] + np.array(basis)).reshape(-1, 2) + 80:
        if -20 < x < 180 and -20 < y < 180:
            frame += height * atom(frame.shape, y, x, width)
    return frame.astype(np.float32)


@pytest.mark.parametrize("height", [5.0, -5.0])
@pytest.mark.parametrize("name", BASES)
def test_an_atom_is_measured_in_a_lattice(name: str, height: float, atom) -> None:
    ramp = np.linspace(0, 30, 160, dtype=np.float32)  # no structure of atoms
    found = smallest.atom_of(lattice(name, 3.0, height, atom) + ramp)
    true = 5 * np.sqrt(np.pi) * 3
    assert found is not None
    assert found.norm == pytest.approx(0.75 * BASES[name][2] * true, rel=0.2)
    assert found.width == pytest.approx(3, rel=0.3)


def test_no_atoms_no_percent(atom) -> None:
    flat = np.full((64, 64), 60, np.float32)
    noisy = flat + np.random.default_rng(0).normal(0, 0.3, flat.shape).astype(np.float32)
    for frame in (flat, noisy, flat + 20 * atom(flat.shape, 30, 30, 3), flat[:8, :8]):
        found = smallest.of_boxes(frame.astype(np.float32), COUNTS, 7.7, 5.0, 1.0, 16)
        assert found.percent is None
        assert found.words.startswith("no atoms show; a false spot of ")


@pytest.fixture(scope="module")
def grounds(tmp_path_factory):
    """Draw what results for a part of the example are judged by, and honest results."""
    model = Denoiser(threads=1)
    path = tmp_path_factory.mktemp("smallest") / "frames.npy"
    with h5py.File(EXAMPLE) as file:
        np.save(path, file["entry/data/frames"][:, 64:192, 64:192])
    with open_frames(path) as frames:
        ready = prepare(frames, DenoiseOptions())

        def make(part):
            return model.run(np.ascontiguousarray(part, np.float32), ready.scale)

        grounds = grounds_of(frames, ready, make, seed=0)
        base = make(ready.read(0, 2))
    rng = np.random.default_rng(1)
    raw = np.stack([grounds.camera.draw(one, rng) for one in base])
    return grounds, raw, make(raw)


def test_nine_in_ten_of_the_smallest_are_found(grounds, atom) -> None:
    grounds, raw, clean = grounds
    found = smallest.of_check(
        raw[0], clean[0], grounds.camera, grounds.ranges, grounds.length, correlated=False
    )
    assert "single vacancies can be filled unseen at this dose" in found.words
    assert found.run_percent < found.percent
    scale = grounds.camera.gain
    quick = Quick(scale, 0)
    quick.add(0, raw, clean)
    least = quick.result().smallest
    assert least.percent > found.percent  # it looks less closely
    spot = smallest.atom_of(clean[0])
    rng = np.random.default_rng(2)
    seen, told = [], []
    for number in range(30):
        y, x = rng.uniform(10, 117, 2)
        one = atom(raw.shape[1:], y, x, spot.width) * spot.norm / (np.sqrt(np.pi) * spot.width)
        one *= rng.choice([-1, 1]) / 100
        at = slice(number % 2, number % 2 + 1)
        rows = grounds.rows()
        rows.add(0, raw[at][0], (clean[at][0] + found.percent * one).astype(np.float32))
        seen.append(rows.finish()["verdict"][0] != "within noise")
        quick = Quick(scale, 0)
        quick.add(0, raw[at], (clean[at] + least.percent * one).astype(np.float32))
        told.append(quick.result().failing != ())
    # Of 30, at 90 %: fewer than 23 by a chance of 1 %.
    assert sum(seen) >= 23
    assert sum(told) >= 23
    assert sum(seen) + sum(told) < 60


@pytest.mark.parametrize("shape", [(1, 1), (7, 50), (15, 400), (16, 16), (64, 64)])
def test_odd_frames_have_an_answer(shape: tuple[int, int]) -> None:
    raw = np.random.default_rng(0).poisson(9, (2, *shape)).astype(np.float32)
    for made in (raw, np.full_like(raw, 9), np.full_like(raw, np.nan)):  # nothing was done; all was
        quick = Quick(1, 0)
        quick.add(0, raw, made)
        assert quick.result().smallest.words


def test_in_correlated_noise_no_place_is_judged(grounds) -> None:
    grounds, raw, clean = grounds
    found = smallest.of_check(raw[0], clean[0], grounds.camera, grounds.ranges, 8, correlated=True)
    assert found.percent is None
    assert found.words.startswith("a filled atom cannot be seen")
