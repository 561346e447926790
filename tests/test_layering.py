"""The dependency rule: emdn_train -> emdn_deploy -> emdn_models, heavy libraries in their place."""

import ast
import re
import subprocess
import sys
from collections import Counter
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
        if package == "emdn_deploy" and inside.parts[0] != "session.py":
            banned.add("onnxruntime")
        found += [f"{package}/{inside}:{line}: {name}" for name, line in imports(path)
                  if name in banned]  # fmt: skip
    return found


FLOORS = (
    "config session dose bad_pixels",
    "readers writers output preprocess batching uncertainty denoiser report "
    "figures evaluate check.residual check.quick",
    "denoise_file cluster watch check bench",
    "napari cli __init__ __main__",
)
"""Of emdn_deploy, from the lowest: base, parts, whole jobs, commands."""


def floor(module: str) -> int:
    """Return on which floor a module of emdn_deploy is, a file's before its folder's."""
    found = {name: number for number, line in enumerate(FLOORS) for name in line.split()}
    return found.get(module, found.get(module.partition(".")[0], -1))


def module_imports(path: Path, root: Path) -> Iterator[str]:
    """Yield the modules of the package at ``root`` that a file imports."""
    package, tree = root.name, ast.parse(path.read_text(encoding="utf-8"))
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            inside = (node.module or "").split(".")[1:]
            for alias in node.names:
                names = [*inside, alias.name]
                there = (root / "/".join(names)).with_suffix(".py").exists()
                there |= (root / "/".join(names) / "__init__.py").exists()
                if names := names if there else inside:
                    yield ".".join(names)


def modules(root: Path) -> dict[str, set[str]]:
    """Return for each module of a package those that it imports."""
    found = {}
    for path in root.rglob("*.py"):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = set(module_imports(path, root))
    return found


def test_no_part_of_deploy_imports_what_lies_above_it() -> None:
    graph = modules(PACKAGES["emdn_deploy"])
    assert [one for one in graph if floor(one) < 0] == []
    above = [(one, other) for one, others in graph.items() for other in others
             if floor(other) > floor(one)]  # fmt: skip
    assert above == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    graph = modules(PACKAGES[package])

    def reached(start: str) -> set[str]:
        seen, left = set[str](), [start]
        while left:
            for other in graph.get(left.pop(), set()) - seen:
                seen.add(other)
                left.append(other)
        return seen

    # A folder's __init__ gathers what its files hold.
    circles = [one for one in graph if one in reached(one)]
    assert circles == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_what_lies_above_it(package: str) -> None:
    assert list(PACKAGES[package].rglob("*.py"))
    assert violations(package, PACKAGES[package]) == []


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = ("numpy", "h5py", "onnxruntime", "polars", "matplotlib", "torch", "onnx")
    code = f"import sys, emdn_deploy.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_of_denoise_enters_few_files(tmp_path: Path) -> None:
    code = """
import sys
from emdn_deploy import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
print(*(name for name in sys.modules if name.startswith("emdn_")))
"""
    given = ["denoise", ROOT / "deploy/examples/frames.h5", "-o", tmp_path / "a.tif"]
    command = [sys.executable, "-c", code, *map(str, given), "--device", "cpu", "--frames", "0:6"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    entered = done.stdout.splitlines()[-1].split()
    assert 10 < len(entered) <= 25, entered


def test_every_public_name_is_used_outside_the_tests() -> None:
    sources = [path for package in PACKAGES.values() for path in package.rglob("*.py")]
    texts = [*sources, *(ROOT / "benchmarks").glob("*.py"), *ROOT.glob("*/README.md")]
    texts += [ROOT / "README.md", ROOT / "pyproject.toml", *ROOT.glob("deploy/*/*.yaml")]
    words = Counter(word for path in texts for word in re.findall(r"\w+", path.read_text("utf-8")))
    unused = []
    for path in sources:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [getattr(node, "name", "")]
            if isinstance(node, ast.ClassDef):
                names += [one.name for one in node.body if isinstance(one, ast.FunctionDef)]
            if isinstance(node, ast.Assign):
                names = [one.id for one in node.targets if isinstance(one, ast.Name)]
            command = any("command" in ast.unparse(one) for one in
                          getattr(node, "decorator_list", []))  # fmt: skip
            unused += [f"{path.name}: {name}" for name in names
                       if words[name] == 1 and name[0] != "_" and not command]  # fmt: skip
    assert not unused
