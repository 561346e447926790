"""The command ``emdn-deploy bench``."""

import json
from typing import Annotated

import typer

from emdn_deploy.config import DenoiseOptions, Numbers, On, Threads
from emdn_models import console

_DEFAULT = DenoiseOptions()


def bench(
    models: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...", help="Shipped names or .onnx files; default: all seven."
        ),
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Side of a frame in pixels.")] = 256,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="FRAMES_PER_S", help="Of a camera: which models keep up?"),
    ] = None,
    device: On = _DEFAULT.device,
    precision: Numbers = _DEFAULT.precision,
    threads: Threads = _DEFAULT.threads,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON instead of text.")
    ] = False,
) -> None:
    """Time the models on this machine, in less than two minutes."""
    from emdn_deploy.bench import run

    names = None if models is None else tuple(filter(None, models.split(",")))
    found = run.bench(run.BenchConfig(names or None, size, rate, device, threads, precision))
    if as_json:
        print(json.dumps(found._asdict()))  # noqa: T201
    else:
        console.say("\n".join(run.text(found)))


def add_to(app: typer.Typer) -> None:
    """Add the command to a command line."""
    app.command()(bench)
