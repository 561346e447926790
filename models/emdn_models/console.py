"""How both commands start and how they fail: one line, no traceback."""

import logging
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

import typer

from emdn_models.errors import EmdnError


def run(app: typer.Typer, argv: Sequence[str] | None = None) -> None:
    """Run a command line to its end and leave the process.

    Raises
    ------
    SystemExit
        0 when all went well, 1 on an error that emdn or the system names,
        2 on wrong usage, 130 when the user interrupts, 141 on a closed pipe.
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    for package in ("emdn_models", "emdn_deploy", "emdn_train"):
        logging.getLogger(package).setLevel(logging.INFO)
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
    print("error: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    sys.exit(status)
