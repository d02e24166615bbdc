"""Granularities: every weight in exactly one group, and the groups are the ones that the names promise."""

import itertools
import re
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import prunelab as pl
from prunelab import granularity, registry

NAMES = [method.name for method in pl.methods("granularity")]


def found(name):
    return name if isinstance(name, registry.Method) else registry.find("granularity", name)


def groups_of(name, module: nn.Module) -> list[set[int]]:
    return [set(row) for row in granularity.positions(found(name), module).tolist()]


def test_all_of_the_notes_granularities_are_registered():
    assert NAMES == [
        "weight", "row", "column", "kernel", "filter", "channel", "stripe", "group_wise", "grouped_kernel",
        "block", "layer", "2:4", "1:4", "pattern",
    ]  # fmt: skip


def test_a_convolution_by_hand():
    conv = nn.Conv2d(
        2, 2, (1, 2)
    )  # positions 0..7: filter 0 has 0 1 | 2 3 (two kernels), filter 1 has 4 5 | 6 7
    assert groups_of("weight", conv) == [{i} for i in range(8)]
    assert groups_of("row", conv) == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    assert groups_of("column", conv) == [{i} for i in range(8)]
    assert groups_of("kernel", conv) == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    assert groups_of("filter", conv) == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert groups_of("channel", conv) == [{0, 1, 4, 5}, {2, 3, 6, 7}]
    assert groups_of("stripe", conv) == [{0, 2}, {1, 3}, {4, 6}, {5, 7}]
    assert groups_of(partial(granularity.group_wise, filters=2), conv) == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
    assert groups_of(partial(granularity.grouped_kernel, filters=2), conv) == [{0, 1, 4, 5}, {2, 3, 6, 7}]
    assert groups_of(partial(granularity.block, rows=1, columns=2), conv) == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert groups_of(partial(granularity.block, rows=2, columns=1), conv) == [{0, 1, 4, 5}, {2, 3, 6, 7}]
    assert groups_of("layer", conv) == [set(range(8))]


def test_rows_lie_and_columns_stand():
    conv = nn.Conv2d(1, 1, (2, 3))  # 0 1 2 over 3 4 5
    assert groups_of("row", conv) == [{0, 1, 2}, {3, 4, 5}]
    assert groups_of("column", conv) == [{0, 3}, {1, 4}, {2, 5}]


def test_n_of_m_runs_along_the_input_channels_of_one_place():
    conv = nn.Conv2d(4, 1, (1, 2))  # channel c has positions 2c, 2c + 1
    assert granularity.positions(found("2:4"), conv).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert granularity.positions(granularity.n_of_m(1, 2), conv).tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_channels_of_a_grouped_convolution_are_those_of_one_group():
    conv = nn.Conv2d(4, 2, 1, groups=2)  # filter 0 sees channels 0 1, filter 1 sees channels 2 3
    assert groups_of("channel", conv) == [{0}, {1}, {2}, {3}]
    depthwise = nn.Conv2d(3, 6, 1, groups=3)  # two filters for each channel
    assert groups_of("channel", depthwise) == [{0, 1}, {2, 3}, {4, 5}]


def test_a_linear_layer_is_a_convolution_with_one_place():
    linear = nn.Linear(3, 2)
    assert groups_of("filter", linear) == [{0, 1, 2}, {3, 4, 5}]
    assert groups_of("channel", linear) == [{0, 3}, {1, 4}, {2, 5}]


def test_a_transposed_convolution_has_its_inputs_first():
    conv = nn.ConvTranspose2d(2, 3, 1)  # weight (2, 3, 1, 1): input 0 has 0 1 2, input 1 has 3 4 5
    assert groups_of("filter", conv) == [{0, 3}, {1, 4}, {2, 5}]
    assert groups_of("channel", conv) == [{0, 1, 2}, {3, 4, 5}]


@pytest.mark.parametrize("conv_groups", [1, 2, 4])
@pytest.mark.parametrize("make", [nn.Conv2d, nn.ConvTranspose2d])
def test_filters_silence_outputs_and_channels_inputs(make, conv_groups):
    """What the names mean, asked of the layer itself: no position is computed here."""
    torch.manual_seed(0)
    conv = make(4, 8, 3, groups=conv_groups, bias=False)
    images = torch.randn(2, 4, 5, 5)
    stored = conv.weight.data.clone()
    for number, where in enumerate(granularity.positions(found("filter"), conv)):
        conv.weight.data = stored.clone()
        conv.weight.data.view(-1)[where] = 0
        dead = conv(images).abs().sum((0, 2, 3)) == 0
        assert dead.nonzero().flatten().tolist() == [number]
    for number, where in enumerate(granularity.positions(found("channel"), conv)):
        conv.weight.data = stored.clone()
        conv.weight.data.view(-1)[where] = 0
        other = images.clone()
        other[:, number] += 1
        assert torch.equal(conv(other), conv(images)), "this channel is not read any more"
        other[:, (number + 1) % 4] += 1
        assert not torch.equal(conv(other), conv(images)), "the others are"


