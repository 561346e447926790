"""Where a frame becomes channels and channels become a frame, without moving pixels about.

onnxruntime keeps channels in blocks of 8 or 16 and runs its fast convolutions on those.
Pixel-(un)shuffles and gathers leave that layout, and a convolution to fewer channels
than a block computes the whole block.
"""

from torch import Tensor, nn
from torch.nn import functional


def packing(conv: nn.Conv2d, shuffle: int) -> nn.Conv2d:
    """Write pixel-unshuffle and a convolution as one convolution of larger strides.

    Packed channel c s**2 + a s + b at (i, j) is pixel (s i + a, s j + b) of channel c,
    so that tap (y, x) of the convolution reads the pixels s (i + y - padding) + a: the
    taps of all s**2 packed channels together are one kernel of s k x s k pixels, moved
    in s times the steps. One packed pixel of zeros around is s pixels of zeros.
    """
    outputs, packed, rows, columns = conv.weight.shape
    weight = conv.weight.data.reshape(outputs, -1, shuffle, shuffle, rows, columns)
    weight = weight.permute(0, 1, 4, 2, 5, 3)
    weight = weight.reshape(outputs, packed // shuffle**2, rows * shuffle, columns * shuffle)
    (y, x), (down, right) = padding_of(conv), conv.stride
    return convolution(
        weight,
        conv.bias,
        stride=(down * shuffle, right * shuffle),
        padding=(y * shuffle, x * shuffle),
    )


class Unpacking(nn.Module):
    """A convolution to s**2 channels and a pixel-shuffle, for several pixels at once.

    Four channels, or one, cost as much as a block of 16. So r x r neighbouring packed
    pixels become r**2 times the channels: with a 3 x 3 kernel, pixel (r i + p, r j + q)
    reads the rows r i + p - 1 ... r i + p + 1, hence all r rows of them the same r + 2
    rows, with the kernel moved down by p and zeros elsewhere. The kernel is
    (r + 2) x (r + 2), moved in steps of r, and the shuffle is by r s. A packed pixel
    costs a block 16 / 4 products with r = 2, and 36 / 16 with r = 4, instead of 9.

    A number of rows that is not a multiple of r gives up to r - 1 rows too many: crop.
    """

    def __init__(self, conv: nn.Conv2d, shuffle: int) -> None:
        super().__init__()
        r, s = max(1, 4 // shuffle), shuffle
        outputs, inputs, rows, columns = conv.weight.shape
        # Output channel: (channel, p, a, q, b) for pixel (s p + a, s q + b) of a block.
        weight = conv.weight.new_zeros(
            outputs // s**2, r, s, r, s, inputs, rows + r - 1, columns + r - 1
        )
        kernel = conv.weight.data.reshape(-1, s, s, inputs, rows, columns)
        for p in range(r):
            for q in range(r):
                weight[:, p, :, q, :, :, p : p + rows, q : q + columns] = kernel
        bias = conv.bias
        if bias is not None:
            bias = bias.data.reshape(-1, 1, s, 1, s).expand(-1, r, s, r, s).reshape(-1)
        self.conv = convolution(weight.flatten(0, 4), bias, stride=(r, r), padding=(0, 0))
        y, x = padding_of(conv)
        # The exporter makes this the padding of the convolution.
        self.padding = (x, x + r - 1, y, y + r - 1)
        self.shuffle = r * s

    def packed(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, r**2 outputs, H / r, W / r), rounded up."""
        y: Tensor = self.conv(functional.pad(x, self.padding))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs / s**2, >= s H, >= s W)."""
        return functional.pixel_shuffle(self.packed(x), self.shuffle)


def part(
    conv: nn.Conv2d,
    *,
    inputs: slice = slice(None),
    outputs: slice = slice(None),
    bias: bool = True,
) -> nn.Conv2d:
    """Return what a convolution does to some of its inputs, for some of its outputs.

    A convolution of joined channels is the sum of the convolutions of the parts (give
    the bias to one of them), and its outputs do not know of each other. Sums are fused
    into onnxruntime's convolutions; joining and slicing channels copies them.
    """
    kept = conv.bias if bias else None
    return convolution(
        conv.weight.data[outputs, inputs],
        None if kept is None else kept[outputs],
        stride=conv.stride,
        padding=padding_of(conv),
    )


def scaled(conv: nn.Conv2d, factor: float) -> nn.Conv2d:
    """Return a convolution whose outputs are ``factor`` times those of ``conv``."""
    bias = None if conv.bias is None else conv.bias * factor
    return convolution(
        conv.weight.data * factor, bias, stride=conv.stride, padding=padding_of(conv)
    )


def convolution(
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, int],
) -> nn.Conv2d:
    """Return a convolution with a given kernel, (outputs, inputs, rows, columns)."""
    outputs, inputs, rows, columns = weight.shape
    conv = nn.Conv2d(
        inputs,
        outputs,
        (rows, columns),
        stride=(stride[0], stride[1]),
        padding=padding,
        bias=bias is not None,
    )
    conv.weight.data = weight.contiguous()
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def padding_of(conv: nn.Conv2d) -> tuple[int, int]:
    """Return the rows and columns of zeros that a convolution adds on each side."""
    return int(conv.padding[0]), int(conv.padding[1])
