"""Published weights: files written here as the authors' frameworks write them, no downloads."""

from dataclasses import dataclass, replace

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.io import savemat
from torch.nn import functional

from emdn_models import CheckpointError, FormatError, ModelError, ParityError
from emdn_models.nets.dncnn import DnCNN
from emdn_train import cli
from emdn_train.published import PublishedConfig, compare, verdict
from emdn_train.published_weights import load

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Conv:
    """Weights as MATLAB holds them: (height, width, inputs, outputs)."""

    weight: Array
    bias: Array
    norm: tuple[Array, Array, Array] | None = None  # scale, shift, (outputs, 2) mean and deviation


def draw(depth: int, inputs: int = 1, outputs: int = 1, norm: bool = False) -> list[Conv]:
    """Draw layers of 64 features that keep the size of what they are given."""
    chance = np.random.default_rng(depth)
    layers = []
    for number in range(depth):
        before = inputs if number == 0 else 64
        after = outputs if number == depth - 1 else 64
        weight = chance.normal(0, np.sqrt(2 / (9 * before)), (3, 3, before, after))
        layer = Conv(weight.astype("f4"), chance.normal(0, 0.1, after).astype("f4"))
        if norm and 0 < number < depth - 1:
            moments = np.stack([chance.normal(0, 0.1, after), chance.uniform(0.5, 1.5, after)], 1)
            scale, shift = chance.uniform(0.5, 1.5, after), chance.normal(0, 0.1, after)
            layer = replace(layer, norm=tuple(a.astype("f4") for a in (scale, shift, moments)))
        layers.append(layer)
    return layers


def simple_layers(layers: list[Conv], ends: tuple[str, ...] = ()) -> list[dict[str, object]]:
    """List MatConvNet's SimpleNN layers, with what it keeps besides the tensors."""
    found: list[dict[str, object]] = [{"type": kind, "weights": []} for kind in ends]
    for number, layer in enumerate(layers):
        # MATLAB drops trailing axes of one.
        weight = layer.weight[..., 0] if layer.weight.shape[3] == 1 else layer.weight
        tensors = [weight, layer.bias[:, None]]
        found.append({"type": "conv", "name": f"layer{len(found)}", "weights": tensors})
        if layer.norm is not None:
            scale, shift, moments = layer.norm
            tensors = [scale[:, None], shift[:, None], moments]
            found.append({"type": "bnorm", "name": f"layer{len(found)}", "weights": tensors})
        if number < len(layers) - 1:
            found.append({"type": "relu", "leak": 0.0})
    return [*found, *({"type": kind, "weights": []} for kind in ends[::-1])]


def write_matlab5(path, layers: list[dict[str, object]]) -> None:
    """Write a SimpleNN as MATLAB's save does, before version 7.3."""
    cell = np.empty((1, len(layers)), object)
    for number, layer in enumerate(layers):
        entry = dict(layer)
        if "weights" in entry:
            tensors = np.empty((1, len(layer["weights"])), object)
            tensors[0, :] = [*layer["weights"]]
            entry["weights"] = tensors
        cell[0, number] = entry
    savemat(path, {"net": {"layers": cell}})


class Matlab73:
    """Write what MATLAB's save -v7.3 does: HDF5, axes reversed, cells as references."""

    def __init__(self, path) -> None:
        self.file = h5py.File(path, "w", userblock_size=512)
        self.count = 0

    def put(self, group: h5py.Group, key: str, value: object) -> None:
        kind = "struct"
        if isinstance(value, dict):
            inside = group.create_group(key)
            for name, item in value.items():
                self.put(inside, name, item)
        elif isinstance(value, list) and not value:
            kind = "cell"
            group.create_dataset(key, data=np.zeros(2, "u8")).attrs["MATLAB_empty"] = np.uint8(1)
        elif isinstance(value, list):
            kind = "cell"
            cell = group.create_dataset(key, (len(value), 1), h5py.ref_dtype)
            for number, item in enumerate(value):
                name = f"#refs#/{self.count}"
                self.count += 1
                self.put(self.file, name, item)
                cell[number, 0] = self.file[name].ref
        elif isinstance(value, str):
            kind = "char"
            group[key] = np.array([[ord(letter)] for letter in value], "u2")
        else:
            kind = "single"
            group[key] = np.asarray(value).T
        group[key].attrs["MATLAB_class"] = np.bytes_(kind)


def write_matlab73(path, net: dict[str, object]) -> None:
    writer = Matlab73(path)
    with writer.file:
        writer.put(writer.file, "net", net)


