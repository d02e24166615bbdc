"""Hidden checks of lab 3: criteria that ask the weights."""

import math

import torch

from prunelab import selection
from prunelab.criteria import correlation
from prunelab.grading import exercise

# --------------------------------------------------------------------------------------------- norms


@exercise("any-norm", expects="one norm for each row, a tensor (n,)")
def any_norm(groups, p):
    return torch.linalg.vector_norm(groups, p, dim=1)


@any_norm.part("the example of the lab", points=1, public=True)
def _(draw):
    for p in (0, 1, 2, math.inf):
        yield torch.tensor([[3.0, -4.0], [0.0, 2.0]]), p


@any_norm.part("other groups, other p", points=1, hint="p need not be a whole number; zeros count for p = 0")
def _(draw):
    for n, d, p in [(5, 9, 1), (3, 4, 1.5), (4, 7, 3), (6, 2, math.inf)]:
        yield torch.randn(n, d, generator=draw), p
    groups = torch.randn(8, 6, generator=draw)
    yield groups * (groups > 0), 0


# ---------------------------------------------------------------------------------------------- LAMP


@exercise("lamp-score", expects="one score for each row, a tensor (n,)")
def lamp_score(groups):
    squares = groups.double().square().sum(1)
    return torch.stack([q / squares[squares >= q].sum() for q in squares]).to(groups.dtype)


@lamp_score.part("the example of the lab", points=1, public=True)
def _(draw):
    yield (torch.tensor([[2.0], [1.0], [3.0]]),)


@lamp_score.part("single weights", points=1, hint="each score back to its own group")
def _(draw):
    for n in (1, 7, 40):
        yield (torch.randn(n, 1, generator=draw),)


@lamp_score.part("groups of several weights", points=1, hint="the squared length of the whole group")
def _(draw):
    for n, d in [(6, 9), (16, 4), (3, 20)]:
        yield (torch.randn(n, d, generator=draw),)


# ---------------------------------------------------------------------------------- geometric median


@exercise("median-score", expects="one score for each row, a tensor (n,)", tolerance=1e-4)
def median_score(groups):
    return correlation.geometric_median(groups)


@median_score.part("the example of the lab", points=1, public=True)
def _(draw):
    yield (torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]),)


@median_score.part("layers of many shapes", points=1, hint="a distance for each pair of rows, then their sum")
def _(draw):
    for n, d in [(8, 9), (16, 27), (1, 5), (30, 2)]:
        yield (torch.randn(n, d, generator=draw),)


# ------------------------------------------------------------------------------------------- merging


@exercise("merge-channels", expects="the weight with one channel less")
def merge_channels(next_weight, stays, goes):
    one_hot = torch.eye(next_weight.shape[1])
    one_hot[goes, stays] = 1  # who read `goes` reads `stays` now
    into = torch.cat([one_hot[:, :goes], one_hot[:, goes + 1 :]], dim=1)
    return torch.einsum("oihw,ik->okhw", next_weight, into)


@merge_channels.part("the example of the lab", points=1, public=True)
def _(draw):
    yield torch.arange(6.0).view(2, 3, 1, 1), 1, 2


@merge_channels.part("any two channels", points=1, hint="`goes` may stand before `stays`")
def _(draw):
    for shape, stays, goes in [((4, 5, 3, 3), 0, 4), ((3, 6, 1, 1), 5, 0), ((2, 4, 3, 1), 2, 1)]:
        yield torch.randn(shape, generator=draw), stays, goes


# ------------------------------------------------------------------------------------ global ranking


@exercise("taken", expects="how many groups go from each layer, a list of whole numbers")
def taken(scores, amount):
    kept = selection.select({str(number): part for number, part in enumerate(scores)}, amount, "global")
    return [int((~keep).sum()) for keep in kept.values()]


@taken.part("the example of the lab", points=1, public=True)
def _(draw):
    yield [torch.tensor([0.1, 0.9]), torch.tensor([0.2, 0.3, 0.4, 0.5])], 0.5


@taken.part("more layers, other amounts", points=1, hint="one order for all; a layer may give none")
def _(draw):
    for sizes, amount in [((16, 32, 64), 0.3), ((5, 1, 9, 2), 0.75), ((8, 8), 0.0), ((4, 6), 1.0)]:
        yield [torch.rand(size, generator=draw) * (1 + place) for place, size in enumerate(sizes)], amount


# ------------------------------------------------------------------------------------------- reading


@exercise("judge", expects="True or False")
def judge(sentence):
    return sentence in ("a", "c")


@judge.part("the sentence that is done", points=0, public=True)
def _(draw):
    yield ("a",)


@judge.part("the other sentences", points=1, hint="the twins, the norms, the two panels")
def _(draw):
    yield from [("b",), ("c",), ("d",), ("e",)]
