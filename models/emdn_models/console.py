"""How both commands start and fail, and how they print text and tables."""

import logging
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Sequence
from io import StringIO, TextIOWrapper
from typing import Annotated

import typer

from emdn_models import __version__
from emdn_models.errors import EmdnError

_PACKAGES = ("emdn_models", "emdn_deploy", "emdn_train")
_log = logging.getLogger(__name__)


def app(about: str) -> typer.Typer:
    """Make a command line with ``--version``, ``-v``, ``-q`` and the completion of shells."""
    made = typer.Typer(
        help=about, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    made.callback()(_every)
    return made


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"emdn {__version__}")
        raise typer.Exit


def _every(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Where an error arose, for a report of a fault."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, only results and warnings.")
    ] = False,
) -> None:
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)


def run(app: typer.Typer, argv: Sequence[str] | None = None) -> None:
    """Run a command line to its end and leave the process by SystemExit.

    0 when all went well, 1 on an error that emdn or the system names, 2 on wrong usage,
    130 when the user interrupts, 141 on a closed pipe.
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        # Shells leave a quoted "~/run/*.dm4" as it is.
        given = sys.argv[1:] if argv is None else argv
        app(args=[os.path.expanduser(word) for word in given])
    except EmdnError as error:
        _fail(str(error), 1)
    except BrokenPipeError:
        # The reader (head, less) has gone; keep the interpreter's own flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(str(error), 1)
    except MemoryError as error:
        _fail(f"not enough memory ({str(error) or 'none is left'})", 1)
    except SystemExit as left:
        # typer turns an interrupt into this exit without a word.
        if left.code == 130:
            _fail("interrupted", 130)
        raise


def _fail(message: str, status: int) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    print("error: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    sys.exit(status)


def columns() -> int | None:
    """Return how wide the terminal is, None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say(text: str) -> None:
    """Print lines; a terminal gets them broken between words, and indented under their text."""
    width = columns()
    for line in text.splitlines():
        # "name       what is said of it" goes on below "what".
        named = re.match(r"\s*\w+(?: \w+)*\s{2,}(?=\S)|\s*", line)
        start = named.end() if named else 0
        if width and len(line) > width and " " in line[start:]:
            line = textwrap.fill(
                line,
                max(width, 2 * start),
                subsequent_indent=" " * start,
                break_long_words=False,
                break_on_hyphens=False,
            )
        typer.echo(line)


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table for people; on a narrow terminal titles of several words get lines."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    narrowest = 0
    for at, name in enumerate(names):
        cells = [row[at] for row in rows]
        right = all(re.fullmatch(r"[-+\d.,%]*( \(.*\))?", cell) for cell in cells)
        least = max(map(len, [*name.split(), *cells]), default=0)
        narrowest += least + 2
        drawn.add_column(
            name,
            justify="right" if right else "left",
            vertical="bottom",
            min_width=least,
            no_wrap=least >= len(name),
        )
    for row in rows:
        drawn.add_row(*row)
    text = StringIO()
    width = max(columns() or 10**4, narrowest)
    Console(file=text, width=width, markup=False).print(drawn)
    return "\n".join(line.rstrip().replace("─", "-") for line in text.getvalue().splitlines())
