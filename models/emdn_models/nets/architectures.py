"""The seven architectures in torch; papers and their options are in `emdn_models.spec`.

Options: ``features``, channels of a layer (in U-Net and MCNN of the first level; they double
at each further one); ``depth``, number of 3 x 3 layers; ``levels``, number of resolutions;
``shuffle``, by how much a pixel-unshuffle lowers the resolution that the layers work at: they see
``shuffle`` times as far at 1 / shuffle**2 of the cost; ``inputs``, channels of the input, the
frame itself first. The papers' shuffle (but FFDNet's) and inputs are 1.

Modules stand in the order of their paper, so that published weights can be loaded one by one.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.scaling import Error, crop_to, pad_to_multiple


def conv3x3(inputs: int, outputs: int, *, bias: bool = True, dilation: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution, zero-padded to the input's own size."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


def initialise(net: nn.Module, last: nn.Module | None = None) -> None:
    """Draw weights for ReLU layers (He, Zhang, Ren, Sun, ICCV 2015, eq. 10), 0 for ``last``.

    With a last layer of zeros, a net starts at the frame's mean, or at what it adds to.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if last is not None:
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]


class Net(nn.Module):
    """What the architectures share: from pixels to the resolution that they work at, and back."""

    adds_to_input = False  # whether the output is the first input plus a correction
    uses_noise = False

    def __init__(self, shuffle: int = 1, multiple: int | None = None) -> None:
        super().__init__()
        self.shuffle, self.multiple = shuffle, multiple or shuffle

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) noisy, in noise units, to (N, 1, H, W) clean, any H and W.

        ``noise``, (N, 1, H, W), is the standard deviation of the noise in the same units, 1 if not
        given; only nets with ``uses_noise`` look at it.
        """
        raise NotImplementedError

    def pack(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C * shuffle**2, H / shuffle, W / shuffle), padded."""
        x = pad_to_multiple(x, self.multiple)
        return x if self.shuffle == 1 else functional.pixel_unshuffle(x, self.shuffle)

    def unpack(self, y: Tensor, x: Tensor) -> Tensor:
        """Map what was packed back to pixels, of the height and width of ``x``."""
        return crop_to(y if self.shuffle == 1 else functional.pixel_shuffle(y, self.shuffle), x)


class CAFCN(Net):
    """Every layer adds its own estimate of the noise (fig. 2).

    Of a layer's features the first ``shuffle**2`` are the estimate, taken before any activation;
    the others go on through ReLU, but for the last but one layer, which has none.
    """

    adds_to_input = True

    def __init__(self, features: int, depth: int, shuffle: int, inputs: int = 1) -> None:
        super().__init__(shuffle)
        self.estimates = shuffle**2
        widths = [inputs * self.estimates] + [features - self.estimates] * (depth - 1)
        outputs = [features] * (depth - 1) + [self.estimates]
        self.layers = nn.ModuleList(map(conv3x3, widths, outputs))
        initialise(self)
        for layer in self.layers:
            nn.init.zeros_(layer.weight[: self.estimates])  # type: ignore[index]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Net.forward`."""
        flow = self.pack(x)
        total = torch.zeros_like(flow[:, : self.estimates])
        for number, layer in enumerate(self.layers):
            features = layer(flow)
            total = total + features[:, : self.estimates]
            flow = features[:, self.estimates :]
            if number != len(self.layers) - 2:
                flow = torch.relu(flow)
        return x[:, :1] + self.unpack(total, x) / 10


def _chain(
    inputs: int, features: int, outputs: int, depth: int, batch_norm: bool = False
) -> nn.Sequential:
    """3 x 3 layers with ReLU between them, the inner ones with batch norm if it is asked for."""
    layers: list[nn.Module] = [conv3x3(inputs, features), nn.ReLU()]
    for _ in range(depth - 2):
        layers.append(conv3x3(features, features, bias=not batch_norm))
        if batch_norm:
            # 0.05 in torch's convention is the 0.95 of the authors' framework.
            layers.append(nn.BatchNorm2d(features, momentum=0.05))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, conv3x3(features, outputs))


