"""Several processes, as torchrun starts them, fit what one would at a larger batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from emdn_models import DeviceError, checkpoint
from emdn_models.files import locked
from emdn_train import fit as fitting
from emdn_train.checkpointing import FILE_NAME
from emdn_train.config import FitConfig
from emdn_train.distributed import Processes, pick_device
from emdn_train.fit import fit

START = """
import os, signal
from emdn_train import cli, fit, patches

fit.micro_batch = lambda *_: 4  # as in the one process that this is compared with
original, calls = patches.Simulated.batch, []

def batch(*arguments):
    calls.append(1)
    if len(calls) == 6 and os.environ.get("STOP") == os.environ["RANK"]:
        os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments)

patches.Simulated.batch = batch
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main()
"""


@pytest.fixture(scope="module")
def torchrun(gratings, tmp_path_factory):
    """Run ``emdn-train fit`` in two processes; eight patches each, two steps an epoch."""
    start = tmp_path_factory.mktemp("start") / "start.py"
    start.write_text(START)

    def run(out, **environment):
        return subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", "2", start, "fit", "--data", gratings, "--out", out,
                "--models", "ffdnet", "--recipe", "quality", "--batch-size", "8", "--patch",
                "16", "--epochs", "2", "--device", "cpu", "--lr", "1e-4",
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def two(torchrun, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    return out, torchrun(out)


def weights(out):
    return checkpoint.load(out / checkpoint.FILE_NAME)["ffdnet"]


def test_two_processes_equal_one_at_twice_the_batch(gratings, two, tmp_path, monkeypatch):
    out, done = two
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("em_denoise_model.h5") == 1  # only the first process speaks
    assert done.stderr.count("training on") == 1
    monkeypatch.setattr(fitting, "micro_batch", lambda *_: 4)
    (one,) = fit(
        FitConfig(
            data=gratings, out=tmp_path, models=("ffdnet",), recipe="quality", batch_size=16,
            patch=16, epochs=2, device="cpu", lr=1e-4,
        )
    )  # fmt: skip
    found, expected = weights(out), weights(tmp_path)
    for key, array in expected.state.items():
        # Sums of float32 in another order: Adam steps where a gradient is next to nothing as far
        # as elsewhere. In one process, a loss times 1 + 1.2e-7 moves 0.6 % of a layer's weights,
        # by up to 2.5e-5 of the 2e-4 that four steps can.
        off = np.abs(found.state[key] - array)
        assert off.max() < 4e-5, key
        assert np.mean(off > 2e-6) < 0.01, key
    metrics = json.loads((out / "metrics.json").read_text())["ffdnet"]
    assert metrics["gain_db"] == pytest.approx(one.gain_db, abs=1e-3)
    recipe = found.metadata["recipe"]
    assert (recipe["steps"], recipe["batch_size"], recipe["processes"]) == (4, 8, 2)
    assert recipe["hardware"].endswith("2 processes")


def test_a_refused_run_is_refused_once(torchrun, tmp_path):
    with locked(tmp_path / "fit.lock", tmp_path):
        done = torchrun(tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("is at work on it") == 1
    assert "Connection closed" not in done.stderr
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.slow
def test_all_stop_when_one_is_told_to_and_all_continue(torchrun, two, tmp_path):
    stopped = torchrun(tmp_path, STOP="1")
    assert stopped.returncode != 0
    assert "ffdnet: stopped after step 3 and saved" in stopped.stderr
    assert "exitcode  : 130" in stopped.stderr
    assert (tmp_path / FILE_NAME).exists()
    assert not (tmp_path / checkpoint.FILE_NAME).exists()
    done = torchrun(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ffdnet: continuing after step 3") == 1
    whole, cut = weights(two[0]).state, weights(tmp_path).state
    for key, array in whole.items():
        np.testing.assert_array_equal(cut[key], array)
    assert not (tmp_path / FILE_NAME).exists()


def test_shares_are_even_and_cover_the_batch():
    batch = torch.arange(10, 17)
    shares = [Processes(torch.device("cpu"), rank, 4).share(batch) for rank in range(4)]
    assert [share.tolist() for share, _, _ in shares] == [[10, 11], [12, 13], [14, 15], [16, 10]]
    assert [(place, size) for _, place, size in shares] == [(0, 8), (2, 8), (4, 8), (6, 8)]
    share, _, size = Processes(torch.device("cpu"), 3, 4).share(batch[:1])
    assert (share.tolist(), size) == ([10], 4)
    assert Processes(torch.device("cpu")).share(batch)[0].tolist() == batch.tolist()


def test_batch_norm_is_synchronised_on_gpus_only():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert Processes(torch.device("cpu"), 0, 2).synchronised(net) is net
    assert Processes(torch.device("cuda")).synchronised(net) is net
    converted = Processes(torch.device("cuda", 1), 1, 2).synchronised(net)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    assert converted.state_dict().keys() == net.state_dict().keys()


def test_every_process_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto", 1) == torch.device("cuda", 1)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cpu", 5) == torch.device("cpu")
    with pytest.raises(DeviceError, match="process 2 of this machine has no GPU of its own"):
        pick_device("cuda", 2)
