"""In-situ movies with a known truth: drift, one moving defect, one beam, one camera.

Everything but the drift and the defect holds still: the specimen, the optics, the profile
of the beam and the camera's faulty pixels.
"""

import logging
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from emdn_models import __version__
from emdn_train import noise
from emdn_train.simulate import hrtem
from emdn_train.simulate.config import FORMAT, FORMAT_VERSION, SimulateConfig
from emdn_train.simulate.exposure import draw_electrons
from emdn_train.simulate.files import claim, renamed
from emdn_train.simulate.graphene import as_structure, monovacancy, perfect_sheet
from emdn_train.simulate.optics import Optics, draw_optics
from emdn_train.simulate.relax import Sheet, relax
from emdn_train.simulate.specimens import warped
from emdn_train.simulate.structure import Defect, Structure, moved
from emdn_train.simulate.threads import one_thread

_log = logging.getLogger(__name__)

FRAME_S = 1e-3
_FOCUS_TRIES = 12
_HOP = 0.3


@one_thread()
def simulate_movie(config: SimulateConfig) -> Path:
    """Write ``movie.h5`` (counts, as a camera would) and ``movie_truth.h5``.

    Returns
    -------
    The folder.
    """
    out = Path(config.out)
    claim(out, config)
    if (out / "movie.h5").exists():
        _log.info("%s: the movie is there already", out)
        return out
    rng = np.random.default_rng([config.seed, 3])
    pixel_a = 10 * float(rng.uniform(*config.pixel_size_nm))
    field = hrtem.make_field(config.size, pixel_a)
    voltage_kv = float(rng.choice([60.0, 80.0]))
    drift = draw_drift(config.frames, rng)
    structures = list(_specimens(config.frames, field, drift * pixel_a, rng))
    optics = _focused(structures[0], field, voltage_kv, rng)
    electrons = None
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    shape = (config.size, config.size)
    beam = noise.profile_map(noise.draw_profile(1, generator), shape, config.size)
    bad, level = noise.draw_defects(1, shape, generator)
    frames = np.empty((config.frames, *shape), np.float32)
    truth = np.empty_like(frames)
    for index, structure in enumerate(structures):
        wave = hrtem.exit_wave(structure, field, voltage_kv)
        clean = hrtem.image(wave, field, optics)
        if electrons is None:
            contrast = float(clean.std() / clean.mean())
            electrons = draw_electrons(config, contrast, 1.0, pixel_a, rng)
        signal = electrons * beam * torch.from_numpy(clean)[None, None]
        noisy, target = noise.record(signal, config.detector, generator)
        frames[index] = noise.apply_defects(noisy, bad, level)[0, 0].numpy()
        truth[index] = target[0, 0].numpy()
    assert electrons is not None
    dose = electrons / pixel_a**2
    _write_counts(out / "movie.h5", frames, config, pixel_a / 10, dose, voltage_kv)
    with renamed(out / "movie_truth.h5") as path, h5py.File(path, "w") as file:
        _stamp(file, config)
        _dataset(file, "expected", truth, "electrons")
        _dataset(file, "valid", ~bad[0, 0].numpy(), "")
        _dataset(file, "drift", drift.astype(np.float32), "pixels")
        places = np.array([[s.defects[0].x, s.defects[0].y] for s in structures])
        _dataset(file, "defect", hrtem.to_pixels(places, field), "pixels")
        file["defect"].attrs["name"] = structures[0].defects[0].name
        file.attrs["contrast"] = contrast
        file.attrs["snr"] = contrast * electrons**0.5
        file.attrs["electrons_per_pixel"] = electrons
        for name, value in vars(optics).items():
            file.attrs[name] = value
        for index, structure in enumerate(structures):
            atoms = hrtem.to_pixels(structure.positions[:, :2], field)
            seen = (np.abs(atoms - (config.size - 1) / 2) <= config.size / 2).all(1)
            _dataset(file, f"atoms/{index:05d}", atoms[seen], "pixels")
    return out


