"""The intensities around a net, with as few passes over the frame as possible."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.electrons import BLUR
from emdn_train.onnx_graph import Graph
from emdn_train.rewrite.chains import Residual


class FoldedGraph(nn.Module):
    """What `emdn_train.onnx_graph.Graph` computes, with its chains of scalars folded.

    With the centre c = offset + scale gain and the unit u = sqrt(scale) gain, both one
    number a frame, the net's input ((f - offset) / gain - scale) / sqrt(scale) is
    x = (f - c) / u, and its output y in intensities is y u + c. For y = x + r that is
    f + r u: the frame itself, untouched.

    The noise map sqrt(max(blur(e), 1 / BLUR**2) / scale) follows from x too, since a
    mean of e / scale = x / sqrt(scale) + 1 is that of x, scaled: it is
    sqrt(max(blur(x) / sqrt(scale) + 1, 1 / (BLUR**2 scale))).
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.net = graph.net

    def forward(self, frames: Tensor, scale: Tensor, offset: Tensor, gain: Tensor) -> Tensor:
        """Denoise (n, 1, h, w)."""
        root = torch.sqrt(scale)
        centre, unit = offset + scale * gain, root * gain
        x = (frames - centre) / unit
        if isinstance(self.net, Residual):
            return frames + self.net.residual(x) * unit
        noise = None
        if getattr(self.net, "uses_noise", False):
            relative = separable_blur(x) / root + 1
            noise = torch.sqrt(torch.maximum(relative, 1 / (BLUR**2 * scale)))
        y: Tensor = self.net(x, noise)
        return y * unit + centre


def separable_blur(x: Tensor) -> Tensor:
    """Average over BLUR x BLUR pixels, by rows and then by columns.

    The pixels of the box that lie inside the frame form a rectangle, and the mean over
    a rectangle is the mean over its columns of the means over its rows: 2 BLUR
    additions a pixel instead of BLUR**2.
    """
    half = BLUR // 2
    for window, padding in (((1, BLUR), (0, half)), ((BLUR, 1), (half, 0))):
        x = functional.avg_pool2d(x, window, 1, padding, count_include_pad=False)
    return x
