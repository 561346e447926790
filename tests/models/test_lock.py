"""A lock on an output: one holder, named; it ends with its process."""

import os
import signal
import subprocess
import sys

import pytest

from emdn_models import OutputError, files
from emdn_models.files import locked

HOLD = """
import sys
from pathlib import Path
from emdn_models.files import locked
with locked(Path(sys.argv[1]), "out"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_is_told_who_is_at_work(tmp_path):
    path = tmp_path / "fit.lock"
    with (
        locked(path, "out"),
        pytest.raises(
            OutputError, match=rf"^out: process {os.getpid()} on .+, since \d.*, is at work"
        ),
        locked(path, "out"),
    ):
        pass
    assert not path.exists()
    with locked(path, "out"):
        pass


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    path = tmp_path / "fit.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(OutputError, match=f"process {process.pid} "), locked(path, "out"):
                pass
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert path.exists()
    with locked(path, "out"):
        pass
    assert not path.exists()


def test_a_lock_is_not_taken_on_a_file_that_has_just_been_deleted(tmp_path, monkeypatch):
    path, calls = tmp_path / "fit.lock", []
    flock = files.fcntl.flock

    def late(file, how):
        if not calls:
            path.unlink()  # as its holder does before it lets go
        calls.append(file)
        flock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with locked(path, "out"):
        assert len(calls) == 2
        assert str(os.getpid()) in path.read_text()


def test_without_locks_a_warning_is_given(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "fcntl", None)
    with locked(tmp_path / "fit.lock", "out"):
        pass
    assert "fit.lock: not locked (this system has no flock)" in caplog.text
    assert not list(tmp_path.iterdir())


def test_an_error_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "fit.lock", "out"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
