"""What is removed together: a granularity cuts a weight into groups that live or die as one.

Every granularity is a rearrangement of a weight ``(o, i, h, w)`` (filters, input channels, kernel rows,
kernel columns) into a matrix ``(groups, members)``. A linear layer is the same with ``h = w = 1``. Nothing
else is needed: the way back, from one decision per group to one per weight, follows by sending positions
through the same rearrangement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from prunelab.registry import Method, register

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@register("granularity", name="weight", section="granularity/unstructured", cite="han2015learning")
def weight(w: Tensor) -> Tensor:
    """Each weight on its own: unstructured sparsity. ``o i h w -> (o i h w) 1``."""
    return rearrange(w, "o i h w -> (o i h w) 1")


@register("granularity", name="kernel", section="granularity/kernel", cite="mao2017exploring")
def kernel(w: Tensor) -> Tensor:
    """The 2-d slice that connects one input channel to one filter. ``o i h w -> (o i) (h w)``."""
    return rearrange(w, "o i h w -> (o i) (h w)")


@register("granularity", name="filter", section="granularity/filter", cite="li2017pruning")
def filter(w: Tensor) -> Tensor:
    """One output unit: all weights that make one feature map. ``o i h w -> o (i h w)``."""
    return rearrange(w, "o i h w -> o (i h w)")


@register(
    "granularity", name="channel", section="granularity/channel", cite="he2017channel", needs=("conv_groups",)
)
def channel(w: Tensor, conv_groups: int) -> Tensor:
    """Shared kernels: what all filters do with one input channel. ``(g o) i h w -> (g i) (o h w)``.

    ``g`` is ``conv_groups``, the number of groups of a grouped convolution, where only the filters of one
    group see a channel; otherwise it is 1.
    """
    return rearrange(w, "(g o) i h w -> (g i) (o h w)", g=conv_groups)


def as_filters(w: Tensor) -> Tensor:
    """View any layer's weight as ``(o, i, h, w)``: linear ``(o, i)``, 1-d ``(o, i, w)``, 3-d ``(o, i, d, h,
    w)`` (as ``dh``).
    """
    if w.dim() == 5:
        return w.flatten(2, 3)
    return w if w.dim() == 4 else w.reshape(*w.shape[:2], 1, -1)


def positions(method: Method, module: Any) -> Tensor:
    """Where the members of each group stand in the layer's flattened weight.

    Args:
        method: a granularity; a function of the user's own gets the weight as ``(o, i, h, w)`` and returns
            ``(groups, members)``.
        module: a convolution or linear layer.
    Returns:
        ``(groups, members)`` int64; every position of the weight exactly once.
    Raises:
        ValueError: the function drops or repeats weights.
    """
    shape = module.weight.shape
    index = as_filters(torch.arange(shape.numel(), device=module.weight.device).view(shape))
    facts = {"conv_groups": getattr(module, "groups", 1)}
    matrix = method.function(index, **{need: facts[need] for need in method.needs})
    if matrix.dim() != 2 or not torch.equal(matrix.flatten().sort().values, index.flatten()):
        raise ValueError(
            f"granularity {method.name!r} must put each of the {shape.numel()} weights {tuple(shape)} into "
            f"exactly one cell of a matrix (groups, members); it returned shape {tuple(matrix.shape)}"
        )
    return matrix


def matrix(w: Tensor, where: Tensor) -> Tensor:
    """Gather a weight (or its gradient, …) into ``(groups, members)``."""
    return w.reshape(-1)[where]


def spread(values: Tensor, where: Tensor, shape: torch.Size) -> Tensor:
    """One value per group ``(groups,)`` back to one per weight, in the weight's own ``shape``."""
    flat = values.new_empty(where.numel())
    flat[where.reshape(-1)] = values.repeat_interleave(where.shape[1])
    return flat.view(shape)


Granularity = str | Callable[[Tensor], Tensor]