def write_dagnn(path, layers: list[Conv]) -> None:
    """Write a DagNN: a graph that ends with the sum of its input and the last layer."""
    table = []
    names, values = [], []
    for layer in simple_layers(layers):
        kind = {"conv": "Conv", "bnorm": "BatchNorm", "relu": "ReLU"}[str(layer["type"])]
        own = [f"{layer.get('name')}_{number}" for number in range(len(layer.get("weights", [])))]
        table.append((f"dagnn.{kind}", kind, own))
        names += own
        values += layer.get("weights", [])
    table += [("dagnn.Sum", "sum", []), ("dagnn.Loss", "loss", [])]
    fields = ("type", "name", "params")
    columns = {field: [row[number] for row in table] for number, field in enumerate(fields)}
    # Parameters are found by name: their order in the file is free.
    params = {"name": names[::-1], "value": values[::-1]}
    write_matlab73(path, {"layers": columns, "params": params})


def write_state_dict(path, layers: list[Conv], bias: bool) -> None:
    """Write a state_dict of nn.Sequential in nn.DataParallel."""
    state, place = {}, 0
    for layer in layers:
        state[f"module.net.{place}.weight"] = torch.tensor(layer.weight.transpose(3, 2, 0, 1))
        if bias:
            state[f"module.net.{place}.bias"] = torch.tensor(layer.bias)
        if layer.norm is not None:
            place += 1
            scale, shift, moments = map(torch.tensor, layer.norm)
            state |= {
                f"module.net.{place}.weight": scale,
                f"module.net.{place}.bias": shift,
                f"module.net.{place}.running_mean": moments[:, 0],
                f"module.net.{place}.running_var": moments[:, 1] ** 2 - 1e-5,
                f"module.net.{place}.num_batches_tracked": torch.tensor(7),
            }
        place += 2
    torch.save(state, path)


def chain(x: torch.Tensor, layers: list[Conv]) -> torch.Tensor:
    """Compute the layers one by one in double precision."""
    x = x.double()
    for number, layer in enumerate(layers):
        weight = torch.tensor(np.moveaxis(layer.weight, (3, 2), (0, 1))).double()
        x = functional.conv2d(x, weight, torch.tensor(layer.bias).double(), padding=1)
        if layer.norm is not None:
            scale, shift, moments = (torch.tensor(a).double() for a in layer.norm)
            mean, deviation = moments.unbind(1)
            x = (x - mean[:, None, None]) / deviation[:, None, None]
            x = x * scale[:, None, None] + shift[:, None, None]
        if number < len(layers) - 1:
            x = x.relu()
    return x


def assert_same(net: torch.nn.Module, x: torch.Tensor, expected: torch.Tensor, *more) -> None:
    with torch.no_grad():
        y = net(x, *more)
    assert (expected - x).abs().max() > 0.1  # a net that does nothing would not do
    # Seventeen layers in float32; relative to the largest value.
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("layout", "depth", "norm"),
    [
        ("matlab5", 17, True),
        ("matlab73", 17, False),
        ("matlab73", 20, True),
        ("state_dict", 17, True),
        ("state_dict", 20, False),
    ],
)
def test_dncnn_computes_its_published_layers(layout, depth, norm, tmp_path):
    layers = draw(depth, norm=norm)
    path = tmp_path / ("net.pth" if layout == "state_dict" else "net.mat")
    if layout == "state_dict":
        write_state_dict(path, layers, bias=True)
    elif layout == "matlab5":
        write_matlab5(path, simple_layers(layers))
    else:
        write_matlab73(path, {"layers": simple_layers(layers)})
    x = torch.rand(1, 1, 19, 24)
    assert_same(load("dncnn", path), x, x - chain(x, layers))


def test_dncnn_without_biases(tmp_path):
    layers = [replace(layer, bias=0 * layer.bias) for layer in draw(17, norm=True)]
    write_state_dict(tmp_path / "net.pth", layers, bias=False)
    x = torch.rand(1, 1, 19, 24)
    assert_same(load("dncnn", tmp_path / "net.pth"), x, x - chain(x, layers))


def test_a_graph_that_adds_its_input_has_learned_the_negative(tmp_path):
    layers = draw(17, norm=True)
    write_dagnn(tmp_path / "net.mat", layers)
    x = torch.rand(1, 1, 19, 24)
    assert_same(load("dncnn", tmp_path / "net.mat"), x, x + chain(x, layers))


