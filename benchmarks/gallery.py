"""A picture of what is simulated: specimens by detectors and doses.

python benchmarks/gallery.py train/gallery.png
"""

import io
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from emdn_models.files import renamed
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


def show(axis, image):
    """Show an image without its brightest and darkest percent."""
    low, high = np.percentile(image, [1, 99])
    axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def scale_bar(axis, pixel_nm):
    """Draw half a nanometre."""
    edge = [withStroke(linewidth=1.5, foreground="black")]
    axis.plot([8, 8 + 0.5 / pixel_nm], [SIZE - 9] * 2, color="black", linewidth=4)
    axis.plot([8.5, 7.5 + 0.5 / pixel_nm], [SIZE - 9] * 2, color="white", linewidth=2.5)
    axis.text(8, SIZE - 15, "0.5 nm", fontsize=6, color="white", path_effects=edge)


@one_thread()
def main(path: Path) -> None:
    """Draw the gallery as a PNG of 16 greys."""
    across, down = len(COLUMNS) + 1, len(ROWS)
    figure = Figure(figsize=(1.62 * across + 0.3, 1.62 * down + 0.3), dpi=100, layout="constrained")
    for index, (row, line) in enumerate(zip(ROWS, figure.subplots(down, across), strict=True)):
        title, recipe, mode, pixel_nm, number, levels = row
        rng = np.random.default_rng([SEED, index, number])
        scene = specimen_scene(recipe, mode, SIZE, (pixel_nm, pixel_nm), rng)
        shot = max(shots(scene, 6, rng), key=lambda shot: shot.contrast)
        show(line[0], shot.clean)
        scale_bar(line[0], pixel_nm)
        line[0].set_ylabel(title, fontsize=7)
        for at, (detector, level) in enumerate(COLUMNS):
            axis, camera = line[at + 1], "stem" if mode == "stem" else detector
            axis.set_visible(not (mode == "stem" and detector == "ccd"))
            electrons = (levels[level] / shot.contrast) ** 2
            show(axis, expose(shot.clean, electrons, camera, SEED + at).noisy)
            dose = f"{electrons:.{0 if electrons >= 10 else 1}f} e/px"
            text = f"{camera}, S/N {levels[level]:g}, {dose}"
            axis.set_xlabel(text, fontsize=5.5, labelpad=1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with renamed(path) as partial, partial.open("wb") as file:
        Image.open(buffer).convert("L").quantize(16).save(file, format="png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "gallery.png"))
