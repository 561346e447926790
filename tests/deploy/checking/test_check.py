"""Whether a check passes what is honest and names what was planted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import tifffile

from emdn_deploy import job
from emdn_deploy.checking import check
from emdn_deploy.config import DenoiseOptions
from emdn_models.errors import EmdnError, FormatError, ModelError

Array = np.ndarray[Any, Any]
SIGMA = 60**0.5  # of the noise of the scene, at its mean


def test_honest_frames_pass(stacks, saved, options: DenoiseOptions) -> None:
    result = check(*saved(*stacks(16)), options)
    # At 5 % a frame, more than 3 of 16 fail with a chance of 1 %.
    assert len(result.failing) <= 3, result.table["evidence"].to_list()
    assert all("that of unet (the default)" in one for one in result.facts.findings)
    assert result.comparison.verdict in ("worse", "far worse")
    assert result.word in ("WARN", "FAIL")


def smoothed(frames: Array) -> Array:
    """Blur by a box of 9 pixels, with edges repeated."""
    wide = np.pad(frames, ((0, 0), (4, 4), (4, 4)), mode="edge")
    size = frames.shape[1:]
    parts = [wide[:, a : a + size[0], b : b + size[1]] for a in range(9) for b in range(9)]
    return np.asarray(np.mean(parts, axis=0))


def _wave(clean: Array) -> Array:
    return clean + 0.4 * SIGMA * np.cos(2 * np.pi * 0.21 * np.arange(clean.shape[2]))


FAULTS: dict[str, tuple[Callable[[Array, Array], Array], str]] = {
    "a lattice": (lambda raw, clean: _wave(clean), "structure added"),
    "too smooth": (lambda raw, clean: smoothed(smoothed(clean)), "over-smoothed"),
    "noise": (lambda raw, clean: 0.9 * clean + 0.1 * raw, "noise left in"),
    "brighter": (lambda raw, clean: 1.02 * clean, "intensity changed"),
    "another frame": (lambda raw, clean: clean[:, ::-1, ::-1], "structure"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str, stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks()
    plant, verdict = FAULTS[fault]
    result = check(*saved(raw, plant(raw, clean)), options)
    assert not result.passed
    assert len(result.failing) == len(raw)
    named = result.table["verdict"].str.contains(verdict)
    assert named.sum() >= len(raw) - 1
    assert all(result.table["evidence"].to_list())


@pytest.mark.parametrize("sign", [1, -1])
def test_an_invented_atom_is_found_where_it_is(
    sign: int, stacks, saved, atom, options: DenoiseOptions
) -> None:
    raw, clean = stacks()
    clean[5] += sign * 1.5 * SIGMA * atom(clean.shape[1:], 30, 52, 3)
    result = check(*saved(raw, clean), options)
    row = result.table.row(5, named=True)
    assert ("structure added" if sign > 0 else "structure removed") in row["verdict"]
    assert np.hypot(row["y"] - 30, row["x"] - 52) < 3
    assert np.sign(row["z"]) == -sign
    worst = result.maps.z[result.maps.frames.index(5)]
    y, x = np.unravel_index(np.abs(worst).argmax(), worst.shape)
    assert (abs(y - 30 // 8), abs(x - 52 // 8)) <= (1, 1)


def test_an_atom_that_was_taken_away_is_found(stacks, saved, atom, options: DenoiseOptions) -> None:
    raw, clean = stacks()
    raw = raw + np.rint(1.5 * SIGMA * atom(clean.shape[1:], 40, 30, 3)).astype(np.uint16)
    result = check(*saved(raw, clean), options)
    assert result.table["verdict"].str.contains("structure removed").all()


def test_a_faint_atom_adds_up_over_neighbouring_frames(
    stacks, saved, atom, options: DenoiseOptions
) -> None:
    raw, clean = stacks()
    clean += 0.3 * SIGMA * atom(clean.shape[1:], 30, 52, 3)
    result = check(*saved(raw, clean), options)
    together = pl.any_horizontal(
        pl.col(f"run_blob_{scale}") > pl.col(f"run_blob_{scale}_high") for scale in (2, 4, 8)
    )
    found = result.table.filter(together)
    assert found.height == len(raw)
    row = found.row(0, named=True)
    assert np.hypot(row["run_y"] - 30, row["run_x"] - 52) < 4
    # It is in every frame and passes for noise in most of them.
    alone = pl.any_horizontal(
        pl.col(f"blob_{scale}") > pl.col(f"blob_{scale}_high") for scale in (2, 4, 8)
    )
    assert result.table.filter(alone).height < len(raw)


def test_one_frame_says_what_cannot_be_said(stacks, saved, options: DenoiseOptions) -> None:
    result = check(*saved(*stacks(1)), options)
    assert result.heldout is None
    assert result.correlations is None
    assert any(note.startswith("one frame: no squared error") for note in result.facts.notes)
    assert "run_blob_2" not in result.thresholds.limits
    assert result.table.height == 1


def test_the_error_from_neighbours_is_the_true_one(
    stacks, scene, saved, options: DenoiseOptions
) -> None:
    raw, clean = stacks(20)
    result = check(*saved(raw, clean), options)
    assert result.heldout is not None
    true = float(np.square(clean - scene()).mean())
    assert abs(result.heldout.error.value - true) < 4 * result.heldout.error.se
    assert result.heldout.error.value == pytest.approx(true, rel=0.3)
    # What is drawn from keeps some noise, of which the blur takes the most.
    assert true < result.heldout.honest < 1.6 * true
    assert not result.heldout.moves
    assert result.correlations is not None
    low = result.correlations.frequency < 0.05
    # A denoised frame agrees better with the next raw one than a raw frame does.
    assert (result.correlations.denoised > result.correlations.raw)[low].all()


def test_files_that_emdn_wrote_bring_their_model(
    stacks, tmp_path: Path, box_model: Path, options: DenoiseOptions
) -> None:
    raw, _ = stacks(4)
    for suffix in ("h5", "tif"):
        source, target = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        if suffix == "h5":
            with h5py.File(source, "w") as file:
                file["frames"] = raw
        else:
            tifffile.imwrite(source, raw, photometric="minisblack")
        job.run(
            source,
            DenoiseOptions(
                output=target, model=str(box_model), device="cpu", threads=1, frames="0:3"
            ),
        )
        result = check(source, target, options)
        assert result.facts.shape[0] == 3
        assert result.facts.model == "box"
        # The record names a model that is not shipped, and none is given.
        with pytest.raises(ModelError, match="--model"):
            check(source, target, DenoiseOptions(device="cpu", threads=1))


def test_integers_are_rounded_as_the_file_is(stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks()
    result = check(*saved(raw, np.rint(clean).astype(np.uint16)), options)
    assert len(result.failing) <= 1


def test_denoising_in_memory_is_the_same(stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks()
    source, target = saved(raw, clean)
    here, there = check(source, None, options), check(source, target, options)
    for name in ("std", "blob_2", "ratio"):
        np.testing.assert_allclose(here.table[name], there.table[name], rtol=1e-2)


def test_large_frames_are_tested_in_panels(
    scene, saved, atom, options: DenoiseOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emdn_deploy import Denoiser
    from emdn_deploy.checking import panel

    monkeypatch.setattr(panel, "LARGEST", 64)
    raw = np.random.default_rng(1).poisson(scene(96, 128), (4, 96, 128)).astype(np.uint16)
    clean = Denoiser(options.model, threads=1).denoise(raw, gain=1, offset=0)
    clean[2] += SIGMA * atom(clean.shape[1:], 70, 100, 3)
    result = check(*saved(raw, clean), options)
    assert result.failing == [2]
    row = result.table.row(2, named=True)
    assert np.hypot(row["y"] - 70, row["x"] - 100) < 3
    assert result.maps.z.shape[1:] == (12, 16)


def test_refusals_name_the_remedy(stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks(3)
    with pytest.raises(FormatError, match="found 2 frames of 64 x 80, expected 3 frames"):
        check(*saved(raw, clean[:2]), options)
    with pytest.raises(EmdnError, match="nothing to check"):
        check(*saved(np.full((2, 32, 32), 7.0), np.full((2, 32, 32), 7.0)), options)
    with pytest.raises(FormatError, match="16 x 16 or more"):
        check(*saved(raw[:, :8], clean[:, :8]), options)
    clean[1, 2, 3] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        check(*saved(raw, clean), options)
