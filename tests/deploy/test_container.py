"""The container file: its steps in a fresh environment, since no engine may be here."""

import json
import os
import shlex
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def steps() -> list[tuple[str, str]]:
    """Return instruction and argument of every line of the container file."""
    text = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_it_runs_emdn_deploy_by_no_root_and_copies_what_is_there() -> None:
    last = max(at for at, (kind, _) in enumerate(steps()) if kind == "FROM")
    final = steps()[last:]
    user = dict(final)["USER"]
    assert ("RUN", f"useradd --create-home {user}") in final
    assert json.loads(dict(final)["ENTRYPOINT"]) == ["emdn-deploy"]
    # What comes after runs as that user, and installs nothing.
    assert "RUN" not in dict(final[final.index(("USER", user)) :])
    for kind, argument in steps():
        if kind == "COPY" and not argument.startswith("--from="):
            assert all((ROOT / name).exists() for name in shlex.split(argument)[:-1])


@pytest.mark.slow
def test_its_steps_make_an_environment_that_denoises(tmp_path: Path) -> None:
    try:
        run_steps(tmp_path)
    finally:
        shutil.rmtree(tmp_path)  # 0.9 GB


def run_steps(tmp_path: Path) -> None:
    stage, environment = tmp_path, {}
    for number, (kind, argument) in enumerate(steps()):
        if kind == "FROM":
            stage = tmp_path / str(number)
            venv.create(stage / "venv", with_pip=True, symlinks=True)
            (stage / "work").mkdir()
            environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
            environment["PATH"] = f"{stage / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        elif kind in ("ARG", "ENV"):
            name, _, text = argument.partition("=")
            environment[name] = text.strip('"')
        elif kind == "COPY" and not argument.startswith("--from="):
            *sources, target = shlex.split(argument)
            for name in sources:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                target_path = stage / "work" / target
                target_path.parent.mkdir(parents=True, exist_ok=True)
                copy(ROOT / name, target_path)
        elif kind == "RUN" and not argument.startswith("useradd"):
            command = argument.replace("/dist", str(tmp_path / "dist"))
            command = command.replace("--no-cache-dir ", "")  # of no matter but for time
            subprocess.run(
                ["bash", "-ec", command], cwd=stage / "work", env=environment, check=True
            )
    shutil.copy(ROOT / "deploy" / "examples" / "frames.h5", stage / "work")
    (entry,) = json.loads(dict(steps())["ENTRYPOINT"])
    program = shutil.which(entry, path=environment["PATH"])
    subprocess.run(
        [program, "denoise", "frames.h5", "--model", "ffdnet"],
        cwd=stage / "work", env=environment, check=True,
    )  # fmt: skip
    assert (stage / "work" / "frames_denoised.h5").stat().st_size
    python = stage / "venv" / "bin" / "python"
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode
