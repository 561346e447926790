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
    with h5py.File(EXAMPLES / "frames.h5") as frames, h5py.File(EXAMPLES / "truth.h5") as file:
        raw = frames["entry/data/frames"][()]
        assert file.attrs["settings"] == frames.attrs["settings"]
        truth = {name: file[name][()] for name in file}
    assert (EXAMPLES / "truth.h5").stat().st_size < 700_000
    raw, expected = (one[:, truth["valid"]] for one in (raw, truth["expected"]))
    residual = (raw - expected) / np.sqrt(expected)
    assert abs(residual.mean()) < 4 / residual.size**0.5
    assert residual.std() == pytest.approx(1, abs=0.003)
    for frame, (x, y) in enumerate(truth["defect"]):
        atoms = truth["atoms"][truth["atoms"][:, 0] == frame, 1:]
        assert np.hypot(*(atoms - (x, y)).T).min() > 7  # half a bond: no atom is there


@pytest.mark.slow
def test_the_notebook_finds_the_vacancy_and_nothing_else(tmp_path, monkeypatch, capsys) -> None:
    path = EXAMPLES / "vacancy.ipynb"
    assert path.stat().st_size < 200_000
    for name in ("frames.h5", "truth.h5"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    names: dict = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and text.startswith("!emdn-deploy "):
            words = shlex.split(text.removeprefix("!emdn-deploy "))
            command = [sys.executable, "-m", "emdn_deploy", *words]
            said = subprocess.check_output(command, text=True)
        elif cell["cell_type"] == "code":
            exec(compile(text, f"{path.name}:{cell['id']}", "exec"), names)
    assert "PASS" in said
    # At places that the raw frames confirm, and only there, the truth has it.
    off = [names["distance"](*at) for *at, _, word in names["found"] if word == "vacancy"]
    assert len(off) >= 3
    assert max(off) < 4
    # Far from it the denoised frames show a change too, but never where the raw frames do.
    y, x = np.indices(names["raw"].shape[1:])
    far = np.array([np.hypot(x - u, y - v) > 20 for u, v in names["places"]]).all(0)
    stacks, limit = (names["denoised"], names["raw"]), names["LIMIT"]
    seen = [[names["change"](one, n)[far] > limit for n in range(12)] for one in stacks]
    assert np.any(seen[0])
    assert not np.all(seen, axis=0).any()
    assert "vacancy, 2 pixels off" in capsys.readouterr().out
