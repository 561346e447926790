"""The promise of the design: an eighth model is its file, a line in NETS and a ModelSpec.

The three edits are made in a copy of the packages; the commands then fit, export, list
and run the new model.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

NET = '''
"""One convolution: the smallest net there is."""

from torch import Tensor, nn


class Tiny(nn.Module):
    """Map (N, 1, H, W) to (N, 1, H, W)."""

    multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 5, padding=2, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 25)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Denoise."""
        y: Tensor = self.conv(x)
        return y
'''
SPEC = """
    ModelSpec("tiny", "this test",
              {preset: Preset({}, 25, (5, 5), 1) for preset in ("paper", "shipped")}),
)

MODELS: dict"""


@pytest.fixture
def copy(tmp_path) -> Path:
    for source in ("models/emdn_models", "train/emdn_train", "deploy/emdn_deploy"):
        shutil.copytree(
            ROOT / source, tmp_path / Path(source).name, ignore=shutil.ignore_patterns("__pyc*")
        )
    nets = tmp_path / "emdn_models" / "nets"
    (nets / "tiny.py").write_text(NET.lstrip())
    edit(
        nets / "__init__.py",
        '    "msdnet": MSDNet,\n',
        '    "msdnet": MSDNet,\n    "tiny": Tiny,\n',
    )
    edit(
        nets / "__init__.py",
        "from emdn_models.spec import",
        "from emdn_models.nets.tiny import Tiny\nfrom emdn_models.spec import",
    )
    edit(tmp_path / "emdn_models" / "spec.py", ")\n\nMODELS: dict", SPEC.lstrip("\n"))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, path
    path.write_text(text.replace(old, new))


def emdn(copy: Path, command: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", command, *map(str, arguments)],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_three_edits(copy, gratings):
    emdn(copy, "emdn_train", "fit", "--data", gratings, "--models", "tiny", "--epochs", 1,
         "--lr", 1e-4, "--batch-size", 8, "--patch", 32)  # fmt: skip
    assert "tiny" in emdn(
        copy, "emdn_train", "export", "outputs/em_denoise_model.h5",
        "--out", "emdn_models/weights", "--models", "tiny",
    )  # fmt: skip
    assert "tiny" in emdn(copy, "emdn_deploy", "models")
    frames = np.random.default_rng(0).poisson(20, (3, 40, 30)).astype(np.uint16)
    with h5py.File(copy / "frames.h5", "w") as file:
        file["images"] = frames
    emdn(copy, "emdn_deploy", "denoise", "frames.h5", "--model", "tiny", "--device", "cpu")
    with h5py.File(copy / "frames_denoised.h5") as file:
        denoised = file["images"][()]
    assert denoised.shape == frames.shape
    assert denoised[:, 5:-5, 5:-5].std() < 0.4 * frames.std()
    listed = emdn(copy, "emdn_train", "fit", "--help")
    assert "--models" in listed
