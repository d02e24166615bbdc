"""Hidden checks of lab 4: criteria that ask the data."""

import torch
from sklearn.metrics import mutual_info_score

from prunelab.criteria import gradient, hessian
from prunelab.grading import exercise

# ---------------------------------------------------------------------------------------------- APoZ


@exercise("apoz-score", expects="one share for each map, a tensor (filters,)")
def apoz_score(maps):
    values = maps.transpose(0, 1).flatten(1)
    return values.count_nonzero(dim=1) / values.shape[1]


@apoz_score.part("the example of the lab", points=1, public=True)
def _(draw):
    yield (torch.tensor([[[[0.0, 1.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]]]),)


@apoz_score.part("more pictures", points=1, hint="over pictures and places together; silent maps score 0")
def _(draw):
    for shape in [(4, 3, 5, 5), (7, 2, 1, 3), (2, 6, 4, 4)]:
        maps = torch.randn(shape, generator=draw).relu()
        maps[:, 0] = 0
        yield (maps,)


# -------------------------------------------------------------------------------------------- Taylor


@exercise("taylor-score", expects="one score for each map, a tensor (filters,)")
def taylor_score(maps, gradients):
    return gradient.taylor2017(maps, gradients).mean(0)


@taylor_score.part("the example of the lab", points=1, public=True)
def _(draw):
    maps = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 1.0]]]])
    yield maps, torch.tensor([[[[1.0, -1.0]]], [[[1.0, 1.0]]]])


@taylor_score.part("more pictures and filters", points=1, hint="a mean, an absolute value, a mean")
def _(draw):
    for shape in [(4, 3, 5, 5), (7, 2, 1, 3), (2, 6, 4, 4)]:
        yield torch.randn(shape, generator=draw).relu(), torch.randn(shape, generator=draw)


# --------------------------------------------------------------------------------------- information


@exercise("information", expects="the information in nats, one number", tolerance=1e-4)
def shared_information(codes, classes):
    return float(mutual_info_score(codes, classes))


@shared_information.part("the examples of the lab", points=1, public=True)
def _(draw):
    classes = torch.tensor([0, 0, 1, 1])
    yield torch.tensor([5, 5, 7, 7]), classes
    yield torch.tensor([1, 2, 1, 2]), classes


@shared_information.part("more bins and classes", points=1, hint="natural logarithm; weighed by p(i, j)")
def _(draw):
    for pictures, bins, classes in [(100, 8, 10), (60, 2, 3), (500, 16, 10)]:
        codes = torch.randint(bins, (pictures,), generator=draw)
        noise = torch.randint(2, (pictures,), generator=draw)
        yield codes, (codes + noise) % classes


@shared_information.part("values that do not occur", points=1, hint="such pairs add nothing, not NaN")
def _(draw):
    yield torch.tensor([0, 0, 3, 3, 9, 9]), torch.tensor([1, 1, 4, 4, 4, 4])
    yield torch.tensor([2, 2, 2]), torch.tensor([0, 1, 2])


# ---------------------------------------------------------------------------------------------- OBD


@exercise("obd-score", expects="one score for each group, a tensor (groups,)")
def obd_score(weights, gradients):
    return hessian.obd(weights, gradients.square().mean(0))


@obd_score.part("the example of the lab", points=1, public=True)
def _(draw):
    yield torch.tensor([[2.0, 1.0]]), torch.tensor([[[1.0, 0.0]], [[-1.0, 4.0]]])


@obd_score.part("more groups and pictures", points=1, hint="the mean over the pictures of the squares")
def _(draw):
    for pictures, groups, members in [(5, 3, 4), (1, 2, 9), (12, 6, 1)]:
        weights = torch.randn(groups, members, generator=draw)
        yield weights, torch.randn(pictures, groups, members, generator=draw)


# ------------------------------------------------------------------------------------------- surgeon


@exercise("surgeon-cut", expects="the new filter, a tensor (d,)", tolerance=1e-4)
def surgeon_cut(row, inverse):
    # The best filter without weight p, found in another way: least squares over the others.
    p = min(range(len(row)), key=lambda k: (row[k] ** 2 / inverse[k, k]).item())
    hessian_matrix = torch.linalg.inv(inverse.double())
    others = [k for k in range(len(row)) if k != p]
    new = torch.zeros_like(row, dtype=torch.float64)
    if others:
        wanted = hessian_matrix[others] @ row.double()
        new[others] = torch.linalg.solve(hessian_matrix[others][:, others], wanted)
    return new.to(row.dtype)


@surgeon_cut.part("the example of the lab", points=1, public=True)
def _(draw):
    yield torch.tensor([1.0, 1.0]), torch.tensor([[2.0, 1.0], [1.0, 1.0]])


@surgeon_cut.part("longer filters", points=1, hint="the column of the weight that goes")
def _(draw):
    for d in (2, 5, 9, 16):
        patches = torch.randn(4 * d, d, generator=draw)
        row = torch.randn(d, generator=draw)
        yield row + row.sign() / 2, torch.linalg.inv(patches.T @ patches / len(patches) + 0.1 * torch.eye(d))


# ------------------------------------------------------------------------------------------- reading


@exercise("judge", expects="True or False")
def judge(sentence):
    return sentence in ("a", "c")


@judge.part("the sentence that is done", points=0, public=True)
def _(draw):
    yield ("a",)


@judge.part("the other sentences", points=1, hint="the signs, the two columns, the bill")
def _(draw):
    yield from [("b",), ("c",), ("d",), ("e",)]
