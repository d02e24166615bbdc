"""Whole procedures: which training, which pruning, in which order.

Every recipe takes a network and data, leaves the network untouched, and returns a :class:`Result`. What they
share:

- ``epochs``: passes over ``data.train`` of *each* training that the recipe consists of.
- ``seed``: decides everything random. On a CPU, equal seeds give equal weights to the last bit.
- ``folder``: where each training is stored after every epoch. The same call with the same folder continues
  after a kill and ends with the same weights. A folder of another call is refused.
- ``progress``: show what is being trained, with progress bars.
- ``**training``: further arguments of :func:`prunelab.fit`, such as ``lr`` and ``batch_size``.

Criteria that need data measure on training pictures.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from prunelab import selection
from prunelab.basics import Network, whole_file
from prunelab.criteria import Criterion
from prunelab.data import Data
from prunelab.granularity import Granularity
from prunelab.planning import plan
from prunelab.registry import register
from prunelab.regularisers import BatchNormL1
from prunelab.schedules import Gradual, Schedule, apply_masks, attach_masks
from prunelab.sparsify import Mask, finalize, masks, new_masks, sparsify
from prunelab.surgery import prune
from prunelab.training import Callback, History, Run, fit

Folder = str | os.PathLike | None


@dataclass
class Result:
    """What a recipe made.

    Attributes:
        model: the network; masked where the recipe sparsifies, smaller where it prunes.
        histories: one for each training, by its name, in order.
        controls: networks to compare with, by name (lottery ticket).
    """

    model: nn.Module
    histories: dict[str, History]
    controls: dict[str, nn.Module] = field(default_factory=dict)


# --------------------------------------------------------------------- remove, then train again


@register("recipe", family="static", cite="li2017pruning", section="scheduling/one-shot")
def one_shot(
    model: nn.Module,
    data: Data,
    *,
    granularity: Granularity = "weight",
    criterion: Criterion = "l1",
    amount: float | None = None,
    scope: str = "local",
    physical: bool = False,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    """Remove everything at once from a trained network, then fine-tune (Li et al., 2017, section 3.4).

    Args:
        granularity, criterion, amount, scope: as in :func:`prunelab.sparsify`; half by default, and no amount
            for N:M and patterns.
        physical: cut filters out (:func:`prunelab.prune`) instead of masking.
    """
    return _prune_and_train(_Trainings("one_shot", locals()), model, rounds=1)


@register("recipe", family="static", cite="han2015learning", section="scheduling/iterative")
def iterative(
    model: nn.Module,
    data: Data,
    *,
    granularity: Granularity = "weight",
    criterion: Criterion = "l1",
    amount: float = 0.5,
    scope: str = "local",
    rounds: int = 5,
    physical: bool = False,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    """Remove a part of a trained network, train, remove the next part, … (Han et al., 2015, section 3.4).

    Args:
        granularity, criterion, amount, scope: as in :func:`prunelab.sparsify`; after round ``r`` a share
            ``amount * r / rounds`` is gone.
        physical: cut filters out (:func:`prunelab.prune`) instead of masking.
    """
    return _prune_and_train(_Trainings("iterative", locals()), model, rounds)


@register("recipe", family="static", cite="zhu2021progressive", section="granularity/kernel")
def progressive_kernel_pruning(
    model: nn.Module,
    data: Data,
    *,
    criterion: Criterion = "l1",
    amount: float = 0.5,
    scope: str = "local",
    rounds: int = 5,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    """Take 2-d kernels out a few at a time and train after each time (progressive kernel pruning, PKP; after
    Zhu et al., 2021).

    Only the progression is theirs: the criterion is any of this package, not the paper's sparse index.

    Args:
        criterion, scope: as in :func:`prunelab.sparsify`.
        amount: share of the kernels to be gone in the end; after round ``r`` it is ``amount * r / rounds``.
    """
    given = {**locals(), "granularity": "kernel", "physical": False}
    return _prune_and_train(_Trainings("progressive_kernel_pruning", given), model, rounds)


def _prune_and_train(trainings: _Trainings, model: nn.Module, rounds: int) -> Result:
    given = trainings.given
    amount, physical = given["amount"], given["physical"]
    if amount is not None:
        _check_amount(amount)
    elif physical:
        amount = 0.5
    _check_count("rounds", rounds)
    if physical and given["granularity"] != "filter":
        raise ValueError(
            f"physical=True cuts filters out, granularity={given['granularity']!r} cannot be: "
            "use granularity='filter', or physical=False"
        )
    how = {key: given[key] for key in ("criterion", "scope", "seed")} | {"data": given["data"].train}
    for number in range(1, rounds + 1):
        if physical:  # `prune` counts from the network that it gets
            before, after = (1 - amount * done / rounds for done in (number - 1, number))
            model = prune(model, given["data"].example, amount=1 - after / before, **how)
        else:
            share = None if amount is None else amount * number / rounds
            model = sparsify(model, granularity=given["granularity"], amount=share, **how)
        trainings.train("fine-tuning" if rounds == 1 else f"round {number}", model)
    return Result(model, trainings.histories)


@register("recipe", family="static", cite="liu2017learning", section="regularisation/network-slimming")
def network_slimming(
    model: nn.Module,
    data: Data,
    *,
    strength: float = 1e-4,
    amount: float = 0.5,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    r"""Train with an L1 penalty on batch norm's scales, cut the channels with the smallest scales of all
    layers, fine-tune (Liu et al., 2017, section 3).

    Args:
        strength: :math:`\lambda` of the penalty :math:`\lambda \sum |\gamma|`, the scales' magnitudes.
        amount: share of the removable channels to cut out.
    """
    trainings = _Trainings("network_slimming", locals())
    _check_amount(amount)
    how: dict[str, Any] = {"criterion": "bn_scale", "amount": amount, "scope": "global", "seed": seed}
    plan(model, data.example, **how)  # a network that it does not suit is refused before the training
    wide = copy.deepcopy(model)
    trainings.train("with sparse scales", wide, [BatchNormL1(strength)])
    small = prune(wide, data.example, **how)
    trainings.train("fine-tuning", small)
    return Result(small, trainings.histories)


# ------------------------------------------------------------------------------- during training


@register("recipe", family="during training", cite="zhu2018prune", section="scheduling/gradual")
def gradual(
    model: nn.Module,
    data: Data,
    *,
    schedule: Schedule = "agp",
    granularity: Granularity = "weight",
    criterion: Criterion = "l1",
    amount: float = 0.5,
    scope: str = "local",
    every: int | None = None,
    start: float = 0.0,
    end: float = 0.8,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    """Train once, and remove more and more along a schedule meanwhile (Zhu & Gupta, 2018).

    Args:
        schedule, every, start, end: as in :class:`prunelab.schedules.Gradual`.
        granularity, criterion, amount, scope: as in :func:`prunelab.sparsify`.
    """
    trainings = _Trainings("gradual", locals())
    sparse = copy.deepcopy(model)
    attach_masks(sparse)
    follow = Gradual(
        schedule,
        _check_amount(amount),
        granularity=granularity,
        criterion=criterion,
        scope=scope,
        every=every,
        start=start,
        end=end,
        seed=seed,
    )
    follow.check(sparse)
    trainings.train("training", sparse, [follow])
    return Result(sparse, trainings.histories)


@register("recipe", family="during training", cite="han2017dsd", section="scheduling/dense-sparse-dense")
def dense_sparse_dense(
    model: nn.Module,
    data: Data,
    *,
    amount: float = 0.3,
    lr: float = 0.2,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    """Train dense, train sparse, then let the removed weights return from zero and train dense at a tenth of
    the learning rate (Han et al., 2017, algorithm 1).

    It is a way to train, not to compress: what comes out is dense.

    Args:
        amount: share of each layer's weights, smallest magnitudes first, that sits the second training out.
        lr: highest learning rate of the first two trainings.
    """
    trainings = _Trainings("dense_sparse_dense", locals())
    _check_amount(amount)
    model = copy.deepcopy(model)
    trainings.train("dense", model, lr=lr)
    model = sparsify(model, granularity="weight", criterion="l1", amount=amount, scope="local")
    trainings.train("sparse", model, lr=lr)
    model = finalize(model)
    trainings.train("dense again", model, lr=lr / 10)
    return Result(model, trainings.histories)


@register("recipe", family="dynamic", cite="he2018soft", section="scheduling/dynamic")
def soft_filter_pruning(
    model: nn.Module,
    data: Data,
    *,
    amount: float = 0.3,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    """After each epoch zero the filters with the smallest l2 norm, which then go on training (He et al.,
    2018).

    A filter that was zeroed too early can come back. After the last epoch the zeros are made masks.

    Args:
        amount: share of the filters of each layer.
    """
    trainings = _Trainings("soft_filter_pruning", locals())
    soft = finalize(model)  # no masks: what is zeroed goes on training
    trainings.train("training", soft, [_ZeroFilters(amount)])
    return Result(sparsify(soft, granularity="filter", criterion="l2", amount=amount), trainings.histories)


class _ZeroFilters(Callback):
    def __init__(self, amount: float):
        self.amount = _check_amount(amount)

    @torch.no_grad()
    def after_epoch(self, run: Run) -> None:
        keep = new_masks(run.model, granularity="filter", criterion="l2", amount=self.amount, scope="local")
        for name, mask in keep.items():
            run.model.get_submodule(name).weight.mul_(mask)


# ----------------------------------------------------------------------------------- lottery tickets


@register("recipe", family="tickets", cite="frankle2019lottery", section="scheduling/lottery-ticket")
def lottery_ticket(
    model: nn.Module,
    data: Data,
    *,
    amount: float = 0.8,
    scope: str = "global",
    rounds: int = 5,
    rewind: int = 0,
    controls: bool = False,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    """Train, remove the smallest weights, set the others back to what they were at the start, and again:
    iterative magnitude pruning (Frankle & Carbin, 2019, section 1).

    Each round removes the same share of what is left.

    Args:
        model: a network *before* training.
        amount: share of all weights to be gone in the end.
        scope: ``"global"`` ranks the weights of all layers together, as the paper does for deep networks
            (section 4).
        rewind: set back to the weights after this many epochs of the first training, and train from there,
            instead of to the initial ones (Frankle et al., 2020). The learning rate goes on from
            there, too.
        controls: also train the two networks that should do worse: ``"random reinitialisation"``, the
            ticket's masks with newly drawn initial weights, and ``"random mask"``, the ticket's weights with
            as many others of each layer removed.
    """
    trainings = _Trainings("lottery_ticket", locals())
    left = 1 - _check_amount(amount)
    selection.check_scope(scope)
    _check_count("rounds", rounds)
    if not 0 <= rewind < epochs:
        raise ValueError(f"rewind={rewind}: must be an epoch of the training, 0 to {epochs - 1}")
    untrained = copy.deepcopy(model)
    attach_masks(untrained)
    ticket = copy.deepcopy(untrained)
    early = _Remember(rewind)
    trainings.train("dense", ticket, [early])
    keep: dict[str, Tensor] = {}
    for number in range(1, rounds + 1):
        gone = 1 - left ** (number / rounds)
        keep = new_masks(ticket, granularity="weight", criterion="l1", amount=gone, scope=scope)
        ticket.load_state_dict(early.weights)
        apply_masks(ticket, keep)
        trainings.train(f"round {number}", ticket, [_StartAt(rewind)])
    others = {}
    if controls:
        generator = torch.Generator().manual_seed(seed)
        others["random reinitialisation"] = redrawn = copy.deepcopy(untrained)
        _redraw(redrawn, generator)
        apply_masks(redrawn, keep)
        trainings.train("random reinitialisation", redrawn)
        others["random mask"] = scattered = copy.deepcopy(untrained)
        scattered.load_state_dict(early.weights)
        apply_masks(scattered, {name: _shuffled(mask, generator) for name, mask in keep.items()})
        trainings.train("random mask", scattered, [_StartAt(rewind)])
    return Result(ticket, trainings.histories, others)


class _Remember(Callback):
    """Keeps the weights as they are after so many epochs."""

    def __init__(self, epoch: int):
        self.epoch = epoch
        self.weights: dict[str, Tensor] = {}

    def on_start(self, run: Run) -> None:
        self.after_epoch(run)

    def after_epoch(self, run: Run) -> None:
        if run.epoch == self.epoch and not self.weights:
            self.weights = {name: value.clone() for name, value in run.model.state_dict().items()}

    def state_dict(self) -> dict:
        return {"weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.weights = state["weights"]


class _StartAt(Callback):
    """Begins a training after so many epochs: with the learning rate and the order of pictures from there
    on.
    """

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_start(self, run: Run) -> None:
        if run.epoch < self.epoch:
            run.epoch, run.step = self.epoch, self.epoch * (run.steps // run.epochs)


def _redraw(model: nn.Module, generator: torch.Generator) -> None:
    """New initial weights from each layer's own distribution: its values, which were drawn independently, in
    another order. So they fit whatever initialisation the network has.
    """
    with torch.no_grad():
        for name in masks(model):
            stored = model.get_submodule(name).parametrizations.weight.original
            stored.copy_(_shuffled(stored, generator))


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(values.numel(), generator=generator).to(values.device)
    return values.flatten()[order].view_as(values)


# -------------------------------------------------------------------------------- sparse throughout


@register("recipe", family="at initialisation", cite="tanaka2020pruning", section="scheduling/initialisation")
def synflow(
    model: nn.Module,
    data: Data,
    *,
    amount: float = 0.8,
    rounds: int = 100,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    r"""Remove weights before any training by the flow of synaptic strength, a little at a time, then train
    once (Tanaka et al., 2020).

    After round :math:`k` of :math:`n` the share :math:`(1 - amount)^{k/n}` of all weights is left. In one
    round the method could empty whole layers; in many it keeps one that has become thin.

    Args:
        model: a network *before* training.
        amount: share of all weights to remove.
        rounds: :math:`n`.
    """
    trainings = _Trainings("synflow", locals())
    left = 1 - _check_amount(amount)
    _check_count("rounds", rounds)
    sparse = copy.deepcopy(model)
    attach_masks(sparse)
    one = data.train.subset(1)  # only for its shape: SynFlow looks at no data
    for number in tqdm(range(1, rounds + 1), desc="synflow", leave=False, delay=2, disable=not progress):
        gone = 1 - left ** (number / rounds)
        keep = new_masks(
            sparse, granularity="weight", criterion="synflow", amount=gone, scope="global", data=one
        )
        apply_masks(sparse, keep)
    trainings.train("training", sparse)
    return Result(sparse, trainings.histories)


@register("recipe", family="dynamic", cite="mocanu2018scalable", section="scheduling/dynamic")
def sparse_evolutionary_training(
    model: nn.Module,
    data: Data,
    *,
    amount: float = 0.8,
    fraction: float = 0.3,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    """Sparse from the start; after each epoch the weights nearest to zero move to random places: SET (Mocanu
    et al., 2018).

    After the last epoch nothing moves, so that every weight was trained (the paper removes there once more).

    Args:
        amount: share of all weights that is zero, spread over the layers by :func:`erdos_renyi`.
        fraction: share of each layer's weights that moves, the paper's zeta.
    """
    trainings = _Trainings("sparse_evolutionary_training", locals())
    sparse = _sparse_start(model, amount, "erk", seed)
    trainings.train("training", sparse, [_Evolve(fraction, seed)])
    return Result(sparse, trainings.histories)


def set_update(weight: Tensor, keep: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """One rewiring of SET: remove ``fraction`` of the smallest positive and of the largest negative weights,
    grow as many at random places (Mocanu et al., 2018).

    Args:
        weight: any shape; zero where removed.
        keep: bool, of that shape.
        generator: a CPU generator.
    Returns:
        The new ``keep``, with as many true as before. What is new starts at zero.
    """
    stays = keep.clone()
    for sign in (weight >= 0, weight < 0):
        alive = keep & sign
        stays &= ~_smallest(weight.abs(), alive, int(fraction * int(alive.sum())))
    places = torch.rand(keep.shape, generator=generator).to(keep.device)
    return stays | _smallest(places, ~stays, int(keep.sum() - stays.sum()))


class _Evolve(Callback):
    def __init__(self, fraction: float, seed: int):
        self.fraction, self.seed = _check_fraction(fraction), seed

    def after_epoch(self, run: Run) -> None:
        if run.epoch == run.epochs:
            return
        # One seed an epoch, so that a continued run draws what an uninterrupted one draws.
        generator = torch.Generator().manual_seed(self.seed * 100_003 + run.epoch)
        moved = {
            name: set_update(run.model.get_submodule(name).weight.detach(), keep, self.fraction, generator)
            for name, keep in masks(run.model).items()
        }
        apply_masks(run.model, moved, run.optimiser)


@register("recipe", family="dynamic", cite="evci2020rigging", section="scheduling/dynamic")
def rigl(
    model: nn.Module,
    data: Data,
    *,
    amount: float = 0.8,
    distribution: str = "erk",
    every: int = 100,
    fraction: float = 0.3,
    end: float = 0.75,
    epochs: int,
    seed: int = 0,
    folder: Folder = None,
    progress: bool = True,
    **training: Any,
) -> Result:
    r"""Sparse from the start; every so often the smallest weights are dropped and those grown at whose places
    the gradient is largest: RigL (Evci et al., 2020, algorithm 1).

    At step :math:`t` the share :math:`\frac{\alpha}{2} \left( 1 + \cos \frac{t \pi}{T_{end}} \right)` of each
    layer's weights moves.

    Args:
        amount: share of the weights that is zero.
        distribution: over the layers, ``"erk"``: :func:`erdos_renyi`, or ``"uniform"``: ``amount`` of each
            layer but the first, which stays dense.
        every: :math:`\Delta T`, steps between two updates. An update takes the place of a step.
        fraction: :math:`\alpha`.
        end: :math:`T_{end}` as a share of the training; afterwards the masks stay.
    """
    trainings = _Trainings("rigl", locals())
    sparse = _sparse_start(model, amount, distribution, seed)
    trainings.train("training", sparse, [_RigL(every, fraction, end)])
    return Result(sparse, trainings.histories)


def rigl_update(weight: Tensor, keep: Tensor, gradient: Tensor, fraction: float) -> Tensor:
    """One update of RigL: drop ``fraction`` of the living weights, smallest first, then grow as many where
    the gradient is largest (Evci et al., 2020, section 3).

    A weight that was just dropped may be grown at once; it then keeps its value, as in the authors' code.

    Args:
        weight: any shape.
        keep: bool, of that shape.
        gradient: of the loss with respect to *every* weight, also the removed ones.
    Returns:
        The new ``keep``, with as many true as before. What is new starts at zero.
    """
    count = int(fraction * int(keep.sum()))
    stays = keep & ~_smallest(weight.abs(), keep, count)
    return stays | _smallest(-gradient.abs(), ~stays, count)


class _RigL(Callback):
    def __init__(self, every: int, fraction: float, end: float):
        if not 0 < end <= 1:
            raise ValueError(f"end={end}: must be a share of the training, above 0 and up to 1")
        _check_count("every", every)
        self.every, self.fraction, self.end = every, _check_fraction(fraction), end
        self.gradients: dict[str, Tensor] = {}
        self.hooks: list[Any] = []

    def on_start(self, run: Run) -> None:
        self._listen(run)

    def after_step(self, run: Run) -> None:
        self._listen(run)

    def after_backward(self, run: Run) -> None:
        if not self._due(run):
            return
        for hook in self.hooks:
            hook.remove()
        last = self.end * run.steps
        fraction = self.fraction / 2 * (1 + math.cos(math.pi * run.step / last))
        moved = {
            name: rigl_update(
                run.model.get_submodule(name).weight.detach(), keep, self.gradients[name], fraction
            )
            for name, keep in masks(run.model).items()
            if name in self.gradients  # a layer that the network does not use has none
        }
        apply_masks(run.model, moved, run.optimiser)
        run.optimiser.zero_grad()  # without gradients the optimiser's step does nothing

    def _due(self, run: Run) -> bool:
        return run.step > 0 and run.step % self.every == 0 and run.step < self.end * run.steps

    def _listen(self, run: Run) -> None:
        """If the next step is an update, note the gradients behind the masks: those that reach the stored
        weights are zero wherever a weight is removed.
        """
        self.gradients, self.hooks = {}, []
        if not self._due(run):
            return
        for name, module in run.model.named_modules():
            if isinstance(module, Mask):
                note = partial(self._note, name.rsplit(".parametrizations", 1)[0])
                self.hooks.append(module.register_forward_hook(note))

    def _note(self, layer: str, module: nn.Module, given: Any, weight: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            self.gradients[layer] = self.gradients.get(layer, 0) + gradient

        if weight.requires_grad:  # not in the validation that may lie between
            weight.register_hook(add)


def erdos_renyi(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    r"""Densities of layers that together have ``density``: :math:`d^l = \epsilon \frac{n_{l-1} + n_l + w_l +
    h_l}{n_{l-1} \, n_l \, w_l \, h_l}` (Erdős-Rényi-Kernel; Evci et al., 2020, section 3).

    For linear layers, without :math:`w` and :math:`h`, it is the Erdős-Rényi graph of Mocanu et al. (2018).
    Large layers become sparser than small ones. A layer that would need more than its weights stays dense.

    Args:
        shapes: of the layers' weights, by name.
        density: share of all weights that lives, 0..1.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = {name: sum(shape) for name, shape in shapes.items() if name not in dense}
        left = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        # d * n, the number of weights that live, is epsilon times the sum of the sides
        epsilon = left / max(1, sum(rest.values()))
        full = {name for name, sides in rest.items() if epsilon * sides > sizes[name]}
        if not full:
            return {
                name: 1.0 if name in dense else epsilon * sum(shapes[name]) / sizes[name] for name in shapes
            }
        dense |= full


