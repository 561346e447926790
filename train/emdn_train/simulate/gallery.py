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
from emdn_train.simulate.exposure import expose
from emdn_train.simulate.mesh import Image
from emdn_train.simulate.scene import Shot, shots, specimen_scene

SIZE = 144
SEED = 11
WEAK = (0.12, 0.4, 1.2)
STRONG = (0.4, 1.2, 3.0)


class Row(NamedTuple):
    """One specimen of the gallery, drawn until its material and defects are these.

    ``levels`` are signal to noise per pixel; strong specimens get higher ones, since no
    camera counts a hundredth of an electron a pixel. ``start`` is where the search begins:
    at its result, as long as specimens are drawn as they were.
    """

    title: str
    recipe: str
    mode: str
    material: str
    defect: str
    pixel_nm: float
    levels: tuple[float, float, float] = WEAK
    start: int = 0


ROWS = (
    Row(
        "graphene, V2(5-8-5)", "graphene", "hrtem", "graphene sheet", "V2(5-8-5)", 0.012, start=125
    ),
    Row(
        "graphene, grain boundary",
        "graphene",
        "hrtem",
        "grain boundary",
        "grain boundary",
        0.018,
        start=22,
    ),
    Row("graphene, edge", "graphene", "hrtem", "graphene edge", "", 0.018, start=31),
    Row("graphene, bilayer", "graphene", "hrtem", "graphene bilayer", "", 0.014, start=71),
    Row("MoS2, vacancies", "dichalcogenide", "hrtem", "MoS2", "vacancy of Z=16", 0.014, start=4),
    Row("gold on carbon", "particle", "hrtem", "gold particle", "", 0.022, STRONG),
    Row("SrTiO3", "strontium titanate", "hrtem", "SrTiO3", "", 0.018, STRONG),
    Row("graphene, ADF-STEM", "graphene", "stem", "graphene sheet", "silicon", 0.016, STRONG, 205),
)

# Detector and which of a row's levels; STEM has its own detector.
COLUMNS = (("counting", 0), ("counting", 1), ("counting", 2), ("ccd", 1))


def draw_gallery(path: str | PathLike[str]) -> Path:
    """Draw the gallery as a PNG of 16 greys.

    Returns
    -------
    The path.
    """
    across, down = len(COLUMNS) + 1, len(ROWS)
    figure = Figure(figsize=(1.62 * across + 0.3, 1.62 * down + 0.3), dpi=100, layout="constrained")
    axes = figure.subplots(down, across)
    for row, line in zip(ROWS, axes, strict=True):
        shot = find(row)[1]
        _show(line[0], shot.clean)
        _scale_bar(line[0], row.pixel_nm)
        line[0].set_ylabel(row.title, fontsize=7)
        for index, (detector, level) in enumerate(COLUMNS):
            if row.mode == "stem" and detector == "ccd":
                line[index + 1].set_visible(False)
                continue
            camera = "stem" if row.mode == "stem" else detector
            snr = row.levels[level]
            electrons = (snr / shot.contrast) ** 2
            _show(line[index + 1], expose(shot.clean, electrons, camera, SEED + index).noisy)
            line[index + 1].set_xlabel(
                f"{camera}, S/N {snr:g}, {electrons:.{0 if electrons >= 10 else 1}f} e/px",
                fontsize=5.5,
                labelpad=1,
            )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = Pillow.open(buffer).convert("L").quantize(16)
    with renamed(Path(path)) as partial, partial.open("wb") as file:
        picture.save(file, format="png", optimize=True)
    return Path(path)


def find(row: Row) -> tuple[int, Shot]:
    """Draw specimens until one is as the row wants it, and take its best image of a few."""
    for attempt in range(row.start, row.start + 2000):
        rng = np.random.default_rng([SEED, ROWS.index(row), attempt])
        pixel = (row.pixel_nm, row.pixel_nm)
        scene = specimen_scene(row.recipe, row.mode, SIZE, pixel, rng)
        limit = SIZE * row.pixel_nm * 10 * 0.3
        names = [d.name for d in scene.structure.defects if max(abs(d.x), abs(d.y)) < limit]
        # A heavy adatom outshines all else in the picture.
        if any("adatom" in d.name for d in scene.structure.defects):
            continue
        if row.material in scene.structure.material and (not row.defect or row.defect in names):
            taken = list(shots(scene, 6, rng))
            return attempt, max(taken, key=lambda shot: shot.contrast)
    raise AssertionError(f"no specimen for {row.title}")


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
