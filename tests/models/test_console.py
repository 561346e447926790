"""How commands leave: one line and the right exit code for every kind of end."""

import logging
import sys
from importlib.metadata import version

import pytest
import typer

from emdn_models import FormatError, console


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


@pytest.mark.parametrize(
    ("word", "said", "traced"), [(None, "an info", 0), ("-q", "a warning", 0), ("-v", "an info", 1)]
)
def test_more_or_less_is_said(word, said, traced, capfd, caplog):
    app, log = console.app("An app."), logging.getLogger("emdn_deploy.some")

    @app.command()
    def some() -> None:
        log.warning("a warning")
        log.info("an info")
        raise FormatError("bad")

    with pytest.raises(SystemExit):
        console.run(app, [*filter(None, [word]), "some"])
    assert caplog.messages[-1] == said
    told = capfd.readouterr().err
    assert told.count("Traceback") == traced
    assert told.endswith("error: bad\n")


def test_the_version_is_told(capfd):
    app = console.app("An app.")
    app.command()(lambda: None)
    with pytest.raises(SystemExit) as left:
        console.run(app, ["--version"])
    assert not left.value.code
    assert capfd.readouterr().out == f"emdn {version('emdn')}\n"


def test_bugs_keep_their_traceback():
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        console.run(app, [])


@pytest.fixture
def terminal(monkeypatch):
    """Give stdout a width."""

    def narrow(width: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(width))

    return narrow


def test_a_table_is_as_wide_as_it_is_or_as_its_words(terminal):
    names = ["name", "dB at 0.4", "ratio"]
    rows = [["unet *", "9.0", "0.36 (0.34-0.41)"], ["cafcn@stem", "10.25", "-"]]
    assert console.table(names, rows).splitlines() == [
        "name        dB at 0.4             ratio",
        "---------------------------------------",
        "unet *            9.0  0.36 (0.34-0.41)",
        "cafcn@stem      10.25                 -",
    ]
    for width in (37, 20):
        terminal(width)
        lines = [line.split() for line in console.table(names, rows).splitlines()]
        assert lines[:2] == [["dB", "at"], ["name", "0.4", "ratio"]]
        assert lines[3][-2:] == ["0.36", "(0.34-0.41)"]


def test_a_terminal_gets_lines_broken_between_words(terminal, capsys):
    line = "intensity  67.9 e/px, gain 1, offset 0, whole-number counts"
    path = "output     a/path/that/is/longer/than/a/line.h5"
    console.say(line)
    assert capsys.readouterr().out == line + "\n"
    terminal(30)
    console.say(f"{line}\n{path}")
    assert capsys.readouterr().out.splitlines() == [
        "intensity  67.9 e/px, gain 1,",
        "           offset 0,",
        "           whole-number counts",
        path,
    ]
