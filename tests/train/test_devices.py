"""``--device``: one that is asked for by name and is not there is an error, in every command."""

import itertools

import numpy as np
import pytest
import torch
import typer

from emdn_deploy import cli as deploy
from emdn_deploy.session import providers
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
    "published": ("WEIGHTS", "DATA"),
}
APPS = {
    name: (module, command)
    for module in (deploy, train)
    for name, command in typer.main.get_command(module.app).commands.items()
    if any("--device" in one.opts for one in command.params)
}


def test_the_table_has_every_command() -> None:
    assert set(COMMANDS) == set(APPS)


@pytest.mark.parametrize(
    ("command", "device"), list(itertools.product(COMMANDS, ("cuda", "tensorrt", "tpu")))
)
def test_devices_that_are_not_there(
    command: str, device: str, gratings, tmp_path, capfd, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: [providers.CPU])
    frames = tmp_path / "frames.npy"
    np.save(frames, np.random.default_rng(0).poisson(30, (4, 64, 64)).astype("u2"))
    (tmp_path / "weights.pth").touch()
    known = {
        "FRAMES": frames,
        "DATA": gratings,
        "WEIGHTS": tmp_path / "weights.pth",
        "FOLDER": tmp_path,
    }
    known |= {"OUT": tmp_path / "out", "OUT.h5": tmp_path / "out.h5"}
    arguments = [str(known.get(one, one)) for one in (command, *COMMANDS[command])]
    with pytest.raises(SystemExit) as left:
        APPS[command][0].main([*arguments, "--device", device])
    err = capfd.readouterr().err
    if device == "tpu" or (device == "tensorrt" and command in ("fit", "adapt", "published")):
        assert left.value.code == 2, err  # torch does not train there
    else:
        assert left.value.code == 1, err
        last = err.strip().splitlines()[-1]
        assert "CUDA" in last or "TensorRT" in last
    assert not list(tmp_path.glob("out*/*"))
    assert not (tmp_path / "out.h5").exists()
