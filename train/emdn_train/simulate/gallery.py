"""A picture of what is simulated: specimens by detectors and doses."""

import io
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image as Pillow

from emdn_models.files import renamed
from emdn_train.simulate.hrtem import Image
from emdn_train.simulate.scene import Scene, Shot, expose, shots, specimen_scene

SIZE = 144
SEED = 11
# Signal to noise per pixel; strong specimens get more, since no camera counts a hundredth of
# an electron a pixel.
WEAK = (0.12, 0.4, 1.2)
STRONG = (0.4, 1.2, 3.0)


class Row(NamedTuple):
    """A specimen of the gallery: the ``number``-th that is drawn for its row."""

    title: str
    recipe: str
    pixel_nm: float
    number: int
    levels: tuple[float, float, float] = WEAK
    mode: str = "hrtem"


ROWS = (
    Row("graphene, V2(5-8-5)", "graphene", 0.012, 125),
    Row("graphene, grain boundary", "graphene", 0.018, 22),
    Row("graphene, edge", "graphene", 0.018, 31),
    Row("graphene, bilayer", "graphene", 0.014, 71),
    Row("MoS2, vacancies", "dichalcogenide", 0.014, 4),
    Row("gold on carbon", "particle", 0.022, 0, STRONG),
    Row("SrTiO3", "strontium titanate", 0.018, 0, STRONG),
    Row("graphene, ADF-STEM", "graphene", 0.016, 205, STRONG, "stem"),
)

# Detector and which of a row's levels; STEM has its own detector.
COLUMNS = (("counting", 0), ("counting", 1), ("counting", 2), ("ccd", 1))


def draw_gallery(path: str | PathLike[str]) -> Path:
    """Draw the gallery as a PNG of 16 greys and return its path."""
    across, down = len(COLUMNS) + 1, len(ROWS)
    figure = Figure(figsize=(1.62 * across + 0.3, 1.62 * down + 0.3), dpi=100, layout="constrained")
    axes = figure.subplots(down, across)
    for row, line in zip(ROWS, axes, strict=True):
        shot = drawn(row)[1]
        _show(line[0], shot.clean)
        _scale_bar(line[0], row.pixel_nm)
        line[0].set_ylabel(row.title, fontsize=7)
        for index, (detector, level) in enumerate(COLUMNS):
            if row.mode == "stem" and detector == "ccd":
                line[index + 1].set_visible(False)
                continue
            camera = "stem" if row.mode == "stem" else detector
            electrons = (row.levels[level] / shot.contrast) ** 2
            _show(line[index + 1], expose(shot.clean, electrons, camera, SEED + index).noisy)
            dose = f"{electrons:.{0 if electrons >= 10 else 1}f} e/px"
            text = f"{camera}, S/N {row.levels[level]:g}, {dose}"
            line[index + 1].set_xlabel(text, fontsize=5.5, labelpad=1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = Pillow.open(buffer).convert("L").quantize(16)
    with renamed(Path(path)) as partial, partial.open("wb") as file:
        picture.save(file, format="png", optimize=True)
    return Path(path)


def drawn(row: Row) -> tuple[Scene, Shot]:
    """Draw a row's specimen, and take its best image of a few."""
    rng = np.random.default_rng([SEED, ROWS.index(row), row.number])
    scene = specimen_scene(row.recipe, row.mode, SIZE, (row.pixel_nm, row.pixel_nm), rng)
    return scene, max(shots(scene, 6, rng), key=lambda shot: shot.contrast)


def _show(axis: Axes, image: Image) -> None:
    """Show an image without its brightest and darkest percent."""
    low, high = np.percentile(image, [1, 99])
    axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def _scale_bar(axis: Axes, pixel_nm: float) -> None:
    """Draw half a nanometre."""
    edge = [withStroke(linewidth=1.5, foreground="black")]
    axis.plot([8, 8 + 0.5 / pixel_nm], [SIZE - 9] * 2, color="black", linewidth=4)
    axis.plot([8.5, 7.5 + 0.5 / pixel_nm], [SIZE - 9] * 2, color="white", linewidth=2.5)
    axis.text(8, SIZE - 15, "0.5 nm", fontsize=6, color="white", path_effects=edge)
