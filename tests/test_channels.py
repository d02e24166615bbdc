"""Channels through every operation: each small network here has one difficulty; pruning it must be exact."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from test_surgery import assert_exact, lively
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.channels import TraceError, _components, trace
from prunelab.surgery import pruning_record


class Net(nn.Module):
    """A network from its layers and a forward function."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


class Pair(Net):
    def forward(self, x, z):
        return self.body(self, x, z)


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Odd(nn.Conv2d):
    """A convolution with a forward function of its own, as in networks with TensorFlow's padding."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


def halves_crosswise(n, x):
    u, v = n.a(x).chunk(2, 1)
    return n.last(n.b(u) + n.c(v))


def c2f(n, x):
    parts = list(n.a(x).chunk(2, 1))
    parts.append(n.b(parts[-1]))
    parts.append(n.c(parts[-1]))
    return n.last(torch.cat(parts, 1))


def soft_split(n, x):
    y = n.a(x)
    u, v = torch.split(y, y.size(1) // 2, dim=1)
    return n.last(torch.cat([v, F.relu(u)], 1))


def soft_slices(n, x):
    y = n.a(x)
    half = y.shape[1] // 2
    return n.last(F.relu(y[:, :half]) * y[:, half:])


def shuffle(n, x):
    y = n.a(x)
    b, c, h, w = y.size()
    y = y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
    return n.last(n.b(y))


def squeeze_excite(n, x):
    y = n.a(x)
    s = y.mean((2, 3), keepdim=True)
    return n.last(y * torch.sigmoid(n.up(F.relu(n.down(s)))))


def siamese(n, x, z):
    return n.last(torch.abs(n.a(F.relu(n.stem(x))) - n.a(F.relu(n.stem(z)))).mean((2, 3)))


def flatten_by_hand(n, x):
    y = F.max_pool2d(n.a(x), 2)
    return n.fc(y.view(y.size(0), y.size(1) * y.size(2) * y.size(3)))


def hard_swish_by_hand(n, x):
    y = n.a(x)
    return n.last(y * F.relu6(y + 3.0) / 6)


def tokens(n, x):
    y = n.a(x).flatten(2).transpose(1, 2)  # (batch, places, channels)
    return n.fc(y).mean(1)


def upscale(n, x):
    return n.last(n.shuffle(n.a(x)))


def two_heads(n, x):
    y = F.relu(n.a(x))
    return {"one": n.b(y), "two": n.c(y.mean((2, 3)))}


def option_a_by_hand(n, x):
    y = n.a(x)
    return n.last(n.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))


class Table(nn.Module):
    """Learned numbers that are looked up, as attention's bias by relative position."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5))
        self.register_buffer("index", torch.tensor([4, 0, 0, 2, 1, 3, 3, 4]))

    def forward(self, y):
        return y + self.table[self.index]


def tied_weights(n, x):
    return n.last(F.relu(n.b(F.relu(n.a(x)))))


