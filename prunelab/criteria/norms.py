"""Criteria that look at the size of a group's weights, and the control that looks at nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from prunelab.criteria import criterion, finite


@criterion(family="norms", cite="blalock2020state", section="criteria/beside-random", needs=("generator",))
def random(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform random scores: the control that every other criterion has to beat (Blalock et al., 2020).

    Args:
        groups: ``(n, d)``, one row per group; only its shape matters.
        generator: a CPU generator, which makes the draw repeatable.
    Returns:
        ``(n,)`` in 0..1, higher = keep.
    """
    return torch.rand(len(groups), generator=generator).to(groups.device)


@criterion(family="norms", cite="he2023structured", section="criteria/norms")
def l0(groups: Tensor, threshold: float = 0.01) -> Tensor:
    r"""How many weights are not nearly zero: :math:`s_j = \left| \{ k : |w_{jk}| > t \} \right|` (filter
    norms, He and Xiao, 2024).

    Trained weights are almost never exactly zero, so a threshold :math:`t` has to say what counts as zero.
    The score is a whole number: many groups tie, and at the granularity of single weights it is only 0 or 1.

    Args:
        groups: ``(n, d)``, one row per group.
        threshold: :math:`t`; a weight of this size or less counts as zero.
    Returns:
        ``(n,)``, higher = keep.
    Raises:
        ValueError: a weight is infinite or NaN, or the threshold is negative.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold}: must be 0 or more")
    # A comparison with NaN is false: it would pass as a zero.
    return (finite(groups).abs() > threshold).sum(1).to(groups.dtype)


@criterion(family="norms", cite="li2017pruning", section="criteria/norms")
def l1(groups: Tensor) -> Tensor:
    r"""Sum of magnitudes: :math:`s_j = \lVert w_j \rVert_1 = \sum_k |w_{jk}|` (Li et al., 2017, section 3.1).

    For single weights this is magnitude pruning (Han et al., 2015).

    Args:
        groups: ``(n, d)``, one row per group.
    Returns:
        ``(n,)``, higher = keep.
    """
    return groups.abs().sum(1)


@criterion(family="norms", cite="he2018soft", section="criteria/norms")
def l2(groups: Tensor) -> Tensor:
    r"""Euclidean length: :math:`s_j = \lVert w_j \rVert_2 = \sqrt{\sum_k w_{jk}^2}` (He et al., 2018).

    Args:
        groups: ``(n, d)``, one row per group.
    Returns:
        ``(n,)``, higher = keep.
    """
    return torch.linalg.vector_norm(groups, dim=1)


@criterion(family="norms", cite="he2023structured", section="criteria/norms")
def linf(groups: Tensor) -> Tensor:
    r"""Largest magnitude: :math:`s_j = \lVert w_j \rVert_\infty = \max_k |w_{jk}|` (filter norms, He and
    Xiao, 2024).

    One large weight is enough to keep a group.

    Args:
        groups: ``(n, d)``, one row per group.
    Returns:
        ``(n,)``, higher = keep.
    """
    return groups.abs().amax(1)


@criterion(family="norms", cite="molchanov2017pruning", section="criteria/norms")
def minimum_weight(groups: Tensor) -> Tensor:
    r"""Mean square: :math:`s_j = \frac{1}{d} \sum_k w_{jk}^2` (Molchanov et al., 2017, section 2.2, "minimum
    weight").

    Inside one layer it ranks as :func:`l2` does. Across layers it does not: the mean does not grow with the
    number of weights in a group.

    Args:
        groups: ``(n, d)``, one row per group.
    Returns:
        ``(n,)``, higher = keep.
    """
    return groups.square().mean(1)


@criterion(family="norms", cite="lee2021layer", section="criteria/norms")
def lamp(groups: Tensor) -> Tensor:
    r"""Layer-adaptive magnitude (LAMP): :math:`s_u = w_u^2 / \sum_{v \ge u} w_v^2`, with a layer's groups
    numbered from the smallest to the largest (Lee et al., 2021).

    The square is divided by what would be left if everything smaller were gone, so the scores of different
    layers can be ranked together, and the largest group of each layer scores 1: no layer is emptied. Inside
    one layer the order is that of :func:`l2`. For groups of several weights, :math:`w_u^2` is the group's
    squared norm.

    Args:
        groups: ``(n, d)``, one row per group. Groups of equal size are numbered in their order, so the first
            of them gets the lower score.
    Returns:
        ``(n,)`` in 0..1, higher = keep. All 0 in a layer that is all zeros.
    """
    squares = groups.square().sum(1)
    order = squares.argsort(stable=True)
    left = squares[order].flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / left.masked_fill(left == 0, 1)
    return scores
