"""``--device``: one that is asked for by name and is not there is an error, in every command."""

import numpy as np
import pytest
import torch
import typer

from emdn_deploy import cli as deploy
from emdn_deploy import session
from emdn_train import cli as train

# What each command needs besides: FRAMES is a file, DATA training data, OUT does not exist.
COMMANDS = {
    "denoise": ("FRAMES", "-o", "OUT.h5"),
    "watch": ("FOLDER", "--out-dir", "OUT"),
    "bench": (),
    "check": ("FRAMES",),
    "fit": ("--data", "DATA", "--out", "OUT"),
    "benchmark": ("OUT", "--out", "OUT"),
    "adapt": ("FRAMES", "--out", "OUT"),
}
APPS = {
    name: (module, command)
    for module in (deploy, train)
    for name, command in typer.main.get_command(module.app).commands.items()
    if any("--device" in one.opts for one in command.params)
}


def test_the_table_has_every_command() -> None:
    assert set(COMMANDS) == set(APPS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_there(command: str, gratings, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: [session.CPU])
    frames = tmp_path / "frames.npy"
    np.save(frames, np.random.default_rng(0).poisson(30, (4, 64, 64)).astype("u2"))
    known = {"FRAMES": frames, "DATA": gratings, "FOLDER": tmp_path}
    known |= {"OUT": tmp_path / "out", "OUT.h5": tmp_path / "out.h5"}
    arguments = [str(known.get(one, one)) for one in (command, *COMMANDS[command])]
    with pytest.raises(SystemExit) as left:
        APPS[command][0].main([*arguments, "--device", "cuda"])
    err = capfd.readouterr().err
    assert left.value.code == 1, err
    assert "CUDA" in err.strip().splitlines()[-1]
    assert not [*tmp_path.glob("out*/*"), *tmp_path.glob("out.h5")]
