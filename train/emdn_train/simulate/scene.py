"""One specimen, the clean images that are taken of it, and what the camera records of them."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from emdn_train import noise
from emdn_train.config import DEFECTS, Kind, SimulateConfig
from emdn_train.simulate import microscope
from emdn_train.simulate.microscope import Elements, Image, Optics, Spectrum, draw_optics
from emdn_train.simulate.specimens import RECIPES, SHARES
from emdn_train.simulate.structure import PointDefects, Structure

LEAST_CONTRAST = 0.005
LEAST_ELECTRONS = 0.05
_TRIES = 20
_DEFECT_FREE = 0.15

# A beam without a profile, as of a scanned probe.
_EVEN = noise.Profile(*(torch.tensor([v]) for v in (0.0, 0.0, 1e6, 1e6, 0.0, 1.0)))


@dataclass(frozen=True)
class Scene:
    """A specimen in its field, and what every image of it shares."""

    structure: Structure
    field: microscope.Field
    recipe: str
    mode: str
    voltage_kv: float

    def in_frame(self) -> dict[str, Any]:
        """Return the atoms and defects that lie in the frame, x and y in pixels, by name."""
        atoms, seen = microscope.seen(self.structure, self.field)
        return {
            "atoms": atoms,
            "numbers": self.structure.numbers[seen].astype(np.uint8),
            "defects": microscope.to_pixels(self.structure.places, self.field),
            "names": list(self.structure.names),
        }


class Shot(NamedTuple):
    """One clean image and how it was taken."""

    clean: Image  # (size, size) float32, mean = 1 for STEM, vacuum = 1 otherwise
    contrast: float  # standard deviation over mean
    share: float  # electrons that reach the detector, of those that meet the specimen
    optics: dict[str, float]  # every number of the lens and, for STEM, of the scan


class Exposure(NamedTuple):
    """Expected and recorded electrons, (H, W) float32 each, and columns of the table."""

    clean: Image
    noisy: Image
    row: dict[str, Any]


def make_scene(
    kind: Kind,
    size: int,
    pixel_size_nm: tuple[float, float],
    rng: np.random.Generator,
    defects: tuple[float, float] = DEFECTS,
    state: int = 0,
) -> Scene:
    """Draw what to look at, how, and the specimen itself; see `specimen_scene`."""
    mode = "stem" if kind == "stem" or (kind == "mixed" and rng.random() < 0.15) else "hrtem"
    shares = SHARES["stem" if mode == "stem" else kind]
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

    ``defects`` is the range of the point defects per site, drawn log-uniformly; three specimens in
    twenty have none whatever the range. With another ``state`` the same specimen has other ones.
    """
    light = recipe in ("graphene", "dichalcogenide", "amorphous carbon")
    pixel_a = 10 * float(rng.uniform(*pixel_size_nm))
    voltage_kv = float(rng.choice([60.0, 80.0] if light else [80.0, 200.0, 300.0]))
    field = microscope.make_field(size, pixel_a)
    low, high = defects
    density = low * (high / low) ** rng.random() if rng.random() >= _DEFECT_FREE else 0.0
    seed = int(rng.integers(2**62))
    asked = PointDefects(density, np.random.default_rng([seed, state]))
    structure = RECIPES[recipe].make(rng, field.side_a + 1.0, size * pixel_a / 2, asked)
    return Scene(structure, field, recipe, mode, voltage_kv)


def shots(scene: Scene, count: int, rng: np.random.Generator) -> Iterator[Shot]:
    """Take ``count`` images, each at its own optics, none of nearly no contrast."""
    given = scene.structure, scene.field, scene.voltage_kv
    if scene.mode == "stem":
        elements = microscope.element_spectra(*given)
        take: Callable[[], Shot] = partial(_stem_shot, scene, elements, rng)
    else:
        recipe = RECIPES[scene.recipe]
        wave = microscope.exit_wave(*given, sampling_a=recipe.sampling_a, slice_a=recipe.slice_a)
        take = partial(_hrtem_shot, scene, wave, rng)
    for _ in range(count):
        best = take()
        for _ in range(_TRIES):
            if best.contrast >= LEAST_CONTRAST:
                break
            best = max(best, take(), key=lambda shot: shot.contrast)
        yield best


