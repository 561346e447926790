"""A net as a self-contained ONNX graph: its conversion, what describes it, and checks of it."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnxscript import ir
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from torch import Tensor, nn

from emdn_deploy import batching
from emdn_deploy.session import open_session
from emdn_models import ModelError, ParityError, __version__
from emdn_models.files import renamed
from emdn_models.nets.scaling import denormalise, middle, noise_map, normalise

log = logging.getLogger(__name__)
# They warn of every torchvision operator that is not there, and of constants that stay.
for converter in ("torch.onnx", "onnxscript"):
    logging.getLogger(converter).setLevel(logging.ERROR)

OPSET = 18
INPUTS = ("frames", "scale", "offset", "gain")
_PACKED = 1024  # numbers of a constant from which on it is worth a Cast

TOLERANCE = 1e-5
"""Largest difference from torch that is let through, as a share of the output's range."""

_SIZES = ((1, 256, 256), (3, 97, 131), (2, 64, 48), (1, 5, 3))
_UNITS = ((0.5, 0.0, 1.0), (40.0, 0.0, 1.0), (9.0, 120.0, 28.0))  # scale, offset, gain


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


def to_onnx(graph: Graph, frames: int = 1) -> onnx.ModelProto:
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
    assert program is not None
    # Kernels that a net derives from its weights, but no matrices: they would double the file.
    return folded(program.model, lambda node: len(node.outputs[0].shape or ()) > 2 or None)


def folded(model: ir.Model, chosen: Callable[[ir.Node], bool | None]) -> onnx.ModelProto:
    """Compute what chosen nodes make of constants, of any size, and store that."""
    fold_constants(model, output_size_limit=2**30, should_fold=chosen)
    remove_unused_nodes(model)
    return ir.to_proto(model)


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


def unpacked(path: Path) -> onnx.ModelProto:
    """Read a model, with float32 constants in place of what `pack` has stored."""
    return folded(ir.load(path), lambda node: node.op_type == "Cast")


def describe(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace torch's traces, which hold paths of this machine, by what deploying needs."""
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    for one in (graph, *graph.node, *graph.initializer, *values):
        del one.metadata_props[:]
        one.doc_string = ""
    graph.name = metadata["model"]
    model.producer_name, model.producer_version = "emdn", __version__
    helper.set_model_props(model, dict(metadata))


def write(net: nn.Module, frames: int, metadata: Mapping[str, str], path: Path) -> float:
    """Write a net that sees some frames to ``path``, if it is proven; return what `compare` does.

    A `ParityError` says that the graph does not compute what the net does, a `ModelError`, that it
    sees more than ``metadata`` declare.
    """
    model = to_onnx(Graph(net), frames)
    pack(model)
    describe(model, metadata)
    with renamed(path) as partial:
        onnx.save(model, partial)
        error = compare(net, partial)
        check_field(partial)
    return error


def compare(net: nn.Module, path: Path) -> float:
    """Compare an exported file with its net over sizes, batches, doses and units.

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
            frames = (rng.poisson(scale * lattice * beam, shape) * gain + offset).astype("f4")
            column = [torch.full((count, 1, 1, 1), value) for value in (scale, offset, gain)]
            with torch.no_grad():
                expected = reference(torch.from_numpy(frames), *column)[:, 0].numpy()
            found = session.run(frames, scale, offset, gain)
            # A frame of a few pixels, or a constant one, has next to no range of its own.
            extent = extent or max(float(np.ptp(expected)), gain * scale**0.5)
            worst = max(worst, float(np.abs(found - expected).max()) / extent)
    if not worst <= TOLERANCE:
        raise ParityError(
            f"{session.info.name}: onnxruntime differs from torch by {worst:.1e} of the output's "
            f"range, more than {TOLERANCE:.0e}; nothing was written"
        )
    return worst


def check_field(path: Path) -> None:
    """Check that tiles of the size and border that a file declares equal the whole frame.

    What the file says comes from the model's Preset; that it needs whole frames is taken at its
    word. Noise is cut into three tiles along either axis; if they differ from the frame in a bit,
    a `ModelError` names what to declare in spec.py.
    """
    session = open_session(path, "cpu", 1)
    info, rng = session.info, np.random.default_rng(0)
    if not info.tiling_exact:
        log.warning("%s: not for tiles: %s", info.name, info.text.get("whole_frame"))
        return
    border = info.halo
    # An odd number of cells, lest tiles begin on multiples that are not declared.
    core = info.multiple * (-(-max(border, 16) // info.multiple) | 1)
    long, short = 3 * core - info.multiple // 2 - 1, max(info.multiple, 16) - 3
    for size in ((long, short), (short, long)):
        frames = rng.poisson(40, (1, info.frames, *size)).astype(np.float32)
        pixels = short * (core + 2 * border)
        out = batching.by_tiles(lambda tile: session.run(tile, 20, 0, 1), frames, info, pixels)
        difference = float(np.abs(session.run(frames, 20, 0, 1) - out).max())
        if difference:
            raise ModelError(
                f"{info.name}: a frame in tiles with a border of {border} pixels differs from the "
                f"whole frame by {difference:.1e}; correct receptive_field, multiple or halo of "
                f"its Preset {info.preset!r} in emdn_models/spec.py, or give it whole_frame"
            )
