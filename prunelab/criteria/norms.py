"""Criteria that look at the size of a group's weights, and the control that looks at nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from prunelab.criteria import criterion


@criterion(family="norms", cite="blalock2020state", section="criteria/norms", needs=("generator",))
def random(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform random scores: the control that every other criterion has to beat.

    Args:
        groups: ``(n, d)``, one row per group; only its shape matters.
        generator: a CPU generator, which makes the draw repeatable.
    Returns:
        ``(n,)`` in 0..1, higher = keep.
    """
    return torch.rand(len(groups), generator=generator).to(groups.device)


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
    r"""Euclidean length: :math:`s_j = \lVert w_j \rVert_2 = \sqrt{\sum_k w_{jk}^2}` (He et al., 2018,
    equation 2).

    Args:
        groups: ``(n, d)``, one row per group.
    Returns:
        ``(n,)``, higher = keep.
    """
    return groups.square().sum(1).sqrt()