def _hrtem_shot(scene: Scene, wave: Spectrum, rng: np.random.Generator) -> Shot:
    optics = draw_optics(rng, scene.voltage_kv)
    clean = microscope.image(wave, scene.field, optics)
    return Shot(clean, float(clean.std() / clean.mean()), 1.0, asdict(optics))


def _stem_shot(scene: Scene, elements: Elements, rng: np.random.Generator) -> Shot:
    optics = Optics(
        voltage_kv=scene.voltage_kv,
        defocus_a=float(rng.normal(0, 20.0)),
        cs_um=float(rng.uniform(-2.0, 2.0)),
        astigmatism_a=float(abs(rng.normal(0, 8.0))),
        astigmatism_rad=float(rng.uniform(0, np.pi)),
        blur_a=0.0,
    )
    scan = microscope.draw_scan(rng)
    share = microscope.scanned(elements, scene.field, optics, scan)
    mean = float(share.mean())
    clean = share / np.float32(mean)
    return Shot(clean, float(clean.std() / clean.mean()), mean, asdict(optics) | asdict(scan))


def electrons_for(snr: float, contrast: float) -> float:
    """Return the mean electrons per pixel for a signal to noise per pixel, at least 0.05."""
    return max((snr / contrast) ** 2, LEAST_ELECTRONS)


def draw_electrons(
    config: SimulateConfig, contrast: float, share: float, pixel_a: float, rng: np.random.Generator
) -> float:
    """Draw the mean electrons per pixel that meet the detector, at least 0.05; see `Shot`."""
    drawn = float(np.exp(rng.uniform(*np.log(config.dose_e_per_a2 or config.snr))))
    if config.dose_e_per_a2 is None:
        return electrons_for(drawn, contrast)
    return max(drawn * pixel_a**2 * share, LEAST_ELECTRONS)


def expose(clean: Image, electrons: float, detector: str, seed: int) -> Exposure:
    """Record a relative image (H, W) once, at so many mean electrons per pixel on the detector."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.from_numpy(clean)[None, None]
    mean = torch.tensor([electrons])
    shape = (clean.shape[0], clean.shape[1])
    beam, faulty = _EVEN, 0
    if detector == "stem":
        noisy, target = noise.scan(image, mean, generator)
    else:
        beam = noise.draw_profile(1, generator)
        signal = mean * noise.profile_map(beam, shape, max(shape)) * image
        noisy, target = noise.record(signal, detector, generator)
        bad, level = noise.draw_defects(1, shape, generator)
        noisy, faulty = noise.apply_defects(noisy, bad, level), int(bad.sum())
    row = {
        "detector": detector,
        "electrons_per_pixel": electrons,
        "recorded_per_pixel": float(target.mean()),
        "noise_seed": seed,
        "bad_pixels": faulty,
        **{f"beam_{name}": float(value) for name, value in beam._asdict().items()},
    }
    return Exposure(target[0, 0].numpy(), noisy[0, 0].numpy(), row)


def expose_shot(
    scene: Scene,
    shot: Shot,
    electrons: float,
    detector: str,
    rng: np.random.Generator,
    **columns: Any,
) -> Exposure:
    """Record one image of a scene, and say in its row how it was made, after ``columns``."""
    detector = "stem" if scene.mode == "stem" else detector
    exposure = expose(shot.clean, electrons, detector, int(rng.integers(2**62)))
    pixel_a = scene.field.pixel_a
    row = columns | {
        "kind": scene.recipe,
        "material": scene.structure.material,
        "mode": scene.mode,
        "crystalline": scene.structure.crystalline,
        "defects": len(scene.structure.names),
        "contrast": shot.contrast,
        "snr": shot.contrast * electrons**0.5,
        "pixel_size_nm": pixel_a / 10,
        "dose_e_per_a2": electrons / shot.share / pixel_a**2,
    }
    return exposure._replace(row=row | exposure.row | shot.optics)
