"""When, and how much at a time: a schedule turns training progress into a share of the final amount.

A schedule is a function of one number ``t``, 0 when pruning begins and 1 when it ends, and says which share
of the final amount is removed by then. :class:`Gradual` follows one during :func:`prunelab.fit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunelab import registry, selection
from prunelab.criteria import Criterion
from prunelab.evidence import Batches
from prunelab.granularity import Granularity
from prunelab.registry import register
from prunelab.sparsify import Ranking, masks, new_masks, set_mask, sparsifiable
from prunelab.training import Callback, Run

Schedule = str | Callable[[float], float]


@register("schedule", family="at once", cite="li2017pruning", section="scheduling/one-shot")
def one_shot(t: float, at: float = 0.5) -> float:
    r"""All at once: :math:`s(t) = 1` from :math:`t = at` on, 0 before (Li et al., 2017, section 3.4).

    Args:
        t: share of the pruning that is over, 0..1.
        at: when to prune; what comes after it is fine-tuning.
    Returns:
        Share of the final amount, 0..1.
    """
    return float(t >= at)


@register("schedule", family="in steps", cite="han2015learning", section="scheduling/iterative")
def iterative(t: float, steps: int = 5) -> float:
    r"""Equal steps with training behind each: :math:`s(t) = \lceil n t \rceil / n` (Han et al., 2015, section
    3.4).

    Args:
        t: share of the pruning that is over, 0..1.
        steps: :math:`n`, into how many the amount is cut.
    Returns:
        Share of the final amount, 0..1.
    """
    return math.ceil(steps * t - 1e-9) / steps  # 1e-9: 0.28 * 25 is a little above 7


@register("schedule", family="gradual", cite="zhu2018prune", section="scheduling/gradual")
def linear(t: float) -> float:
    """The same amount every time: ``s(t) = t`` (Zhu & Gupta, 2018, equation 1 with the exponent 1).

    Args:
        t: share of the pruning that is over, 0..1.
    Returns:
        Share of the final amount, 0..1.
    """
    return t


@register("schedule", family="gradual", cite="loshchilov2017sgdr", section="scheduling/gradual")
def cosine(t: float) -> float:
    r"""Half a cosine: :math:`s(t) = (1 - \cos \pi t) / 2` (the curve of Loshchilov & Hutter, 2017,
    upside down).

    Gentle at both ends, fastest in the middle.

    Args:
        t: share of the pruning that is over, 0..1.
    Returns:
        Share of the final amount, 0..1.
    """
    return (1 - math.cos(math.pi * t)) / 2


@register("schedule", family="gradual", cite="zhu2018prune", section="scheduling/gradual")
def agp(t: float) -> float:
    r"""Automated gradual pruning, fast while there is much to spare: :math:`s(t) = 1 - (1 - t)^3` (Zhu &
    Gupta, 2018, equation 1).

    The paper writes the sparsity at step :math:`t`, from :math:`s_i` to :math:`s_f`, pruned :math:`n` times,
    every :math:`\Delta t` steps from step :math:`t_0` on:

    .. math:: s_t = s_f + (s_i - s_f) \left( 1 - \frac{t - t_0}{n \Delta t} \right)^3

    With :math:`s_i = 0` the share of :math:`s_f` is the formula above; :math:`t_0`, :math:`t_0 + n \Delta t`
    and :math:`\Delta t` are ``start``, ``end`` and ``every`` of :class:`Gradual`.

    Args:
        t: share of the pruning that is over, 0..1.
    Returns:
        Share of the final amount, 0..1.
    """
    return 1 - (1 - t) ** 3


@register("schedule", family="gradual", cite="hubens2022onecycle", section="scheduling/gradual")
def one_cycle(t: float, a: float = 14.0, b: float = 5.0) -> float:
    r"""A logistic curve that leaves the young network alone and then prunes in one sweep:
    :math:`s(t) = (1 + e^{-a + b}) / (1 + e^{-a t + b})` (Hubens et al., 2022).

    It begins at 0.007, not exactly at zero, and ends at 1.

    Args:
        t: share of the pruning that is over, 0..1.
        a: steepness.
        b: delay; half is removed at about ``b / a``.
    Returns:
        Share of the final amount, 0..1.
    """
    return (1 + math.exp(-a + b)) / (1 + math.exp(-a * t + b))


@register("schedule", family="there and back", cite="han2017dsd", section="scheduling/dense-sparse-dense")
def dense_sparse_dense(t: float, sparse: float = 1 / 3, dense: float = 2 / 3) -> float:
    r"""Prune at once, train, and let everything live again: :math:`s(t) = 1` for :math:`sparse \le t <
    dense`, else 0 (Han et al., 2017, algorithm 1).

    Args:
        t: share of the training that is over, 0..1.
        sparse, dense: where the sparse and the second dense phase begin.
    Returns:
        Share of the amount, 0..1.
    """
    return float(sparse <= t < dense)


class Gradual(Callback):
    """Raises the amount along a schedule while :func:`prunelab.fit` trains.

    The model must have masks before ``fit`` (:func:`attach_masks`). What is dead stays dead: its stored
    weights and its momentum are zero. Where a schedule falls, all masks are lifted and drawn anew, so what
    lives again starts at zero.

    Args:
        schedule: name (``pl.methods("schedule")``) or function of ``t`` in 0..1.
        amount: share of the groups to be removed in the end, 0..1.
        granularity, criterion, scope, layers, seed: as in :func:`prunelab.sparsify`.
        data: what a criterion that needs data measures on; by default the training pictures.
        every: steps between two looks at the schedule; by default an epoch. It is also looked at at the end
            of the window.
        start, end: the window of the training in which ``t`` goes from 0 to 1, as shares of its steps.
    Raises:
        ValueError: an argument out of range or, when training starts, a model without masks or a choice that
            makes no sense for it.
    """

    def __init__(
        self,
        schedule: Schedule = "agp",
        amount: float = 0.5,
        *,
        granularity: Granularity = "weight",
        criterion: Criterion = "l1",
        scope: str = "local",
        data: Batches | None = None,
        layers: Iterable[str] | None = None,
        every: int | None = None,
        start: float = 0.0,
        end: float = 0.8,
        seed: int = 0,
    ):
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"start={start}, end={end}: must be 0 <= start < end <= 1, shares of the training"
            )
        if every is not None and every < 1:
            raise ValueError(f"every={every}: must be a number of steps, at least 1")
        self.schedule = registry.find("schedule", schedule).function
        self.amount = selection.check_amount(amount)
        self.every, self.start, self.end = every, start, end
        self.choice: dict[str, Any] = {
            "granularity": granularity,
            "criterion": criterion,
            "scope": scope,
            "data": data,
            "layers": None if layers is None else list(layers),
            "seed": seed,
        }
        self.share = 0.0

    def check(self, model: nn.Module) -> None:
        """Whether it can prune this network.

        Raises:
            ValueError: it cannot.
        """
        Ranking(model, **self.choice).check(self.amount)

    def on_start(self, run: Run) -> None:
        if not masks(run.model):
            raise ValueError("the model has no masks: call prunelab.schedules.attach_masks(model) before fit")
        self.check(run.model)  # now, not when the first pruning is due
        if self.choice["data"] is None:
            self.choice["data"] = run.data.train
        if run.step == 0:
            self._follow(run)

    def after_step(self, run: Run) -> None:
        every = self.every or run.steps // run.epochs
        if run.step % every == 0 or run.step == math.ceil(self.end * run.steps):
            self._follow(run)

    def _follow(self, run: Run) -> None:
        if run.progress < self.start:
            return
        share = self.schedule(min(1.0, (run.progress - self.start) / (self.end - self.start)))
        if share < self.share:
            alive = {name: torch.ones_like(keep) for name, keep in masks(run.model).items()}
            apply_masks(run.model, alive, run.optimiser)
        if share not in (0, self.share):
            keep = new_masks(run.model, amount=share * self.amount, **self.choice)
            apply_masks(run.model, keep, run.optimiser)
        self.share = share

    def state_dict(self) -> dict:
        return {"share": self.share}

    def load_state_dict(self, state: dict) -> None:
        self.share = state["share"]


def attach_masks(model: nn.Module, layers: Iterable[str] | None = None) -> None:
    """Give each convolution and linear layer that has none a mask that keeps everything, in place.

    Masks rename the entries of the state dict, so they must be there before a run is stored or continued.
    """
    there = masks(model)
    for name, layer in sparsifiable(model, registry.find("granularity", "weight"), layers).items():
        if name not in there:
            set_mask(layer, torch.ones_like(layer.weight, dtype=torch.bool))


@torch.no_grad()
def apply_masks(
    model: nn.Module, keep: dict[str, Tensor], optimiser: torch.optim.Optimizer | None = None
) -> None:
    """Set the masks of a model that is being trained, in place.

    The stored weights under the masks become zero, and so does what the optimiser remembers of them: momentum
    would go on moving them, and a weight that lives again would start from an old value.

    Args:
        keep: for each layer a bool tensor of its weight's shape, true = keep; other layers are left alone.
    """
    for name, mask in keep.items():
        layer = model.get_submodule(name)
        set_mask(layer, mask)
        stored = layer.parametrizations.weight.original
        stored *= mask
        memory = optimiser.state.get(stored, {}) if optimiser is not None else {}
        for value in memory.values():
            if isinstance(value, Tensor) and value.shape == stored.shape:
                value *= mask
