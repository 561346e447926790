"""Published weights go into the nets tensor by tensor."""

import numpy as np
import pytest
import torch

from benchmarks.published_psnr import load, psnr_of
from emdn_models import MODELS
from emdn_models.nets import NETS


@pytest.mark.parametrize("model", ["dncnn", "ffdnet"])
def test_a_state_dict_under_other_names_gives_the_same_image(model, tmp_path) -> None:
    options = dict(MODELS[model].presets["paper"].options)
    if model == "dncnn":  # as its authors ship it: batch norm merged
        options["batch_norm"] = False
    torch.manual_seed(0)
    net = NETS[model](**options).eval()
    path = tmp_path / "weights.pth"
    torch.save({f"model.{k}.x": value for k, value in enumerate(net.state_dict().values())}, path)
    clean = np.random.default_rng(0).integers(0, 255, (32, 24)).astype(np.uint8)
    assert psnr_of(load(model, path), clean, 25.0, 0) == psnr_of(net, clean, 25.0, 0)
