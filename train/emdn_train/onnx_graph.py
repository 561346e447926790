"""A net as a self-contained ONNX graph: its conversion, exact rewrites before it, checks after it.

Rewrites put other layers in place of a net's own: the same numbers, faster in onnxruntime, which
keeps channels in blocks of 8 or 16 and runs plain 3 x 3 convolutions on them near the machine's
peak; what costs time is the rest of a graph. Each rewrite is algebra, not approximation, and is
compared with what it replaces by a test and by the export itself. What brings less than 5 % of a
frame's time is not here.
"""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from emdn_deploy import batching
from emdn_deploy.session import Session, open_session
from emdn_models import ModelError, ParityError, __version__
from emdn_models.nets.architectures import MSDNet, Up
from emdn_models.nets.blocks import crop_to, pad_to_multiple
from emdn_models.nets.scaling import denormalise, middle, noise_map, normalise

log = logging.getLogger(__name__)
# It warns of every torchvision operator that is not there.
logging.getLogger("torch.onnx").setLevel(logging.ERROR)

OPSET = 18
INPUTS = ("frames", "scale", "offset", "gain")
_PACKED = 1024  # numbers of a constant from which on it is worth a Cast

TOLERANCE = 1e-5
"""Largest difference from torch that is let through, as a share of the output's range."""

_SIZES = ((1, 256, 256), (3, 97, 131), (2, 64, 48), (1, 5, 3))
_UNITS = ((0.5, 0.0, 1.0), (40.0, 0.0, 1.0), (9.0, 120.0, 28.0))  # scale, offset, gain
_NUMBERS = (20.0, 0.0, 1.0)


class Graph(nn.Module):
    """A net between intensities in and intensities out, as it is exported.

    denoised = ((net((e - scale) / sqrt(scale))) * sqrt(scale) + scale) * gain + offset
    with e = (frames - offset) / gain. ``frames`` is (n, 1, h, w), or (n, F, h, w), each amid its
    neighbours, of which the net makes the middle one; scale (mean
    electrons per pixel), offset and gain (units per electron) are (n, 1, 1, 1).
    Nothing in it depends on the whole frame, so that it can be tiled and streamed.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, frames: Tensor, scale: Tensor, offset: Tensor, gain: Tensor) -> Tensor:
        """Map (n, F, h, w) to the middle frames denoised, (n, 1, h, w)."""
        electrons = (frames - offset) / gain
        y = self.net(normalise(electrons, scale), noise_map(middle(electrons), scale))
        return denormalise(y, scale) * gain + offset


def to_onnx(graph: nn.Module, frames: int = 1) -> onnx.ModelProto:
    """Convert a graph of (n, frames, h, w), n, h and w dynamic, to ONNX operators of opset 18."""
    # The example is larger than any multiple, so that no size is taken as fixed.
    example = (
        torch.rand(2, frames, 320, 288) * 50,
        *(torch.rand(2, 1, 1, 1) + 1 for _ in range(3)),
    )
    n, h, w = (torch.export.Dim(axis, min=1) for axis in "nhw")
    with warnings.catch_warnings():
        # torch's own converter warns of its own deprecations.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=["denoised"],
            dynamic_shapes=({0: n, 2: h, 3: w}, {0: n}, {0: n}, {0: n}),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise ModelError("torch.onnx.export returned no program")
    model: onnx.ModelProto = program.model_proto
    operators = {node.op_type for node in model.graph.node}
    if "BatchNormalization" in operators:
        log.warning("batch norm stays in the graph: it follows a ReLU and cannot be folded")
    foreign = {node.domain for node in model.graph.node} - {""}
    if foreign:
        raise ModelError(f"the graph uses operators outside ONNX: {', '.join(sorted(foreign))}")
    return model


def pack(model: onnx.ModelProto) -> None:
    """Store constants that float16 holds exactly in it, each behind a Cast to float32.

    The file is half as large and computes the same: onnxruntime casts when it opens it.
    """
    graph, casts = model.graph, []
    for constant in graph.initializer:
        if constant.data_type != onnx.TensorProto.FLOAT or math.prod(constant.dims) < _PACKED:
            continue
        values = numpy_helper.to_array(constant)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if np.array_equal(halves.astype(np.float32), values):
            name, stored = constant.name, f"{constant.name}.float16"
            constant.CopyFrom(numpy_helper.from_array(halves, stored))
            casts.append(helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def unpacked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with float32 constants in place of what `pack` has stored."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    stored = {one.name: one for one in made.graph.initializer}
    for node in list(made.graph.node):
        if node.op_type == "Cast" and node.input[0] in stored:
            constant = stored[node.input[0]]
            values = numpy_helper.to_array(constant).astype(np.float32)
            constant.CopyFrom(numpy_helper.from_array(values, node.output[0]))
            made.graph.node.remove(node)
    return made


def describe(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace torch's traces, which hold paths of this machine, by what deploying needs."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for values in (model.graph.value_info, model.graph.input, model.graph.output):
        for value in values:
            del value.metadata_props[:]
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    model.graph.name = metadata["model"]
    model.producer_name, model.producer_version = "emdn", __version__
    onnx.helper.set_model_props(model, dict(metadata))


def rewritten(module: nn.Module) -> nn.Module:
    """Return a copy of a net, or of the graph around one, with every rewrite applied."""
    return _replaced(copy.deepcopy(module).eval())


def _replaced(module: nn.Module) -> nn.Module:
    rewrite = REWRITES.get(type(module))
    if rewrite is not None:
        module = rewrite(module).eval()
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return module


def convolution(weight: Tensor, bias: Tensor | None, padding: int) -> nn.Conv2d:
    """Return a convolution with a given kernel, (outputs, inputs, rows, columns)."""
    outputs, inputs, rows, columns = weight.shape
    size = rows, columns
    conv = nn.Conv2d(inputs, outputs, size, padding=padding, bias=bias is not None)
    conv.weight.data = weight.contiguous()
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def transposed_as_conv(layer: nn.ConvTranspose2d) -> nn.Conv2d:
    """Write a transposed convolution of stride 1 as a convolution.

    y[p] = sum over q of w[in, out, q] x[p + padding - q]: reversing q turns it into a convolution
    whose kernel is flipped and whose channel axes are swapped, padded by kernel - 1 - padding.
    """
    weight = layer.weight.data.flip(-1, -2).transpose(0, 1)
    pads = layer.kernel_size[0] - 1 - int(layer.padding[0])
    return convolution(weight, layer.bias, pads)


class ShuffledUp(nn.Module):
    """Repeat 2 x 2 and convolve 4 x 4, as one 3 x 3 convolution and a pixel-shuffle.

    Output pixel 2 i + a reads the repeated pixels 2 i + a - 1 ... 2 i + a + 2, which are copies of
    the pixels i - 1, i, i, i + 1 for a = 0 and i, i, i + 1, i + 1 for a = 1. Adding up the taps
    that read the same pixel leaves a 3 x 3 kernel on the small image for each of the four phases:
    36 products a pixel instead of 64.
    """

    taps = (
        ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
        ((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0)),
    )

    def __init__(self, up: Up) -> None:
        super().__init__()
        # (phase, tap of 3, tap of 4) on each axis.
        sums = torch.tensor(self.taps, dtype=up.conv.weight.dtype)
        kernels = torch.einsum("ayk,bxl,oikl->oabiyx", sums, sums, up.conv.weight.data)
        assert up.conv.bias is not None
        self.conv = convolution(kernels.flatten(0, 2), up.conv.bias.repeat_interleave(4), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, 2 H, 2 W)."""
        return functional.pixel_shuffle(self.conv(x), 2)


