"""Images against textbooks and abTEM's multislice: other code and potentials, finite slices."""

import logging
import warnings

import numpy as np
import pytest

from emdn_train.simulate import microscope
from emdn_train.simulate.graphene import as_structure, perfect_sheet
from emdn_train.simulate.microscope import Optics
from emdn_train.simulate.structure import Structure, honeycomb, lattice_points

log = logging.getLogger(__name__)

HEIGHT_A = 12.0
OPTICS = Optics(80.0, 60.0, 5.0, 25.0, 0.2, 12.0, 0.4, 250.0, 1.1, 350.0, 0.7, blur_a=0.0)


def test_wavelengths_are_those_of_the_textbooks():
    found = [100 * microscope.wavelength(voltage_kv) for voltage_kv in (60, 80, 200, 300)]
    assert found == pytest.approx([4.866, 4.176, 2.508, 1.969], abs=1e-3)


def graphene(side: float) -> Structure:
    return as_structure(perfect_sheet(side, 0.0, np.zeros(2)), 0.05)


def test_margin_keeps_the_wrap_around_out_of_the_frame():
    """The same atoms in a much wider field give the same frame."""
    sheet = graphene(70.0)
    lens = Optics(defocus_a=60.0, convergence_mrad=0.1)
    frames = []
    for margin in (microscope.MARGIN_A, 20.0):
        field = microscope.make_field(96, 0.2, margin)
        frames.append(microscope.image(microscope.exit_wave(sheet, field, 80.0), field, lens))
    difference = frames[0] - frames[1]
    assert np.sqrt((difference**2).mean()) < 0.03 * frames[1].std()


def test_graphene_has_the_contrast_of_graphene():
    """About 4 % at good focus: data that every dose of the project is derived from."""
    field = microscope.make_field(128, 0.1)
    wave = microscope.exit_wave(graphene(field.side_a + 1), field, 80.0)
    best = max(
        float(microscope.image(wave, field, Optics(defocus_a=c, convergence_mrad=0.1)).std())
        for c in np.arange(-100, 101, 10.0)
    )
    assert 0.03 < best < 0.06


@pytest.fixture(scope="module")
def abtem():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import abtem
        import abtem.parametrizations
        import dask

    abtem.config.set({"diagnostics.progress_bar": False})
    dask.config.set(scheduler="synchronous")
    return abtem


def mos2(side: float, reach: float):
    """A round flake about the centre, of atoms that do not vibrate; the same in ASE's cell."""
    from ase import Atoms

    basis = np.array([[0, 0, 0], [1 / 3, 1 / 3, -1.56], [1 / 3, 1 / 3, 1.56]], float)
    points = lattice_points(honeycomb(3.16, 0.0), basis, 2 * reach + 1)
    points = points[np.hypot(points[:, 0], points[:, 1]) < reach]
    kinds = np.array([42, 16, 16])[points[:, 3].astype(int)]
    cell = np.array([side, side, HEIGHT_A])
    atoms = Atoms(kinds, positions=points[:, :3] + cell / 2, cell=cell, pbc=True)
    return Structure("MoS2", points[:, :3], kinds, np.zeros(len(points))), atoms


def correlation(a, b) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # abTEM and what it imports warn of their own deprecations
def test_phase_object_agrees_with_multislice(abtem):
    side, pixel = 42.0, 0.12
    structure, atoms = mos2(side, 19.0)
    field = microscope.Field(180, pixel, round(side / pixel))
    potential = abtem.Potential(atoms, sampling=0.07, slice_thickness=1.0, projection="finite")
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
    array = wave.apply_ctf(ctf).intensity().compute().array
    # From abTEM's (x, y) to the pixels of the frame, (y, x).
    expected = field.frame(np.fft.rfft2(array.T, norm="forward").astype(np.complex64))
    wave = microscope.exit_wave(structure, field, OPTICS.voltage_kv, sampling_a=0.15)
    found = microscope.image(wave, field, OPTICS)
    like = correlation(found, expected)
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    log.info(f"correlation {like:.6f}, RMS error / contrast {error:.4f}")
    assert like > 0.9995
    assert error < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dark_field_correlates_with_multislice(abtem):
    """Two elements at one probe: a wrong exponent or probe lowers the correlation."""
    side, size, pixel = 18.0, 14, 0.4
    structure, atoms = mos2(side, 7.5)
    field = microscope.Field(size, pixel, round(side / pixel))
    elements = microscope.element_spectra(structure, field, 80.0)
    potential = abtem.Potential(atoms, sampling=0.05, slice_thickness=3.0, projection="infinite")
    start = (field.total - size) // 2 * pixel
    probe = abtem.Probe(energy=80e3, semiangle_cutoff=30.0, defocus=HEIGHT_A / 2)
    grid = abtem.GridScan(
        start=(start, start), end=(start + size * pixel,) * 2, gpts=size, endpoint=False
    )
    detector = abtem.AnnularDetector(inner=80.0, outer=200.0)
    expected = probe.scan(potential, scan=grid, detectors=detector).compute().array.T
    found = {}
    for exponent in (1.7, 1.0):
        scan = microscope.Scan(30.0, source_a=0.0, exponent=exponent, background=0.0)
        image = microscope.scanned(elements, field, Optics(voltage_kv=80.0), scan)
        found[exponent] = correlation(image, expected)
    log.info(f"correlation by exponent {found}")
    assert found[1.7] > 0.99
    assert found[1.7] > found[1.0] + 0.02
