"""How well a defect is seen to move: simulated movies in which a vacancy hops once.

A movie drifts; at one frame its vacancy hops to a neighbouring site. Models denoise the
movie as a user would. They stand beside the raw frames and beside averages of k raw frames along
the true drift, which nobody has: what they tell of the vacancy is what the electrons hold.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import ndimage

from emdn_deploy import Denoiser
from emdn_models import metrics
from emdn_models.vacancies import Roc, Sites, roc, simulated_sites, site_scores
from emdn_train.loss import LEVELS
from emdn_train.simulate import microscope
from emdn_train.simulate.dataset import one_thread
from emdn_train.simulate.graphene import drawn_sheet, warped
from emdn_train.simulate.movie import focused, with_vacancy

_log = logging.getLogger(__name__)

Stack = NDArray[np.float32]

FRAMES, SIZE = 24, 160
SPEED = 1.5
"""Largest drift in pixels a frame."""
AVERAGES = (3, 5, 9)
_NEAR = 2  # frames from the hop
_VOLTAGE_KV, _PIXEL_A = 80.0, (0.1, 0.2)


@dataclass(frozen=True, eq=False)
class Movie:
    """One movie without noise."""

    clean: Stack  # (T, H, W) relative intensity
    drift: NDArray[np.float64]  # (T, 2) y and x in pixels, against the middle frame
    sites: tuple[Sites, ...]  # of every frame
    places: NDArray[np.int64]  # (T, 2) sites, as numbers, of the vacancy before and after the hop
    hop: int  # first frame in which the vacancy is at its new site
    pixel_size_nm: float
    sign: NDArray[np.float64]  # (5,) a bright vacancy, 1, or a dark one, -1, by width of the scores

    def scores(self, frame: Stack, number: int) -> NDArray[np.float64]:
        """Score the sites of a frame (H, W), (5, n): positive for a vacancy."""
        return self.sign[:, None] * site_scores(frame, self.sites[number], self.pixel_size_nm)

    def recorded(self, seed: int, level: float) -> tuple[Stack, Stack]:
        """Return expected and recorded counts, (T, H, W), at a signal to noise per pixel."""
        expected = (level / float(self.clean.std() / self.clean.mean())) ** 2 * self.clean
        noisy = np.random.default_rng([12, seed]).poisson(expected)
        return expected, noisy.astype(np.float32)


@one_thread()
def simulate(seed: int, frames: int = FRAMES, size: int = SIZE) -> Movie:
    """Simulate one movie: graphene, two sites of one vacancy, optics of good contrast."""
    rng, hop = np.random.default_rng([11, seed]), frames // 2
    pixel_a = float(rng.uniform(*_PIXEL_A))
    field = microscope.make_field(size, pixel_a)
    course, speed = rng.uniform(0, 2 * np.pi), SPEED * rng.uniform(0, 1)
    steps = speed * np.array([np.sin(course), np.cos(course)]) + rng.normal(0, 0.2, (frames, 2))
    steps[0] = 0
    drift = np.cumsum(steps, 0) - np.cumsum(steps, 0)[frames // 2]
    cover = field.side_a + 8.0 + 2 * pixel_a * float(np.abs(drift).max())
    sheet = drawn_sheet(cover, rng)
    before = int(np.argmin((sheet.xy**2).sum(1)))
    after = int(rng.choice(sheet.neighbours(before)))
    ripple, shape = rng.integers(2**62, size=2)
    states = [
        warped(
            with_vacancy(sheet, site, 0.055, np.random.default_rng(shape)),
            np.random.default_rng(ripple),
        )
        for site in (before, after)
    ]
    optics = focused(states[0], field, _VOLTAGE_KV, rng)
    clean, sites, places = [], [], []
    for frame in range(frames):
        y, x = drift[frame] * pixel_a
        moved, now = [state.moved((x, y, 0.0)) for state in states], int(frame >= hop)
        structure = moved[now]
        wave = microscope.exit_wave(structure, field, _VOLTAGE_KV)
        clean.append(microscope.image(wave, field, optics))
        atoms = microscope.to_pixels(structure.positions[:, :2], field)
        both = microscope.to_pixels(np.concatenate([one.places for one in moved]), field)
        empty = both[now : now + 1]
        found = simulated_sites(atoms, structure.numbers, empty, ["V1"], pixel_a / 10)
        sites.append(found)
        places.append([int(np.argmin(((found.places - one[::-1]) ** 2).sum(1))) for one in both])
    seen = [
        site_scores(clean[t], sites[t], pixel_a / 10)[:, places[t][t >= hop]] for t in range(frames)
    ]
    sign = np.where(np.median(seen, axis=0) < 0, -1.0, 1.0)
    stack = np.stack(clean)
    return Movie(stack, drift, tuple(sites), np.array(places), hop, pixel_a / 10, sign)


def measure(
    models: Mapping[str, Denoiser], movies: int = 6, levels: tuple[float, ...] = LEVELS
) -> pl.DataFrame:
    """Denoise movies by every model, and average raw frames: a row a movie, level, method, frame.

    ``since`` counts frames since the hop; ``vacant`` are the vacancy's five scores, ``full`` those
    of full sites (`emdn_models.vacancies`); ``change``, (5,), is the score of the site
    before the hop less that of the site after it.
    """
    rows: list[dict[str, Any]] = []
    for seed in range(movies):
        movie = simulate(seed)
        for level in levels:
            expected, noisy = movie.recorded(seed, level)
            answers = {"raw frame": noisy}
            answers |= {f"average of {k}": averaged(noisy, movie.drift, k) for k in AVERAGES}
            answers |= {name: model.denoise(noisy) for name, model in models.items()}
            for name, stack in answers.items():
                key = {"movie": seed, "level": level, "method": name}
                for frame, answer in enumerate(stack):
                    scores, sites = movie.scores(answer, frame), movie.sites[frame]
                    before, after = movie.places[frame]
                    gain = metrics.gain_db(noisy[frame], answer, expected[frame])
                    rows.append(key | {
                        "frame": frame, "since": frame - movie.hop, "gain_db": float(gain),
                        "vacant": scores[:, sites.vacant][:, :1].ravel().tolist(),
                        "full": [row[np.isfinite(row) & sites.full].tolist() for row in scores],
                        "change": (scores[:, before] - scores[:, after]).tolist(),
                    })  # fmt: skip
        _log.info("movie %d of %d measured", seed + 1, movies)
    return pl.DataFrame(rows)


def summary(rows: pl.DataFrame) -> pl.DataFrame:
    """Say how well each method shows the vacancy and its hop: a row a level and method.

    Columns are the gain in dB, of all frames and of the ``worst`` of a movie's frames within two of
    the hop; the area under the receiver operating characteristic and the share found at 0.1 and
    at 1 false site a frame; that share within two frames of the hop; and how many frames off
    the hop is found, root mean square and most.
    """
    table = []
    near = pl.col("since").is_between(-_NEAR, _NEAR - 1)
    for (level, method), part in rows.group_by("level", "method", maintain_order=True):
        width = max(range(5), key=lambda one: _roc(part, one).auc)
        every, close = _roc(part, width), _roc(part.filter(near), width)
        off = [_off(movie, width) for _, movie in part.group_by("movie")]
        table.append({
            "snr": level, "method": method,
            "gain": round(float(part["gain_db"].to_numpy().mean()), 2),
            "worst at the hop": round(float(part.filter(near)["gain_db"].to_numpy().min()), 2),
            "AUC": round(every.auc, 3), "0.1 false": round(every.recall[0], 2),
            "1 false": round(every.recall[1], 2), "0.1 false at the hop": round(close.recall[0], 2),
            "hop off, RMS": round(float(np.sqrt(np.mean(np.square(off)))), 1),
            "most": int(np.abs(off).max()),
        })  # fmt: skip
    return pl.DataFrame(table)


def _roc(part: pl.DataFrame, width: int) -> Roc:
    vacant = part["vacant"].list.get(width)
    full = part["full"].list.get(width).explode()
    return roc(vacant.drop_nans(), full.drop_nans(), part.height)


def _off(movie: pl.DataFrame, width: int) -> int:
    """Return how many frames late one movie's change of sign is likeliest (least squares)."""
    movie = movie.sort("frame")
    change = movie["change"].list.get(width).fill_nan(0.0).to_numpy()
    steps = np.concatenate([[0.0], np.cumsum(change)])
    return int(np.argmax(2 * steps - steps[-1])) + int(movie["since"][0])


def averaged(noisy: Stack, drift: NDArray[np.float64], count: int) -> Stack:
    """Average each frame with its neighbours, shifted to where it lies."""
    half, made = count // 2, np.empty_like(noisy)
    for frame in range(len(noisy)):
        near = range(max(0, frame - half), min(len(noisy), frame + half + 1))
        shifted = [
            ndimage.shift(noisy[t], drift[frame] - drift[t], order=1, mode="reflect") for t in near
        ]
        made[frame] = np.mean(shifted, axis=0)
    return made
