"""Criteria that ask the loss: how would it change if a group changed?"""

from __future__ import annotations

from torch import Tensor

from prunelab.criteria import criterion


@criterion(family="gradient", cite="molchanov2017pruning", section="criteria/gradient", needs=("gradients",))
def gradient(groups: Tensor, gradients: Tensor) -> Tensor:
    r"""Size of the loss gradient: :math:`s_j = \sum_k \left| \partial L / \partial w_{jk} \right|`.

    How fast the loss would change, not by how much: a large gradient on a weight that is already zero still
    scores high.

    Args:
        groups: ``(n, d)``, one row per group.
        gradients: ``(n, d)``, gradient of the mean loss over the data.
    Returns:
        ``(n,)``, higher = keep.
    """
    return gradients.abs().sum(1)
