"""What is removed together: a granularity cuts a weight into groups that live or die as one.

Every granularity is a rearrangement of a weight ``(o, i, h, w)`` (filters, input channels, kernel rows,
kernel columns) into a matrix ``(groups, members)``. A linear layer is the same with ``h = w = 1``; in a
grouped convolution, ``i`` are the channels that one filter sees. Nothing else is needed: the way back, from
one decision per group to one per weight, follows by sending positions through the same rearrangement.

N:M and kernel patterns use the same cuts in another way: they choose *inside* each group (``choose``).

Sizes are ordinary arguments: ``functools.partial(granularity.block, rows=2, columns=8)`` is a granularity,
too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import EinopsError, rearrange
from torch import Tensor, nn

from prunelab.operations import CONVOLUTIONS, TRANSPOSED
from prunelab.registry import Method, register
from prunelab.selection import best_in_group, best_pattern

LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)

Granularity = str | Callable[..., Tensor] | Method


# ------------------------------------------------------------------------------- groups that go as one


@register("granularity", family="unstructured", section="granularity/unstructured", cite="han2015learning")
def weight(w: Tensor) -> Tensor:
    """Each weight on its own: unstructured sparsity (Han et al., 2015). ``o i h w -> (o i h w) 1``."""
    return rearrange(w, "o i h w -> (o i h w) 1")


@register("granularity", family="inside filters", section="granularity/kernel", cite="mao2017exploring")
def row(w: Tensor) -> Tensor:
    """One row of one kernel, a 1-d vector of weights (Mao et al., 2017). ``o i h w -> (o i h) w``."""
    return rearrange(w, "o i h w -> (o i h) w")


@register("granularity", family="inside filters", section="granularity/kernel", cite="mao2017exploring")
def column(w: Tensor) -> Tensor:
    """One column of one kernel, a 1-d vector of weights (Mao et al., 2017). ``o i h w -> (o i w) h``."""
    return rearrange(w, "o i h w -> (o i w) h")


@register("granularity", family="inside filters", section="granularity/kernel", cite="mao2017exploring")
def kernel(w: Tensor) -> Tensor:
    """The 2-d slice of a filter that reads one channel (Mao et al., 2017). ``o i h w -> (o i) (h w)``."""
    return rearrange(w, "o i h w -> (o i) (h w)")


@register("granularity", family="structured", section="granularity/filter", cite="li2017pruning")
def filter(w: Tensor) -> Tensor:
    """One output unit: all weights that make one feature map (Li et al., 2017). ``o i h w -> o (i h w)``."""
    return rearrange(w, "o i h w -> o (i h w)")


@register(
    "granularity",
    family="structured",
    section="granularity/channel",
    cite="he2017channel",
    needs=("conv_groups",),
)
def channel(w: Tensor, conv_groups: int) -> Tensor:
    """Shared kernels: what all filters do with one input channel (He et al., 2017).
    ``(g o) i h w -> (g i) (o h w)``.

    ``g`` is ``conv_groups``, the number of groups of a grouped convolution, where only the filters of one
    group see a channel; otherwise it is 1.
    """
    return rearrange(w, "(g o) i h w -> (g i) (o h w)", g=conv_groups)


@register("granularity", family="inside filters", section="granularity/stripe", cite="meng2020pruning")
def stripe(w: Tensor) -> Tensor:
    """One place of one filter, across all its input channels (Meng et al., 2020). ``o i h w -> (o h w) i``.

    What is left of a filter has a shape of its own, its skeleton.
    """
    return rearrange(w, "o i h w -> (o h w) i")


@register(
    "granularity",
    family="across filters",
    section="granularity/group-wise",
    cite="lebedev2016fast",
    needs=("conv_groups",),
)
def group_wise(w: Tensor, conv_groups: int, filters: int = 4) -> Tensor:
    """The same place of the same channel in several neighbouring filters (Lebedev and Lempitsky, 2016).
    ``(g f) i h w -> (g i h w) f``.

    In the matrix that a convolution is computed with, one row per filter, a group is a piece of a column. If
    ``filters`` is their number, whole columns go and the matrix gets thinner, as in the paper.

    Args:
        filters: how many filters share a group, ``f``. All see the same input: a group never spans two groups
            of a grouped convolution.
    """
    _check_size("filters", filters, len(w) // conv_groups, _filters(conv_groups))
    return rearrange(w, "(g f) i h w -> (g i h w) f", f=filters)


@register(
    "granularity",
    family="across filters",
    section="granularity/kernel",
    cite="zhong2022revisit",
    needs=("conv_groups",),
)
def grouped_kernel(w: Tensor, conv_groups: int, filters: int = 4) -> Tensor:
    """The kernels by which several neighbouring filters read one channel (Zhong et al., 2022).
    ``(g f) i h w -> (g i) (f h w)``.

    The paper clusters similar filters first; here the groups are those that stand side by side.

    Args:
        filters: how many filters share a group, ``f``.
    """
    _check_size("filters", filters, len(w) // conv_groups, _filters(conv_groups))
    return rearrange(w, "(g f) i h w -> (g i) (f h w)", f=filters)


@register(
    "granularity",
    family="across filters",
    section="granularity/block",
    cite="gray2017gpu",
    needs=("conv_groups",),
)
def block(w: Tensor, conv_groups: int, rows: int = 4, columns: int = 4) -> Tensor:
    """Some filters times some channels, with all their places (Gray et al., 2017).
    ``(ob bo) (ib bi) h w -> (ob ib) (bo bi h w)``.

    Args:
        rows: filters in a block, ``bo``.
        columns: input channels in a block, ``bi``.
    """
    _check_size("rows", rows, len(w) // conv_groups, _filters(conv_groups))
    _check_size("columns", columns, w.shape[1], "input channels")
    return rearrange(w, "(ob bo) (ib bi) h w -> (ob ib) (bo bi h w)", bo=rows, bi=columns)


@register("granularity", family="structured", section="granularity/layer", cite="wen2016learning")
def layer(w: Tensor) -> Tensor:
    """The whole layer, which goes or stays; only where a shortcut leads around it does a network survive that
    (Wen et al., 2016). ``o i h w -> 1 (o i h w)``.

    With scope ``"local"`` a layer is ranked among itself only: use ``"global"``.
    """
    return rearrange(w, "o i h w -> 1 (o i h w)")


# ------------------------------------------------------------------------ groups that are chosen inside


def n_of_m(n: int, m: int) -> Method:
    """A granularity that keeps the best ``n`` of every ``m`` weights, such as 4 of 8.

    Returns:
        A method that ``sparsify(granularity=…)`` takes. ``"2:4"`` and ``"1:4"`` are registered.
    """
    if not 0 < n < m:
        raise ValueError(f"n={n}, m={m}: of m weights in a row n are kept, so n must be 1 to m - 1")

    def consecutive(w: Tensor) -> Tensor:
        _check_size("m", m, w.shape[1], "input channels")
        return rearrange(w, "o (i m) h w -> (o i h w) m", m=m)

    authors = "Mishra et al., 2021" if (n, m) == (2, 4) else "Zhou et al., 2021"
    consecutive.__doc__ = f"""Keeps the {n} best of every {m} weights that follow each other along the input
    channels ({authors}). ``o (i m) h w -> (o i h w) m`` with m = {m}.

    The share that is removed is always the same, {1 - n / m:.4g}.
    """
    return Method(
        "granularity",
        f"{n}:{m}",
        consecutive,
        family="N:M",
        choose=partial(best_in_group, count=n),
        cite="mishra2021accelerating" if (n, m) == (2, 4) else "zhou2021learning",
        section="granularity/n-m",
    )


for _registered in (n_of_m(2, 4), n_of_m(1, 4)):
    register(
        "granularity",
        name=_registered.name,
        family=_registered.family,
        choose=_registered.choose,
        cite=_registered.cite,
        section=_registered.section,
    )(_registered.function)


@register(
    "granularity",
    family="inside filters",
    section="granularity/pattern",
    cite="niu2020patdnn",
    choose=best_pattern,
)
def pattern(w: Tensor) -> Tensor:
    """Each 3x3 kernel keeps four weights, in one of the eight arrangements that fit the whole network best
    (Niu et al., 2020). ``o i h w -> (o i) (h w)``; see :func:`prunelab.selection.best_pattern`.

    Removing whole kernels afterwards is what the paper calls connectivity pruning:
    ``sparsify(patterned, granularity="kernel", amount=…)``.
    """
    return rearrange(w, "o i h w -> (o i) (h w)")


# --------------------------------------------------------------------------------- where it makes sense

# What a granularity is the same as where a kernel has only one place.
_SAME_AT_ONE_PLACE = {
    "row": "weight",
    "column": "weight",
    "kernel": "weight",
    "stripe": "filter",
    "grouped_kernel": "group_wise",
}


def objection(method: Method, layer: Any) -> str:
    """Why a granularity makes no sense at a layer, as the rest of a sentence; empty if it does."""
    if not method.section:  # a function of the user's own, whatever it is called
        return ""
    kernel_size = getattr(layer, "kernel_size", ())
    said = f"its kernels are {'x'.join(map(str, kernel_size))}" if kernel_size else "it has no kernels"
    # What has to be longer than one: the row's or the column's length, or the kernel's area.
    lengths = {"row": kernel_size[-1:], "column": kernel_size[-2:-1]}.get(method.name, kernel_size)
    if method.name in _SAME_AT_ONE_PLACE and math.prod(lengths) == 1:
        return f"{said}, so that it is the same as {_SAME_AT_ONE_PLACE[method.name]!r}: use that"
    if method.name == "column" and len(kernel_size) == 3:
        return f"{said}: a volume has no columns"
    if method.name == "pattern" and tuple(kernel_size) != (3, 3):
        return f"{said}, and patterns are those of 3x3 kernels"
    depthwise = getattr(layer, "groups", 1) == getattr(layer, "in_channels", 1) > 1
    if depthwise and (method.name == "block" or method.family == "N:M"):
        return "it is depthwise, so that each filter sees one channel only"
    if depthwise and method.name in ("group_wise", "grouped_kernel") and layer.out_channels == layer.groups:
        return "it is depthwise, so that each filter sees one channel and shares it with no other"
    return ""


# -------------------------------------------------------------------------------------- there and back


def as_filters(w: Tensor, layer: Any) -> Tensor:
    """View any layer's weight (or its gradient, …) as ``(o, i, h, w)``.

    Linear ``(o, i)`` and 1-d ``(o, i, w)`` get sizes of 1, 3-d ``(o, i, d, h, w)`` has ``d h`` for ``h``. A
    transposed convolution keeps ``(g i, o, …)`` for its ``g`` groups: filters and channels change places.
    """
    if isinstance(layer, TRANSPOSED):
        w = rearrange(w, "(g i) o ... -> (g o) i ...", g=layer.groups)
    if w.dim() == 5:
        return w.flatten(2, 3)
    return w if w.dim() == 4 else w.reshape(*w.shape[:2], 1, -1)


def groups(method: Method, values: Tensor, module: Any) -> Tensor:
    """What a granularity puts together of a layer's weight, or of values that lie as its weight does.

    Returns:
        ``(groups, members)``.
    """
    facts = {"conv_groups": getattr(module, "groups", 1)}
    return method.function(as_filters(values, module), **{need: facts[need] for need in method.needs})


def positions(method: Method, module: Any, name: str = "") -> Tensor:
    """Where the members of each group stand in the layer's flattened weight.

    Args:
        method: a granularity; a function of the user's own gets the weight as ``(o, i, h, w)`` and returns
            ``(groups, members)``.
        module: a convolution, transposed convolution or linear layer.
        name: what error messages call it.
    Returns:
        ``(groups, members)`` int64; every position of the weight exactly once.
    Raises:
        ValueError: a size does not divide the layer's, or the function drops or repeats weights.
    """
    shape = module.weight.shape
    count = shape.numel()
    index = torch.arange(count, device=module.weight.device).view(shape)
    try:
        matrix = groups(method, index, module)
    except (ValueError, EinopsError) as error:
        raise ValueError(f"layer {name!r}: granularity {method.name!r}: {error}") from error
    if (
        matrix.dim() != 2
        or matrix.dtype != torch.int64
        or not torch.bincount(matrix.flatten(), minlength=count).eq(1).all()
    ):
        raise ValueError(
            f"granularity {method.name!r} must put each of the {count} weights {tuple(shape)} into "
            f"exactly one cell of a matrix (groups, members); it returned shape {tuple(matrix.shape)}"
        )
    return matrix


def matrix(w: Tensor, where: Tensor) -> Tensor:
    """Gather a weight (or its gradient, …) into ``(groups, members)``."""
    return w.reshape(-1)[where]


def spread(values: Tensor, where: Tensor, shape: torch.Size) -> Tensor:
    """One value per group ``(groups,)``, or per member ``(groups, members)``, back to one per weight, in the
    weight's own ``shape``.
    """
    flat = values.new_empty(where.numel())
    flat[where] = values if values.dim() == 2 else values[:, None].expand_as(where)
    return flat.view(shape)


def _check_size(name: str, size: int, count: int, what: str) -> None:
    if size < 1 or count % size:
        raise ValueError(f"{name}={size} does not divide its {count} {what}")


def _filters(conv_groups: int) -> str:
    return "filters" if conv_groups == 1 else f"filters in each of the {conv_groups} groups"