def _sparse_start(model: Network, amount: float, distribution: str, seed: int) -> Network:
    """A copy with random masks."""
    density = 1 - _check_amount(amount)
    sparse = copy.deepcopy(model)
    attach_masks(sparse)
    shapes = {name: tuple(mask.shape) for name, mask in masks(sparse).items()}
    if distribution == "erk":
        densities = erdos_renyi(shapes, density)
    elif distribution == "uniform":
        densities = {name: density if number else 1.0 for number, name in enumerate(shapes)}
    else:
        raise ValueError(f"distribution={distribution!r}: use 'erk' or 'uniform'")
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for name, mask in masks(sparse).items():
        places = torch.rand(mask.shape, generator=generator).to(mask.device)
        count = round(densities[name] * mask.numel())
        keep[name] = _smallest(places, torch.ones_like(mask), count)
    apply_masks(sparse, keep)
    return sparse


def _smallest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Where the ``count`` smallest values are of those that ``among`` marks; of equal ones the first."""
    order = values.masked_fill(~among, math.inf).flatten().argsort(stable=True)
    chosen = torch.zeros_like(among).flatten()
    chosen[order[:count]] = True
    return chosen.view_as(among)


# -------------------------------------------------------------------------------------------- shared


class _Trainings:
    """The trainings of one call of a recipe, each with its own checkpoint in the recipe's folder."""

    def __init__(self, recipe: str, given: dict[str, Any]):
        """``given``: the arguments of the recipe by name, as ``locals()`` says them in its first line."""
        self.recipe, self.given = recipe, given
        self.folder = None if given["folder"] is None else Path(given["folder"])
        self.histories: dict[str, History] = {}

    def train(self, name: str, model: nn.Module, callbacks: Iterable[Callback] = (), **other: Any) -> None:
        """Train ``model`` in place, or restore or continue what was stored of it."""
        given = self.given
        checkpoint = None
        if self.folder is not None:
            if not self.histories:
                self._claim(self.folder)
            checkpoint = self.folder / f"{len(self.histories) + 1:02d}-{name.replace(' ', '-')}.pt"
        if given["progress"]:
            print(f"{self.recipe}: {name}")
        # What was removed before is zero in store, too: weight decay would go on moving it.
        apply_masks(model, masks(model))
        settings = {"seed": given["seed"], "progress": given["progress"], **given["training"], **other}
        history = fit(
            model, given["data"], given["epochs"], callbacks=callbacks, checkpoint=checkpoint, **settings
        )
        if history.interrupted:  # Ctrl-C means the whole recipe, not only this training
            raise KeyboardInterrupt
        self.histories[name] = history

    def _claim(self, folder: Path) -> None:
        """Write down whose folder it is: a stored training says nothing about how much was pruned before
        it.
        """
        ours = {
            "recipe": self.recipe,
            "data": self.given["data"].name,
            "model": _fingerprint(self.given["model"]),
        }
        for key, value in {**self.given, **self.given["training"]}.items():
            if key not in ("model", "data", "folder", "progress", "training"):
                ours[key] = value if isinstance(value, bool | int | float | str | None) else _said(value)
        path = folder / "recipe.json"
        if not path.exists():
            with whole_file(path) as partial_path:
                partial_path.write_text(json.dumps(ours, indent=1) + "\n")
            return
        theirs = json.loads(path.read_text())
        different = [
            f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}"
            for key in {**ours, **theirs}
            if theirs.get(key) != ours.get(key)
        ]
        if different:
            raise ValueError(
                f"folder {folder} holds another run ({'; '.join(different)}): delete it to start afresh, or "
                "name another folder"
            )


def _said(value: Any) -> str:
    """A criterion or schedule of the user's own, by name and settings."""
    if isinstance(value, partial):
        settings = [
            *map(repr, value.args),
            *(f"{key}={setting!r}" for key, setting in value.keywords.items()),
        ]
        return f"{_said(value.func)}({', '.join(settings)})"
    return getattr(value, "__qualname__", repr(value))


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_amount(amount: float) -> float:
    """``amount``, if it leaves something to train."""
    if selection.check_amount(amount) == 1:
        raise ValueError("amount=1: nothing would be left to train; take less")
    return amount


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value}: must be at least 1")


def _check_fraction(fraction: float) -> float:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction}: must be the share of the weights that moves, 0..1")
    return fraction
