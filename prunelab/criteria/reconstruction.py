r"""Criteria that ask the next layer: which input channels does its response need?

An ordinary convolution adds up what its input channels contribute, :math:`Y = \sum_i X_i W_i^T`, where
:math:`X_i` are samples of what it sees of channel ``i``, and :math:`W_i` are its kernels for that channel.
Both methods choose channels so that the sum changes little, and only need to know how the contributions go
together: the gram matrix :math:`G_{ij} = \langle X_i W_i^T, X_j W_j^T \rangle`.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from prunelab.criteria import criterion, finite


@criterion(
    family="reconstruction",
    cite="he2017channel",
    section="criteria/reconstruction",
    needs=("patches",),
    granularities=("channel",),
)
def lasso(groups: Tensor, patches: Tensor) -> Tensor:
    r"""Channel selection by LASSO: :math:`s_i` is the penalty :math:`\lambda` up to which :math:`\beta_i` is
    not zero in :math:`\min_\beta \frac{1}{2N} \lVert Y - \sum_i \beta_i X_i W_i^T \rVert_F^2 + \lambda \lVert
    \beta \rVert_1` with :math:`\lVert W_i \rVert_F = 1` (He et al., 2017).

    The paper raises the penalty until few enough channels are left; the score says when each one leaves, from
    the whole path at once (LARS, scikit-learn). Of two channels with the same contribution one stays and the
    other scores zero, like a channel that contributes nothing.

    Args:
        groups: ``(i, o * k)``, the kernels of each input channel.
        patches: ``(samples, i, k)``, what the layer sees of each channel.
    Returns:
        ``(i,)``, higher = keep.
    """
    # scikit-learn takes a second to import, and only this method needs it
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    gram = contributions(groups, patches)
    sizes = groups.double().norm(dim=1)
    unit = 1 / sizes.where(sizes > 0, 1)
    gram = gram * unit * unit[:, None]
    target = gram @ sizes  # <X_i W_i^T, Y>: the unit kernels times their sizes give the full response
    scale = target.abs().max()
    if scale == 0:
        return torch.zeros_like(sizes).to(groups)
    with warnings.catch_warnings():
        # It warns when it leaves out a channel that copies others: that is what the score says.
        warnings.simplefilter("ignore", ConvergenceWarning)
        penalties, _, path = lars_path_gram(
            (target / scale).cpu().numpy(),
            (gram / scale).cpu().numpy(),
            n_samples=1,
            max_iter=10 * len(gram),
            method="lasso",
        )
    used = torch.from_numpy(path != 0)  # (i, knots), from the largest penalty to the smallest
    first = used.int().argmax(1)  # a coefficient that begins to grow at one knot is not zero at the next
    scores = torch.from_numpy(penalties)[(first - 1).clamp(min=0)].where(used.any(1), 0)
    return (scores * scale.cpu()).to(groups)


@criterion(
    family="reconstruction",
    cite="luo2017thinet",
    section="criteria/reconstruction",
    needs=("patches",),
    granularities=("channel",),
)
def thinet(groups: Tensor, patches: Tensor) -> Tensor:
    r"""ThiNet's greedy choice: :math:`s_i` is the share of channels that leave before ``i``, when each time
    the one leaves that keeps :math:`\sum \bigl( \sum_{j \in T} X_j W_j^T \bigr)^2` of the removed channels
    ``T`` smallest (Luo et al., 2017, algorithm 1).

    The removed channels may cancel each other, so a large one can leave beside its opposite. The paper draws
    one output at each sampled place; here all outputs of the place count.

    Args:
        groups: ``(i, o * k)``, the kernels of each input channel.
        patches: ``(samples, i, k)``, what the layer sees of each channel.
    Returns:
        ``(i,)`` in 0..1, higher = keep.
    """
    gram = contributions(groups, patches)
    scores = torch.empty_like(gram[0])
    increase = gram.diagonal().clone()  # of the sum, if the channel left now
    for step in range(len(gram)):
        leaves = increase.argmin()
        scores[leaves] = step / len(gram)
        increase += 2 * gram[leaves]
        increase[leaves] = torch.inf
    return scores.to(groups)


def lasso_channels(patches: Tensor, weight: Tensor, keep_count: int) -> Tensor:
    """The input channels that :func:`lasso` keeps, in rising order ``(keep_count,)``; follow it by
    :func:`refit`.

    Args:
        patches: ``(samples, i, k)``, what the layer sees of each channel.
        weight: ``(o, i, …)``, of an ordinary convolution (``k`` places) or linear layer.
    """
    return _best(lasso(_by_channel(weight), patches), keep_count)


def thinet_channels(patches: Tensor, weight: Tensor, keep_count: int) -> Tensor:
    """The input channels that :func:`thinet` keeps, in rising order ``(keep_count,)``; follow it by
    :func:`refit`.

    Args:
        patches: ``(samples, i, k)``, what the layer sees of each channel.
        weight: ``(o, i, …)``, of an ordinary convolution (``k`` places) or linear layer.
    """
    return _best(thinet(_by_channel(weight), patches), keep_count)


def refit(patches: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    r"""Least squares: the weight on the channels ``kept`` that comes nearest to the full response,
    :math:`\min \lVert Y - X' W'^T \rVert_F^2` (He et al., 2017).

    Where the samples leave several such weights, the one nearest to the old weight is taken.

    Args:
        patches: ``(samples, i, k)``, what the layer sees of each channel.
        weight: ``(o, i, …)``, of an ordinary convolution (``k`` places) or linear layer.
        kept: indices of the channels that stay.
    Returns:
        The new weight, ``(o, i, …)``, zero in the other channels.
    """
    finite(patches, "patches")
    inputs, kept = patches.double().cpu(), kept.cpu()
    old = weight.detach().double().cpu().reshape(*weight.shape[:2], -1)
    response = inputs.flatten(1) @ old.flatten(1).T
    inputs, stays = inputs[:, kept].flatten(1), old[:, kept]
    change = torch.linalg.lstsq(inputs, response - inputs @ stays.flatten(1).T).solution  # (kept * k, o)
    new = torch.zeros_like(old)
    new[:, kept] = stays + change.T.reshape(stays.shape)
    return new.reshape(weight.shape).to(weight)


def contributions(groups: Tensor, patches: Tensor) -> Tensor:
    r"""How the input channels' contributions go together: :math:`G_{ij} = \frac{1}{N} \langle X_i W_i^T, X_j
    W_j^T \rangle`.

    Args:
        groups: ``(i, o * k)``, the kernels of each input channel.
        patches: ``(samples, i, k)``, what the layer sees of each channel.
    Returns:
        ``(i, i)`` float64.
    """
    samples, channels, places = patches.shape
    if len(groups) != channels or groups.shape[1] % places:
        raise ValueError(
            f"patches of shape {tuple(patches.shape)}, (samples, channels, places), do not fit the weight of "
            f"{len(groups)} channels with {groups.shape[1]} members each"
        )
    finite(patches, "patches")
    finite(groups, "the weight")
    kernels = groups.double().reshape(channels, -1, places)
    seen, kernels = patches.double().permute(1, 2, 0), kernels.transpose(1, 2)  # (i, k, samples), (i, k, o)
    # <X_i W_i^T, X_j W_j^T> is the sum of all entries of (X_i^T X_j) * (W_i^T W_j): small matrices only
    inputs = seen.flatten(0, 1) @ seen.flatten(0, 1).T
    weights = kernels.flatten(0, 1) @ kernels.flatten(0, 1).T
    blocks = (inputs * weights / samples).view(channels, places, channels, places)
    return blocks.sum((1, 3))


def _by_channel(weight: Tensor) -> Tensor:
    return weight.detach().transpose(0, 1).flatten(1)


def _best(scores: Tensor, keep_count: int) -> Tensor:
    if not 1 <= keep_count <= len(scores):
        raise ValueError(f"keep_count={keep_count}: must be 1 to {len(scores)}, the layer's input channels")
    return scores.argsort(descending=True, stable=True)[:keep_count].sort().values
