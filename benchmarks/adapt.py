"""What `emdn-train adapt` gains on a material that no training has seen, truth known.

`python benchmarks/adapt.py OUT --minutes 5` simulates a drifting movie of silicon along
[110], whose dumbbells no training set holds, adapts the shipped model to it from the noisy
frames alone, exports it, and denoises with either model as a deployment does: the frames
held out, and another field of the same specimen, which tells learning of the material from
learning of the scene by heart.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from emdn_deploy.denoiser import Denoiser
from emdn_models.metrics import gain_db
from emdn_train import noise
from emdn_train.adapt import adapt, parts
from emdn_train.config import AdaptConfig
from emdn_train.export import export
from emdn_train.simulate import microscope, specimens
from emdn_train.simulate.dataset import one_thread
from emdn_train.simulate.graphene import edge
from emdn_train.simulate.movie import draw_drift, focused
from emdn_train.simulate.structure import Structure, lattice_points, rotation, stacked

PIXEL_A, VOLTAGE_KV, SLICE_A = 0.18, 80.0, 12.0
FRAMES, SIZE, SNR = 96, 256, 0.4  # signal to noise per pixel
LATTICE_A = 5.431


def silicon(rng: np.random.Generator, side: float, reach: float) -> Structure:
    """Return silicon along [110], 4 nm thick, with an edge, on thin carbon.

    The columns stand in pairs 1.36 angstrom apart, the dumbbells.
    """
    along = LATTICE_A / 2**0.5
    cell = np.diag([LATTICE_A, along]) @ rotation(rng.uniform(0, 2 * np.pi))
    basis = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0, 0.5], [0.75, 0.5, 0]])
    basis *= [1, 1, along]
    basis[:, :2] += rng.uniform(0, 1, 2)
    column = lattice_points(cell, basis, side)[:, :3]
    points = np.concatenate([column + np.array([0, 0, layer * along]) for layer in range(-5, 6)])
    points = points[~edge(points[:, :2], reach, rng)]
    atoms = len(points)
    crystal = Structure("silicon", points, np.full(atoms, 14), np.full(atoms, 0.076))
    return stacked("silicon", [crystal, specimens.amorphous_carbon(rng, side, 8.0)])


def simulated(frames: int, optics: microscope.Optics | None, seed: int):
    """Return counts and their expectation, (frames, SIZE, SIZE) each, and the optics."""
    rng = np.random.default_rng([seed, 110])
    field = microscope.make_field(SIZE, PIXEL_A)
    specimen = silicon(rng, field.side_a + 6, SIZE * PIXEL_A / 2)
    optics = optics or focused(specimen, field, VOLTAGE_KV, rng)
    wave = microscope.exit_wave(specimen, field, VOLTAGE_KV, sampling_a=0.16, slice_a=SLICE_A)
    still = microscope.image(wave, field, optics)
    electrons = (SNR * float(still.mean() / still.std())) ** 2
    generator = torch.Generator().manual_seed(seed)
    beam = noise.profile_map(noise.draw_profile(1, generator), (SIZE, SIZE), SIZE)
    q = np.fft.fftfreq(wave.shape[0], field.side_a / wave.shape[0])
    recorded = []
    for x, y in draw_drift(frames, rng) * PIXEL_A:
        ramp = np.exp(-2j * np.pi * (q[None, :] * x + q[:, None] * y)).astype(np.complex64)
        image = torch.from_numpy(microscope.image(wave * ramp, field, optics))[None, None]
        recorded.append(noise.record(electrons * beam * image, "counting", generator))
    counts, expected = (torch.cat(parts)[:, 0].numpy() for parts in zip(*recorded, strict=True))
    return counts.astype(np.uint16), expected, optics


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("out", type=Path, help="folder to write")
    ask.add_argument("--minutes", type=float, default=5.0)
    ask.add_argument("--model", default="unet")
    given = ask.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path, own = given.out / "movie.npy", given.out / "onnx"
    with one_thread():
        counts, truth, optics = simulated(FRAMES, None, 0)
        elsewhere = simulated(16, optics, 1)[:2]
    np.save(path, counts)
    print(f"movie      {counts.shape}, {truth.mean():.2f} electrons per pixel")
    found = adapt(
        AdaptConfig(stack=path, out=given.out, model=given.model, max_minutes=given.minutes)
    )
    print(f"outcome    {found.outcome}, {found.steps} steps of 8 patches")
    export(found.path, own, (given.model,))
    models = Denoiser(given.model), Denoiser(own / f"{given.model}.onnx")
    first = parts(FRAMES, found.path)[1].start
    for place, raw, clean, start in (
        ("frames held out", counts, truth, first), ("another field", *elsewhere, 0)
    ):  # fmt: skip
        before, after = (
            gain_db(raw[start:], one.denoise(raw)[start:], clean[start:]).mean() for one in models
        )
        print(
            f"true gain  {place}: {before:.2f} dB shipped, {after:.2f} dB adapted, "
            f"{after - before:+.2f} dB"
        )


if __name__ == "__main__":
    main()