# Each with the layers that must shrink, because the operation leaves them free.
NETWORKS = {
    "halves used crosswise": (Net(halves_crosswise, a=conv(3, 16), b=conv(8, 8), c=conv(8, 8), last=conv(8,
        4)), "a"),
    "C2f": (Net(c2f, a=conv(3, 16), b=conv(8, 8), c=conv(8, 8), last=conv(32, 4)), "a b c"),
    "split by a computed size": (Net(soft_split, a=conv(3, 16), last=conv(16, 4)), "a"),
    "slices by a computed size": (Net(soft_slices, a=conv(3, 16), last=conv(8, 4)), "a"),
    "shuffle by view": (Net(shuffle, a=conv(3, 16), b=conv(16, 16, groups=4), last=conv(16, 4)), "a b"),
    "nn.ChannelShuffle": (nn.Sequential(conv(3, 16), nn.ChannelShuffle(4), conv(16, 4)), "0"),
    "squeeze and excitation": (
        Net(squeeze_excite, a=conv(3, 16), down=conv(16, 6, 1), up=conv(6, 16, 1), last=conv(16, 4)),
        "a down up",
    ),
    "flatten by view": (Net(flatten_by_hand, a=conv(3, 8), fc=nn.Linear(8 * 16, 5)), "a"),
    "hard swish by hand": (Net(hard_swish_by_hand, a=conv(3, 8), last=conv(8, 4)), "a"),
    "channels last": (Net(tokens, a=conv(3, 8), fc=nn.Linear(8, 5)), "a"),
    "pixel shuffle": (Net(upscale, a=conv(3, 16), shuffle=nn.PixelShuffle(2), last=conv(4, 4)), "a"),
    "option A by hand": (
        Net(option_a_by_hand, a=conv(3, 8), b=nn.Conv2d(8, 16, 3, stride=2, padding=1), last=conv(16, 4)),
        "a b",
    ),
    "transposed": (
        nn.Sequential(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(), conv(6, 4)),
        "0 2",
    ),
    "transposed with groups": (
        nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 12, 3, groups=4, padding=1), nn.ReLU(), conv(12,
        4)), "0 1",
    ),
    "transposed depthwise": (
        nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 16, 2, groups=8, stride=2), conv(16, 4)), "0 1",
    ),
    "depthwise with a multiplier": (nn.Sequential(conv(3, 8), conv(8, 16, groups=8), conv(16, 4)), "0 1"),
    "one dimension": (
        nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3)),
        "1",
    ),
    "group norm": (nn.Sequential(conv(3, 12), nn.GroupNorm(4, 12), nn.ReLU(), conv(12, 4)), "0"),
    "instance norm": (nn.Sequential(conv(3, 8), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), conv(8, 4)),
        "0"),
    "PReLU": (nn.Sequential(conv(3, 8), nn.PReLU(8), conv(8, 8), nn.PReLU(), conv(8, 4)), "0 2"),
    "batch norm behind flatten": (
        nn.Sequential(conv(3, 4), nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 12), nn.BatchNorm1d(12),
                      nn.ReLU(), nn.Linear(12, 3)), "0 3",
    ),
    "upsampling and pooling": (
        nn.Sequential(conv(3, 8), nn.Upsample(scale_factor=2), nn.AvgPool2d(3, padding=1), conv(8, 8),
                      nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(32, 3)), "0 3",
    ),
    "a convolution's own forward": (nn.Sequential(conv(3, 8), nn.ReLU(), Odd(8, 8, 2), nn.ReLU(), conv(8,
        4)), "0 2"),
    # A removed channel is not zero behind a sigmoid: what it sends on moves into biases, where that is exact.
    "sigmoid": (nn.Sequential(conv(3, 8), nn.Sigmoid(), conv(8, 8, 1), nn.Sigmoid(), nn.Flatten(),
        nn.Linear(512, 3)),
                "0 2"),
    "sigmoid without a bias behind": (
        nn.Sequential(conv(3, 8), nn.Softplus(), conv(8, 6, 1, bias=False, groups=2), nn.ReLU(), conv(6,
        2)), "0 2",
    ),
    "a table that is looked up": (nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4), Table()), "0"),
    "a shift": (Net(lambda n, x: n.b(1 - n.a(x)), a=conv(3, 8), b=conv(8, 4, 1)), "a"),
}  # fmt: skip


@pytest.mark.parametrize("amount", [0.3, 0.6])
@pytest.mark.parametrize("name", NETWORKS)
def test_pruning_is_exact_behind(name, amount):
    torch.manual_seed(0)
    model, shrink = NETWORKS[name]
    model = lively(copy.deepcopy(model))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small = pl.prune(model, x[:1], criterion="random", amount=amount)
    assert_exact(model, small, x)
    kept, filters = pruning_record(small)["kept"], trace(model, x[:1]).makers()
    for layer in shrink.split():
        assert len(kept[layer]) < len(filters[layer]), layer


def test_weights_that_are_shared_stay_shared():
    model = Net(tied_weights, a=conv(3, 8), b=conv(8, 8), last=conv(8, 2, 1))
    c = conv(8, 8)
    c.weight = model.b.weight
    model.last = nn.Sequential(nn.ReLU(), c, nn.ReLU(), conv(8, 2, 1))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = lively(model)
    small = pl.prune(model, x[:1], amount=0.5)
    assert_exact(model, small, x)
    assert small.last[1].weight is small.b.weight and small.b.out_channels == 4


