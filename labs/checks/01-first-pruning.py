"""Hidden checks of lab 1: a first pruning."""

import torch

from prunelab import selection
from prunelab.grading import exercise

# ---------------------------------------------------------------------------------------------- masks


@exercise("mask", expects="a mask of truth values, of the weight's shape, true = keep")
def mask(weight, amount):
    return selection.keep_best(weight.abs().flatten(), amount).view(weight.shape)


@mask.part("the example of the lab", points=1, public=True)
def _(draw):
    for amount in (0.5, 0.0, 1.0):
        yield torch.tensor([[0.5, -2.0], [-0.1, 1.0]]), amount


@mask.part("convolutions and other shapes", points=2, hint="the smallest of all, not of each row")
def _(draw):
    for shape, amount in [((8, 4, 3, 3), 0.5), ((10,), 0.3), ((5, 7), 0.9), ((3, 2, 5, 1), 0.01)]:
        yield torch.randn(shape, generator=draw), amount


# ----------------------------------------------------------------------------------------- criterion


@exercise("smallest", expects="one score for each row, a tensor (n,)")
def smallest(groups):
    return -torch.linalg.vector_norm(groups, 1, dim=1)


@smallest.part("the example of the lab", points=1, public=True)
def _(draw):
    yield (torch.tensor([[1.0, -2.0], [0.0, 0.5]]),)


@smallest.part("more groups", points=1, hint="single weights are rows of one member")
def _(draw):
    for n, d in [(20, 1), (8, 9), (3, 144)]:
        yield (torch.randn(n, d, generator=draw),)


# ------------------------------------------------------------------------------------------ counting


@exercise("weights-left", expects="how many weights are left, a whole number")
def weights_left(filters, channels, size, amount):
    layer = torch.nn.Conv2d(round((1 - amount) * channels), round((1 - amount) * filters), size, bias=False)
    return layer.weight.numel()


@weights_left.part("the examples of the lab", points=1, public=True)
def _(draw):
    yield from [(16, 16, 3, 0.0), (16, 16, 3, 0.5)]


@weights_left.part("other layers", points=1, hint="filters and channels need not be equally many")
def _(draw):
    yield from [(64, 32, 3, 0.25), (10, 40, 1, 0.9), (128, 64, 5, 0.75), (32, 16, 7, 0.125)]


# ------------------------------------------------------------------------------------------- reading


@exercise("judge", expects="True or False")
def judge(sentence):
    return sentence in ("a", "e")


@judge.part("the sentence that is done", points=0, public=True)
def _(draw):
    yield ("a",)


@judge.part("the other sentences", points=1, hint="the latencies, the bars of the layers, the saved files")
def _(draw):
    yield from [("b",), ("c",), ("d",), ("e",)]
