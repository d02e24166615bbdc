"""Hidden checks of lab 8: measuring."""

import statistics

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunelab.grading import exercise

# ----------------------------------------------------------------------------------------- operations


@exercise("operations", expects="how many multiply-accumulates, a whole number")
def multiply_accumulates(filters, channels, kernel, size, stride=1, padding=0, groups=1):
    layer = nn.Conv2d(channels, filters, kernel, stride, padding, groups=groups, bias=False)
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, channels, size, size))
    return counter.get_total_flops() // 2


@multiply_accumulates.part("the example of the lab", points=1, public=True)
def _(draw):
    yield 16, 3, 3, 32, 1, 1
    yield 8, 8, 1, 4, 1, 0, 8


@multiply_accumulates.part(
    "strides, paddings and groups", points=1, hint="a filter of a grouped layer reads its group only"
)
def _(draw):
    yield from [
        (32, 16, 3, 32, 2, 1),
        (64, 32, 5, 9),
        (12, 8, 3, 7, 1, 0, 4),
        (10, 64, 1, 1),
        (6, 4, 2, 5, 3, 2, 2),
    ]


# ----------------------------------------------------------------------------------------------- bytes


@exercise("bitmask", expects="how many times smaller the file is, a number above 0")
def bitmask_ratio(weight):
    values = weight.flatten().tolist()
    mask = len(values) // 8 + (len(values) % 8 > 0)
    return 4 * len(values) / (mask + 4 * sum(value != 0 for value in values))


@bitmask_ratio.part("the example of the lab", points=1, public=True)
def _(draw):
    sparse = torch.zeros(4, 4, 1, 1)
    sparse[0] = 1.0
    yield (sparse,)


@bitmask_ratio.part("other weights", points=1, hint="whole bytes: nine weights need two of them")
def _(draw):
    for shape, sparsity in [((3, 1, 3, 3), 0.5), ((1, 1, 3, 3), 0.0), ((16, 8, 3, 3), 0.95), ((5,), 0.4)]:
        yield (torch.randn(shape, generator=draw) * (torch.rand(shape, generator=draw) >= sparsity),)


# ----------------------------------------------------------------------------------------------- front


@exercise("pareto", expects="for each network whether it is on the front, truth values (networks,)")
def on_front(costs, accuracies):
    points = list(zip(costs.tolist(), accuracies.tolist()))
    return torch.tensor(
        [
            not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
            for cost, accuracy in points
        ]
    )


@on_front.part("the example of the lab", points=1, public=True)
def _(draw):
    yield torch.tensor([1.0, 0.7, 0.6, 0.5]), torch.tensor([0.92, 0.91, 0.88, 0.90])


@on_front.part("many networks", points=1, hint="compare each with all others")
def _(draw):
    for count in (1, 5, 30):
        yield torch.rand(count, generator=draw), torch.rand(count, generator=draw)


@on_front.part("equal ones", points=1, hint="equal in both is no better; equal in one is")
def _(draw):
    yield torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.9, 0.9, 0.8])
    yield torch.tensor([0.3, 0.5, 0.5]), torch.tensor([0.9, 0.9, 0.95])
    yield torch.randint(3, (12,), generator=draw).float(), torch.randint(3, (12,), generator=draw).float()


# ------------------------------------------------------------------------------------------------ time


@exercise("quartiles", expects="the median in seconds, a number")
def fair_time(passes, warm):
    return statistics.median(passes.double().tolist()[warm:])


@fair_time.part("the example of the lab", points=0.5, public=True)
def _(draw):
    yield torch.tensor([9.0, 8.0, 1.0, 2.0, 3.0]), 2


@fair_time.part(
    "even and odd numbers of passes",
    points=0.5,
    hint="of an even number take the mean of the two in the middle",
)
def _(draw):
    for count, warm in [(10, 0), (31, 3), (6, 2)]:
        yield torch.rand(count, generator=draw), warm


# --------------------------------------------------------------------------------------------- reading


@exercise("judge", expects="True or False")
def judge(sentence):
    return sentence in ("b", "d")


@judge.part("the sentence that is done", points=0, public=True)
def _(draw):
    yield ("a",)


@judge.part(
    "ratios and errors",
    points=1,
    hint="the two ratios are each other's inverse; what does the error not know?",
)
def _(draw):
    yield from [("b",), ("c",)]


@judge.part("choosing, and memory", points=1, hint="the trap; and where the bytes of a running network are")
def _(draw):
    yield from [("d",), ("e",)]
