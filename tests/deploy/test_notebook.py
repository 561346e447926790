"""The notebook of the example, run as its reader does: what it finds is where the vacancy was."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


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
            said = subprocess.run(
                [sys.executable, "-m", "emdn_deploy", *words],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
        elif cell["cell_type"] == "code":
            exec(compile(text, f"{path.name}:{cell['id']}", "exec"), names)
    assert "PASS" in said
    # At places that the raw frames confirm, and only there, the truth has it.
    off = {verdict: [] for *_, verdict in names["found"]}
    for first, y, x, _, verdict in names["found"]:
        off[verdict].append(names["distance"](first, y, x))
    assert len(off["vacancy"]) >= 3
    assert max(off["vacancy"]) < 4
    assert max(off["not confirmed"]) > 20
    assert "vacancy, 2 pixels off" in capsys.readouterr().out
