"""The shipped example: its truth, and its notebook, run as its reader does."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import matplotlib as mpl
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


def test_the_truth_is_that_of_the_frames() -> None:
    with h5py.File(EXAMPLES / "frames.h5") as file:
        raw, settings = file["entry/data/frames"][()], file.attrs["settings"]
    with h5py.File(EXAMPLES / "truth.h5") as file:
        assert file.attrs["settings"] == settings
        truth = {name: file[name][()] for name in file}
    valid = truth["valid"]
    expected = truth["expected"][:, valid]
    residual = (raw[:, valid] - expected) / np.sqrt(expected)
    assert abs(residual.mean()) < 4 / residual.size**0.5
    assert residual.std() == pytest.approx(1, abs=0.003)
    for frame, (x, y) in enumerate(truth["defect"]):
        atoms = truth["atoms"][truth["atoms"][:, 0] == frame, 1:]
        assert np.hypot(*(atoms - (x, y)).T).min() > 7  # half a bond: no atom is there


@pytest.mark.slow
def test_the_notebook_finds_the_vacancy_and_nothing_else(tmp_path, monkeypatch, capsys) -> None:
    path = EXAMPLES / "vacancy.ipynb"
    for name in ("frames.h5", "truth.h5"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    names: dict = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and text.startswith("!emdn-deploy "):
            words = shlex.split(text.removeprefix("!emdn-deploy "))
            said = subprocess.run(
                [sys.executable, "-m", "emdn_deploy", *words],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
        elif cell["cell_type"] == "code":
            exec(compile(text, f"{path.name}:{cell['id']}", "exec"), names)
    assert "PASS" in said
    # At places that the raw frames confirm, and only there, the truth has it.
    off = [names["distance"](*at) for *at, _, said in names["found"] if said == "vacancy"]
    assert len(off) >= 3
    assert max(off) < 4
    # What is put far from it, the raw frames do not confirm.
    inner, spots = np.mgrid[32:224, 32:224], names["places"][:, ::-1, None, None]
    far = (np.hypot(*np.moveaxis(inner - spots, 1, 0)) > 20).all(0)
    raw = [names["change"](names["raw"], first)[*inner][far] for first in range(12)]
    assert np.max(raw) < names["LIMIT"]
    assert "vacancy, 2 pixels off" in capsys.readouterr().out
