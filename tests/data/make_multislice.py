"""Make ``multislice.h5``: frames by abTEM's multislice, for the fixed test split.

Other code, other scattering factors (Lobato and Van Dyck) and frozen phonons in place of
Debye-Waller factors, so that no model scores by knowing the simulator it was trained on.
MoS2 and gold are built by ASE; graphene is relaxed by our own force field.

    python tests/data/make_multislice.py tests/data/multislice.h5
"""

import json
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import abtem
    import ase.build
    import dask
    from ase import Atoms
    from ase.cluster import Octahedron

from emdn_train.simulate.graphene import graphene
from emdn_train.simulate.microscope import Optics, draw_optics, make_field, resize_half
from emdn_train.simulate.structure import PointDefects

SIZE, SEED, EACH = 256, 20260, 4
PHONONS, SAMPLING_A = 8, 0.08
# Counts of the stored integers per unit of relative intensity.
SCALE = 16384


def graphene_atoms(rng: np.random.Generator, side: float) -> tuple[Atoms, list]:
    structure = graphene(rng, side, SIZE * 0.05, PointDefects(0.01, rng))
    inside = np.abs(structure.positions[:, :2]).max(1) < side / 2
    atoms = Atoms(structure.numbers[inside], positions=structure.positions[inside])
    named = zip(structure.names, structure.places, strict=True)
    return atoms, [(name, *place) for name, place in named]


def mos2_atoms(rng: np.random.Generator, side: float) -> tuple[Atoms, list]:
    count = int(np.ceil(1.6 * side / 3.16))
    atoms = ase.build.mx2("MoS2", "2H", a=3.18, thickness=3.19, size=(count, 2 * count, 1))
    atoms.rotate(rng.uniform(0, 360), "z")
    atoms.positions -= atoms.positions.mean(0)
    atoms.positions[:, :2] += rng.uniform(-1.5, 1.5, 2)
    inside = np.abs(atoms.positions[:, :2]).max(1) < side / 2
    atoms = atoms[inside]
    near = np.abs(atoms.positions[:, :2]).max(1) < SIZE * 0.05
    sulphur = np.flatnonzero(near & (atoms.numbers == 16))
    gone = rng.choice(sulphur, 4, replace=False)
    defects = [("vacancy of Z=16", *atoms.positions[k, :2]) for k in gone]
    del atoms[gone.tolist()]
    return atoms, defects


def gold_atoms(rng: np.random.Generator, side: float) -> tuple[Atoms, list]:
    atoms = Octahedron("Au", int(rng.integers(7, 10)), cutoff=int(rng.integers(2, 4)))
    atoms.rotate(45, "y" if rng.random() < 0.6 else "z")
    atoms.rotate(rng.normal(0, 2), "x")
    atoms.rotate(rng.uniform(0, 360), "z")
    atoms.positions -= atoms.positions.mean(0)
    atoms.positions[:, :2] += rng.uniform(-4, 4, 2)
    return Atoms(atoms.numbers, positions=atoms.positions), []


MATERIALS = {"graphene": graphene_atoms, "MoS2": mos2_atoms, "gold particle": gold_atoms}


def multislice(atoms: Atoms, side: float, optics: Optics, seed: int) -> NDArray[np.float32]:
    """Mean intensity over phonon configurations, (y, x), vacuum = 1."""
    low, high = atoms.positions[:, 2].min(), atoms.positions[:, 2].max()
    height = high - low + 4.0
    atoms = atoms.copy()
    atoms.positions += [side / 2, side / 2, 2.0 - low]
    atoms.cell, atoms.pbc = [side, side, height], True
    phonons = abtem.FrozenPhonons(atoms, num_configs=PHONONS, sigmas=0.06, seed=seed)
    potential = abtem.Potential(phonons, sampling=SAMPLING_A, slice_thickness=1.5)
    ctf = abtem.CTF(
        energy=1e3 * optics.voltage_kv,
        # our defocus counts from z = 0, the wave leaves at the top of the cell
        defocus=optics.defocus_a + (height - (2.0 - low)),
        C30=1e4 * optics.cs_um,
        C12=optics.astigmatism_a,
        phi12=optics.astigmatism_rad,
        C21=optics.coma_a,
        phi21=optics.coma_rad,
        C23=optics.trefoil_a,
        phi23=optics.trefoil_rad,
        focal_spread=np.sqrt(2) * optics.focal_spread_a,
        angular_spread=optics.convergence_mrad,
    )
    waves = abtem.PlaneWave(energy=1e3 * optics.voltage_kv).multislice(potential)
    images = waves.apply_ctf(ctf).intensity().compute().array
    return np.asarray(images.reshape(-1, *images.shape[-2:]).mean(0).T)


