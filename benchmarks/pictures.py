"""Pictures of what is simulated, and of a vacancy that hops.

    python -m benchmarks.pictures gallery train/gallery.png
    python -m benchmarks.pictures hop deploy/examples

The first shows specimens by detectors and doses. The second writes ``hop.gif`` and ``hop.png``, a
movie around the hop: raw, by the default model, by its model for movies, and the truth.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from emdn_deploy import Denoiser
from emdn_models import pretrained
from emdn_train import hops
from emdn_train.simulate.dataset import one_thread
from emdn_train.simulate.scene import expose, shots, specimen_scene

SIZE, SEED = 144, 11
# Signal to noise per pixel; strong specimens get more, since no camera counts a hundredth of
# an electron a pixel.
WEAK, STRONG = (0.12, 0.4, 1.2), (0.4, 1.2, 3.0)
# Title, recipe, mode, pixel in nm, which of those that are drawn, signal to noise.
ROWS = (
    ("graphene, V2(5-8-5)", "graphene", "hrtem", 0.012, 125, WEAK),
    ("graphene, grain boundary", "graphene", "hrtem", 0.018, 22, WEAK),
    ("graphene, edge", "graphene", "hrtem", 0.018, 31, WEAK),
    ("graphene, bilayer", "graphene", "hrtem", 0.014, 71, WEAK),
    ("MoS2, vacancies", "dichalcogenide", "hrtem", 0.014, 4, WEAK),
    ("gold on carbon", "particle", "hrtem", 0.022, 0, STRONG),
    ("SrTiO3", "strontium titanate", "hrtem", 0.018, 0, STRONG),
    ("graphene, ADF-STEM", "graphene", "stem", 0.016, 205, STRONG),
)
# Detector and which of a row's levels; STEM has its own detector.
COLUMNS = (("counting", 0), ("counting", 1), ("counting", 2), ("ccd", 1))

HOP_SNR, HOP_SEED = 0.4, 2  # signal to noise per pixel, and number of the simulated movie
NEAR, FILM = range(-3, 3), range(-8, 8)  # frames from the hop, in the picture and in the film
SIDE = 60  # of a panel, in pixels


def show(axis, image, limits):
    """Show an image between two of its quantiles or values."""
    axis.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def drawn(figure: Figure, greys: int = 16) -> Image.Image:
    """Draw a figure in a few greys, for a small file."""
    figure.savefig(buffer := io.BytesIO(), format="png")
    return Image.open(buffer).convert("L").quantize(greys)


@one_thread()
def gallery(path: Path) -> None:
    """Draw every specimen, clean and by all detectors and doses."""
    across, down = len(COLUMNS) + 1, len(ROWS)
    figure = Figure(figsize=(1.62 * across + 0.3, 1.62 * down + 0.3), dpi=100, layout="constrained")
    edge = [withStroke(linewidth=1.5, foreground="black")]
    for index, (row, line) in enumerate(zip(ROWS, figure.subplots(down, across), strict=True)):
        title, recipe, mode, pixel_nm, number, levels = row
        rng = np.random.default_rng([SEED, index, number])
        scene = specimen_scene(recipe, mode, SIZE, (pixel_nm, pixel_nm), rng)
        shot = max(shots(scene, 6, rng), key=lambda shot: shot.contrast)
        show(line[0], shot.clean, np.percentile(shot.clean, [1, 99]))
        bar = [8, 8 + 0.5 / pixel_nm], [SIZE - 9] * 2
        line[0].plot(*bar, color="white", linewidth=2.5, path_effects=edge)
        line[0].text(8, SIZE - 15, "0.5 nm", fontsize=6, color="white", path_effects=edge)
        line[0].set_ylabel(title, fontsize=7)
        for at, (detector, level) in enumerate(COLUMNS):
            axis, camera = line[at + 1], "stem" if mode == "stem" else detector
            axis.set_visible(not (mode == "stem" and detector == "ccd"))
            electrons = (levels[level] / shot.contrast) ** 2
            noisy = expose(shot.clean, electrons, camera, SEED + at).noisy
            show(axis, noisy, np.percentile(noisy, [1, 99]))
            dose = f"{electrons:.{0 if electrons >= 10 else 1}f} e/px"
            axis.set_xlabel(f"{camera}, S/N {levels[level]:g}, {dose}", fontsize=5.5, labelpad=1)
    drawn(figure).save(path, optimize=True)


def hop(folder: Path) -> None:
    """Draw the frames around the hop, cut around the vacancy."""
    movie = hops.simulate(HOP_SEED)
    clean, noisy = movie.recorded(HOP_SEED, HOP_SNR)
    stacks = {
        "raw": noisy,
        "one frame": Denoiser().denoise(noisy),
        "five frames": Denoiser(pretrained.movie_model()).denoise(noisy),
        "truth": clean,
    }
    both = movie.sites[movie.hop].places[movie.places[movie.hop]]
    corners = both.mean(0) - movie.drift[movie.hop] + movie.drift - SIDE / 2
    limits = dict.fromkeys(stacks, np.quantile(clean, (0.002, 0.998)))
    limits["raw"] = np.quantile(noisy, (0.01, 0.99))

    def page(numbers: list[int]) -> Image.Image:
        size = (1.25 * len(stacks), 1.25 * len(numbers) + 0.2)
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        grid = figure.subplots(len(numbers), len(stacks), squeeze=False)
        for line, number in zip(grid, numbers, strict=True):
            y, x = np.round(corners[number]).astype(int)
            for axis, (name, stack) in zip(line, stacks.items(), strict=True):
                show(axis, stack[number, y : y + SIDE, x : x + SIDE], limits[name])
                if number == numbers[0]:
                    axis.set_title(name, fontsize=8, pad=2)
            line[0].set_ylabel(f"frame {number}", fontsize=7)
        return drawn(figure)

    page([movie.hop + since for since in NEAR]).save(folder / "hop.png", optimize=True)
    first, *others = [page([movie.hop + since]) for since in FILM]
    first.save(folder / "hop.gif", save_all=True, append_images=others, duration=350, loop=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["gallery", "hop"])
    parser.add_argument("path", type=Path, help="a PNG file, or a folder for hop.gif and hop.png")
    given = parser.parse_args()
    {"gallery": gallery, "hop": hop}[given.what](given.path)
