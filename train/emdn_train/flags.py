"""What several commands of ``emdn-train`` take, and how they read it."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from emdn_models import MODELS, MissingExtraError, classes
from emdn_models.errors import install

BENCHMARK_KEYS = {"batch_size": int, "epochs": int, "lr": float}
"""What the SciML-Bench em_denoise benchmark lets its user set with -b KEY=VALUE."""

Specific = Annotated[
    list[str] | None,
    typer.Option(
        "-b",
        "--benchmark-specific",
        "--benchmark_specific",
        metavar="KEY=VALUE",
        help="batch_size, epochs or lr in the benchmark's own spelling; repeatable.",
    ),
]


def names_of(text: str) -> tuple[str, ...]:
    """Split a list of models; an unknown one is wrong usage."""
    if text == "all":
        return tuple(MODELS)
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if not classes.known(name)]
    if unknown or not names:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'nothing'}; choose from {', '.join(MODELS)}, "
            f"or their copies @{', @'.join(classes.CLASSES)}",
            param_hint="--models",
        )
    return tuple(dict.fromkeys(names))


def benchmark_options(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Read KEY=VALUE pairs; several may stand in one, separated by commas or spaces."""
    options: dict[str, Any] = {}
    for pair in " ".join(pairs or ()).replace(",", " ").split():
        key, _, value = pair.partition("=")
        try:
            options[key] = BENCHMARK_KEYS[key](value)
        except (KeyError, ValueError):
            raise typer.BadParameter(
                f"{pair!r}; expected KEY=VALUE with a number and KEY one of "
                f"{', '.join(BENCHMARK_KEYS)}",
                param_hint="-b",
            ) from None
        if options[key] <= 0:
            raise typer.BadParameter(f"{pair!r}; expected more than 0", param_hint="-b")
    return options


def need_torch() -> None:
    """Say how to get torch where it is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "this command needs torch, which the deploy side does without; "
            f"install it with: {install('train')}"
        ) from error
