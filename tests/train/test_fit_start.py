"""Weights that a run starts from."""

import pytest
import torch

from emdn_models import ModelError, checkpoint
from emdn_models.nets import build
from emdn_train.config import FitConfig
from emdn_train.fit import fit
from emdn_train.start import start_from


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A DnCNN as drawn, with a recipe."""
    path = tmp_path_factory.mktemp("saved") / checkpoint.FILE_NAME
    torch.manual_seed(3)
    state = {key: value.numpy() for key, value in build("dncnn").state_dict().items()}
    checkpoint.save(path, {"dncnn": checkpoint.Weights("shipped", state, {"recipe": {"steps": 7}})})
    return path


def test_the_spectral_estimate_stays_and_the_net_goes_on(gratings, saved, tmp_path):
    config = FitConfig(
        data=gratings, out=tmp_path, models=("dncnn",), start=saved, patch=16, epochs=1,
        lr=1e-4, device="cpu",
    )  # fmt: skip
    fit(config)
    before, after = checkpoint.load(saved), checkpoint.load(tmp_path / checkpoint.FILE_NAME)
    assert after["dncnn"].metadata["recipe"]["start"] == {"steps": 7}
    states = before["dncnn"].state, after["dncnn"].state
    changed = {
        name.split(".")[0] for name in states[0] if (states[0][name] != states[1][name]).any()
    }
    assert changed == {"net"}


def test_what_the_file_does_not_hold_is_an_error(gratings, saved, tmp_path):
    config = FitConfig(data=gratings, out=tmp_path, models=("unet",), start=saved)
    with pytest.raises(ModelError, match="holds no model 'unet'; it holds dncnn"):
        start_from(build("unet"), "unet", config)
