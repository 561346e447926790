"""Every command in every README: it is spelled right, and it runs, in order, in a fresh checkout.

Quick commands run as they are written. Those that begin as in `SLOW` run in the slow tests, with
arguments that make them smaller; those of `NOT_RUN` are only read. Files of the reader's own are
made in `checkout`.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
import tifffile
import typer

ROOT = Path(__file__).parents[1]
READMES = [f"{folder}README.md" for folder in ("", "deploy/", "train/", "models/", "benchmarks/")]
PROGRAMS = ("make", "emdn-deploy", "emdn-train", "pip", "python3", ".")

# So few steps must not end below the start, which a fit says by its exit status.
SMALL = "--patch 32 -b epochs=1 -b batch_size=8 -b lr=1e-6"
SLOW = {
    "emdn-deploy bench": "--models dncnn --size 64",
    "emdn-train adapt": "--epochs 1 --patch 32",
    "emdn-train benchmark": "-b epochs=1 -b batch_size=8",
    "emdn-train calibrate": "--frames 8",
    "emdn-train export": "",
    "emdn-train fit": SMALL,
    "emdn-train simulate": "--frames 16 --size 64",
    "make bench": "ARGS='-k \"inference and dncnn and single\"'",
    "make export": "",
    "make record": "ARGS='--frames 16 -b epochs=1 -b batch_size=8'",
    "make train": f"ARGS='{SMALL}'",
    # Of what `make export` makes.
    "emdn-deploy denoise movie.h5 --model": "",
}
NOT_RUN = {
    "python3 -m venv": "the test has its own",
    "pip install": ".ci/run does",
    "make test": "it runs this",
    "make check": ".ci/run does",
    "make bench ARGS": "minutes",
    "make quality": "minutes",
    "emdn-deploy denoise movie.h5 --scheduler": "tests/deploy/test_cluster.py has one",
}


def blocks(readme: str) -> Iterator[tuple[str, str]]:
    """Yield the language and text of each fenced block."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield language, body.replace("\\\n", " ")


def steps(readme: str) -> Iterator[tuple[str, str]]:
    """Yield ``command`` and a command line without its comment, or ``python`` and a block."""
    for language, body in blocks(readme):
        if language == "python":
            yield "python", body
        elif not language and body.split()[0] in PROGRAMS:
            for line in filter(None, body.splitlines()):
                yield "command", re.split(r"\s{2,}# ", line)[0].strip()


def all_commands() -> list[str]:
    return [step for readme in READMES for kind, step in steps(readme) if kind == "command"]


def test_the_lists_name_commands_of_the_readmes() -> None:
    for beginning in (*SLOW, *NOT_RUN):
        assert any(line.startswith(beginning) for line in all_commands()), beginning


@pytest.mark.parametrize("line", dict.fromkeys(all_commands()))
def test_a_command_is_spelled_right(line: str) -> None:
    from emdn_deploy import cli as deploy
    from emdn_train import cli as train
    from emdn_train.cli import translated

    program, *words = shlex.split(line)
    if program == "emdn-train":
        words = translated(words)
    if program in ("emdn-deploy", "emdn-train"):
        command = typer.main.get_command(deploy.app if program == "emdn-deploy" else train.app)
        group = command.make_context(program, list(words))
        _, chosen, rest = command.resolve_command(group, words)
        chosen.make_context(words[0], rest, group)
    elif program == "make":
        subprocess.run(["make", "-n", *words], cwd=ROOT, check=True)
    elif program == "pip":
        extras = re.findall(r"\[(.*?)\]", line)
        known = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert all(f"\n{extra} = [" in known for extra in extras)


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / ".github" / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert {f"version: {project['version']}", f"license: {project['license']}"} < set(lines)
    assert f"  - name: {project['authors'][0]['name']}" in lines


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """Copy the checkout, with an installed environment and some files of the reader's own."""
    copy = tmp_path / "emdn"
    copy.mkdir()
    kept_out = shutil.ignore_patterns(".*", "*_denoised*", "results", "__pycache__")
    # By name: the reader's own files and what the commands have written may lie beside them.
    for folder in ("benchmarks", "deploy", "models", "tests", "train"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=kept_out)
    for file in ("Makefile", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, copy)
    programs = copy / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").touch()
    for name, module in (("python", ""), ("emdn-deploy", "-m emdn_deploy"),
                         ("emdn-train", "-m emdn_train")):  # fmt: skip
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (programs / name).chmod(0o755)
    for stamp in (".deploy", ".train", ".dev"):  # for make: all of it is installed
        (programs.parent / stamp).touch()
    with h5py.File(copy / "deploy" / "examples" / "frames.h5") as example:
        frames = example["entry/data/frames"][:, :64, :64]
    with h5py.File(copy / "movie.h5", "w") as file:
        file["frames"] = frames
    tifffile.imwrite(copy / "movie.tif", frames, photometric="minisblack")
    (copy / "my_movie").mkdir()
    for number, frame in enumerate(frames[:4]):
        tifffile.imwrite(copy / "my_movie" / f"frame_{number}.tif", frame)
    yield copy
    shutil.rmtree(copy)


def test_make_takes_any_file_name(checkout: Path) -> None:
    """Blanks, quotes, dollars and brackets reach the command; nothing is replaced unasked."""
    (checkout / ".venv" / "bin" / "emdn-deploy").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    name = "my data/it's $5 [1].tif"
    for frames, folder in ((name, "my data"), ("my movie/", ".")):
        said = subprocess.run(
            ["make", "denoise", f"FRAMES={frames}", "ARGS=--sigma"],
            cwd=checkout, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert said.splitlines() == ["denoise", frames, "--preview", folder, "--sigma"]


@pytest.mark.parametrize(
    ("readme", "slow"),
    [
        *((readme, False) for readme in ("README.md", "deploy/README.md")),
        *(pytest.param(readme, True, marks=pytest.mark.slow) for readme in READMES),
    ],
)
def test_commands_run_in_order(checkout: Path, readme: str, slow: bool) -> None:
    code = os.pathsep.join(str(ROOT / part) for part in ("train", "deploy", "models"))
    environment = os.environ | {
        "PATH": f"{checkout / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": code,
    }  # fmt: skip
    if slow:
        data = "emdn-train simulate data/graphene --frames 16 --size 64"
        subprocess.run(["bash", "-c", data], cwd=checkout, env=environment, check=True)
        for name in ("my_material", "em_graphene_sim"):
            shutil.copytree(checkout / "data" / "graphene", checkout / name)
    for kind, step in steps(readme):
        if kind == "python":
            frames = "import h5py\nframes = h5py.File('movie.h5')['frames'][()]\n"
            command = [sys.executable, "-c", frames + step]
        elif step.startswith(tuple(NOT_RUN)):
            continue
        else:
            smaller = [added for one, added in SLOW.items() if step.startswith(one)]
            if smaller and not slow:
                continue
            command = ["bash", "-c", " ".join([step, *smaller])]
        with subprocess.Popen(
            command, cwd=checkout, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                said = process.communicate()[0]
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        # `check` leaves with 3 where frames stand out.
        good = (0, 3) if step.startswith("emdn-deploy check") else (0,)
        assert process.returncode in good, f"{step}\n{said[-3000:]}"
