"""A vacancy that hops, in pictures: a simulated movie, raw, denoised in two ways, and the truth.

    python benchmarks/film.py deploy/examples

writes ``hop.gif`` and ``hop.png``, film and strip of the frames around the hop. The two ways are
the default model, which sees one frame at a time, and its model for movies, which sees five.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from emdn_deploy import Denoiser
from emdn_models import pretrained
from emdn_train import hops

SNR, SEED = 0.4, 2  # signal to noise per pixel, and number of the simulated movie
NEAR, FILM = range(-3, 3), range(-8, 8)  # frames from the hop, in the strip and in the film
SIDE, ZOOM, GAP, BAR, LEFT = 60, 2, 4, 14, 66  # of a panel, in pixels
GREYS = {"raw": 12}  # fewer shades of noise make a smaller file

Stack = NDArray[np.float32]


def stacks(movie: hops.Movie, single: str, several: str) -> dict[str, Stack]:
    """Record a movie, denoise it in two ways, and cut (n, SIDE, SIDE) around the moving vacancy."""
    contrast = float(movie.clean.std() / movie.clean.mean())
    clean = (SNR / contrast) ** 2 * movie.clean
    noisy = np.random.default_rng([12, SEED]).poisson(clean).astype(np.float32)
    whole = {
        "raw": noisy, "one frame": Denoiser(single).denoise(noisy),
        "five frames": Denoiser(several).denoise(noisy), "truth": clean,
    }  # fmt: skip
    place = movie.sites[movie.hop].places[movie.places[movie.hop]].mean(0) - movie.drift[movie.hop]
    corners = np.round(place + movie.drift - SIDE / 2).astype(int)
    return {
        name: np.stack([frame[y : y + SIDE, x : x + SIDE]
                        for frame, (y, x) in zip(stack, corners, strict=True)])
        for name, stack in whole.items()
    }  # fmt: skip


def panel(stack: Stack, number: int, low: float, high: float, greys: int) -> Image.Image:
    """Return a frame as a picture, ``ZOOM`` times as large."""
    shades = np.round(np.clip((stack[number] - low) / (high - low), 0, 1) * (greys - 1))
    values = (shades * (255 / (greys - 1))).astype(np.uint8)
    return Image.fromarray(np.kron(values, np.ones((ZOOM, ZOOM), np.uint8)))


def table(cut: dict[str, Stack], numbers: list[int], *, rows: bool) -> Image.Image:
    """Join frames of all stacks: a row a stack and a column a frame, or one row of one frame."""
    step = SIDE * ZOOM + GAP
    high, wide = (len(cut), len(numbers)) if rows else (1, len(cut))
    left = LEFT if rows else 0
    picture = Image.new("L", (left + wide * step - GAP, BAR + high * step - GAP), 255)
    draw = ImageDraw.Draw(picture)
    truth = np.quantile(cut["truth"], (0.002, 0.998))
    for place, (name, stack) in enumerate(cut.items()):
        low, high_ = np.quantile(stack, (0.01, 0.99)) if name == "raw" else truth
        for column, number in enumerate(numbers):
            x, y = (left + column * step, BAR + place * step) if rows else (place * step, BAR)
            made = panel(stack, number, float(low), float(high_), GREYS.get(name, 48))
            picture.paste(made, (x, y))
            if rows and not place:
                draw.text((x, 1), f"frame {number}", fill=0)
        x, y = (2, BAR + place * step + SIDE) if rows else (place * step, 1)
        draw.text((x, y), name, fill=0)
    return picture


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--single", default=pretrained.default_model())
    parser.add_argument("--several", default=pretrained.movie_model())
    arguments = parser.parse_args()
    movie = hops.simulate(SEED)
    cut = stacks(movie, arguments.single, arguments.several)
    strip, film = arguments.folder / "hop.png", arguments.folder / "hop.gif"
    table(cut, [movie.hop + since for since in NEAR], rows=True).save(strip, optimize=True)
    pages = [table(cut, [movie.hop + since], rows=False) for since in FILM]
    pages[0].save(film, save_all=True, append_images=pages[1:], duration=350, loop=0)
    for path in (strip, film):
        print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")
