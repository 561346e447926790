"""A few specimens' frames in one file: the unit of work, of progress and of resuming."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from emdn_train import noise
from emdn_train.simulate.config import SPLIT_SEEDS, SimulateConfig
from emdn_train.simulate.hrtem import to_pixels
from emdn_train.simulate.scene import Scene, Shot, exposure, make_scene, shots

SCENES = 8

# A beam without a profile, as of a scanned probe.
_EVEN = noise.Profile(*(torch.tensor([v]) for v in (0.0, 0.0, 1e6, 1e6, 0.0, 1.0)))


@dataclass(frozen=True)
class Job:
    """Scenes ``first`` to ``first + SCENES`` of one split, to be written to ``path``."""

    config: SimulateConfig
    split: str
    first: int
    frames: int
    path: Path


def run(job: Job) -> int:
    """Make the job's frames, write them beside ``path`` and move them there.

    Returns
    -------
    Number of frames.
    """
    # One thread a process: results must not depend on how sums are split.
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    clean: list[NDArray[np.float32]] = []
    noisy: list[NDArray[np.float32]] = []
    scenes: list[Scene] = []
    per = job.config.images_per_structure
    index = job.first
    while len(rows) < job.frames:
        rng = np.random.default_rng([job.config.seed, SPLIT_SEEDS[job.split], index])
        scene = make_scene(job.config.kind, job.config.size, job.config.pixel_size_nm, rng)
        count = min(per, job.frames - len(rows))
        for shot in shots(scene, count, rng):
            pair, row = expose(job.config, scene, shot, rng)
            rows.append({"structure": index, **row})
            clean.append(pair[0])
            noisy.append(pair[1])
        scenes.append(scene)
        index += 1
    partial = job.path.with_name(job.path.name + ".partial")
    with h5py.File(partial, "w") as file:
        file["clean"] = np.stack(clean)
        file["noise"] = np.stack(noisy)
        file["rows"] = json.dumps(rows)
        for number, scene in zip(range(job.first, index), scenes, strict=True):
            _write_scene(file.create_group(f"structures/{number}"), scene)
    partial.replace(job.path)
    return len(rows)


def expose(
    config: SimulateConfig, scene: Scene, shot: Shot, rng: np.random.Generator
) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], dict[str, Any]]:
    """Choose a dose and record one image: (clean, noisy) in electrons, and its table row."""
    pixel_a = scene.field.pixel_a
    detected = exposure(config, shot.contrast, shot.share, pixel_a, rng)
    seed = int(rng.integers(2**62))
    generator = torch.Generator().manual_seed(seed)
    detector = "stem" if scene.mode == "stem" else config.detector
    clean = torch.from_numpy(shot.clean)[None, None]
    electrons = torch.tensor([detected])
    beam = _EVEN
    valid = torch.ones_like(clean, dtype=torch.bool)
    if detector == "stem":
        noisy, target = noise.scan(clean, electrons, detector, generator)
    else:
        beam = noise.draw_profile(1, generator)
        signal = (
            electrons * noise.profile_map(beam, (config.size, config.size), config.size) * clean
        )
        noisy, target = noise.record(signal, detector, generator)
        bad, level = noise.draw_defects(1, (config.size, config.size), generator)
        noisy, valid = noise.apply_defects(noisy, bad, level), ~bad
    row: dict[str, Any] = {
        "kind": scene.recipe,
        "material": scene.structure.material,
        "mode": scene.mode,
        "crystalline": scene.structure.crystalline,
        "defects": len(scene.structure.defects),
        "detector": detector,
        "contrast": shot.contrast,
        "snr": shot.contrast * detected**0.5,
        "electrons_per_pixel": detected,
        "recorded_per_pixel": float(target.mean()),
        "pixel_size_nm": pixel_a / 10,
        "dose_e_per_a2": detected / shot.share / pixel_a**2,
        "noise_seed": seed,
        "bad_pixels": int((~valid).sum()),
        **{f"beam_{name}": float(value) for name, value in beam._asdict().items()},
        **shot.optics,
    }
    return (target[0, 0].numpy(), noisy[0, 0].numpy()), row


def _write_scene(group: h5py.Group, scene: Scene) -> None:
    """Write the atoms and defects that lie in the frame, in pixels."""
    field = scene.field
    places = to_pixels(scene.structure.positions[:, :2], field)
    seen = (np.abs(places - (field.size - 1) / 2) <= field.size / 2).all(1)
    group["atoms"] = places[seen]
    group["numbers"] = scene.structure.numbers[seen].astype(np.uint8)
    defects = scene.structure.defects
    group["defects"] = to_pixels(np.array([[d.x, d.y] for d in defects]).reshape(-1, 2), field)
    group.create_dataset("names", data=[d.name for d in defects], dtype=h5py.string_dtype())
