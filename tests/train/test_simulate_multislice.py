"""The simulator against abTEM's multislice: other code, other potentials, finite slices."""

import logging
import warnings
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from emdn_train.simulate import microscope
from emdn_train.simulate.microscope import Optics
from emdn_train.simulate.structure import Structure, honeycomb, lattice_points

# abTEM and what it imports warn of their own deprecations, which are not ours to mend.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

log = logging.getLogger(__name__)

SIDE_A, HEIGHT_A, PIXEL_A, SIZE = 42.0, 12.0, 0.12, 180
OPTICS = Optics(80.0, 60.0, 5.0, 25.0, 0.2, 12.0, 0.4, 250.0, 1.1, 350.0, 0.7, blur_a=0.0)


@pytest.fixture(scope="module")
def abtem() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import abtem
        import abtem.parametrizations
        import dask

    abtem.config.set({"diagnostics.progress_bar": False})
    dask.config.set(scheduler="synchronous")
    return abtem


def mos2(reach: float) -> Structure:
    """A round flake about the centre, of atoms that do not vibrate."""
    basis = np.array([[0, 0, 0], [1 / 3, 1 / 3, -1.56], [1 / 3, 1 / 3, 1.56]], float)
    points = lattice_points(honeycomb(3.16, 0.0), basis, SIDE_A - 4)
    points = points[np.hypot(points[:, 0], points[:, 1]) < reach]
    kinds = np.array([42, 16, 16])[points[:, 3].astype(int)]
    return Structure("MoS2", points[:, :3], kinds, np.zeros(len(points)))


def atoms_of(structure: Structure):
    from ase import Atoms

    shifted = structure.positions + np.array([SIDE_A, SIDE_A, HEIGHT_A]) / 2
    return Atoms(structure.numbers, positions=shifted, cell=[SIDE_A, SIDE_A, HEIGHT_A], pbc=True)


def frame_of(array: NDArray, field: microscope.Field) -> NDArray:
    """Interpolate abTEM's (x, y) array to the pixels of the frame, (y, x)."""
    return field.frame(np.fft.rfft2(array.T, norm="forward").astype(np.complex64))


def multislice_image(abtem: ModuleType, structure: Structure, field: microscope.Field) -> NDArray:
    potential = abtem.Potential(
        atoms_of(structure), sampling=0.07, slice_thickness=1.0, projection="finite"
    )
    ctf = abtem.CTF(
        energy=1e3 * OPTICS.voltage_kv,
        # The wave leaves at the top of the cell; our defocus counts from the sheet.
        defocus=OPTICS.defocus_a + HEIGHT_A / 2,
        C30=1e4 * OPTICS.cs_um,
        C12=OPTICS.astigmatism_a,
        phi12=OPTICS.astigmatism_rad,
        C21=OPTICS.coma_a,
        phi21=OPTICS.coma_rad,
        C23=OPTICS.trefoil_a,
        phi23=OPTICS.trefoil_rad,
        # abTEM's focal spread is sqrt(2) standard deviations.
        focal_spread=np.sqrt(2) * OPTICS.focal_spread_a,
        angular_spread=OPTICS.convergence_mrad,
    )
    wave = abtem.PlaneWave(energy=1e3 * OPTICS.voltage_kv).multislice(potential)
    return frame_of(wave.apply_ctf(ctf).intensity().compute().array, field)


def test_phase_object_agrees_with_multislice(abtem: ModuleType) -> None:
    structure = mos2(19.0)
    field = microscope.Field(SIZE, PIXEL_A, round(SIDE_A / PIXEL_A))
    expected = multislice_image(abtem, structure, field)
    wave = microscope.exit_wave(structure, field, OPTICS.voltage_kv, sampling_a=0.15)
    found = microscope.image(wave, field, OPTICS)
    correlation = np.corrcoef(found.ravel(), expected.ravel())[0, 1]
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    log.info(f"correlation {correlation:.6f}, RMS error / contrast {error:.4f}")
    assert correlation > 0.9995
    assert error < 0.05


def test_dark_field_correlates_with_multislice(abtem: ModuleType) -> None:
    """Two elements at one probe: a wrong exponent or probe lowers the correlation."""
    side, size, pixel = 18.0, 14, 0.4
    flake = mos2(7.5)
    scan = microscope.Scan(aperture_mrad=30.0, source_a=0.0, exponent=1.7, background=0.0)
    field = microscope.Field(size, pixel, round(side / pixel))
    elements = microscope.element_spectra(flake, field, 80.0)
    found = microscope.scanned(elements, field, Optics(voltage_kv=80.0), scan)
    atoms = atoms_of(flake)
    atoms.positions[:, :2] += (side - SIDE_A) / 2
    atoms.cell = [side, side, HEIGHT_A]
    potential = abtem.Potential(atoms, sampling=0.05, slice_thickness=3.0, projection="infinite")
    start = (field.total - size) // 2 * pixel
    probe = abtem.Probe(energy=80e3, semiangle_cutoff=30.0, defocus=HEIGHT_A / 2)
    grid = abtem.GridScan(
        start=(start, start), end=(start + size * pixel,) * 2, gpts=size, endpoint=False
    )
    detector = abtem.AnnularDetector(inner=80.0, outer=200.0)
    expected = probe.scan(potential, scan=grid, detectors=detector).compute().array.T
    correlation = np.corrcoef(found.ravel(), expected.ravel())[0, 1]
    wrong = microscope.Scan(aperture_mrad=30.0, source_a=0.0, exponent=1.0, background=0.0)
    without = microscope.scanned(elements, field, Optics(voltage_kv=80.0), wrong)
    wrong_correlation = np.corrcoef(without.ravel(), expected.ravel())[0, 1]
    log.info(f"correlation {correlation:.4f}, with Z^1 {wrong_correlation:.4f}")
    assert correlation > 0.99
    assert correlation > wrong_correlation + 0.02