@pytest.mark.parametrize("layout", ["matlab5", "matlab73", "state_dict"])
def test_ffdnet_computes_its_published_layers(layout, tmp_path):
    layers = draw(15, inputs=5, outputs=4)
    # Sub-images: MATLAB goes down the columns, torch along the rows.
    places = [(0, 0), (1, 0), (0, 1), (1, 1)]
    path = tmp_path / "net.mat"
    if layout == "matlab5":
        write_matlab5(path, simple_layers(layers, ends=("SubP", "concat")))
    elif layout == "matlab73":
        write_matlab73(path, {"layers": simple_layers(layers, ends=("SubP", "concat"))})
    else:
        path, places = tmp_path / "net.pth", [(0, 0), (0, 1), (1, 0), (1, 1)]
        write_state_dict(path, layers, bias=True)
    x = torch.rand(1, 1, 21, 27)
    even = functional.pad(x, (0, 1, 0, 1), mode="replicate")
    parts = torch.cat([even[..., row::2, column::2] for row, column in places], 1)
    level = torch.full_like(parts[:, :1], 0.1)
    expected = torch.empty(even.shape, dtype=torch.float64)
    clean = chain(torch.cat([parts, level], 1), layers)
    for part, (row, column) in enumerate(places):
        expected[..., row::2, column::2] = clean[:, part : part + 1]
    assert_same(load("ffdnet", path), x, expected[..., :21, :27], torch.full_like(x, 0.1))


def test_what_does_not_fit_is_named(tmp_path):
    path = tmp_path / "net.pth"
    layers = draw(17, norm=True)
    cases = [
        ("dncnn", layers[:-1], r"net\.pth holds 16 convolutions; dncnn has 17 or 20"),
        ("ffdnet", layers, "17 convolutions; ffdnet has 15"),
        (
            "dncnn",
            [*layers[:4], replace(layers[4], weight=layers[4].weight[:, :, :32]), *layers[5:]],
            r"layer 5 of 17, 'module.net.11', has weights \(64, 32, 3, 3\), expected \(64, 64",
        ),
        (
            "dncnn",
            [*layers[:4], replace(layers[4], bias=layers[4].bias[:7]), *layers[5:]],
            r"layer 5 of 17.*has biases \(7,\), expected \(64,\)",
        ),
        (
            "dncnn",
            [*layers[:4], replace(layers[4], norm=None), *layers[5:]],
            "layer 5 of 17.*has no batch norm, expected one",
        ),
        ("dncnn", draw(17, inputs=3), r"layer 1 of 17.*\(64, 3, 3, 3\).*grey"),
        ("ffdnet", draw(15, 5, 4, norm=True), "layer 2 of 15.*has a batch norm, expected none"),
        ("unet", layers, "dncnn, ffdnet"),
    ]
    for model, wrong, told in cases:
        write_state_dict(path, wrong, bias=True)
        with pytest.raises(ModelError, match=told):
            load(model, path)


def test_files_that_hold_no_such_net_are_named(tmp_path):
    damaged = tmp_path / "damaged.mat"
    damaged.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    elsewhere = tmp_path / "elsewhere.mat"
    savemat(elsewhere, {"weights": np.zeros((3, 3))})
    pooled = tmp_path / "pooled.mat"
    write_matlab5(pooled, [*simple_layers(draw(17)), {"type": "convt", "weights": [np.zeros(3)]}])
    module = tmp_path / "module.pth"
    torch.save(torch.nn.Conv2d(1, 1, 3), module)
    number = tmp_path / "number.pth"
    torch.save({"epoch": 3}, number)
    for path, told in [
        (damaged, "damaged.mat is not a MATLAB file with a MatConvNet network"),
        (elsewhere, "elsewhere.mat is not a MATLAB file with a MatConvNet network"),
        (pooled, "cannot use 'unnamed', a layer of kind convt"),
        (module, "module.pth is not a plain PyTorch state_dict"),
        (number, "number.pth: expected a state_dict"),
        (tmp_path / "net.caffemodel", r"\.mat or \.pth"),
        (tmp_path / "nowhere.mat", "nowhere.mat: no such file"),
    ]:
        with pytest.raises(CheckpointError, match=told):
            load("dncnn", path)


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """Weights of a DnCNN that finds no noise: what goes in comes out."""
    layers = draw(17)
    layers[-1] = Conv(0 * layers[-1].weight, 0 * layers[-1].bias)
    path = tmp_path_factory.mktemp("silent") / "net.mat"
    write_matlab73(path, {"layers": simple_layers(layers)})
    return path


def write_images(folder, count: int, grey: int = 128, side: int = 24):
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.full((side, side), grey, np.uint8)).save(folder / f"{number:02}.png")
    return folder