def draw_drift(frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw where the specimen is, (frames, 2) pixels: a steady pull and a random walk."""
    pull = rng.normal(0, 0.1, 2)
    steps = pull + rng.normal(0, 0.05, (frames, 2))
    steps[0] = 0
    # A stage that has gone 20 pixels is brought back: longer movies swing about.
    path = np.cumsum(steps, 0)
    return np.asarray(20 * np.sin(path / 20))


def _specimens(
    frames: int,
    field: hrtem.Field,
    drift_a: NDArray[np.float64],
    rng: np.random.Generator,
) -> Iterator[Structure]:
    """Yield the specimen at every frame, its moving defect first in ``defects``."""
    cover = field.side_a + 6.0 + 2 * float(np.abs(drift_a).max())
    sheet = perfect_sheet(cover, rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2))
    vibration = float(rng.uniform(0.04, 0.07))
    reach = 0.3 * field.size * field.pixel_a
    near = np.flatnonzero(np.abs(sheet.xy).max(1) < reach)
    site, adatom = int(rng.choice(near)), bool(rng.random() < 0.3)
    ripple_seed, shape_seed = rng.integers(2**62, size=2)
    current: Structure | None = None
    for frame in range(frames):
        hop = frame > 0 and rng.random() < _HOP
        if hop:
            site = _hopped(sheet, site, near, rng)
        if current is None or hop:
            flat = _with_adatom(sheet, site, vibration)
            if not adatom:
                flat = _with_vacancy(sheet, site, vibration, np.random.default_rng(shape_seed))
            current = warped(flat, np.random.default_rng(ripple_seed))
        yield moved(current, (drift_a[frame, 0], drift_a[frame, 1], 0.0))


def _hopped(sheet: Sheet, site: int, near: NDArray[np.int64], rng: np.random.Generator) -> int:
    """Step to a bonded neighbour that lies well inside the field."""
    choices = [atom for atom in sheet.neighbours(site) if atom in near]
    return int(rng.choice(choices)) if choices else site


def _with_vacancy(sheet: Sheet, site: int, vibration: float, rng: np.random.Generator) -> Structure:
    faulty = deepcopy(sheet)
    place = sheet.xy[site]
    monovacancy(faulty, site, rng)
    relax(faulty, place[None])
    defect = Defect("V1(5-9)", float(place[0]), float(place[1]))
    return as_structure(faulty, [], [defect], vibration)


def _with_adatom(sheet: Sheet, site: int, vibration: float) -> Structure:
    x, y = sheet.xy[site]
    defect = Defect("silicon adatom", float(x), float(y))
    return as_structure(sheet, [(14, float(x), float(y), 2.1)], [defect], vibration)


def _focused(
    structure: Structure, field: hrtem.Field, voltage_kv: float, rng: np.random.Generator
) -> Optics:
    """Focus as an operator would: the best contrast of a few settings."""
    wave = hrtem.exit_wave(structure, field, voltage_kv)
    settings = [draw_optics(rng, voltage_kv) for _ in range(_FOCUS_TRIES)]
    return max(settings, key=lambda optics: float(hrtem.image(wave, field, optics).std()))


def _write_counts(
    path: Path,
    frames: NDArray[np.float32],
    config: SimulateConfig,
    pixel_size_nm: float,
    dose_e_per_a2: float,
    voltage_kv: float,
) -> None:
    """Write the movie as NeXus: unsigned counts where the detector counts."""
    counting = config.detector == "counting"
    with renamed(path) as partial, h5py.File(partial, "w") as file:
        _stamp(file, config)
        file.attrs["NX_class"] = "NXroot"
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        entry.attrs["default"] = "data"
        entry["title"] = "Simulated in-situ movie of graphene"
        data = entry.create_group("data")
        data.attrs["NX_class"] = "NXdata"
        data.attrs["signal"] = "frames"
        data.attrs["axes"] = ["time", "y", "x"]
        data.attrs["pixel_size_nm"] = pixel_size_nm
        data.attrs["dose_e_per_a2"] = dose_e_per_a2
        data.attrs["frame_time_s"] = FRAME_S
        data.attrs["voltage_kv"] = voltage_kv
        data.attrs["detector"] = config.detector
        _dataset(data, "frames", frames.astype(np.uint16) if counting else frames, "electrons")
        _dataset(data, "time", np.arange(len(frames)) * FRAME_S, "s")
        for axis in ("y", "x"):
            _dataset(data, axis, np.arange(config.size) * pixel_size_nm, "nm")


def _stamp(file: h5py.File, config: SimulateConfig) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["emdn_version"] = __version__
    file.attrs["settings"] = config.identity()


def _dataset(group: h5py.Group, name: str, values: NDArray[np.generic], units: str) -> None:
    options = {}
    if values.ndim == 3:
        options = {"chunks": (1, *values.shape[1:]), "compression": "gzip", "shuffle": True}
    dataset = group.create_dataset(name, data=values, **options)
    if units:
        dataset.attrs["units"] = units
