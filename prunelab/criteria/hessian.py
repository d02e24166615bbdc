"""Criteria of second order: at a minimum the gradient is zero, and the curvature decides what a weight is
worth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunelab.criteria import criterion, finite
from prunelab.selection import check_amount


@criterion(family="hessian", cite="lecun1990obd", section="criteria/hessian", needs=("fisher",))
def obd(groups: Tensor, fisher: Tensor) -> Tensor:
    r"""Optimal brain damage with the Fisher information: :math:`s_j = \frac{1}{2} \sum_k h_{jk} w_{jk}^2`,
    where ``h`` stands for the Hessian's diagonal (LeCun et al., 1990, section 2.2).

    The rise of the loss when each weight alone is zeroed at a minimum. The Fisher information (the mean of
    the squared gradients of single pictures) is never negative and equals the Hessian where the network's
    probabilities are right.

    Args:
        groups: ``(n, d)``, one row per group.
        fisher: ``(n, d)``, mean over the pictures of the squared gradient of each picture's loss.
    Returns:
        ``(n,)``, higher = keep.
    """
    return (fisher * groups.square()).sum(1) / 2


@criterion(family="hessian", cite="lecun1990obd", section="criteria/hessian", needs=("hessian_diagonal",))
def obd_hutchinson(groups: Tensor, hessian_diagonal: Tensor) -> Tensor:
    r"""Optimal brain damage with Hutchinson's estimate: :math:`s_j = \frac{1}{2} \sum_k h_{jk} w_{jk}^2`,
    where ``h`` is the estimate of the Hessian's diagonal (LeCun et al., 1990, section 2.2).

    The estimate is a mean over random signs ``v`` of ``v * Hv``: true on average, but noisy, and negative in
    places, also because a trained network is not exactly at a minimum. The noise is largest where the
    curvature is: with few probes many of the most important groups come out far below zero, go first, and the
    ranking does worse than a random one.

    Args:
        groups: ``(n, d)``, one row per group.
        hessian_diagonal: ``(n, d)``, estimated for the mean loss.
    Returns:
        ``(n,)``, higher = keep.
    """
    return (hessian_diagonal * groups.square()).sum(1) / 2


@criterion(family="hessian", cite="yu2022hap", section="criteria/hessian", needs=("hessian_diagonal",))
def hessian_trace(groups: Tensor, hessian_diagonal: Tensor) -> Tensor:
    r"""Hessian-aware pruning (HAP): :math:`s_j = \frac{\mathrm{Tr}(H_{jj})}{2 d} \lVert w_j \rVert_2^2`, with
    the group's own block :math:`H_{jj}` of the Hessian (Yu et al., 2022).

    The block is taken to curve equally in all directions, by the mean of its ``d`` eigenvalues; that mean is
    far less noisy than the single entries of the diagonal.

    Args:
        groups: ``(n, d)``, one row per group.
        hessian_diagonal: ``(n, d)``, Hutchinson's estimate for the mean loss.
    Returns:
        ``(n,)``, higher = keep.
    """
    return hessian_diagonal.mean(1) * groups.square().sum(1) / 2


@criterion(
    family="hessian",
    cite="hassibi1993obs",
    section="criteria/hessian",
    needs=("input_gram",),
    granularities=("weight",),
)
def obs(groups: Tensor, input_gram: Tensor, damp: float = 0.01) -> Tensor:
    r"""Optimal brain surgeon in one layer: :math:`s_k = \frac{w_k^2}{2 [H^{-1}]_{kk}}`, with the Hessian
    :math:`H = E[x x^T]` of half the squared error of the layer's output (Hassibi & Stork, 1993).

    The rise of that error when weight ``k`` is zeroed *and* the filter's other weights make up for it as well
    as they can. So it is at most as high as what zeroing alone costs, :math:`w_k^2 H_{kk} / 2`. The score
    assumes one removal: see :func:`optimal_brain_surgeon` for many, with their repair.

    Args:
        groups: ``(o * d, 1)``, the layer's single weights, filter by filter.
        input_gram: ``(g, d, d)``, mean of :math:`x x^T` over the patches ``x`` that a filter reads, for each
            group of a grouped convolution.
        damp: added to the diagonal, as a share of its mean: inputs that copy one another or are never active
            leave the Hessian without an inverse.
    Returns:
        ``(o * d,)``, higher = keep.
    """
    conv_groups, members, _ = input_gram.shape
    rows = groups.reshape(conv_groups, -1, members)
    diagonal = _inverse(input_gram, damp).diagonal(dim1=1, dim2=2).unsqueeze(1)
    return (rows.square() / (2 * diagonal)).flatten().to(groups.dtype)


def optimal_brain_surgeon(
    weight: Tensor, gram: Tensor, amount: float, damp: float = 0.01
) -> tuple[Tensor, Tensor]:
    r"""Remove a layer's weights one after another and mend the rest after each (Hassibi & Stork, 1993; for a
    layer's rows Frantar & Alistarh, 2022, algorithm 1).

    In each row, as often as needed: take the weight with the smallest :math:`w_p^2 / [H^{-1}]_{pp}`, change
    the row by

    .. math:: \delta w = -\frac{w_p}{[H^{-1}]_{pp}} H^{-1}_{:, p}

    which zeroes that weight and lets the others make up for it, and take the weight out of the problem:

    .. math:: H^{-1} \leftarrow H^{-1} - \frac{1}{[H^{-1}]_{pp}} H^{-1}_{:, p} H^{-1}_{p, :}

    Args:
        weight: ``(o, d)``, one row per filter.
        gram: ``(d, d)``, mean of :math:`x x^T` over the patches ``x`` that a filter reads.
        amount: share of each row's weights to remove, 0..1.
        damp: added to the diagonal of ``gram``, as a share of its mean.
    Returns:
        The new weight ``(o, d)`` and which of its entries are kept, ``(o, d)`` bool.
    """
    if weight.dim() != 2 or gram.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"gram of shape {tuple(gram.shape)} does not fit weight of shape {tuple(weight.shape)}: they "
            "must be (d, d) and (o, d)"
        )
    removals = round(check_amount(amount) * weight.shape[1])
    result = weight.detach().double().clone()
    keep = torch.ones_like(result, dtype=torch.bool)
    start = _inverse(gram, damp)
    for row, alive in zip(result, keep, strict=True):
        inverse = start.clone()
        for _ in range(removals):
            costs = (row.square() / inverse.diagonal()).where(alive, torch.inf)
            p = costs.argmin()
            column = inverse[:, p] / inverse[p, p]
            row -= row[p] * column
            inverse -= column.outer(inverse[p].clone())
            alive[p] = False
            row[~alive] = 0  # exactly, whatever the rounding
    return result.to(weight.dtype), keep


def _inverse(gram: Tensor, damp: float) -> Tensor:
    """Inverse of ``(…, d, d)`` in double precision, after damping."""
    finite(gram, "the input's gram matrix")
    gram = gram.double()
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    extra = (damp * mean).where(mean > 0, 1e-12)  # an input that is never active: no weight matters
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + extra[..., None, None] * identity)
    if failed.any():
        raise ValueError(f"damp={damp:g}: the input's gram matrix has no inverse, take a larger one (0.01)")
    return torch.cholesky_inverse(factor)
