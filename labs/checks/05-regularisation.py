"""Hidden checks of lab 5: regularisation."""

import torch
from torch.nn import functional as F

from prunelab.grading import exercise

# ------------------------------------------------------------------------------------- soft threshold


@exercise("soft-threshold", expects="the shrunk weights, a tensor of the same shape")
def shrink(w, t):
    return F.softshrink(w, t)


@shrink.part("the example of the lab", points=1, public=True)
def _(draw):
    yield torch.tensor([3.0, -0.5, 1.0]), 1.0


@shrink.part("any shape and threshold", points=1, hint="both signs, and a threshold of 0")
def _(draw):
    for shape, t in [((20,), 0.3), ((4, 3, 3, 3), 0.8), ((2, 5), 0.0)]:
        yield torch.randn(shape, generator=draw), t


# ----------------------------------------------------------------------------------------- group step


@exercise("group-step", expects="the shrunk groups, a tensor (n, d)")
def shrink_groups(groups, t):
    result = torch.zeros_like(groups)
    for new, row in zip(result, groups, strict=True):
        length, threshold = float(row.square().sum()) ** 0.5, t * len(row) ** 0.5
        if length > threshold:
            new.copy_(row * (1 - threshold / length))
    return result


@shrink_groups.part("the example of the lab", points=1, public=True)
def _(draw):
    yield torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]]), 1.0


@shrink_groups.part("groups of other sizes", points=1, hint="the root of the group's size")
def _(draw):
    for shape, t in [((8, 9), 0.9), ((5, 1), 0.5), ((3, 16), 0.0)]:
        yield torch.randn(shape, generator=draw), t


@shrink_groups.part("groups that are zero already", points=1, hint="nothing divided by nothing is NaN")
def _(draw):
    for t in (0.0, 0.4):
        groups = torch.randn((4, 3), generator=draw)
        groups[1] = 0
        yield groups, t


# ---------------------------------------------------------------------------------------------- gates


@exercise("draw-gate", expects="one gate for each log alpha, a tensor (n,)", tolerance=1e-4)
def draw_gate(log_alpha, u):
    odds = (
        u.double() / (1 - u.double()) * log_alpha.double().exp()
    ) ** 1.5  # of the binary concrete variable
    stretched = 1.2 * odds / (1 + odds) - 0.1
    return torch.minimum(torch.maximum(stretched, torch.tensor(0.0)), torch.tensor(1.0)).float()


@draw_gate.part("the example of the lab", points=1, public=True)
def _(draw):
    yield torch.tensor([0.0, 9.0]), torch.tensor([0.5, 0.5])


@draw_gate.part("many draws", points=1, hint="divide by the temperature, stretch, then cut off")
def _(draw):
    for spread in (0.5, 2.0):
        yield spread * torch.randn(50, generator=draw), 0.02 + 0.96 * torch.rand(50, generator=draw)


# ----------------------------------------------------------------------------------- network slimming


@exercise("slim", expects="for each layer which channels stay, a list of bool tensors")
def slim(scales, amount):
    sizes = [gamma.abs() for gamma in scales]
    largest = [int(values.argmax()) for values in sizes]  # goes last, so it never goes
    free = [
        float(v)
        for values, last in zip(sizes, largest, strict=True)
        for j, v in enumerate(values)
        if j != last
    ]
    count = min(int(amount * sum(map(len, sizes))), len(free))
    cut = sorted(free)[count - 1] if count else -1.0
    keep = [values > cut for values in sizes]
    for stays, last in zip(keep, largest, strict=True):
        stays[last] = True
    return keep


@slim.part("the example of the lab", points=1, public=True)
def _(draw):
    layers = [torch.tensor([0.9, -0.5, 0.02]), torch.tensor([0.1, -0.04, 0.01])]
    yield layers, 0.5
    yield layers, 0.67


@slim.part("more layers", points=1, hint="magnitudes, all layers in one ranking")
def _(draw):
    for amount in (0.0, 0.25, 0.5):
        yield [torch.randn(n, generator=draw) for n in (8, 4, 16)], amount


@slim.part("layers with small scales", points=1, hint="who would go if a layer has one channel left?")
def _(draw):
    for amount in (0.6, 0.75, 1.0):
        yield [torch.randn(n, generator=draw) * s for n, s in ((6, 1.0), (5, 0.01), (1, 0.001))], amount


# ------------------------------------------------------------------------------------------- reading


@exercise("read", expects="the name of a line, or True or False")
def read(question):
    named = {"a": "random", "b": "0.03", "c": "plain"}
    return named.get(question, question == "e")


@read.part("the question that is done", points=0, public=True)
def _(draw):
    yield ("a",)


@read.part("the lines", points=1, hint="the left ends of both panels; who is cut by lot?")
def _(draw):
    yield from [("b",), ("c",)]


@read.part("the sentences", points=1, hint="compare the two panels at the same share; two points are noise")
def _(draw):
    yield from [("d",), ("e",), ("f",)]
