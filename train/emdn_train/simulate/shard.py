"""A few specimens' frames in one file: the unit of work, of progress and of resuming."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_models.files import renamed
from emdn_models.hdf5 import written
from emdn_train.simulate.config import SPLIT_SEEDS, SimulateConfig
from emdn_train.simulate.exposure import Exposure, draw_electrons, expose
from emdn_train.simulate.hrtem import to_pixels
from emdn_train.simulate.scene import Scene, Shot, make_scene, shots
from emdn_train.simulate.threads import one_thread

SCENES = 8


@dataclass(frozen=True)
class Job:
    """Scenes ``first`` to ``first + SCENES`` of one split, to be written to ``path``."""

    config: SimulateConfig
    split: str
    first: int
    frames: int
    path: Path


@one_thread()
def run(job: Job) -> int:
    """Make the job's frames, write them beside ``path`` and move them there.

    Returns
    -------
    Number of frames.
    """
    rows: list[dict[str, Any]] = []
    clean: list[NDArray[np.float32]] = []
    noisy: list[NDArray[np.float32]] = []
    scenes: dict[str, Scene] = {}
    config, index = job.config, job.first
    while len(rows) < job.frames:
        for state in range(config.states):
            # All states draw the same specimen, optics and beam.
            rng = np.random.default_rng([config.seed, SPLIT_SEEDS[job.split], index])
            scene = make_scene(
                config.kind, config.size, config.pixel_size_nm, rng, config.defects, state
            )
            pixel_a = scene.field.pixel_a
            count = min(config.images_per_structure // config.states, job.frames - len(rows))
            for number, shot in enumerate(shots(scene, count, rng)):
                electrons = draw_electrons(config, shot.contrast, shot.share, pixel_a, rng)
                exposure = exposed(scene, shot, electrons, config.detector, rng)
                place = {"structure": index, "state": state, "image": number}
                rows.append({**place, **exposure.row})
                clean.append(exposure.clean)
                noisy.append(exposure.noisy)
            scenes[f"{index}-{state}" if state else f"{index}"] = scene
        index += 1
    with renamed(job.path) as partial, written(partial) as out:
        file = out.file
        file["clean"] = np.stack(clean)
        file["noise"] = np.stack(noisy)
        file["rows"] = json.dumps(rows)
        for name, scene in scenes.items():
            write_scene(file.create_group(f"structures/{name}"), scene)
    return len(rows)


def exposed(
    scene: Scene, shot: Shot, electrons: float, detector: str, rng: np.random.Generator
) -> Exposure:
    """Record one image of a scene, and say in its row how it was made."""
    detector = "stem" if scene.mode == "stem" else detector
    exposure = expose(shot.clean, electrons, detector, int(rng.integers(2**62)))
    pixel_a = scene.field.pixel_a
    row = {
        "kind": scene.recipe,
        "material": scene.structure.material,
        "mode": scene.mode,
        "crystalline": scene.structure.crystalline,
        "defects": len(scene.structure.defects),
        "contrast": shot.contrast,
        "snr": shot.contrast * electrons**0.5,
        "pixel_size_nm": pixel_a / 10,
        "dose_e_per_a2": electrons / shot.share / pixel_a**2,
        **exposure.row,
        **shot.optics,
    }
    return exposure._replace(row=row)


def write_scene(group: h5py.Group, scene: Scene) -> None:
    """Write the atoms and defects that lie in the frame, in pixels."""
    field = scene.field
    places = to_pixels(scene.structure.positions[:, :2], field)
    seen = (np.abs(places - (field.size - 1) / 2) <= field.size / 2).all(1)
    group["atoms"] = places[seen]
    group["numbers"] = scene.structure.numbers[seen].astype(np.uint8)
    defects = scene.structure.defects
    group["defects"] = to_pixels(np.array([[d.x, d.y] for d in defects]).reshape(-1, 2), field)
    group.create_dataset("names", data=[d.name for d in defects], dtype=h5py.string_dtype())