def test_psnr_of_plain_noise_is_that_of_its_sigma(silent, tmp_path):
    # 20 log10(255 / 25) = 20.17 dB; 96 x 96 pixels leave an uncertainty of 0.06 dB.
    grey = compare(PublishedConfig(silent, write_images(tmp_path / "grey", 1, side=96)))
    row = grey.images.row(0, named=True)
    assert row["noisy dB"] == pytest.approx(20.17, abs=0.2)
    assert row["not rounded dB"] == row["noisy dB"]
    assert row["denoised dB"] == pytest.approx(row["noisy dB"], abs=0.01)
    assert grey.published_db is None
    # Near white, clipping to 8 bits removes nearly half of the noise's power.
    white = compare(PublishedConfig(silent, write_images(tmp_path / "white", 1, 254, 96)))
    row = white.images.row(0, named=True)
    assert row["not rounded dB"] == row["noisy dB"]
    assert row["denoised dB"] - row["noisy dB"] == pytest.approx(3.0, abs=0.4)
    assert white.mean_db == pytest.approx(row["denoised dB"], abs=1e-3)


def test_a_figure_far_from_the_paper_is_an_error(silent, tmp_path, capfd):
    folder = write_images(tmp_path / "Set12", 12, side=8)
    found = compare(PublishedConfig(silent, folder))
    assert found.published_db == pytest.approx(30.44, abs=0.01)
    with pytest.raises(ParityError, match=r"published 30\.44 dB.*more than 0\.05 dB"):
        verdict(found)
    assert "difference +0.040" in verdict(replace(found, mean_db=found.published_db + 0.04))
    with pytest.raises(SystemExit) as left:
        cli.main(["published", str(silent), str(folder), "--sigma", "25"])
    captured = capfd.readouterr()
    assert left.value.code == 1
    assert "| 11.png |" in captured.out
    assert "published 30.44 dB" in captured.err.splitlines()[-1]
    # Neither a part of the set nor another noise level is held against the paper.
    assert compare(PublishedConfig(silent, folder, sigma=20)).published_db is None
    (folder / "11.png").unlink()
    assert "no published figure" in verdict(compare(PublishedConfig(silent, folder)))


def test_images_must_be_grey_and_there(silent, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "colour.png")
    with pytest.raises(FormatError, match=r"colour\.png: pixels of kind RGB; expected 8-bit grey"):
        compare(PublishedConfig(silent, tmp_path))
    (tmp_path / "colour.png").write_text("no image")
    with pytest.raises(FormatError, match="not an image"):
        compare(PublishedConfig(silent, tmp_path))
    (tmp_path / "colour.png").unlink()
    with pytest.raises(FormatError, match="no images"):
        compare(PublishedConfig(silent, tmp_path))


def dead_leaves(chance: np.random.Generator, side: int) -> Array:
    """Draw discs of power-law sizes that hide one another: edges as photographs have them."""
    y, x = np.mgrid[:side, :side]
    image = np.zeros((side, side), np.float32)
    for _ in range(40):
        radius = 6 / chance.uniform(0.1, 1)
        row, column = chance.uniform(0, side, 2)
        image[(y - row) ** 2 + (x - column) ** 2 < radius**2] = chance.uniform(0, 1)
    return image


def test_dncnn_learns_to_remove_gaussian_noise():
    """A small one beats the best Gaussian filter by 0.7 dB on images that it has not seen."""
    torch.manual_seed(0)
    chance = np.random.default_rng(0)
    images = torch.tensor(np.stack([dead_leaves(chance, 64) for _ in range(44)]))[:, None]
    train, test = images[:40], images[40:]
    sigma = 25 / 255
    net = DnCNN(features=16, depth=4)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=300)
    for _ in range(300):
        clean = train[torch.randint(40, (8,))]
        row, column = torch.randint(33, (2,)).tolist()
        clean = clean[..., row : row + 32, column : column + 32]
        loss = functional.mse_loss(net(clean + sigma * torch.randn_like(clean)), clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    noisy = test + sigma * torch.randn_like(test)
    with torch.no_grad():
        denoised = net.eval()(noisy)

    def gain(result: torch.Tensor) -> float:
        ratio = (noisy - test).square().mean() / (result - test).square().mean()
        return float(10 * torch.log10(ratio))

    widths = ([0, 0, s, s] for s in (0.5, 0.6, 0.7, 0.8, 1.0, 1.2))
    best = max(gain(torch.tensor(ndimage.gaussian_filter(noisy.numpy(), w))) for w in widths)
    assert best > 4
    assert gain(denoised) > best + 0.7