# --- the definitions, the slow way

KEYS = {  # what the members of a group share: filter, channel (as the layer numbers it), depth, row, column
    "weight": lambda o, c, d, h, w, size: (o, c, d, h, w),
    "row": lambda o, c, d, h, w, size: (o, c, d, h),
    "column": lambda o, c, d, h, w, size: (o, c, w),
    "kernel": lambda o, c, d, h, w, size: (o, c),
    "filter": lambda o, c, d, h, w, size: (o,),
    "channel": lambda o, c, d, h, w, size: (c,),
    "stripe": lambda o, c, d, h, w, size: (o, d, h, w),
    "group_wise": lambda o, c, d, h, w, size: (o // size, c, d, h, w),
    "grouped_kernel": lambda o, c, d, h, w, size: (o // size, c),
    "block": lambda o, c, d, h, w, size: (o // size, c // size),
    "layer": lambda o, c, d, h, w, size: (),
    "n:m": lambda o, c, d, h, w, size: (o, c // size, d, h, w),
    "pattern": lambda o, c, d, h, w, size: (o, c),
}


def slow_groups(name: str, module: nn.Module, size: int) -> set[frozenset[int]]:
    """Name each weight by what it connects, and put those of equal keys together."""
    shape = tuple(module.weight.shape)
    groups = getattr(module, "groups", 1)
    together: dict[tuple, set[int]] = {}
    for position, (first, second, *place) in enumerate(itertools.product(*map(range, shape))):
        if isinstance(module, granularity.TRANSPOSED):
            channel, filter = first, first // (shape[0] // groups) * shape[1] + second
        else:
            filter, channel = first, first // (shape[0] // groups) * shape[1] + second
        depth, height, width = [0] * (3 - len(place)) + place
        key = KEYS[name](filter, channel, depth, height, width, size)
        together.setdefault(key, set()).add(position)
    return {frozenset(group) for group in together.values()}


@st.composite
def layers(draw):
    """Any layer that sizes of 1 and ``size`` divide, and that size."""
    size, conv_groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    inputs, outputs = (size * draw(st.integers(1, 2)) for _ in range(2))
    kind = draw(st.sampled_from(granularity.LAYERS))
    if kind is nn.Linear:
        return nn.Linear(inputs, outputs), size
    dimensions = {"1d": 1, "2d": 2, "3d": 3}[kind.__name__[-2:]]
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(dimensions))
    return kind(inputs * conv_groups, outputs * conv_groups, kernel, groups=conv_groups), size


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(KEYS)), layer_and_size=layers())
def test_every_weight_is_in_exactly_one_group_the_right_one_and_comes_back(name, layer_and_size):
    module, size = layer_and_size
    sized = {
        "group_wise": partial(granularity.group_wise, filters=size),
        "grouped_kernel": partial(granularity.grouped_kernel, filters=size),
        "block": partial(granularity.block, rows=size, columns=size),
    }
    if name == "n:m":
        size = max(size, 2)
        assume(granularity.as_filters(module.weight, module).shape[1] % size == 0)
        method = granularity.n_of_m(1, size)
    else:
        method = found(sized.get(name, name))
    where = granularity.positions(method, module)
    assert sorted(where.flatten().tolist()) == list(range(module.weight.numel()))
    if name != "column" or module.weight.dim() < 5:  # a volume has none: see the refusals
        assert {frozenset(row) for row in where.tolist()} == slow_groups(name, module, size)
    # One number per group, spread over the weight and gathered again, is the same number in every member.
    numbers = torch.arange(len(where))
    weight_shaped = granularity.spread(numbers, where, module.weight.shape)
    assert weight_shaped.shape == module.weight.shape
    gathered = granularity.matrix(weight_shaped, where)
    assert torch.equal(gathered, numbers[:, None].expand_as(gathered))
    # And one number per member comes back to its own place.
    back = granularity.spread(granularity.matrix(module.weight, where), where, module.weight.shape)
    assert torch.equal(back, module.weight)


def test_filters_and_channels_are_numbered_as_the_layer_numbers_them():
    """So that evidence per filter or channel, such as batch norm's scales, meets the right group."""
    for make in (nn.Conv2d, nn.ConvTranspose2d):
        conv = make(4, 6, 1, groups=2)
        seen = granularity.as_filters(conv.weight, conv)
        assert seen.shape == (6, 2, 1, 1)
        for output in range(6):
            where = granularity.positions(found("filter"), conv)[output]
            assert torch.equal(conv.weight.flatten()[where], seen[output].flatten())


# --- refusals


@pytest.mark.parametrize(
    ("wanted", "layer", "message"),
    [
        ("group_wise", nn.Conv2d(4, 6, 3), r"layer 'a': granularity 'group_wise': filters=4 .* 6 filters"),
        ("grouped_kernel", nn.Linear(4, 10), "layer 'a'.*filters=4 does not divide its 10 filters"),
        ("block", nn.Conv2d(4, 6, 3), "layer 'a'.*rows=4 does not divide its 6 filters"),
        ("block", nn.Conv2d(3, 8, 3), "layer 'a'.*columns=4 does not divide its 3 input channels"),
        ("2:4", nn.Linear(6, 8), "layer 'a': granularity '2:4'.*m=4 does not divide its 6 input channels"),
        ("block", nn.Conv2d(8, 4, 1, groups=2), r"rows=4 .* its 2 filters in each of the 2 groups"),
        ("group_wise", nn.Conv2d(8, 4, 1, groups=2), r"filters=4 .* its 2 filters in each of the 2 groups"),
        ("grouped_kernel", nn.Conv2d(8, 4, 3, groups=2), r"filters=4 .* its 2 filters in each of the 2"),
        (partial(granularity.block, rows=0), nn.Linear(4, 4), "rows=0 does not divide"),
    ],
)
def test_a_size_that_does_not_divide_is_refused_with_layer_dimension_and_size(wanted, layer, message):
    with pytest.raises(ValueError, match=message):
        granularity.positions(found(wanted), layer, "a")


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("kernel", nn.Linear(4, 4), "no kernels.*same as 'weight'"),
        ("kernel", nn.Conv2d(4, 4, 1), "kernels are 1x1.*same as 'weight'"),
        ("row", nn.Conv2d(4, 4, (3, 1)), "kernels are 3x1.*same as 'weight'"),
        ("column", nn.Conv2d(4, 4, (1, 3)), "kernels are 1x3.*same as 'weight'"),
        ("column", nn.Conv1d(4, 4, 3), "kernels are 3, .*same as 'weight'"),
        ("column", nn.Conv3d(4, 4, 3), "a volume has no columns"),
        ("stripe", nn.ConvTranspose2d(4, 4, 1), "same as 'filter'"),
        ("grouped_kernel", nn.Conv2d(4, 4, 1), "same as 'group_wise'"),
        ("pattern", nn.Conv2d(4, 4, 5), "kernels are 5x5, and patterns are those of 3x3"),
        ("pattern", nn.Linear(9, 1), "no kernels, and patterns are those of 3x3"),
        ("block", nn.Conv2d(4, 8, 3, groups=4), "depthwise, so that each filter sees one channel only$"),
        ("2:4", nn.Conv2d(4, 4, 3, groups=4), "depthwise, so that each filter sees one channel only$"),
        ("group_wise", nn.ConvTranspose2d(4, 4, 3, groups=4), "depthwise.* shares it with no other"),
        ("grouped_kernel", nn.Conv1d(4, 4, 3, groups=4), "depthwise.* shares it with no other"),
    ],
)
def test_where_a_granularity_makes_no_sense(name, layer, reason):
    assert re.search(reason, granularity.objection(found(name), layer))