def main(path: Path) -> None:
    abtem.config.set({"diagnostics.progress_bar": False})
    dask.config.set(scheduler="synchronous")
    rows, frames, places = [], [], []
    for number, (material, make) in enumerate(MATERIALS.items()):
        for index in range(EACH):
            rng = np.random.default_rng([SEED, number, index])
            voltage_kv = 80.0 if number < 2 else 300.0
            pixel_a = float(rng.uniform(0.09, 0.14))
            field = make_field(SIZE, pixel_a)
            atoms, defects = make(rng, field.side_a)
            optics, frame = draw_optics(rng, voltage_kv), None
            while frame is None or frame.std() / frame.mean() < 0.02:
                optics = draw_optics(rng, voltage_kv)
                whole = multislice(atoms, field.side_a, optics, int(rng.integers(2**31)))
                frame = to_frame(whole, field.total, optics.blur_a / field.side_a)
            start = (field.total - SIZE) // 2
            offset = field.total / 2 - start
            xy = atoms.positions[:, :2] / pixel_a + offset
            seen = (np.abs(xy - (SIZE - 1) / 2) <= SIZE / 2).all(1)
            places.append((xy[seen], atoms.numbers[seen], defects, pixel_a, offset))
            frames.append(np.rint(frame * SCALE).astype(np.uint16))
            scene = {"material": material, "pixel_size_nm": pixel_a / 10}
            rows.append({**scene, "contrast": float(frame.std() / frame.mean()), **vars(optics)})
    with h5py.File(path, "w") as file:
        file.attrs["made_with"] = f"abTEM {abtem.__version__}, tests/data/make_multislice.py"
        packed = {"chunks": (1, SIZE, SIZE), "compression": "gzip", "compression_opts": 9}
        images = file.create_dataset("images", data=np.stack(frames), shuffle=True, **packed)
        images.attrs["scale"] = SCALE
        file["rows"] = json.dumps(rows)
        for index, (xy, numbers, defects, pixel_a, offset) in enumerate(places):
            group = file.create_group(f"structures/{index}")
            group["atoms"], group["numbers"] = xy.astype("f4"), numbers.astype("u1")
            sites = np.array([d[1:] for d in defects], float).reshape(-1, 2)
            group["defects"] = (sites / pixel_a + offset).astype("f4")
            names = [d[0] for d in defects]
            group.create_dataset("names", data=names, dtype=h5py.string_dtype())


def to_frame(image: NDArray[np.float32], total: int, blur: float) -> NDArray[np.float32]:
    """Blur an image of the whole field, interpolate it to pixels and cut the frame out."""
    half = np.fft.rfft2(image, norm="forward")
    n = image.shape[0]
    qy, qx = np.fft.fftfreq(n, 1 / n)[:, None], np.fft.rfftfreq(n, 1 / n)[None]
    half *= np.exp(-2 * (np.pi * blur) ** 2 * (qy**2 + qx**2))
    fine = resize_half(half.astype(np.complex64), total)
    full = np.fft.irfft2(fine, s=(total, total), norm="forward")
    start = (total - SIZE) // 2
    return full[start : start + SIZE, start : start + SIZE]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
