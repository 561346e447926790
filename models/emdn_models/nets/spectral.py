"""The spectral front end: local Fourier (Wiener-type) estimates of a frame that nets refine.

A crystal's signal lies in few coefficients of a window's spectrum and its noise in all, so that
the window averages the lattice over as many cells as it holds.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_models.nets.scaling import Error, crop_to, middle, pad_to_multiple


class Garrote(nn.Module):
    """Judge a coefficient by its own power p, in units of the noise's: what needs no fitting.

    It is multiplied by 1 - (t / p)**4, or by 0 where p is less than t (a steep garrote: Gao, J.
    Comput. Graph. Stat. 7, 1998). t is three quarters (measured: the best of 0.65 to 0.8) of ln(n)
    for the n coefficients of a ``window`` (Donoho, Johnstone, Biometrika 81, 1994).
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.threshold = 0.75 * math.log(window * window / 2)

    def forward(self, power: Tensor) -> Tensor:
        """Map powers of any shape to factors in [0, 1)."""
        return 1 - (self.threshold / power.clamp_min(self.threshold)) ** 4


class FittedGain(nn.Module):
    """Judge a coefficient by its power and that of its neighbours: fitted with the net.

    A lattice goes on in the windows beside and spreads over neighbouring frequencies, as noise
    does not (as block thresholds use: Cai, Ann. Stat. 27, 1999). From the logarithms of the mean
    powers there, the frequency and the power of the whole window, two small layers decide. Means
    are over those neighbours that there are. It begins as a steep threshold on 3 x 3 windows.
    """

    radius: Tensor

    def __init__(self, window: int, features: int = 8) -> None:
        super().__init__()
        rows = torch.arange(-(window // 2), window // 2)[:, None]
        radius = torch.hypot(rows.float(), torch.arange(window // 2 + 1).float())
        # From -1 at frequency 0 to 1 at half a period a pixel.
        radius = 4 / window * radius - 1
        self.register_buffer("radius", radius[:, None], persistent=False)  # (w, 1, L)
        self.first, self.second = nn.Linear(7, features), nn.Linear(features, features)
        self.last = nn.Linear(features, 1)
        with torch.no_grad():
            for layer in (self.first, self.second):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
            # The first feature is the logarithm of the mean over windows, where that is above 0.
            self.first.weight[0] = self.second.weight[0] = self.last.weight[0] = 0
            self.first.weight[0, 1] = self.second.weight[0, 0] = 1
            self.last.weight[0, 0] = 4
            self.last.bias.fill_(-4 * math.log(3.4))

    def forward(self, power: Tensor) -> Tensor:
        """Map powers (N, I, w, J, L), of I x J windows of w x L frequencies, to factors."""
        power = power + 0.05  # every mean with it
        beside, further = _beside(power)
        evidence = [power, beside, _around(power), _around(beside), further]
        # Logarithms of whole vectors of numbers only: a rest is rounded in another way, and
        # where it lies depends on the frame's size.
        whole = power.mean((2, 4), keepdim=True).expand(-1, -1, self.radius.shape[0], -1, -1)
        planes = [*(torch.log(one) for one in (*evidence, whole)), self.radius]
        flow = torch.stack([one.expand_as(power) for one in planes], 1).flatten(2)
        for layer in (self.first, self.second):
            flow = (layer.weight @ flow).add_(layer.bias[:, None]).relu_()
        return torch.sigmoid(self.last.weight @ flow + self.last.bias).view_as(power)


def _beside(power: Tensor) -> list[Tensor]:
    """Average (N, I, w, J, L) over 3 x 3 and over 5 x 5 windows, those that there are."""
    flat = power.flatten(2)[:, None]
    number = torch.ones_like(flat[:1, :, :, :1])
    return [
        _mean((near / few).view_as(power).flatten(1, 2), (side, 1)).view_as(power)
        for side, near, few in zip((3, 5), _sums(flat), _sums(number), strict=True)
    ]


def _sums(x: Tensor) -> list[Tensor]:
    """Add up 3 and 5 neighbours of (N, 1, I, M) along I; faster than a pooling of one channel."""
    count = x.shape[2]
    padded = functional.pad(x, (0, 0, 2, 2))
    before, left, right, after = (padded.narrow(2, start, count) for start in (0, 1, 3, 4))
    near = x + left + right
    return [near, near + before + after]


def _around(power: Tensor) -> Tensor:
    """Average (N, I, w, J, L) over 3 x 3 frequencies, those that there are."""
    rows = _mean(power.flatten(3), (3, 1)).view_as(power)
    return _mean(rows.flatten(1, 2), (1, 3)).view_as(power)


def _mean(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    half = kernel[0] // 2, kernel[1] // 2
    return functional.avg_pool2d(x, kernel, 1, half, count_include_pad=False)


class SpectralShrinkage(nn.Module):
    """Shrink the Fourier coefficients of overlapping windows that do not stand out of the noise.

    The windows, of an even number of pixels a side, are sines (square roots of Hann's), before and
    after, and overlap by half in both axes, where their squares add up to 1; the frame's edges are
    mirrored. The transforms are products with constant matrices: plain operators, and near the
    machine's peak. ``gain`` maps powers in units of the noise's, (N, I, w, J, L) of I x J windows
    of w x L frequencies, rows from the most negative and columns from 0, to factors; a `Garrote`
    if not given.
    """

    row: Tensor
    row_back: Tensor
    column: Tensor
    squares: Tensor

    def __init__(self, window: int, gain: nn.Module | None = None) -> None:
        super().__init__()
        self.window, self.hop = window, window // 2
        self.gain = Garrote(window) if gain is None else gain
        time = torch.arange(window, dtype=torch.float64)
        sine = torch.sin(math.pi * (time + 0.5) / window)
        half = self.hop + 1  # frequencies of a real row
        angle = 2 * math.pi / window * torch.outer(time - self.hop, time)
        cos, sin = torch.cos(angle), torch.sin(angle)  # of rows of frequencies, 0 in the middle
        positive = 2 * math.pi / window * torch.outer(time[:half], time)
        both = torch.full((half, 1), 2.0, dtype=torch.float64)
        both[0] = both[-1] = 1
        back = both * sine / window
        matrices = {
            # A row to its spectrum and back: real and imaginary parts.
            "row": torch.stack([positive.cos().T, -positive.sin().T]) * sine[:, None],
            "row_back": torch.stack([positive.cos(), -positive.sin()]) * back,
            "column": torch.stack([cos, sin]) * sine,
            "squares": torch.outer(sine, sine).square()[None, None],
        }
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix.float(), persistent=False)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (N, 1, H, W) to the same, ``noise`` being its standard deviation or None for 1."""
        return shrunk([self], x, noise)

    def shrink(self, x: Tensor, variance: Tensor) -> Tensor:
        """Map (N, 1, H, W), multiples of the hop, to all but its outermost hop at each edge."""
        rows = self._windows(x[:, 0].unflatten(2, (-1, self.hop)), 2)
        # From here on (N, I, window, J x frequencies): I x J windows.
        columns = [
            self._windows((rows @ part).flatten(2).unflatten(1, (-1, self.hop)), 1)
            for part in self.row
        ]
        # Columns are complex: real above imaginary parts, as in the matrix and its inverse.
        cos, sin = self.column
        turn = torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)])
        both = torch.cat(columns, 2)
        real, imaginary = (part @ both for part in turn.chunk(2))
        power = (real * real + imaginary * imaginary).unflatten(3, (-1, self.hop + 1))
        expected = functional.conv2d(variance, self.squares, stride=self.hop)[:, 0]
        gain: Tensor = self.gain(power / expected[:, :, None, :, None]).flatten(3)
        both = torch.cat([real * gain, imaginary * gain], 2)
        columns = [
            self._added(part @ both, 1).flatten(1, 2).unflatten(2, (-1, self.hop + 1))
            for part in (turn.T / self.window).chunk(2)
        ]
        rows = columns[0] @ self.row_back[0] + columns[1] @ self.row_back[1]
        return self._added(rows, 2).flatten(2)[:, None]

    def _windows(self, blocks: Tensor, axis: int) -> Tensor:
        """Join each hop along an axis with the next: (..., count + 1, hop, ...) to windows."""
        count = blocks.shape[axis] - 1
        return torch.cat([blocks.narrow(axis, 0, count), blocks.narrow(axis, 1, count)], axis + 1)

    def _added(self, windows: Tensor, axis: int) -> Tensor:
        """Add up what overlaps: (..., count, window, ...) to (..., count - 1, hop, ...)."""
        count = windows.shape[axis] - 1
        first, second = windows.chunk(2, axis + 1)
        return second.narrow(axis, 0, count) + first.narrow(axis, 1, count)


def shrunk(shrinkages: Iterable[SpectralShrinkage], x: Tensor, noise: Tensor | None) -> Tensor:
    """Map (N, 1, H, W) to what each window size makes of it, (N, windows, H, W)."""
    shrinkages = list(shrinkages)
    margin = max(one.hop for one in shrinkages)
    noise = torch.ones_like(x) if noise is None else noise
    padded, noise = (pad_to_multiple(part, margin, margin) for part in (x, noise))
    variance, planes = noise * noise, []
    for one in shrinkages:
        rows, columns = (slice(margin - one.hop, s - margin + one.hop) for s in padded.shape[2:])
        planes.append(
            crop_to(one.shrink(padded[:, :, rows, columns], variance[:, :, rows, columns]), x)
        )
    return torch.cat(planes, 1)


class WithSpectrum(nn.Module):
    """A net that corrects what the shrinkage of the largest window gives.

    Where that is wrong, at edges, defects and gradual changes, the frame says so. ``net`` maps what
    `joined` gives, with F an odd number of frames, to (N, 1, H, W); one that adds something to its
    input (``adds_to_input``) adds it to the first channel, the output of others is added here.
    ``windows`` are the sides, the largest first.
    """

    uses_noise = True

    def __init__(self, net: nn.Module, windows: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.shrinkages = nn.ModuleList(
            SpectralShrinkage(window, FittedGain(window)) for window in windows
        )
        hops = [window // 2 for window in windows]
        self.multiple = math.lcm(int(net.multiple), *hops)  # type: ignore[arg-type]
        self.adds_to_input = getattr(net, "adds_to_input", False)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map noisy (N, F, H, W) to the middle frame clean, (N, 1, H, W); see `joined`."""
        return self.corrected(self.joined(x, noise), noise)

    def joined(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map a frame with its neighbours, (N, F, H, W), to what the net sees.

        That is (N, windows + F, H, W): the largest window's estimate, the middle frame, the other
        windows' estimates, the frames before and those after. ``noise`` is the standard deviation
        of the middle frame's noise, (N, 1, H, W), 1 if not given.
        """
        frame, half = middle(x), x.shape[1] // 2
        planes = shrunk(self.shrinkages, frame, noise)  # type: ignore[arg-type]
        around = [x[:, :half], x[:, -half:]] if half else []
        return torch.cat([planes[:, :1], frame, planes[:, 1:], *around], 1)

    def corrected(self, joined: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map what `joined` gives to (N, 1, H, W) clean."""
        y: Tensor = self.net(joined, noise)
        return y if self.adds_to_input else y + joined[:, :1]

    def loss(self, joined: Tensor, y: Tensor, noise: Tensor, error: Error) -> Tensor:
        """Judge what `corrected` gives of what `joined` gives, in the net's own way if it has one.

        ``error`` maps a prediction and its truth, (N, 1, H, W), to a number.
        """
        if (own := getattr(self.net, "loss", None)) is None:
            return error(self.corrected(joined, noise), y)
        found: Tensor = own(joined, y, noise, error, joined[:, :1])
        return found
