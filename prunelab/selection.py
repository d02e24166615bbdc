"""Which groups go: scores and an amount in, keep or drop out. Pure functions of tensors.

Equal scores are decided by their place, always in the same way: what comes first is dropped first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_amount(amount: float) -> float:
    """``amount`` as a float in 0..1, or a ``ValueError`` that says what it should be."""
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise TypeError(f"amount={amount!r}: must be a number, the share of groups to remove, 0..1")
    if not 0 <= amount <= 1 or math.isnan(amount):
        hint = f"; for {amount:g} % write amount={amount / 100:g}" if 1 < amount <= 100 else ""
        raise ValueError(f"amount={amount:g}: must be the share of groups to remove, 0..1{hint}")
    return float(amount)


def check_threshold(threshold: float) -> float:
    """``threshold`` as a float, or an error that says what it should be."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise TypeError(f"threshold={threshold!r}: must be a number, the lowest score that is kept")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold={threshold}: must be a finite number, the lowest score that is kept")
    return float(threshold)


def check_scope(scope: str) -> str:
    """``scope``, or a ``ValueError`` that says what there is."""
    if scope not in ("local", "global"):
        raise ValueError(
            f"scope={scope!r}: use 'local' (rank inside each layer and take the same share of all, also "
            "called uniform) or 'global' (rank across layers)"
        )
    return scope


def keep_best(scores: Tensor, amount: float) -> Tensor:
    """Drop the share ``amount`` with the lowest scores.

    Args:
        scores: ``(n,)``, higher = keep. Equal scores: the one that comes first is dropped first.
        amount: 0..1; the number dropped is ``amount * n``, rounded.
    Returns:
        ``(n,)`` bool, true = keep.
    """
    if scores.isnan().any():
        raise ValueError("scores hold NaN: such groups cannot be ranked")
    keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    keep[scores.argsort(stable=True)[: round(amount * len(scores))]] = False
    return keep


def select(scores: dict[str, Tensor], amount: float, scope: str) -> dict[str, Tensor]:
    """Apply one amount to many layers.

    Args:
        scores: ``(n_layer,)`` for each layer.
        amount: share of groups to drop, 0..1.
        scope: ``"local"`` drops that share of each layer, ``"global"`` ranks the groups of all layers
            together.
    Returns:
        For each layer ``(n_layer,)`` bool, true = keep.
    """
    amount = check_amount(amount)
    if check_scope(scope) == "local":
        return {name: keep_best(layer, amount) for name, layer in scores.items()}
    keep = keep_best(torch.cat(list(scores.values())), amount)
    return dict(zip(scores, keep.split([len(layer) for layer in scores.values()]), strict=True))


def above(scores: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """Keep the groups whose score is at least ``threshold``: how many go is what comes out, not what goes in.

    Args:
        scores: ``(n_layer,)`` for each layer.
    Returns:
        For each layer ``(n_layer,)`` bool, true = keep.
    """
    threshold = check_threshold(threshold)
    return {name: layer >= threshold for name, layer in scores.items()}


# ---------------------------------------------------------------------- choices inside groups


def best_in_group(scores: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Keep the ``count`` best members of each group, as N:M sparsity does.

    Args:
        scores: ``(groups, members)`` for each layer, higher = keep.
    Returns:
        For each layer bool of the same shape, ``count`` true in each row.
    """
    return {name: _best(layer, count) for name, layer in scores.items()}


def best_pattern(scores: dict[str, Tensor], entries: int = 4, size: int = 8) -> dict[str, Tensor]:
    """Keep the same few patterns in all kernels of a network (Niu et al., 2020).

    The *natural pattern* of a kernel is its centre and the other three weights that score best: 56 are
    possible. The most frequent ones make the library; then each kernel takes that pattern of the library
    whose weights have the largest sum of scores. The paper takes the largest Euclidean norm, which is what
    squared weights as scores amount to.

    Args:
        scores: ``(kernels, 9)`` for each layer, higher = keep; minus infinity for a weight that is gone.
        entries: weights that a pattern keeps.
        size: patterns in the library.
    Returns:
        For each layer bool ``(kernels, 9)``, ``entries`` true in each row.
    """
    library = pattern_library(torch.cat(list(scores.values())), entries, size)
    return {name: library[(_finite(layer) @ library.T.to(layer)).argmax(1)] for name, layer in scores.items()}


def pattern_library(scores: Tensor, entries: int = 4, size: int = 8) -> Tensor:
    """The natural patterns that most kernels have (Niu et al., 2020).

    Args:
        scores: ``(kernels, 9)``; a kernel that is gone, all minus infinity, has no say.
    Returns:
        ``(patterns, 9)`` bool, the most frequent first; fewer than ``size`` if the kernels have no more.
    """
    if not 1 <= entries <= scores.shape[1] or size < 1:
        raise ValueError(
            f"entries={entries}, size={size}: patterns keep 1 to "
            f"{scores.shape[1]} weights, and a library holds at least one"
        )
    alive = _finite(scores[~scores.isneginf().all(1)])
    if len(alive) == 0:
        raise ValueError("scores: no kernel is left that a pattern could be found for")
    alive[:, scores.shape[1] // 2] = torch.inf  # the centre always stays
    natural, votes = _best(alive, entries).unique(dim=0, return_counts=True)
    return natural[votes.argsort(descending=True, stable=True)[:size]]


def _best(scores: Tensor, count: int) -> Tensor:
    """``(groups, members)`` bool, the ``count`` best of each row; of equal ones those that come last."""
    best = scores.argsort(dim=1, stable=True)[:, scores.shape[1] - count :]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)


def _finite(scores: Tensor) -> Tensor:
    """A weight that is gone adds nothing to a pattern: zero in place of minus infinity."""
    return scores.masked_fill(scores.isneginf(), 0)
