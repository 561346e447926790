"""The shipped example and its truth: they belong together, and what is left of the vacancy."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


@pytest.fixture(scope="module")
def example():
    with h5py.File(EXAMPLES / "frames.h5") as file:
        raw, settings = file["entry/data/frames"][()], file.attrs["settings"]
    with h5py.File(EXAMPLES / "truth.h5") as file:
        assert file.attrs["settings"] == settings
        return raw, {name: file[name][()] for name in file}


def test_the_truth_is_that_of_the_frames(example) -> None:
    raw, truth = example
    assert (EXAMPLES / "truth.h5").stat().st_size < 700_000
    valid = truth["valid"]
    expected = truth["expected"][:, valid]
    residual = (raw[:, valid] - expected) / np.sqrt(expected)
    assert abs(residual.mean()) < 4 / residual.size**0.5
    assert residual.std() == pytest.approx(1, abs=0.003)
    for frame, (x, y) in enumerate(truth["defect"]):
        atoms = truth["atoms"][truth["atoms"][:, 0] == frame, 1:]
        assert np.hypot(*(atoms - (x, y)).T).min() > 7  # half a bond: no atom is there


def contrast(frames, truth) -> np.ndarray:
    """Compare the vacancy with its truth, (N,): 1 is as strong, 0 is filled by an atom."""
    places, expected = truth["defect"], truth["expected"]
    y, x = np.mgrid[: expected.shape[1], : expected.shape[2]]
    found = []
    for frame, place in enumerate(places):
        # Other frames, in which an atom is there; the specimen drifts by half a pixel in all.
        apart = np.hypot(*(places - place).T)
        others = [n for n in range(len(places)) if apart[n] > 10]
        others = sorted(others, key=lambda n: abs(n - frame))[:4]
        near = np.hypot(x - place[0], y - place[1]) < 12
        signal, wanted = (
            (one[frame] - one[others].mean(axis=0))[near] for one in (frames, expected)
        )
        wanted = wanted - wanted.mean()
        found.append((signal * wanted).sum() / np.square(wanted).sum())
    return np.array(found)


def test_what_is_left_of_the_vacancy(example) -> None:
    """The default model fills about half of it: what the summary of ``denoise`` warns of."""
    raw, truth = example
    counts = raw.astype(np.float32)
    counts[:, ~truth["valid"]] = counts.mean()
    made = Denoiser(threads=1).denoise(counts, gain=1, offset=0)
    found = {
        "truth": contrast(truth["expected"], truth),
        "raw": contrast(counts, truth),
        "denoised": contrast(made, truth),
    }
    np.testing.assert_allclose(found["truth"], 1, atol=0.005)
    # 4 to 5 standard deviations of the noise in every frame.
    assert found["raw"].mean() == pytest.approx(1, abs=0.25)
    assert found["denoised"].mean() > 0.4
