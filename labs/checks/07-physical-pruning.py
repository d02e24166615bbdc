"""Hidden checks of lab 7: physical pruning."""

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.nn import functional as F

from prunelab.grading import exercise

# -------------------------------------------------------------------------------------------- the cut


@exercise("cut", expects="four tensors: the smaller weight and bias, the next layer's weight and bias")
def cut_pair(weight, bias, next_weight, next_bias, stay):
    filters = [weight[j] for j in stay.tolist()]
    read = [next_weight[:, j] for j in stay.tolist()]
    return torch.stack(filters), bias[stay], torch.stack(read, dim=1), next_bias


@cut_pair.part("the example of the lab", points=1, public=True)
def _(draw):
    first, second = torch.arange(6.0).view(3, 2, 1, 1), torch.arange(12.0).view(4, 3, 1, 1)
    yield first, torch.tensor([7.0, 8.0, 9.0]), second, torch.zeros(4), torch.tensor([2, 0])


@cut_pair.part(
    "layers of many shapes", points=1, hint="the next layer loses channels, dimension 1, and keeps its bias"
)
def _(draw):
    for o, i, p, size, count in [(6, 3, 4, 3, 2), (5, 2, 5, 1, 5), (8, 8, 2, 5, 1)]:
        stay = torch.randperm(o, generator=draw)[:count]
        shapes = [(o, i, size, size), (o,), (p, o, size, size), (p,)]
        yield *(torch.randn(shape, generator=draw) for shape in shapes), stay


# ----------------------------------------------------------------------------------------------- ties


@exercise("ties", expects="for each channel the smallest number of its class, a list of whole numbers")
def classes_of(count, ties):
    a, b = zip(*ties) if ties else ((), ())
    graph = coo_array(([1] * len(ties), (list(a), list(b))), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    first = {}
    for channel, part in enumerate(component.tolist()):
        first.setdefault(part, channel)
    return [first[part] for part in component.tolist()]


@classes_of.part("the example of the lab", points=0.5, public=True)
def _(draw):
    yield 4, []
    yield 6, [[1, 4], [4, 5]]


@classes_of.part(
    "many ties, in any order", points=1.5, hint="a tie may join two classes that have grown already"
)
def _(draw):
    yield 6, [[5, 4], [4, 3], [3, 2], [2, 1], [1, 0]]
    yield 6, [[0, 1], [2, 3], [4, 5], [1, 2], [3, 4]]
    yield 8, [[7, 6], [5, 4], [6, 5], [3, 3]]
    for count, ties in [(12, 6), (20, 14), (5, 9)]:
        yield count, torch.randint(count, (ties, 2), generator=draw).tolist()


# ------------------------------------------------------------------------------------ what a plan leaves


@exercise("quarter", expects="two numbers between 0 and 1: the shares of the weights and of the operations")
def left(filters, inputs, kept, kept_inputs, places):
    before, after = filters * inputs * 9, kept * kept_inputs * 9
    return after / before, (after * places) / (before * places)


@left.part("the example of the lab", points=1, public=True)
def _(draw):
    yield 16, 16, 8, 8, 1024


@left.part("other layers", points=1, hint="both the filters and what each of them reads have shrunk")
def _(draw):
    yield from [(64, 3, 16, 3, 1024), (32, 16, 24, 4, 256), (10, 64, 10, 48, 1)]


# ------------------------------------------------------------------------------------------- constants


@exercise("constant", expects="two tensors: the weight without the channel, and the new bias", tolerance=1e-4)
def without_constant(weight, bias, j, value):
    still = torch.zeros(1, weight.shape[1], 1, 1)
    still[0, j] = value
    return torch.cat([weight[:, :j], weight[:, j + 1 :]], dim=1), F.conv2d(still, weight, bias).flatten()


@without_constant.part("the example of the lab", points=1, public=True)
def _(draw):
    yield torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(2, 2, 1, 1), torch.zeros(2), 1, 0.5


@without_constant.part("other layers", points=1, hint="the old bias stays, and the constant may be negative")
def _(draw):
    for o, i, j, value in [(4, 3, 0, -2.0), (2, 6, 5, 0.25), (5, 4, 2, 0.0)]:
        yield torch.randn(o, i, 1, 1, generator=draw), torch.randn(o, generator=draw), j, value


# --------------------------------------------------------------------------------------------- targets


@exercise("target", expects="for each class whether it stays, truth values (classes,)")
def keep_for(scores, costs, share):
    order = sorted(range(len(scores)), key=lambda k: (scores[k].item(), k))
    left, limit, gone = costs.sum().item(), share * costs.sum().item(), set()
    while left > limit:
        first = order[len(gone)]
        gone.add(first)
        left -= costs[first].item()
    return torch.tensor([k not in gone for k in range(len(scores))])


@keep_for.part("the example of the lab", points=0.5, public=True)
def _(draw):
    scores, costs = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([10.0, 20.0, 10.0])
    yield scores, costs, 0.5
    yield scores, costs, 0.49


@keep_for.part("more classes", points=1, hint="costs decide when to stop, scores decide who goes")
def _(draw):
    for classes, share in [(20, 0.5), (50, 0.9), (7, 0.2)]:
        yield (
            torch.randn(classes, generator=draw),
            torch.randint(1, 100, (classes,), generator=draw).float(),
            share,
        )


@keep_for.part(
    "equal scores, and nothing to do",
    points=0.5,
    hint="equal scores: the first goes first; a share of 1 removes nothing",
)
def _(draw):
    yield torch.ones(4), torch.tensor([4.0, 4.0, 4.0, 4.0]), 0.5
    yield torch.randn(5, generator=draw), torch.ones(5), 1.0
    yield torch.tensor([1.0, 0.0, 0.0, 2.0]), torch.tensor([1.0, 8.0, 1.0, 2.0]), 0.4


# --------------------------------------------------------------------------------------------- reading


@exercise("judge", expects="True or False")
def judge(sentence):
    return sentence in ("a", "c", "e")


@judge.part("the sentence that is done", points=0, public=True)
def _(draw):
    yield ("a",)


@judge.part("where the ties reach", points=1, hint="go down the columns of `conv`, and those of stage 3")
def _(draw):
    yield from [("b",), ("c",)]


@judge.part("why they are there", points=1, hint="what is added must fit; a criterion ties nothing")
def _(draw):
    yield from [("d",), ("e",)]
