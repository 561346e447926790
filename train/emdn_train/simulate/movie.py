"""In-situ movies with a known truth: drift, one moving defect, one beam, one camera.

Everything but the drift and the defect holds still: the specimen, the optics, the profile
of the beam and the camera's faulty pixels.
"""

import logging
from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from rich.console import Console
from rich.progress import track

from emdn_models.files import written
from emdn_train import noise
from emdn_train.config import SimulateConfig
from emdn_train.simulate import microscope
from emdn_train.simulate.dataset import claimed, one_thread, stamp
from emdn_train.simulate.graphene import as_structure, drawn_sheet, monovacancy, warped
from emdn_train.simulate.microscope import Optics, draw_optics
from emdn_train.simulate.scene import draw_electrons
from emdn_train.simulate.structure import Points, Sheet, Structure, relax

_log = logging.getLogger(__name__)

FRAME_S = 1e-3
_FOCUS_TRIES = 12
_HOP = 0.3


@one_thread()
def simulate_movie(config: SimulateConfig) -> Path:
    """Write ``movie.h5`` (counts, as a camera would) and ``movie_truth.h5``, frame by frame.

    Returns the folder.
    """
    out = Path(config.out)
    with claimed(out, config):
        if (out / "movie.h5").exists():
            _log.info("%s: the movie is there already", out)
        else:
            _simulate(config, out)
    return out


