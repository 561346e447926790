"""Edges are mirrored as NumPy mirrors them, however short the side."""

import numpy as np
import pytest
import torch

from emdn_models.nets.blocks import pad_to_multiple


@pytest.mark.parametrize("margin", [0, 7, 32])
@pytest.mark.parametrize("multiple", [1, 4, 32])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (8, 31), (64, 32)])
def test_padding_is_a_mirror(size, multiple, margin):
    x = torch.randn(2, 3, *size)
    ends = [(margin, -length % multiple + margin) for length in size]
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), *ends], mode="symmetric")
    assert np.array_equal(pad_to_multiple(x, multiple, margin).numpy(), expected)
