"""Same padding for graphs: the numbers and maps of timm, to the bit, in sizes that stay short."""

import itertools

import pytest
import torch
from timm.layers import AvgPool2dSame, Conv2dSame, StdConv2dSame
from timm.layers.padding import get_same_padding
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn
from torch.utils._sympy.functions import FloorDiv

from engine.export.same_padding import same_padding, short_sizes


def test_numbers_are_those_of_timm():
    for case in itertools.product(range(1, 30), range(1, 8), range(1, 5), (1, 2)):
        assert same_padding(*case) == get_same_padding(*case), case


def test_by_hand():
    assert same_padding(8, kernel=3, stride=2) == 1  # windows at 0, 2, 4, 6: the last one ends at 9
    assert same_padding(7, kernel=3, stride=2) == 2  # four windows as well, 9 pixels from end to end


@pytest.mark.parametrize("size", [(21, 34), (32, 33), (1, 2)])
def test_maps_are_the_same_and_modules_come_back(size):
    torch.manual_seed(0)
    layers = [Conv2dSame(3, 4, (3, 5), 2), MaxPool2dSame(3, 2), AvgPool2dSame(2, 2), StdConv2dSame(4, 4, 3, 2)]
    network = nn.Sequential(*layers, Conv2dSame(4, 4, 3, dilation=2), Conv2dSame(4, 4, 1, 2))
    x = -torch.rand(2, 3, *size)  # negative: a maximum over padding with zeros would be seen
    expected, classes = network(x), [type(m) for m in network]
    with short_sizes(network):
        assert not {type(m) for m in network} & {Conv2dSame, MaxPool2dSame, AvgPool2dSame}
        assert torch.equal(network(x), expected)
    assert [type(m) for m in network] == classes and not any(m._forward_pre_hooks for m in network)
    assert torch.equal(network(x), expected)


def test_a_graph_has_one_quotient_for_a_side():
    network = nn.Sequential(*(Conv2dSame(3, 3, kernel, 2) for kernel in (3, 5, 3, 5)))
    free = torch.export.Dim.DYNAMIC
    with short_sizes(network):
        program = torch.export.export(network, (torch.zeros(1, 3, 70, 90),), dynamic_shapes=({2: free, 3: free},))
    (output,) = program.graph.output_node().args[0]
    for side, traced in zip(output.meta["val"].shape[2:], (5, 6)):
        expression = side.node.expr
        assert len(expression.atoms(FloorDiv)) == 1, expression
        assert side.node.hint == traced
    assert program.module()(torch.zeros(1, 3, 65, 129)).shape[2:] == (5, 9)