def test_two_inputs_and_a_module_used_twice():
    torch.manual_seed(0)
    model = lively(Pair(siamese, stem=conv(3, 8), a=conv(8, 8), last=nn.Linear(8, 1)))
    x, z = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    small = pl.prune(model, (x[:1], z[:1]), amount=0.5)
    assert small.stem.out_channels == 4 and small.a.out_channels == 4
    kept = pruning_record(small)["kept"]
    with pl.surgery.silenced(model, trace(model, (x, z)), kept):
        expected = model(x, z)
    assert torch.allclose(expected, small(x, z), atol=1e-12)


def test_two_heads():
    torch.manual_seed(0)
    model = lively(Net(two_heads, a=conv(3, 8), b=conv(8, 4), c=nn.Linear(8, 5)))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small = pl.prune(model, x[:1], amount=0.5)
    assert small.a.out_channels == 4 and small.b.out_channels == 4 and small.c.out_features == 5
    with pl.surgery.silenced(model, trace(model, x), pruning_record(small)["kept"]):
        expected = model(x)
    for head, value in small(x).items():
        assert torch.allclose(expected[head], value, atol=1e-12)


class Auxiliary(nn.Module):
    """A head that only training uses, as Inception's."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 4), conv(8, 4, 1)

    def forward(self, x):
        y = F.relu(self.a(x))
        return (self.b(y), self.head(y)) if self.training else self.b(y)


def test_a_head_that_only_training_uses_is_pruned_too():
    model = Auxiliary()
    model.eval()
    small = pl.prune(model, torch.zeros(1, 3, 8, 8), amount=0.5)
    assert not model.training and not small.training
    assert small.head.in_channels == small.a.out_channels == 4
    x = torch.zeros(1, 3, 8, 8)
    assert pl.plan(model, x, amount=0.5).totals["macs"] == [pl.metrics.macs(net, x) for net in (model, small)]
    small.train()
    assert [part.shape[1] for part in small(torch.randn(1, 3, 8, 8))] == [4, 4]


class Choosy(Auxiliary):
    def forward(self, x):
        y = F.relu(self.a(x))
        if self.training and self.head(y).sum() > 0:  # no way to follow that
            return self.b(y), -y
        return self.b(y)


def test_a_head_that_cannot_be_followed_in_training_does_not_hinder():
    small = pl.prune(Choosy(), torch.zeros(1, 3, 8, 8), amount=0.5)
    assert small.a.out_channels == 4 and small.head.in_channels == 8


@dataclass
class Answer:
    maps: torch.Tensor


def test_what_stands_in_an_object_that_the_network_returns_stays():
    torch.manual_seed(0)
    model = lively(Net(lambda n, x: Answer(maps=n.b(n.a(x))), a=conv(3, 8), b=conv(8, 6)))
    small = pl.prune(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64), amount=0.5)
    assert (small.a.out_channels, small.b.out_channels) == (4, 6)


def test_sizes_in_messages_and_assertions_of_the_network():
    def forward(n, x):
        y = n.a(x)
        torch._assert(y.shape[2] == 8, f"wrong height: {y.shape[2]} of {y.shape}")
        return n.b(y)

    small = pl.prune(Net(forward, a=conv(3, 8), b=conv(8, 4)), torch.zeros(1, 3, 8, 8), amount=0.5)
    assert small.a.out_channels == 4


def test_tracing_leaves_no_trace():
    """torch.fx changes nn.Module while it looks at a network, and puts tensors that it meets into it."""
    table = torch.randn(8, 1, 1)
    model = Net(lambda n, x: n.b(n.a(x) * table), a=conv(3, 8), b=conv(8, 4))
    before = set(vars(model)), nn.Module.__call__, nn.Module.__getattr__
    trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(TraceError):
        trace(Net(branch, a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)), torch.zeros(1, 3, 8, 8))
    assert (set(vars(model)), nn.Module.__call__, nn.Module.__getattr__) == before


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_connected_components(seed):
    """Beside SciPy, on random pairs, among them long chains and stars."""
    random = np.random.default_rng(seed)
    count = 200
    pairs = [random.integers(0, count, (2, size)) for size in (1, 7, 40, 60)]
    chain = random.permutation(count)[:50]
    pairs += [np.stack([chain[1:], chain[:-1]]), np.stack([chain, np.full(50, random.integers(count))])]
    left, right = np.concatenate(pairs[: 3 + seed], axis=1)
    found, classes = _components(count, [tuple(map(torch.from_numpy, pair)) for pair in pairs[: 3 + seed]])
    edges = coo_array((np.ones(len(left)), (left, right)), shape=(count, count))
    number, expected = connected_components(edges, directed=False)
    assert found == number == len(set(zip(classes.tolist(), expected.tolist())))


# What cannot shrink stays, and the plan says at which node and why.
PINNED = {
    "a fixed view": (
        Net(lambda n, x: n.b(n.a(x).view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)),
            a=conv(3, 8), b=conv(8, 4)), "view", r"fixed sizes \[-1, 2, 4, 8, 8\]",
    ),
    "a fixed view to a linear layer": (
        Net(lambda n, x: n.b(F.max_pool2d(n.a(x), 4).view(-1, 32)), a=conv(3, 8), b=nn.Linear(32, 4)),
        "view", r"fixed sizes \[-1, 32\]",
    ),
    "uneven parts": (
        Net(lambda n, x: n.b(torch.cat(list(n.a(x).chunk(2, 1))[::-1], 1)), a=conv(3, 9), b=conv(9, 4)),
        "chunk", "9 channels cannot be cut into equal parts of 5",
    ),
    "unequal computed parts": (
        Net(lambda n, x: n.b(torch.split(y := n.a(x), [y.size(1) // 4, y.size(1) - y.size(1) // 4], 1)[1]),
            a=conv(3, 8), b=conv(6, 4)),
        "split", r"fixed sizes \[2, 6\]",
    ),
    "a fixed split": (
        Net(lambda n, x: n.b(torch.split(n.a(x), [2, 6], 1)[1]), a=conv(3, 8), b=conv(6, 4)), "split",
        r"fixed sizes \[2, 6\]",
    ),
    "a fixed slice": (
        Net(lambda n, x: n.b(n.a(x)[:, 2:6]), a=conv(3, 8), b=conv(4, 4)), "getitem", "fixed numbers",
    ),
    "softmax": (nn.Sequential(conv(3, 8), nn.Softmax(1), conv(8, 4)), "'1'",
        "a Softmax needs all of them"),
    "layer norm": (
        nn.Sequential(conv(3, 8), nn.LayerNorm([8, 8, 8]), conv(8, 4)), "'1'", "a LayerNorm needs all",
    ),
    "a scale by the number of channels": (
        Net(lambda n, x: n.b((y := n.a(x)) / y.size(1)), a=conv(3, 8), b=conv(8, 4)), "truediv",
        "how many there are",
    ),
    "a sigmoid before padding": (
        nn.Sequential(conv(3, 8), nn.Sigmoid(), conv(8, 4)), "'2'", "no bias makes up for a constant",
    ),
    "a mean over channels": (
        Net(lambda n, x: n.b(torch.cat([n.a(x).mean(1, keepdim=True)] * 2, 1)), a=conv(3, 8), b=conv(2, 4)),
        "mean", "averaged",
    ),
    "a matrix product": (
        Net(lambda n, x: n.b((y := n.a(x).flatten(2)) @ y.transpose(1, 2)).mean(1), a=conv(3, 8),
            b=nn.Linear(8, 4)),
        "matmul", "needs all of them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PINNED)
def test_what_needs_all_channels_keeps_them_and_says_why(name):
    model, node, reason = PINNED[name]
    x = torch.randn(1, 3, 8, 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"(?s)no channels that can be removed.*{node}.*{reason}"):
        pl.prune(model, x)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    # In front of the same part, other channels can go, and the rest stays exact.
    torch.manual_seed(0)
    longer = lively(nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 3), copy.deepcopy(model)))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small = pl.prune(longer, x[:1], criterion="random", amount=0.5)
    assert_exact(longer, small, x)
    assert any(node.replace("'", "'3.", 1) in line or node in line for line in pl.plan(longer, x[:1]).pinned)


@torch.fx.wrap
def only_if_positive(x):
    return x if x.sum() > 0 else -x


def branch(n, x):
    y = n.b(torch.relu(n.a(x)))
    return n.c(y if y.sum() > 0 else -y)


def wrapped_branch(n, x):
    return n.c(only_if_positive(n.b(torch.relu(n.a(x)))))


def test_a_branch_on_data_names_the_line_and_the_way_out():
    x, layers = torch.randn(1, 3, 8, 8), {"a": conv(3, 8), "b": conv(8, 8), "c": conv(8, 4)}
    said = r"(?s)test_channels.py, line \d+ \(return n.c\(y if y.sum.*fx.wrap"
    with pytest.raises(TraceError, match=said):
        pl.prune(Net(branch, **layers), x)
    small = pl.prune(Net(wrapped_branch, **layers), x, amount=0.5)  # as the message says: kept whole
    assert (small.a.out_channels, small.b.out_channels) == (4, 8)


@torch.fx.wrap
def relu(x):  # the name of a known operation does not make it one
    return x.cumsum(1)


@pytest.mark.parametrize(
    ("function", "node"), [(lambda x: relu(x), "relu"), (lambda x: torch.cumsum(x, 1), "cumsum")]
)
def test_what_is_not_known_to_work_value_by_value_is_kept_whole(function, node):
    model = Net(lambda n, x: n.b(function(n.a(x))), a=conv(3, 8), b=conv(8, 4))
    with pytest.raises(ValueError, match=rf"\n  {node}: "):
        pl.prune(model, torch.zeros(1, 3, 8, 8))


def test_a_parameter_used_twice_in_different_ways_stays():
    """The classifier of a language model is often its embedding, transposed."""
    model = Net(lambda n, x: F.linear(n.a(x.flatten(1)), n.a.weight.t()), a=nn.Linear(12, 8))
    with pytest.raises(ValueError, match="no channels that can be removed"):
        pl.prune(model, torch.zeros(1, 3, 2, 2))


def mobile():
    """Everything that a zeroed filter's constant meets in a mobile network, without padding behind a sum."""

    def forward(n, x):
        y = n.stem(x)
        return n.fc((y + n.block(y)).mean((2, 3)))

    block = nn.Sequential(
        nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(), conv(24, 24, groups=24, bias=False),
        nn.BatchNorm2d(24), nn.Hardswish(), nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8),
    )  # fmt: skip
    stem = nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.SiLU())
    return Net(forward, stem=stem, block=block, fc=nn.Linear(8, 5))


