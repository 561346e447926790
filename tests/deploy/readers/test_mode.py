"""The imaging mode: read where a file records it, and unknown where it does not or is at odds."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from emdn_deploy.readers import Choice, open_frames, rsciio
from emdn_deploy.readers.dm import _mode
from emdn_deploy.readers.mode import from_words, mode_of

STACK = np.arange(3 * 16 * 24, dtype=np.uint16).reshape(3, 16, 24)


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        (("STEM",), "stem"),
        (("STEM NANOPROBE", "SCANNING", "DIFFRACTION"), "stem"),
        (("TEM", "IMAGING", "MAG1"), "tem"),
        (("TEM", "IMAGING", "DIFFRACTION"), None),
        (("TEM", "SCANNING"), None),
        (("SEM", "SCANNING"), None),
        (("", ""), None),
    ],
)
def test_words_give_a_mode_or_none(words: tuple[str, ...], mode: str | None) -> None:
    assert mode_of(from_words(*words)) == mode
    tags = ("Illumination Mode", "Operation Mode", "Imaging Mode")
    named = {f"Microscope Info.{tag}": word for tag, word in zip(tags, words, strict=False)}
    assert mode_of(_mode(named)) == mode


def test_a_dm_file_without_a_microscope_is_unknown(tmp_path: Path, dm_file) -> None:
    with open_frames(dm_file(tmp_path / "a.dm4", STACK)) as frames:
        assert mode_of(frames.metadata) is None


def velox(path: Path, facts: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("Data/Image/0123abcd")
        group["Data"] = np.moveaxis(STACK, 0, 2)
        raw = np.zeros((1000, 3), np.uint8)
        text = json.dumps(facts).encode()
        raw[: len(text)] = np.frombuffer(text, np.uint8)[:, None]
        group["Metadata"] = raw
    return path


DETECTORS = {
    "Detector-0": {"DetectorName": "HAADF", "DetectorType": "ScanningDetector"},
    "Detector-1": {"DetectorName": "BM-Ceta", "DetectorType": "ImagingDetector"},
    "Detector-2": {"DetectorName": "SuperXG1", "DetectorType": "AnalyticalDetector"},
}


@pytest.mark.parametrize(
    ("result", "mode"),
    [
        ({"DetectorIndex": "0"}, "stem"),
        ({"DetectorIndex": "1"}, "tem"),
        ({"DetectorIndex": "2"}, None),
        ({"Detector": "HAADF"}, "stem"),
        ({"Detector": "DPC"}, None),
        ({}, None),
    ],
)
def test_velox_names_the_detector(tmp_path: Path, result, mode) -> None:
    path = velox(tmp_path / "a.emd", {"BinaryResult": result, "Detectors": DETECTORS})
    with open_frames(path) as frames:
        assert mode_of(frames.metadata) == mode


@pytest.mark.parametrize("facts", [{}, [], {"Detectors": 3, "BinaryResult": {}}])
def test_odd_velox_metadata_are_no_mode(tmp_path: Path, facts) -> None:
    with open_frames(velox(tmp_path / "a.emd", facts)) as frames:
        assert mode_of(frames.metadata) is None


@pytest.mark.parametrize(("said", "mode"), [("STEM", "stem"), ("TEM", "tem"), (None, None)])
def test_hyperspy_keeps_an_acquisition_mode(tmp_path: Path, said, mode) -> None:
    signals = pytest.importorskip("hyperspy.api").signals
    signal = signals.Signal2D(STACK)
    if said:
        signal.metadata.set_item("Acquisition_instrument.TEM.acquisition_mode", said)
    signal.save(tmp_path / "a.hspy")
    with open_frames(tmp_path / "a.hspy") as frames:
        assert mode_of(frames.metadata) == mode
    given = {"data": STACK, "axes": signal.axes_manager._get_axes_dicts(),
             "metadata": signal.metadata.as_dictionary()}  # fmt: skip
    for one, axis in enumerate(given["axes"]):
        axis["index_in_array"] = one
    with rsciio._choose(tmp_path / "a.blo", "any", [given], Choice()) as frames:
        assert mode_of(frames.metadata) == mode


@pytest.mark.parametrize(
    ("kind", "mode"), [("stem", "stem"), ("graphene", "tem"), ("movie", "tem"), ("mixed", None)]
)
def test_simulated_frames_know_their_mode(tmp_path: Path, kind: str, mode: str | None) -> None:
    path = tmp_path / "graphene_img_noise.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "emdn-simulation"
        file.attrs["settings"] = json.dumps({"kind": kind})
        file["images"] = STACK[..., None]
    with open_frames(path) as frames:
        assert mode_of(frames.metadata) == mode


def test_a_folder_has_the_mode_of_its_first_file(tmp_path: Path) -> None:
    for number in range(2):
        velox(
            tmp_path / f"f{number}.emd",
            {"BinaryResult": {"DetectorIndex": "0"}, "Detectors": DETECTORS},
        )
    with open_frames(tmp_path) as frames:
        assert mode_of(frames.metadata) == "stem"
