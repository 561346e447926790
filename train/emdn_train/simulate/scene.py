"""One specimen and the clean images that are taken of it."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from emdn_train.simulate import hrtem, stem
from emdn_train.simulate.mesh import Image, Spectrum
from emdn_train.simulate.optics import Optics, draw_optics
from emdn_train.simulate.specimens import DEFECTS, RECIPES, SHARES, Kind
from emdn_train.simulate.structure import PointDefects, Structure

LEAST_CONTRAST = 0.005
_TRIES = 20


@dataclass(frozen=True)
class Scene:
    """A specimen in its field, and what every image of it shares."""

    structure: Structure
    field: hrtem.Field
    recipe: str
    mode: str
    voltage_kv: float


@dataclass(frozen=True)
class Shot:
    """One clean image and how it was taken.

    Attributes
    ----------
    clean
        (size, size) float32; mean = 1 for STEM, vacuum = 1 otherwise.
    contrast
        Standard deviation over mean.
    share
        Electrons that reach the detector, of those that meet the specimen.
    optics
        Every number of the lens and, for STEM, of the scan, by name.
    """

    clean: Image
    contrast: float
    share: float
    optics: dict[str, float]


_DEFECT_FREE = 0.15


def make_scene(
    kind: Kind,
    size: int,
    pixel_size_nm: tuple[float, float],
    rng: np.random.Generator,
    defects: tuple[float, float] = DEFECTS,
    state: int = 0,
) -> Scene:
    """Draw what to look at, how, and the specimen itself; see `specimen_scene`."""
    shares = SHARES[kind]
    mode = "hrtem"
    if kind == "stem" or (kind == "mixed" and rng.random() < 0.15):
        mode, shares = "stem", SHARES["stem"]
    weights = np.array(list(shares.values()))
    recipe = str(rng.choice(list(shares), p=weights / weights.sum()))
    return specimen_scene(recipe, mode, size, pixel_size_nm, rng, defects, state)


def specimen_scene(
    recipe: str,
    mode: str,
    size: int,
    pixel_size_nm: tuple[float, float],
    rng: np.random.Generator,
    defects: tuple[float, float] = DEFECTS,
    state: int = 0,
) -> Scene:
    """Draw a specimen of one recipe, its pixel size and its voltage.

    Parameters
    ----------
    defects
        Range of the point defects per site, drawn log-uniformly; three specimens in twenty
        have none whatever the range.
    state
        With another number the same specimen has other point defects.
    """
    light = recipe in ("graphene", "dichalcogenide", "amorphous carbon")
    pixel_a = 10 * float(rng.uniform(*pixel_size_nm))
    voltage_kv = float(rng.choice([60.0, 80.0] if light else [80.0, 200.0, 300.0]))
    field = hrtem.make_field(size, pixel_a)
    low, high = defects
    density = low * (high / low) ** rng.random() if rng.random() >= _DEFECT_FREE else 0.0
    seed = int(rng.integers(2**62))
    asked = PointDefects(density, np.random.default_rng([seed, state]))
    structure = RECIPES[recipe].make(rng, field.side_a + 1.0, size * pixel_a / 2, asked)
    return Scene(structure, field, recipe, mode, voltage_kv)


def shots(scene: Scene, count: int, rng: np.random.Generator) -> Iterator[Shot]:
    """Take ``count`` images, each at its own optics, none of nearly no contrast."""
    if scene.mode == "stem":
        elements = stem.element_spectra(scene.structure, scene.field, scene.voltage_kv)
        take: Callable[[], Shot] = partial(_stem_shot, scene, elements, rng)
    else:
        recipe = RECIPES[scene.recipe]
        wave = hrtem.exit_wave(
            scene.structure,
            scene.field,
            scene.voltage_kv,
            sampling_a=recipe.sampling_a,
            slice_a=recipe.slice_a,
        )
        take = partial(_hrtem_shot, scene, wave, rng)
    for _ in range(count):
        best = take()
        for _ in range(_TRIES):
            if best.contrast >= LEAST_CONTRAST:
                break
            again = take()
            best = max(best, again, key=lambda shot: shot.contrast)
        yield best


def _hrtem_shot(scene: Scene, wave: Spectrum, rng: np.random.Generator) -> Shot:
    optics = draw_optics(rng, scene.voltage_kv)
    clean = hrtem.image(wave, scene.field, optics)
    return _shot(clean, 1.0, asdict(optics))


def _stem_shot(scene: Scene, elements: stem.Elements, rng: np.random.Generator) -> Shot:
    optics = Optics(
        voltage_kv=scene.voltage_kv,
        defocus_a=float(rng.normal(0, 20.0)),
        cs_um=float(rng.uniform(-2.0, 2.0)),
        astigmatism_a=float(abs(rng.normal(0, 8.0))),
        astigmatism_rad=float(rng.uniform(0, np.pi)),
        blur_a=0.0,
    )
    scan = stem.draw_scan(rng)
    share = stem.scanned(elements, scene.field, optics, scan)
    mean = float(share.mean())
    return _shot(share / np.float32(mean), mean, asdict(optics) | asdict(scan))


def _shot(clean: Image, share: float, optics: dict[str, float]) -> Shot:
    return Shot(clean, float(clean.std() / clean.mean()), share, optics)
