"""Hidden checks of the small lab."""

import torch

from prunelab.grading import exercise


@exercise("sparsity", expects="the share of zeros, a number between 0 and 1", seconds=3)
def sparsity(weight):
    return (weight == 0).sum().item() / weight.numel()


@sparsity.part("the lab's own example", points=1, public=True, hint="count the zeros, then divide")
def _(draw):
    yield (torch.tensor([0.0, 1.0, 0.0, -2.0]),)


@sparsity.part("tensors of any shape", points=2, hint="`numel()` counts whatever the shape is")
def _(draw):
    for shape in [(8,), (4, 3), (2, 3, 3, 3)]:
        yield (torch.randint(-1, 2, shape, generator=draw).float(),)


@exercise("filter-norms", expects="the L1 norm of each filter, a tensor of shape (filters,)", seconds=3)
def filter_norms(weight):
    return weight.abs().flatten(1).sum(1)


@filter_norms.part("two filters of ones and twos", points=1, public=True)
def _(draw):
    yield (torch.stack([torch.ones(2, 3, 3), 2 * torch.ones(2, 3, 3)]),)


@filter_norms.part("layers of many shapes", points=2, hint="`flatten(1)` joins all dimensions but the first")
def _(draw):
    for shape in [(8, 4, 3, 3), (5, 1, 1, 1), (3, 2, 1, 5)]:
        yield (torch.randn(shape, generator=draw),)


@filter_norms.part("a linear layer", points=1, hint="a linear layer's weight has two dimensions")
def _(draw):
    yield (torch.randn(6, 4, generator=draw),)


def smallest_are_zero(mask, expected, weight, amount):
    """Any mask with the right number of zeros, all of them at weights no larger than those that stay."""
    size = weight.abs()
    same_number = mask.sum() == expected.sum()
    return bool(same_number and (mask.all() or not mask.any() or size[~mask].max() <= size[mask].min()))


@exercise(
    "smallest-mask",
    expects="a tensor of truth values, false for the share `amount` of the smallest weights",
    accept=smallest_are_zero,
    seconds=3,
)
def smallest_mask(weight, amount):
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().argsort()[: round(amount * weight.numel())]] = False
    return mask.view_as(weight)


@smallest_mask.part("the lab's own example", points=1, public=True)
def _(draw):
    yield torch.tensor([3.0, -1.0, 2.0, 0.5]), 0.5


@smallest_mask.part("random weights, with ties", points=2, hint="sort the absolute values, not the values")
def _(draw):
    for amount in (0.0, 0.25, 0.9):
        yield torch.randint(-3, 4, (5, 4), generator=draw).float(), amount


@exercise("dense-layers", expects="the names of the layers with a sparsity below `most`, in order", seconds=3)
def dense_layers(layers, most):
    return [name for name, weight in layers.items() if (weight == 0).float().mean() < most]


@dense_layers.part("the lab's own example", points=1, public=True)
def _(draw):
    yield {"first": torch.zeros(4), "second": torch.ones(4)}, 0.5


@dense_layers.part("random layers", points=1, hint="use your function `sparsity`")
def _(draw):
    for most in (0.2, 0.5, 0.8):
        layers = {f"layer {n}": (torch.rand(20, generator=draw) < n / 10).float() for n in (0, 3, 6, 9)}
        yield layers, most