def test_zeroed_filters_leave_constants_that_are_folded():
    torch.manual_seed(0)
    model = lively(mobile())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small = pl.prune(model, x[:1], amount=0.5, zeroed=True)
    kept = pruning_record(small)["kept"]
    assert len(kept["stem.0"]) == 4 and len(kept["block.0"]) == 12
    with torch.no_grad():  # the definition: the same filters zeroed by hand
        for name, stays in kept.items():
            weight = model.get_submodule(name).weight
            gone = torch.ones(len(weight), dtype=torch.bool)
            gone[stays] = False
            weight[gone] = 0
    assert torch.allclose(model(x), small(x), rtol=0, atol=1e-10)
    assert not torch.allclose(model(x), pl.prune(model, x[:1], amount=0.5)(x), atol=1e-3), "silencing differs"
    assert small.block[0].bias is not None, "a convolution without a bias got one"


def test_where_a_constant_cannot_be_folded_its_channels_stay():
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(),
                          conv(8, 4, 1))  # fmt: skip
    model = lively(model)
    nn.init.constant_(model[1].bias, 9.0)  # what is negative, the ReLU would turn into 0
    plan = pl.plan(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64), amount=0.5, zeroed=True)
    assert [len(filters) for filters in plan.kept.values()] == [8, 4, 4]
    assert "at the border, where it pads" in plan.pinned[0]


def test_macs_and_parameters_of_a_trace_are_those_that_torch_counts():
    normed = nn.Sequential(conv(3, 8), nn.LayerNorm([8, 8, 8]), conv(8, 6), nn.ReLU(), conv(6, 4))
    for model, size in (
        (normed, 8),
        (pl.models.resnet20(), 32),
        (pl.models.mobilenetv2(width=0.25), 32),
        (NETWORKS["transposed"][0], 8),
    ):
        x = torch.zeros(1, 3, size, size)
        channels = trace(model, x)
        costs = pl.planning.Costs(model, channels, x)
        everything = torch.ones(len(channels.free), dtype=torch.bool)
        assert costs.macs(everything) == pl.metrics.macs(model, x)
        assert costs.params(everything) == pl.metrics.parameters(model)