class DnCNN(Net):
    """A plain chain of convolutions that predicts the noise (fig. 1).

    The shipped preset is without the paper's ``batch_norm``: over a range of doses the batch
    statistics are no good description of one frame.
    """

    adds_to_input = True

    def __init__(
        self, features: int, depth: int, shuffle: int, batch_norm: bool = True, inputs: int = 1
    ) -> None:
        super().__init__(shuffle)
        self.layers = _chain(inputs * shuffle**2, features, shuffle**2, depth, batch_norm)
        initialise(self, self.layers[-1])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Net.forward`."""
        packed = self.pack(x)
        return x[:, :1] - self.unpack(self.layers(packed), x)


class FFDNet(Net):
    """Reduced sub-images and a map of the noise level in, the clean ones out (fig. 1).

    For Poisson noise the map varies over the frame (`emdn_models.nets.scaling.noise_map`).
    """

    uses_noise = True

    def __init__(self, features: int, depth: int, shuffle: int = 2, inputs: int = 1) -> None:
        super().__init__(shuffle)
        self.layers = _chain(inputs * shuffle**2 + 1, features, shuffle**2, depth)
        initialise(self, self.layers[-1])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Net.forward`."""
        packed = self.pack(x)
        if noise is None:
            level = torch.ones_like(packed[:, :1])
        else:
            level = functional.avg_pool2d(pad_to_multiple(noise, self.multiple), self.shuffle)
        return self.unpack(self.layers(torch.cat([packed, level], 1)), x)


class UNet(Net):
    """Two convolutions a level, max-pooling down, upsampling and skips up (fig. 1).

    ``benchmark`` is the net of SciML-Bench em_denoise (https://github.com/stfc-sciml/sciml-bench):
    batch norm after each ReLU, bilinear upsampling with aligned corners; it cannot be tiled
    exactly. Otherwise there is no batch norm, upsampling repeats the nearest pixel, and what comes
    from below counts for nothing at first, lest it be learned away before it is of use.
    """

    def __init__(
        self, features: int, levels: int, shuffle: int, benchmark: bool, inputs: int = 1
    ) -> None:
        super().__init__(shuffle, shuffle * 2 ** (levels - 1))
        self.benchmark = benchmark
        widths = [features * 2**level for level in range(levels)]
        packed = inputs * shuffle**2
        self.down = nn.ModuleList(
            self._block(wide, deep) for wide, deep in pairwise([packed, *widths])
        )
        self.up = nn.ModuleList(
            self._block(deep + wide, wide) for wide, deep in reversed(list(pairwise(widths)))
        )
        self.last = conv3x3(features, shuffle**2)
        initialise(self, None if benchmark else self.last)
        for deep, block in zip(reversed(widths[1:]), self.up, strict=True):
            if not benchmark:
                nn.init.zeros_(block[0].weight[:, :deep])  # type: ignore[index]

    def _block(self, inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [conv3x3(channels, outputs), nn.ReLU()]
            if self.benchmark:
                layers.append(nn.BatchNorm2d(outputs))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Net.forward`."""
        flow = self.pack(x)
        skips: list[Tensor] = []
        for block in self.down:
            flow = block(functional.max_pool2d(flow, 2) if skips else flow)
            skips.append(flow)
        skips.pop()
        mode, aligned = ("bilinear", True) if self.benchmark else ("nearest", None)
        for block in self.up:
            flow = functional.interpolate(flow, scale_factor=2, mode=mode, align_corners=aligned)
            flow = block(torch.cat([flow, skips.pop()], 1))
        return self.unpack(self.last(flow), x)


class REDNet(Net):
    """As many transposed convolutions as convolutions, a skip every second layer (fig. 1).

    RED30 has depth 30. The paper ends in a ReLU; here there is none, since the net's numbers have
    a sign.
    """

    adds_to_input = True

    def __init__(self, features: int, depth: int, shuffle: int, inputs: int = 1) -> None:
        super().__init__(shuffle)
        half = depth // 2
        self.encoder = nn.ModuleList(
            conv3x3(features if number else inputs * shuffle**2, features) for number in range(half)
        )
        outputs = [features] * (half - 1) + [shuffle**2]
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(features, width, 3, padding=1) for width in outputs
        )
        initialise(self, self.decoder[-1])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Net.forward`."""
        flow = self.pack(x)
        skips = [flow[:, : self.shuffle**2]]
        for layer in self.encoder:
            flow = torch.relu(layer(flow))
            skips.append(flow)
        for level, layer in zip(range(len(self.decoder) - 1, -1, -1), self.decoder, strict=True):
            assert isinstance(layer, nn.ConvTranspose2d)
            # Of stride 1, it is a convolution by the turned kernel, which is faster.
            kernel = layer.weight.flip(-1, -2).transpose(0, 1)
            flow = functional.conv2d(flow, kernel, layer.bias, padding=1)
            if level % 2 == 0:
                flow = flow + skips[level]
            if level > 0:
                flow = torch.relu(flow)
        return self.unpack(flow, x)


# (a, tap of 3, tap of 4): output pixel 2 i + a reads copies of the pixels i - 1, i, i, i + 1 for
# a = 0, and of i, i, i + 1, i + 1 for a = 1.
_TAPS = (
    ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    ((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0)),
)


class Up(nn.Module):
    """Repeat each pixel 2 x 2, then a 4 x 4 convolution to the same size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, 2 H, 2 W)."""
        if torch.compiler.is_exporting():
            # Taps that read copies of a pixel add up: 36 products a pixel instead of 64.
            assert self.conv.bias is not None
            taps = torch.tensor(_TAPS, dtype=x.dtype)
            kernels = torch.einsum("ayk,bxl,oikl->oabiyx", taps, taps, self.conv.weight)
            bias = self.conv.bias.repeat_interleave(4)
            return functional.pixel_shuffle(
                functional.conv2d(x, kernels.flatten(0, 2), bias, padding=1), 2
            )
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        y: Tensor = self.conv(functional.pad(x, (1, 2, 1, 2)))
        return y


class MCNN(Net):
    """Strided 4 x 4 encoder, upsampling decoder with skips, an output at each scale.

    ``levels`` counts the halvings; ``widest`` is the largest multiple of ``features``. The paper's
    net takes four channels and ends in a sigmoid; here it takes one and ends linearly. The coarser
    outputs serve training only.
    """

    def __init__(self, features: int, levels: int, widest: int = 8, inputs: int = 1) -> None:
        super().__init__(multiple=2**levels)
        widths = [features * min(2**level, widest) for level in range(levels)]
        self.encoder = nn.ModuleList(
            nn.Conv2d(wide, deep, 4, stride=2, padding=1)
            for wide, deep in pairwise([inputs, *widths])
        )
        # Level by level upwards: what comes from below, joined with the encoder's.
        joined = [*(2 * width for width in widths[:-1]), widths[-1]]
        self.decoder = nn.ModuleList(
            Up(joined[level], widths[level - 1]) for level in range(levels - 1, 0, -1)
        )
        self.heads = nn.ModuleList(Up(channels, 1) for channels in joined[:-1])
        initialise(self)
        for head in self.heads:
            nn.init.zeros_(head.conv.weight)  # type: ignore[union-attr,arg-type]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Net.forward`."""
        return self.unpack(self.heads[0](self._features(x)[0]), x)

    def loss(
        self, x: Tensor, y: Tensor, noise: Tensor, error: Error, added: Tensor | None = None
    ) -> Tensor:
        """Judge the prediction at every scale, each a quarter as much as the next finer one.

        That is deep supervision: number k, (N, 1, H / 2**k, W / 2**k), is for the clean frame ``y``
        averaged over 2**k x 2**k pixels. Where H and W are not multiples of ``multiple``, only
        the finest counts. ``error`` maps a prediction and its truth to a number; ``added``,
        (N, 1, H, W), is what the prediction is a correction of.
        """
        if any(side % self.multiple for side in x.shape[2:]):
            prediction = self(x, noise)
            return error(prediction if added is None else prediction + added, y)
        total = y.new_zeros(())
        for scale, (head, flow) in enumerate(zip(self.heads, self._features(x), strict=True)):
            prediction, size = head(flow), 2**scale
            if added is not None:
                prediction = functional.avg_pool2d(added, size) + prediction
            total = total + error(prediction, functional.avg_pool2d(y, size)) / 4**scale
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        flow = self.pack(x)
        skips = []
        for layer in self.encoder:
            flow = torch.relu(layer(flow))
            skips.append(flow)
        skips.pop()
        found: list[Tensor] = []
        for layer in self.decoder:
            flow = torch.cat([torch.relu(layer(flow)), skips.pop()], 1)
            found.insert(0, flow)
        return found


class MSDNet(Net):
    """Every layer sees the input and all earlier maps, each at its own dilation (eqs. 3 and 5).

    Each adds ``width`` maps; layer i has dilation 1 + (i mod dilations). The paper reflects at the
    edges; here they are padded with zeros. Layers are computed in blocks that hold every dilation
    twice: longer ones copy more within a block, shorter ones read the stack more often.
    """

    def __init__(
        self, depth: int, width: int, shuffle: int, dilations: int = 10, inputs: int = 1
    ) -> None:
        super().__init__(shuffle)
        packed, self.block = shuffle**2, 2 * dilations
        self.layers = nn.ModuleList(
            conv3x3(inputs * packed + width * number, width, dilation=1 + number % dilations)
            for number in range(depth)
        )
        self.last = nn.Conv2d(inputs * packed + width * depth, packed, 1)
        initialise(self, self.last)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Net.forward`."""
        maps = self.pack(x)
        layers = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
        for start in range(0, len(layers), self.block):
            maps = torch.cat([maps, _new_maps(maps, layers[start : start + self.block])], 1)
        return self.unpack(self.last(maps), x)


