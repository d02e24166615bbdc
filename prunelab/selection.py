"""Which groups go: scores and an amount in, keep or drop out. Pure functions of tensors."""

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


def keep_best(scores: Tensor, amount: float) -> Tensor:
    """Drop the share ``amount`` with the lowest scores.

    Args:
        scores: ``(n,)``, higher = keep. Equal scores: the one that comes first is dropped first.
        amount: 0..1; the number dropped is ``amount * n``, rounded.
    Returns:
        ``(n,)`` bool, true = keep.
    """
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
    if scope == "local":
        return {name: keep_best(layer, amount) for name, layer in scores.items()}
    if scope == "global":
        keep = keep_best(torch.cat(list(scores.values())), amount)
        return dict(zip(scores, keep.split([len(layer) for layer in scores.values()]), strict=True))
    raise ValueError(
        f"scope={scope!r}: use 'local' (rank inside each layer) or 'global' (rank across layers)"
    )
