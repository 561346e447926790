"""What moves no pixels against what does."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from emdn_train.rewrite.edges import Unpacking, convolution, packing, part, scaled


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def conv(inputs: int, outputs: int, kernel=(3, 3), bias=True) -> nn.Conv2d:
    return convolution(
        drawn(outputs, inputs, *kernel),
        drawn(outputs) if bias else None,
        padding=(kernel[0] // 2, kernel[1] // 2),
    )


@pytest.mark.parametrize("shuffle", [1, 2, 4])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_packing(shuffle, kernel, bias):
    layer = conv(2 * shuffle**2, 5, kernel, bias)
    x = drawn(2, 2, 3 * shuffle, 7 * shuffle)
    expected = layer(functional.pixel_unshuffle(x, shuffle))
    torch.testing.assert_close(packing(layer, shuffle)(x), expected)


@pytest.mark.parametrize("shuffle", [1, 2, 4])
@pytest.mark.parametrize("kernel", [(3, 3), (3, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (6, 7), (8, 5)])
def test_unpacking(shuffle, kernel, bias, size):
    layer = conv(5, 2 * shuffle**2, kernel, bias)
    x = drawn(2, 5, *size)
    expected = functional.pixel_shuffle(layer(x), shuffle)
    found = Unpacking(layer, shuffle)(x)[..., : expected.shape[-2], : expected.shape[-1]]
    torch.testing.assert_close(found, expected)


def test_parts_of_inputs_add_up():
    layer = conv(7, 4)
    x = drawn(2, 7, 5, 6)
    head = part(layer, inputs=slice(0, 3))(x[:, :3])
    tail = part(layer, inputs=slice(3, None), bias=False)(x[:, 3:])
    torch.testing.assert_close(head + tail, layer(x))


def test_parts_of_outputs_are_those_outputs():
    layer = conv(3, 6)
    x = drawn(2, 3, 5, 6)
    torch.testing.assert_close(part(layer, outputs=slice(2, 5))(x), layer(x)[:, 2:5])


@pytest.mark.parametrize("bias", [True, False])
def test_scaled(bias):
    layer = conv(3, 6, bias=bias)
    x = drawn(2, 3, 5, 6)
    torch.testing.assert_close(scaled(layer, -0.1)(x), -0.1 * layer(x))
