"""The dependency rule: emdn_train -> emdn_deploy -> emdn_models, heavy libraries in their place."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "emdn_models": ROOT / "models/emdn_models",
    "emdn_deploy": ROOT / "deploy/emdn_deploy",
    "emdn_train": ROOT / "train/emdn_train",
}
TRAINING = {"torch", "onnx", "onnxscript", "ase"}
FORBIDDEN = {
    "emdn_models": {"emdn_deploy", "emdn_train", "onnxruntime", *TRAINING},
    "emdn_deploy": {"emdn_train", *TRAINING},
    "emdn_train": set[str](),
}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the top-level name and line of every import of a file, lazy ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno


def violations(package: str, folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        banned = set(FORBIDDEN[package])
        if package == "emdn_models" and inside.parts[0] == "nets":
            banned -= TRAINING
        if package == "emdn_deploy" and inside.parts[0] != "session":
            banned.add("onnxruntime")
        found += [f"{package}/{inside}:{line}: {name}" for name, line in imports(path)
                  if name in banned]  # fmt: skip
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_what_lies_above_it(package: str) -> None:
    assert list(PACKAGES[package].rglob("*.py"))
    assert violations(package, PACKAGES[package]) == []


def test_the_check_sees_a_lazy_import(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "def f():\n    from emdn_train import cli\n    import torch.nn\n"
    )
    assert violations("emdn_deploy", tmp_path) == [
        "emdn_deploy/bad.py:2: emdn_train",
        "emdn_deploy/bad.py:3: torch",
    ]


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = ("numpy", "h5py", "onnxruntime", "polars", "matplotlib", "torch", "onnx")
    code = f"import sys, emdn_deploy.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