def _new_maps(maps: Tensor, layers: list[nn.Conv2d]) -> Tensor:
    """Map what lies before some layers of an MSDNet, (N, C, H, W), to their own maps."""
    # A layer's sum over all maps before it falls into that over ``maps``, which all layers of one
    # dilation compute as one convolution, and that over the layers' own, which alone has to wait.
    # So the long stack of maps is copied and read once a block and not once a layer.
    before, width = maps.shape[1], layers[0].out_channels
    together = dict[int, list[int]]()
    for number, layer in enumerate(layers):
        together.setdefault(layer.dilation[0], []).append(number)
    sums = dict[int, Tensor]()
    for dilation, numbers in together.items():
        weight = torch.cat([layers[number].weight[:, :before] for number in numbers])
        bias = torch.cat([one for number in numbers if (one := layers[number].bias) is not None])
        found = _dilated(maps, weight, bias, dilation)
        sums |= zip(numbers, found.split(width, 1), strict=True)
    fresh = torch.relu(sums[0])
    for number, layer in enumerate(layers[1:], 1):
        late = _dilated(fresh, layer.weight[:, before:], None, layer.dilation[0])
        fresh = torch.cat([fresh, torch.relu(sums[number] + late)], 1)
    return fresh


def _dilated(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve (N, C, H, W) by a 3 x 3 kernel of few outputs."""
    # onnxruntime runs the transposed form, a product of (9 outputs, inputs) with (inputs, pixels)
    # and a scatter, half again as fast.
    if not torch.compiler.is_exporting():
        return functional.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    turned = weight.flip(-1, -2).transpose(0, 1)
    return functional.conv_transpose2d(x, turned, bias, padding=dilation, dilation=dilation)
