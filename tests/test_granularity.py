"""Granularities: every weight in exactly one group, and the groups are the ones that the names promise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunelab as pl
from prunelab import granularity, registry

NAMES = [method.name for method in pl.methods("granularity")]


def groups_of(name: str, module: nn.Module) -> list[set[int]]:
    return [set(row) for row in granularity.positions(registry.find("granularity", name), module).tolist()]


def test_the_four_granularities_are_registered():
    assert {"weight", "kernel", "filter", "channel"} <= set(NAMES)


def test_a_convolution_by_hand():
    conv = nn.Conv2d(
        2, 2, (1, 2)
    )  # positions 0..7: filter 0 has 0 1 | 2 3 (two kernels), filter 1 has 4 5 | 6 7
    assert groups_of("weight", conv) == [{i} for i in range(8)]
    assert groups_of("kernel", conv) == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    assert groups_of("filter", conv) == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert groups_of("channel", conv) == [{0, 1, 4, 5}, {2, 3, 6, 7}]


def test_channels_of_a_grouped_convolution_are_those_of_one_group():
    conv = nn.Conv2d(4, 2, 1, groups=2)  # filter 0 sees channels 0 1, filter 1 sees channels 2 3
    assert groups_of("channel", conv) == [{0}, {1}, {2}, {3}]
    depthwise = nn.Conv2d(3, 6, 1, groups=3)  # two filters for each channel
    assert groups_of("channel", depthwise) == [{0, 1}, {2, 3}, {4, 5}]


def test_a_linear_layer_is_a_convolution_with_one_place():
    linear = nn.Linear(3, 2)
    assert groups_of("filter", linear) == [{0, 1, 2}, {3, 4, 5}]
    assert groups_of("channel", linear) == [{0, 3}, {1, 4}, {2, 5}]


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    dimensions=st.integers(0, 3),
    sizes=st.tuples(*[st.integers(1, 3)] * 4),
    conv_groups=st.integers(1, 3),
)
def test_every_weight_is_in_exactly_one_group_and_comes_back(name, dimensions, sizes, conv_groups):
    outputs, inputs, *_ = sizes
    if dimensions == 0:
        module: nn.Module = nn.Linear(inputs, outputs)
    else:
        make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        kernel = sizes[3]
        module = make(inputs * conv_groups, outputs * conv_groups, kernel, groups=conv_groups)
    where = granularity.positions(registry.find("granularity", name), module)
    assert sorted(where.flatten().tolist()) == list(range(module.weight.numel()))
    # One number per group, spread over the weight and gathered again, is the same number in every member.
    numbers = torch.arange(len(where))
    weight_shaped = granularity.spread(numbers, where, module.weight.shape)
    assert weight_shaped.shape == module.weight.shape
    gathered = granularity.matrix(weight_shaped, where)
    assert torch.equal(gathered, numbers[:, None].expand_as(gathered))


def test_a_students_own_granularity_works_and_a_wrong_one_is_refused():
    conv = nn.Conv2d(2, 3, 3)

    def row(w):
        return w.reshape(-1, w.shape[3])

    assert len(granularity.positions(registry.find("granularity", row), conv)) == 2 * 3 * 3
    with pytest.raises(ValueError, match="each of the 54 weights"):
        granularity.positions(registry.find("granularity", lambda w: w[:1].reshape(1, -1)), conv)