def test_filters_that_share_the_channel_of_a_depthwise_convolution_can_be_grouped():
    layer = nn.Conv2d(4, 8, 3, groups=4)  # two filters for each channel
    for name in ("group_wise", "grouped_kernel"):
        assert granularity.objection(found(name), layer) == ""
        with pytest.raises(ValueError, match="filters=4 does not divide its 2 filters in each of the 4"):
            granularity.positions(found(name), layer)
    pairs = groups_of(partial(granularity.grouped_kernel, filters=2), layer)
    assert pairs == [set(range(18 * channel, 18 * (channel + 1))) for channel in range(4)]


@pytest.mark.parametrize("name", NAMES)
def test_a_3x3_convolution_knows_every_granularity(name):
    assert granularity.objection(found(name), nn.Conv2d(4, 4, 3)) == ""
    assert granularity.objection(found(name), nn.ConvTranspose2d(4, 4, 3)) == ""
    assert granularity.positions(found(name), nn.Conv2d(4, 4, 3)).numel() == 144


def test_a_students_own_granularity_works_and_a_wrong_one_is_refused():
    conv = nn.Conv2d(2, 3, 3)

    def row(w):
        return w.reshape(-1, w.shape[3])

    assert len(granularity.positions(registry.find("granularity", row), conv)) == 2 * 3 * 3
    assert granularity.objection(registry.find("granularity", row), nn.Linear(2, 2)) == "", "not ours"
    for wrong in (
        lambda w: w[:1].reshape(1, -1),  # drops
        lambda w: torch.cat([w, w]).flatten(1),  # repeats
        lambda w: w[[0, 0, 1]].flatten(1),  # both
        lambda w: w.flatten(),  # no matrix
        lambda w: w.flatten(1).float(),  # no positions
    ):
        with pytest.raises(ValueError, match="each of the 54 weights"):
            granularity.positions(registry.find("granularity", wrong), conv)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 2)])
def test_n_of_m_wants_less_than_all_and_more_than_nothing(n, m):
    with pytest.raises(ValueError, match=f"n={n}, m={m}"):
        granularity.n_of_m(n, m)


def test_every_granularity_says_what_it_is():
    for method in [*pl.methods("granularity"), granularity.n_of_m(3, 8)]:
        assert "->" in method.summary and method.summary.endswith((".", "`.")), method.summary
        assert method.cite and method.section.startswith("granularity/")
