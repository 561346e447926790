"""DnCNN and FFDNet with their authors' weights on their authors' images, beside the published PSNR.

    python -m benchmarks.published_psnr dncnn_25.pth BSD68 --model dncnn --sigma 25

The test of the papers: 8-bit grey images, Gaussian noise added and not clipped, the denoised image
clipped and rounded, PSNR for a range of 255, averaged over the images. The authors restart
MATLAB's generator for each image; numpy's, restarted at the same seed, takes its place. The
weights are a PyTorch state_dict whose tensors are in the order of the paper's layers.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from emdn_models import MODELS
from emdn_models.nets import NETS

# IEEE TIP 26(7), 2017, tables II and III; IEEE TIP 27(9), 2018, tables II and III. Mean PSNR in
# dB by noise level, for model, convolutions and images.
PUBLISHED = {
    ("dncnn", 17, "BSD68"): {15: 31.73, 25: 29.23, 50: 26.23},
    ("dncnn", 17, "Set12"): {15: 32.859, 25: 30.436, 50: 27.178},
    ("dncnn", 20, "BSD68"): {15: 31.61, 25: 29.16, 50: 26.23},
    ("dncnn", 20, "Set12"): {15: 32.680, 25: 30.362, 50: 27.206},
    ("ffdnet", 15, "BSD68"): {15: 31.63, 25: 29.19, 35: 27.73, 50: 26.29, 75: 24.79},
    ("ffdnet", 15, "Set12"): {15: 32.75, 25: 30.43, 50: 27.32},
}
TOLERANCE_DB = 0.05


def load(model: str, path: Path) -> nn.Module:
    """Put a state_dict's tensors into the paper preset of a net, one by one in their order."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    tensors = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    options: dict[str, Any] = dict(MODELS[model].presets["paper"].options)
    options["depth"] = sum(tensor.ndim == 4 for tensor in tensors)
    if model == "dncnn":
        options["batch_norm"] = any(name.endswith("running_var") for name in state)
    net = NETS[model](**options)
    names = [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]
    net.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    return net.eval()


def psnr_of(net: nn.Module, clean: np.ndarray[Any, Any], sigma: float, seed: int) -> float:
    """Add noise to an image of 0 to 255, remove it, and compare in 8 bits, in dB."""
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    x = torch.from_numpy(((clean + sigma * noise) / 255).astype(np.float32))[None, None]
    with torch.inference_mode():
        y = net(x, torch.full_like(x, sigma / 255))[0, 0].numpy()
    error = np.clip(np.rint(255 * y), 0, 255).astype(np.float64) - clean
    return float(10 * np.log10(255**2 / np.square(error).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("images", type=Path, help="folder, called BSD68 or Set12")
    parser.add_argument("--model", choices=["dncnn", "ffdnet"], default="dncnn")
    parser.add_argument("--sigma", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    net = load(asked.model, asked.weights)
    paths = sorted(path for path in asked.images.iterdir() if path.suffix in (".png", ".tif"))
    found = [
        psnr_of(net, np.asarray(Image.open(path).convert("L")), asked.sigma, asked.seed)
        for path in paths
    ]
    mean = float(np.mean(found))
    layers = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    paper = PUBLISHED.get((asked.model, layers, asked.images.name), {}).get(asked.sigma)
    print(f"{asked.model} of {layers} layers, {len(paths)} images: {mean:.3f} dB", end="")
    print("" if paper is None else f", published {paper:.2f}, {mean - paper:+.3f} dB")
    if paper is not None and abs(mean - paper) > TOLERANCE_DB:
        raise SystemExit(f"more than {TOLERANCE_DB} dB off: are these the weights and images?")


if __name__ == "__main__":
    main()
