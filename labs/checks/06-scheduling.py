"""Hidden checks of lab 6: when to prune."""

import torch

from prunelab import schedules
from prunelab.grading import exercise
from prunelab.recipes import rigl_update

# ----------------------------------------------------------------------------------------------- AGP


@exercise("agp", expects="the sparsity after that step, one number between initial and final")
def agp_sparsity(step, start, every, prunings, initial, final):
    reached = initial
    for number in range(1, prunings + 1):
        if step >= start + number * every:
            reached = initial + (final - initial) * schedules.agp(number / prunings)
    return reached


@agp_sparsity.part("the examples of the lab", points=1, public=True)
def _(draw):
    for step in (200, 150, 50):
        yield step, 100, 10, 10, 0.0, 0.8


@agp_sparsity.part("at the steps that prune", points=1, hint="the initial sparsity need not be zero")
def _(draw):
    for number in (1, 2, 5, 7):
        yield 300 + 25 * number, 300, 25, 7 if number != 5 else 5, 0.1, 0.9


@agp_sparsity.part("before, between and after", points=1, hint="between two prunings nothing changes")
def _(draw):
    for step in (0, 39, 40, 49, 50, 59, 95, 140, 1000):
        yield step, 40, 10, 10, 0.2, 0.95


# ---------------------------------------------------------------------------------------------- RigL


@exercise("rigl-move", expects="the new mask (n,), bool, and the new weights (n,)")
def rigl_move(weight, keep, gradient, share):
    new = rigl_update(weight, keep, gradient, share)
    return new, weight * (new & keep)


@rigl_move.part("the example of the lab", points=1, public=True)
def _(draw):
    weight = torch.tensor([0.9, 0.0, -0.1, 0.0, 0.4])
    yield weight, weight != 0, torch.tensor([0.2, -0.6, 0.1, 0.5, 0.0]), 0.34


def _layer(draw, size, share):
    keep = torch.rand(size, generator=draw) < 0.5
    keep[:2] = True
    weight = torch.randn(size, generator=draw) * keep
    return weight, keep, torch.randn(size, generator=draw), share


@rigl_move.part("larger layers", points=1, hint="magnitudes, of weights and of gradients alike")
def _(draw):
    for size, share in [(12, 0.5), (40, 0.3), (200, 0.15), (9, 0.0)]:
        yield _layer(draw, size, share)


@rigl_move.part("a dropped weight that comes back", points=1, hint="it is not living when you grow")
def _(draw):
    for size in (10, 30):
        weight, keep, gradient, share = _layer(draw, size, 0.4)
        smallest = weight.abs().masked_fill(~keep, float("inf")).argmin()
        gradient[smallest] = -10.0
        yield weight, keep, gradient, share


# -------------------------------------------------------------------------------------------- ticket


@exercise("ticket-start", expects="a list with one tensor for each layer, zero where the weight was removed")
def ticket_start(early, trained, amount):
    ranked = sorted(
        (abs(value), layer, place)
        for layer, weight in enumerate(trained)
        for place, value in enumerate(weight.flatten().tolist())
    )
    start = [weight.clone() for weight in early]
    for _, layer, place in ranked[: round(amount * len(ranked))]:
        start[layer].view(-1)[place] = 0
    return start


@ticket_start.part("the example of the lab", points=1, public=True)
def _(draw):
    early = [torch.tensor([0.5, -0.1]), torch.tensor([[0.3, -0.8]])]
    yield early, [torch.tensor([0.9, -0.7]), torch.tensor([[0.1, -0.2]])], 0.5


@ticket_start.part("more layers", points=1, hint="one ranking for all layers; values from before")
def _(draw):
    for shapes, amount in [([(4, 3, 3, 3), (5, 8)], 0.8), ([(6,), (2, 2), (3, 5)], 0.3), ([(7, 2)], 0.5)]:
        early = [torch.randn(shape, generator=draw) for shape in shapes]
        trained = [
            scale * torch.randn(shape, generator=draw) for scale, shape in zip((1.0, 0.4, 2.0), shapes)
        ]
        yield early, trained, amount


# ---------------------------------------------------------------------------------------------- step


@exercise("masked-step", expects="the new weight and the new momentum, zero for what is not kept")
def masked_step(weight, momentum, gradient, keep, lr, beta):
    parameter = torch.nn.Parameter(torch.where(keep, weight, 0.0))
    optimiser = torch.optim.SGD([parameter], lr=lr, momentum=beta)
    optimiser.state[parameter]["momentum_buffer"] = torch.where(keep, momentum, 0.0)
    parameter.grad = torch.where(keep, gradient, 0.0)
    optimiser.step()
    return parameter.detach(), optimiser.state[parameter]["momentum_buffer"]


@masked_step.part("the example of the lab", points=1, public=True)
def _(draw):
    ones = torch.ones(2)
    yield torch.tensor([1.0, 2.0]), ones, ones, torch.tensor([True, False]), 0.1, 0.5


@masked_step.part("whole layers", points=1, hint="clear both before the step")
def _(draw):
    for shape in [(5,), (3, 4), (2, 3, 3, 3)]:
        tensors = [torch.randn(shape, generator=draw) for _ in range(3)]
        yield (*tensors, torch.rand(shape, generator=draw) < 0.6, 0.3, 0.9)


# ------------------------------------------------------------------------------------------- reading


@exercise("read", expects="the name of a line, or True or False")
def read(question):
    named = {"a": "agp", "b": "one_shot", "c": "linear"}
    return named.get(question, question == "e")


@read.part("the question that is done", points=0, public=True)
def _(draw):
    yield ("a",)


@read.part("the lines", points=1, hint="the steepest fall; and whose last cut you can see comes latest?")
def _(draw):
    yield from [("b",), ("c",)]


@read.part("the sentences", points=1, hint="compare the two panels of accuracy at the same step")
def _(draw):
    yield from [("d",), ("e",), ("f",)]
