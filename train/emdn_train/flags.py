"""What several commands of ``emdn-train`` take, and how they read it."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from emdn_models import MODELS, MissingExtraError, classes

BENCHMARK_KEYS = {"batch_size": int, "epochs": int, "lr": float, "use_gpu": str}
"""What the SciML-Bench em_denoise benchmark lets its user set with -b KEY VALUE."""

SPELLINGS = ("-b", "--benchmark-specific", "--benchmark_specific")

Specific = Annotated[
    list[str] | None,
    typer.Option(
        *SPELLINGS,
        metavar="KEY VALUE",
        help="batch_size, epochs, lr or use_gpu as SciML-Bench has them, or KEY=VALUE; repeatable.",
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


def joined(arguments: Sequence[str]) -> list[str]:
    """Write SciML-Bench's ``-b KEY VALUE`` as ``-b KEY=VALUE``, which is read as well."""
    made: list[str] = []
    for argument in arguments:
        if made[-2:-1] and made[-2] in SPELLINGS and made[-1].isidentifier():
            made[-1] += f"={argument}"
        else:
            made.append(argument)
    return made


def benchmark_options(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Read KEY=VALUE pairs; several may stand in one, separated by commas or spaces.

    Returns
    -------
    Fields of `emdn_train.config.FitConfig`; ``use_gpu`` of false is the device ``cpu``.
    """
    options: dict[str, Any] = {}
    for pair in " ".join(pairs or ()).replace(",", " ").split():
        key, _, value = pair.partition("=")
        try:
            options[key] = BENCHMARK_KEYS[key](value)
        except (KeyError, ValueError):
            raise typer.BadParameter(
                f"{pair!r}; expected KEY VALUE or KEY=VALUE with a number and KEY one of "
                f"{', '.join(BENCHMARK_KEYS)}",
                param_hint="-b",
            ) from None
        if key == "use_gpu":
            gpu = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
            if gpu is None:
                raise typer.BadParameter(f"{pair!r}; expected true or false", param_hint="-b")
            del options[key]
            options |= {} if gpu else {"device": "cpu"}
        elif options[key] <= 0:
            raise typer.BadParameter(f"{pair!r}; expected more than 0", param_hint="-b")
    return options


def need_torch() -> None:
    """Say how to get torch where it is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "this command needs torch, which the deploy side does without; "
            "install it with: pip install 'emdn[train]'"
        ) from error
