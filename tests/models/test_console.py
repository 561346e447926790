"""How commands leave: one line and the right exit code for every kind of end."""

import pytest
import typer

from emdn_models import EmdnError, FormatError, console


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FormatError("a.h5: two\nlines"), 1, "error: a.h5: two lines"),
        (PermissionError(13, "Permission denied", "out.h5"), 1, "error: [Errno 13]"),
        (MemoryError("Unable to allocate 3 TiB"), 1, "error: not enough memory (Unable to"),
        (MemoryError(), 1, "error: not enough memory (none is left)"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_errors_become_one_line(error, code, line, capfd):
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        console.run(app, [])
    assert left.value.code == code
    told = capfd.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith(line)


def test_bugs_keep_their_traceback():
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        console.run(app, [])


def test_every_error_is_an_emdn_error():
    import emdn_models.errors as errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) >= 8
    assert all(issubclass(kind, EmdnError) for kind in kinds)
