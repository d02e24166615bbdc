"""Hidden checks of lab 9: the capstone."""

import math
import statistics

import torch
from scipy.special import rel_entr, softmax

from prunelab.grading import exercise

# ------------------------------------------------------------------------------------------- the score


@exercise("score", expects="the score, a number: 0 if a rule is broken")
def score(network, dense, floor, budget):
    (accuracy, size, seconds), (before, full, slow) = network, dense
    kept = accuracy >= before - floor and seconds <= budget * slow
    return math.exp((math.log(full / size) + math.log(slow / seconds)) / 2) if kept else 0.0


@score.part("the example of the lab", points=0.5, public=True)
def _(draw):
    yield [0.88, 250.0, 0.64], [0.90, 1000.0, 1.0], 0.05, 0.9
    yield [0.84, 100.0, 0.40], [0.90, 1000.0, 1.0], 0.05, 0.9


@score.part("other networks", points=1, hint="ratios of bytes and of seconds: dense over small, both")
def _(draw):
    yield [0.75, 2e5, 0.012], [0.80, 9e5, 0.02], 0.0625, 0.75
    yield [0.95, 3e6, 0.5], [0.90, 2e6, 1.0], 0.0, 0.5  # more accurate than dense, and larger
    for _ in range(4):
        size, seconds = torch.rand(2, generator=draw).tolist()
        yield [0.9, 1e5 * (1 + size), 0.1 + 0.2 * seconds], [0.9, 5e5, 0.4], 0.01, 0.875


@score.part("the limits", points=0.5, hint="at the limit a rule is kept; each rule alone can be broken")
def _(draw):
    yield [0.5, 100.0, 0.75], [0.75, 200.0, 1.0], 0.25, 0.75
    yield [0.5, 100.0, 0.75], [0.75, 200.0, 1.0], 0.125, 0.75
    yield [0.5, 100.0, 0.75], [0.75, 200.0, 1.0], 0.25, 0.5


# ------------------------------------------------------------------------------------------ the winner


@exercise("winner", expects="the number of a network, counted from 0, or -1")
def winner(accuracies, sizes, times, dense, floor, budget):
    rows = zip(accuracies.tolist(), sizes.tolist(), times.tolist())
    scores = {j: 1 / (m * t) for j, (a, m, t) in enumerate(rows) if a >= dense - floor and t <= budget}
    return max(scores, key=scores.get, default=-1)


@winner.part("the example of the lab", points=0.5, public=True)
def _(draw):
    three = torch.tensor([[0.88, 0.89, 0.84], [0.25, 0.50, 0.10], [0.64, 0.45, 0.40]])
    yield *three, 0.90, 0.05, 0.9
    yield *three, 0.90, 0.07, 0.9


@winner.part("many networks", points=1, hint="those that break a rule are out, whatever their score would be")
def _(draw):
    for count in (1, 8, 40):
        yield *(0.2 + 0.8 * torch.rand(3, count, generator=draw)), 0.9, 0.3, 0.8


@winner.part("nobody, and equal scores", points=0.5, hint="-1 if all break a rule; of equal ones the first")
def _(draw):
    yield torch.tensor([0.5, 0.9]), torch.tensor([0.25, 0.25]), torch.tensor([0.5, 1.0]), 0.9, 0.125, 0.75
    yield (
        torch.tensor([0.5, 0.9, 0.9]),
        torch.tensor([0.5, 0.5, 0.25]),
        torch.tensor([0.1, 0.25, 0.5]),
        0.9,
        0.125,
        0.75,
    )


# ------------------------------------------------------------------------------------------- the teacher


@exercise("distil", expects="the term of the loss, a tensor without dimensions", tolerance=1e-4)
def distillation(student, teacher, temperature):
    p, q = (softmax(logits.double().numpy() / temperature, axis=1) for logits in (teacher, student))
    return torch.tensor(temperature**2 * rel_entr(p, q).sum(1).mean(), dtype=torch.float32)


@distillation.part("the example of the lab", points=1, public=True)
def _(draw):
    wise = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    yield wise, wise, 2.0
    yield torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), 1.0


@distillation.part("other answers", points=1, hint="the teacher's p stands before the logarithm")
def _(draw):
    for pictures, classes, temperature in [(1, 10, 1.0), (16, 10, 4.0), (5, 3, 0.5)]:
        yield *(3 * torch.randn(2, pictures, classes, generator=draw)), temperature


@distillation.part(
    "large logits", points=1, hint="divide by T first, and never take the logarithm of a softmax"
)
def _(draw):
    yield torch.tensor([[0.0, 200.0, 3.0]]), torch.tensor([[200.0, 0.0, -200.0]]), 1.0
    yield 100 * torch.randn(4, 10, generator=draw), 100 * torch.randn(4, 10, generator=draw), 2.0


# --------------------------------------------------------------------------------------------- channels


@exercise("widest", expects="how many channels may stay, a whole number")
def most_channels(passes, budget):
    times = [statistics.median(row) for row in passes.double().tolist()]
    return max((k for k, seconds in enumerate(times, 1) if seconds <= budget * times[-1]), default=0)


@most_channels.part("the example of the lab", points=0.5, public=True)
def _(draw):
    passes = torch.tensor([[1.0, 1.0, 9.0], [3.0, 3.0, 3.0], [2.0, 2.0, 2.0], [4.0, 4.0, 4.0]])
    yield passes, 0.5
    yield passes, 0.25
    yield passes, 0.2


@most_channels.part(
    "other layers", points=1, hint="the last of all widths that are fast enough, not the first that is not"
)
def _(draw):
    for widths, repeats, budget in [(16, 5, 0.7), (64, 9, 0.5), (8, 1, 0.9)]:
        rising = torch.arange(1, widths + 1)[:, None] / widths
        yield rising * (0.5 + torch.rand(widths, repeats, generator=draw)), budget


@most_channels.part(
    "even numbers of passes, and all or none", points=0.5, hint="the dense layer is a width, too"
)
def _(draw):
    yield torch.tensor([[1.0, 3.0], [2.0, 3.0], [1.0, 7.0]]), 0.5
    yield torch.tensor([[2.0, 2.0], [2.0, 2.0]]), 1.0
    yield torch.tensor([[2.0, 2.0], [2.0, 2.0]]), 0.5


# --------------------------------------------------------------------------------------------- reading


@exercise("judge", expects="True or False")
def judge(sentence):
    return sentence in ("b", "c")


@judge.part("the sentence that is done", points=0, public=True)
def _(draw):
    yield ("a",)


@judge.part(
    "choosing, and the picture", points=0.5, hint="what was chosen where? what is the same along a line?"
)
def _(draw):
    yield from [("b",), ("c",)]


@judge.part(
    "other people's entries", points=0.5, hint="one network is not a method; both times are from one machine"
)
def _(draw):
    yield from [("d",), ("e",)]