def _simulate(config: SimulateConfig, out: Path) -> None:
    rng, path_rng = np.random.default_rng([config.seed, 3]).spawn(2)
    pixel_a = 10 * float(rng.uniform(*config.pixel_size_nm))
    field = microscope.make_field(config.size, pixel_a)
    voltage_kv = float(rng.choice([60.0, 80.0]))
    drift = draw_drift(config.frames, rng)
    structures = _specimens(config.frames, field, drift * pixel_a, path_rng)
    first = next(structures)
    optics = focused(first, field, voltage_kv, rng)
    clean = microscope.image(microscope.exit_wave(first, field, voltage_kv), field, optics)
    contrast = float(clean.std() / clean.mean())
    electrons = draw_electrons(config, contrast, 1.0, pixel_a, rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    shape = (config.size, config.size)
    beam = noise.profile_map(noise.draw_profile(1, generator), shape, config.size)
    bad, level = noise.draw_defects(1, shape, generator)
    # The truth is in place before the movie, which means: finished.
    with written(out / "movie.h5") as movie_out, written(out / "movie_truth.h5") as truth_out:
        truth = truth_out.file
        for one in (movie_out, truth_out):
            stamp(one.file, settings=config.identity())
        frames = _movie_frames(
            movie_out.file, config, pixel_a / 10, electrons / pixel_a**2, voltage_kv
        )
        facts = {
            "contrast": contrast,
            "snr": contrast * electrons**0.5,
            "electrons_per_pixel": electrons,
        }
        for name, value in (facts | vars(optics)).items():
            truth.attrs[name] = value
        expected = _stack(truth, "expected", config, np.float32)
        truth.create_dataset("valid", data=~bad[0, 0].numpy())
        _dataset(truth, "drift", drift.astype(np.float32), "pixels")
        places = []
        console = Console(stderr=True)
        every = track(chain([first], structures), "simulating", config.frames, console=console)
        for index, structure in enumerate(every):
            wave = microscope.exit_wave(structure, field, voltage_kv)
            clean = microscope.image(wave, field, optics)
            signal = electrons * beam * torch.from_numpy(clean)[None, None]
            noisy, target = noise.record(signal, config.detector, generator)
            frames[index] = noise.apply_defects(noisy, bad, level)[0, 0].numpy()
            expected[index] = target[0, 0].numpy()
            places.append(structure.places[0])
            _dataset(truth, f"atoms/{index:06d}", microscope.seen(structure, field)[0], "pixels")
            movie_out.check()
            truth_out.check()
        _dataset(truth, "defect", microscope.to_pixels(np.array(places), field), "pixels")
        truth["defect"].attrs["name"] = first.names[0]


def draw_drift(frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw where the specimen is, (frames, 2) pixels: a steady pull and a random walk."""
    pull = rng.normal(0, 0.1, 2)
    steps = pull + rng.normal(0, 0.05, (frames, 2))
    steps[0] = 0
    # A stage that has gone 20 pixels is brought back: longer movies swing about.
    path = np.cumsum(steps, 0)
    return np.asarray(20 * np.sin(path / 20))


def _specimens(
    frames: int, field: microscope.Field, drift_a: Points, rng: np.random.Generator
) -> Iterator[Structure]:
    """Yield the specimen at every frame; its one defect moves."""
    sheet = drawn_sheet(field.side_a + 6.0 + 2 * float(np.abs(drift_a).max()), rng)
    vibration = float(rng.uniform(0.04, 0.07))
    reach = 0.3 * field.size * field.pixel_a
    near = np.flatnonzero(np.abs(sheet.xy).max(1) < reach)
    site, adatom = int(rng.choice(near)), bool(rng.random() < 0.3)
    ripple_seed, shape_seed = rng.integers(2**62, size=2)
    current: Structure | None = None
    for frame in range(frames):
        hop = frame > 0 and rng.random() < _HOP
        if hop:  # to a bonded neighbour that lies well inside the field
            choices = [atom for atom in sheet.neighbours(site) if atom in near]
            site = int(rng.choice(choices)) if choices else site
        if current is None or hop:
            if adatom:
                place = sheet.xy[site]
                silicon = np.array([[14, *place, 2.1]])
                flat = as_structure(sheet, vibration, [("silicon adatom", place)], silicon)
            else:
                flat = with_vacancy(sheet, site, vibration, np.random.default_rng(shape_seed))
            current = warped(flat, np.random.default_rng(ripple_seed))
        yield current.moved((*drift_a[frame], 0.0))


def with_vacancy(sheet: Sheet, site: int, vibration: float, rng: np.random.Generator) -> Structure:
    """Take one atom out of a sheet, close the pentagon and relax."""
    faulty = deepcopy(sheet)
    place = sheet.xy[site]
    monovacancy(faulty, site, rng)
    relax(faulty, place[None])
    return as_structure(faulty, vibration, [("V1(5-9)", place)])


def focused(
    structure: Structure, field: microscope.Field, voltage_kv: float, rng: np.random.Generator
) -> Optics:
    """Focus as an operator would: the best contrast of a few settings."""
    wave = microscope.exit_wave(structure, field, voltage_kv)
    settings = [draw_optics(rng, voltage_kv) for _ in range(_FOCUS_TRIES)]
    return max(settings, key=lambda optics: float(microscope.image(wave, field, optics).std()))


def _movie_frames(
    file: h5py.File, config: SimulateConfig, pixel_nm: float, dose_e_per_a2: float, kv: float
) -> h5py.Dataset:
    """Prepare a NeXus file for frames: unsigned counts where the detector counts."""
    file.attrs.update({"NX_class": "NXroot", "default": "entry"})
    entry = file.create_group("entry")
    entry.attrs.update({"NX_class": "NXentry", "default": "data"})
    entry["title"] = "Simulated in-situ movie of graphene"
    data = entry.create_group("data")
    facts = {
        "NX_class": "NXdata",
        "signal": "frames",
        "axes": ["time", "y", "x"],
        "pixel_size_nm": pixel_nm,
        "dose_e_per_a2": dose_e_per_a2,
        "frame_time_s": FRAME_S,
        "voltage_kv": kv,
        "detector": config.detector,
    }
    data.attrs.update(facts)
    _dataset(data, "time", np.arange(config.frames) * FRAME_S, "s")
    for axis in ("y", "x"):
        _dataset(data, axis, np.arange(config.size) * pixel_nm, "nm")
    counting = config.detector == "counting"
    return _stack(data, "frames", config, np.uint16 if counting else np.float32)


def _stack(group: h5py.Group, name: str, config: SimulateConfig, dtype: DTypeLike) -> h5py.Dataset:
    """Create (frames, size, size), one compressed frame a chunk, in electrons."""
    frame = (config.size, config.size)
    stack = group.create_dataset(
        name, (config.frames, *frame), dtype, chunks=(1, *frame), compression="gzip", shuffle=True
    )
    stack.attrs["units"] = "electrons"
    return stack


def _dataset(group: h5py.Group, name: str, values: NDArray[np.generic], units: str) -> None:
    group.create_dataset(name, data=values).attrs["units"] = units