class BlockedMSDNet(nn.Module):
    """MSDNet with every convolution as a product and a scatter, in blocks of layers.

    Layer j computes relu(b_j + sum over i < j of W_ji x_i): dilated 3 x 3 kernels W_ji on all maps
    x_i before it. For a layer of the block of layers that starts at s, the sum falls into two,

        sum over i < s of W_ji x_i   +   sum over s <= i < j of W_ji x_i.

    All layers of the block with one dilation share the first as a single convolution; only the
    second has to wait for the layers before j. So the long stack of maps is copied and read once a
    block and not once a layer. The last layer, 1 x 1, falls apart in the same way. A layer has one
    or two output maps, of which onnxruntime computes 8 or 16: hence `Scatter`. A block holds every
    dilation twice: longer ones copy more within a block, shorter ones read the stack more often.
    """

    def __init__(self, net: MSDNet) -> None:
        super().__init__()
        self.shuffle = net.shuffle
        layers = [layer for layer in net.layers if isinstance(layer, nn.Conv2d)]
        size = 2 * len({layer.dilation for layer in layers})
        self.blocks = nn.ModuleList(
            Block(layers[start : start + size]) for start in range(0, len(layers), size)
        )
        # The last block's maps are not joined to the others: the 1 x 1 layer adds up.
        fresh = sum(layer.out_channels for layer in layers[(len(self.blocks) - 1) * size :])
        weight = net.last.weight.data
        self.last_before = Scatter(weight[:, :-fresh], net.last.bias)
        self.last_fresh = Scatter(weight[:, -fresh:])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy to (N, 1, H, W) clean; ``noise`` is not used."""
        maps = functional.pixel_unshuffle(pad_to_multiple(x, self.shuffle), self.shuffle)
        *blocks, final = self.blocks
        for block in blocks:
            maps = torch.cat([maps, block(maps)], 1)
        y = self.last_before(maps) + self.last_fresh(final(maps))
        return crop_to(functional.pixel_shuffle(y, self.shuffle), x)


class Block(nn.Module):
    """Consecutive layers of an MSDNet: from all maps before them to their own."""

    def __init__(self, layers: list[nn.Conv2d]) -> None:
        super().__init__()
        before, self.width = layers[0].in_channels, layers[0].out_channels
        together: dict[int, list[int]] = {}
        for number, layer in enumerate(layers):
            together.setdefault(layer.dilation[0], []).append(number)
        self.members = list(together.values())
        self.before = nn.ModuleList(
            Scatter(
                torch.cat([layers[number].weight.data[:, :before] for number in numbers]),
                torch.cat([_bias(layers[number]) for number in numbers]),
                dilation,
            )
            for dilation, numbers in together.items()
        )
        self.within = nn.ModuleList(
            Scatter(layer.weight.data[:, before:], None, layer.dilation[0]) for layer in layers[1:]
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, before, H, W) to (N, width x layers, H, W)."""
        sums: dict[int, Tensor] = {}
        for numbers, scatter in zip(self.members, self.before, strict=True):
            sums.update(zip(numbers, scatter(maps).split(self.width, 1), strict=True))
        fresh = [torch.relu(sums[0])]
        for number, scatter in enumerate(self.within, 1):
            fresh.append(torch.relu(sums[number] + scatter(torch.cat(fresh, 1))))
        return torch.cat(fresh, 1)


class Scatter(nn.Module):
    """A zero-padded convolution with few outputs, (outputs, inputs, k, k), in transposed form.

    y[p] = sum over q of w[q] x[p + d q] is also "each pixel r of x adds w[q] x[r] to y[r - d q]",
    a transposed convolution by the kernel turned by 180 degrees. onnxruntime runs that as one
    matrix product, of (k**2 outputs, inputs) with (inputs, pixels), and a scatter of its rows.
    The pixels fill the vectors, however few the outputs are.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.data.flip(-1, -2).transpose(0, 1).contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.data)
        self.dilation, self.padding = dilation, dilation * (weight.shape[-1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W)."""
        return functional.conv_transpose2d(
            x, self.weight, self.bias, padding=self.padding, dilation=self.dilation
        )


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # every layer of these nets has one
    return layer.bias.data


REWRITES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.ConvTranspose2d: transposed_as_conv,
    Up: ShuffledUp,
    MSDNet: BlockedMSDNet,
}
"""What replaces a module of each type, and is then searched for more; it may take its tensors."""


def compare(net: nn.Module, path: Path) -> float:
    """Hold an exported file against its net over sizes, batches, doses and units.

    Returns the largest difference from torch, as a share of the output's range; if it exceeds
    ``TOLERANCE``, a `ParityError` is raised.
    """
    session = open_session(path, "cpu")
    reference, worst = Graph(net).eval(), 0.0
    rng = np.random.default_rng(0)
    for scale, offset, gain in _UNITS:
        extent = 0.0
        for count, height, width in _SIZES:
            # A lattice under a sloping beam, counted: what a camera would give.
            y, x = np.mgrid[:height, :width]
            lattice = 1 + 0.3 * np.cos(x / 2.3) * np.cos(y / 2.9 + x / 4)
            beam = 0.5 + np.linspace(0, 1, width)
            shape = count, session.info.frames, height, width
            counts = rng.poisson(scale * lattice * beam, shape).astype(float)
            frames = (counts * gain + offset).astype("f4")
            column = [torch.full((count, 1, 1, 1), value) for value in (scale, offset, gain)]
            with torch.no_grad():
                expected = reference(torch.from_numpy(frames), *column)[:, 0].numpy()
            found = session.run(frames, scale, offset, gain)
            # A frame of a few pixels, or a constant one, has next to no range of its own.
            extent = extent or max(float(np.ptp(expected)), gain * scale**0.5)
            worst = max(worst, float(np.abs(found - expected).max()) / extent)
    if not worst <= TOLERANCE:
        raise ParityError(
            f"{path.name}: onnxruntime differs from torch by {worst:.1e} of the output's range, "
            f"more than {TOLERANCE:.0e}; nothing was written"
        )
    return worst


def check_field(path: Path) -> None:
    """Check that tiles of the size and border that a file declares equal the whole frame.

    What the file says comes from the model's Preset; that it needs whole frames is taken at its
    word. If they differ in a bit, a `ModelError` names what to declare in spec.py.
    """
    session = open_session(path, "cpu", 1)
    info = session.info
    if not info.tiling_exact:
        log.warning("%s: not for tiles: %s", info.name, info.text.get("whole_frame"))
    elif difference := tiled(session):
        raise ModelError(
            f"{info.name}: a frame in tiles with a border of {info.halo} pixels differs "
            f"from the whole frame by {difference:.1e}; correct receptive_field, multiple or halo "
            f"of its Preset {info.preset!r} in emdn_models/spec.py, or give it whole_frame"
        )


def tiled(session: Session) -> float:
    """Return by how much noise in three tiles differs from the whole frame, along either axis."""
    info, worst, rng = session.info, 0.0, np.random.default_rng(0)
    border = info.halo
    # An odd number of cells, lest tiles begin on multiples that are not declared.
    core = info.multiple * (-(-max(border, 16) // info.multiple) | 1)
    long, short = 3 * core - info.multiple // 2 - 1, max(info.multiple, 16) - 3
    for size in ((long, short), (short, long)):
        frames = rng.poisson(40, (1, info.frames, *size)).astype(np.float32)
        pixels = short * (core + 2 * border)
        out = batching.by_tiles(lambda tile: session.run(tile, *_NUMBERS), frames, info, pixels)
        worst = max(worst, float(np.abs(session.run(frames, *_NUMBERS) - out).max()))
    return worst
