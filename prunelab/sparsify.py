"""Sparsify: set weights to zero by masks. The architecture stays, so nothing gets smaller or faster by
itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunelab import granularity as granularities
from prunelab import registry, selection
from prunelab.basics import Network
from prunelab.criteria import Criterion
from prunelab.evidence import Batches, collect
from prunelab.granularity import Granularity
from prunelab.registry import Method


class Mask(nn.Module):
    """Multiplies a weight by zeros and ones. As a torch parametrization it acts in every forward pass, so the
    zeros survive training, and it is copied, stored and moved with the module.

    Attributes:
        keep: bool, the weight's shape, true = keep.
    """

    def __init__(self, keep: Tensor):
        super().__init__()
        self.keep: Tensor
        self.register_buffer("keep", keep)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.keep


def sparsify(
    model: Network,
    *,
    granularity: Granularity = "weight",
    criterion: Criterion = "l1",
    amount: float | None = None,
    threshold: float | None = None,
    scope: str = "local",
    data: Batches | None = None,
    layers: Iterable[str] | None = None,
    within: nn.Module | None = None,
    seed: int = 0,
) -> Network:
    """Zero the least important groups of weights by masks.

    By default all convolutions (transposed ones, too) and linear layers take part, except

    - the first layer, where groups cut across its inputs (channel, block, N:M): they are the picture's
      colours;
    - the last layer, where groups cut across its outputs (filter, group_wise, grouped_kernel, block): they
      are the classes; and both the first and the last for whole layers;
    - layers at which the granularity makes no sense: in a linear layer or a 1x1 convolution kernels, rows,
      columns and stripes would be nothing else than weights or filters; only 3x3 kernels have patterns; in a
      depthwise convolution no filter shares its channel, so there is nothing to group or block.

    Args:
        model: any network with convolutions or linear layers; left untouched.
        granularity: name (``pl.methods("granularity")``) or function ``(o, i, h, w) -> (groups, members)``;
            ``functools.partial`` sets a size, ``pl.granularity.n_of_m(n, m)`` gives any N:M.
        criterion: name (``pl.methods("criterion")``) or function ``(groups, members) -> (groups,)``, higher =
            keep. For N:M and patterns it scores single weights.
        amount: share of the groups to be zero afterwards, 0..1; by default half. N:M and patterns remove a
            share of their own, so it is left out there.
        threshold: instead of an amount: drop the groups that score less.
        scope: ``"local"``: that share of each layer; ``"global"``: of all layers together, after the
            normalisation of scores that the criterion's paper uses. N:M and patterns choose inside their
            groups, whatever the scope.
        data: what the criterion measures on, if it needs data; never the test split.
        layers: names of the layers to sparsify, instead of the default.
        within: a masked model of the same architecture: what it has zeroed stays zero and counts towards
            ``amount``. By default the masks that ``model`` itself carries.
        seed: for criteria that draw random numbers.
    Returns:
        A masked copy; :func:`finalize` turns it into a plain network with zeros.
    Raises:
        ValueError: an unknown name (the nearest is suggested), an amount outside 0..1 or where none is due,
            data missing, a criterion or a layer at which the granularity makes no sense, a size that does not
            divide the layer's, a layer that would be emptied completely, or nothing to sparsify. The model is
            unchanged.
    """
    decided = new_masks(
        model,
        granularity=granularity,
        criterion=criterion,
        amount=amount,
        threshold=threshold,
        scope=scope,
        data=data,
        layers=layers,
        within=within,
        seed=seed,
    )
    result = copy.deepcopy(model)
    for name, keep in decided.items():
        set_mask(result.get_submodule(name), keep)
    return result


def new_masks(
    model: nn.Module, *, amount: float | None = None, threshold: float | None = None, **choice: Any
) -> dict[str, Tensor]:
    """Decide what :func:`sparsify` would zero, and change nothing: for pruning while a network trains.

    Args and errors are those of :func:`sparsify`.

    Returns:
        For each layer that takes part bool, the weight's shape, true = keep; :func:`set_mask` puts it on.
    """
    return Ranking(model, **choice).masks(amount, threshold)


class Ranking:
    """The groups of a network and their scores, from which the masks of any amount follow.

    Args and errors are those of :func:`sparsify`. Nothing is measured before :attr:`scores` are asked for.

    Attributes:
        layers: those that take part, by name.
        where: for each layer the positions of its groups, ``(groups, members)``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        granularity: Granularity = "weight",
        criterion: Criterion = "l1",
        scope: str = "local",
        data: Batches | None = None,
        layers: Iterable[str] | None = None,
        within: nn.Module | None = None,
        seed: int = 0,
    ):
        self.model, self.data, self.seed = model, data, seed
        self.granularity = registry.find("granularity", granularity)
        self.criterion = registry.find("criterion", criterion)
        self.scope = selection.check_scope(scope)
        # Where the choice is made inside the groups, single weights are scored.
        self.scored = registry.find("granularity", "weight") if self.granularity.choose else self.granularity
        if self.criterion.granularities and self.scored.name not in self.criterion.granularities:
            whose = f" (which {self.granularity.name!r} scores)" if self.granularity.choose else ""
            raise ValueError(
                f"criterion {self.criterion.name!r} does not judge granularity {self.scored.name!r}{whose}: "
                f"there it has no meaning; it judges {', '.join(self.criterion.granularities)}"
            )
        self.layers = sparsifiable(model, self.granularity, layers)
        self.earlier = _earlier_masks(model if within is None else within, self.layers)
        self.where = self._positions(self.granularity)

    def _positions(self, shape_of: Method) -> dict[str, Tensor]:
        return {name: granularities.positions(shape_of, layer, name) for name, layer in self.layers.items()}

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """For each layer ``(groups,)``, or ``(groups, members)`` where the choice is made inside the groups;
        minus infinity for what an earlier mask has zeroed.
        """
        places = self._positions(self.scored) if self.granularity.choose else self.where
        evidence = collect([self.criterion], self.model, self.layers, self.data, seed=self.seed)
        found = {}
        for name, layer in self.layers.items():
            scores = evidence.score(self.criterion, name, places[name])
            if self.criterion.normalise and self.scope == "global":
                scores = self.criterion.normalise(scores)
            if name in self.earlier:
                gone = ~granularities.matrix(self.earlier[name], places[name]).any(1)
                scores = scores.masked_fill(gone, -torch.inf)
            if self.granularity.choose:
                each_weight = granularities.spread(scores, places[name], layer.weight.shape)
                scores = granularities.matrix(each_weight, self.where[name])
            found[name] = scores
        return found

    def masks(self, amount: float | None = None, threshold: float | None = None) -> dict[str, Tensor]:
        """What stays: for each layer bool, the weight's shape, true = keep."""
        self.check(amount, threshold)
        if self.granularity.choose:
            kept = self.granularity.choose(self.scores)
        elif threshold is not None:
            kept = selection.above(self.scores, threshold)
        else:
            amount = 0.5 if amount is None else amount
            kept = selection.select(self.scores, amount, self.scope)
        found = {
            name: granularities.spread(keep, self.where[name], self.layers[name].weight.shape)
            for name, keep in kept.items()
        }
        for name, mask in self.earlier.items():
            found[name] = found[name] & mask
        share = f"amount={amount}" if threshold is None else f"threshold={threshold}"
        how = f"granularity {self.granularity.name!r}, criterion {self.criterion.name!r}, {share}"
        _check_not_emptied(
            found, self.earlier, self.granularity.name == "layer", f"{how}, scope={self.scope!r}"
        )
        return found

    def check(self, amount: float | None = None, threshold: float | None = None) -> None:
        """Whether :meth:`masks` can be asked for so much, before anything is measured.

        Raises:
            ValueError: it cannot.
        """
        for name, value in (("amount", amount), ("threshold", threshold)):
            if self.granularity.choose and value is not None:
                raise ValueError(
                    f"{name}={value}: granularity {self.granularity.name!r} removes the same share of every "
                    f"group; leave {name} out"
                )
        if amount is not None and threshold is not None:
            raise ValueError(f"amount={amount}, threshold={threshold}: give one of them, not both")
        if amount is not None:
            selection.check_amount(amount)
        if threshold is not None:
            selection.check_threshold(threshold)


def _earlier_masks(model: nn.Module, chosen: dict[str, Any]) -> dict[str, Tensor]:
    earlier = {}
    for name, mask in masks(model).items():
        if name not in chosen:
            continue
        weight = chosen[name].weight
        if mask.shape != weight.shape:
            raise ValueError(
                f"within: layer {name!r} is masked as {tuple(mask.shape)} there, its weight is "
                f"{tuple(weight.shape)} here"
            )
        earlier[name] = mask.to(weight.device)
    return earlier


def _check_not_emptied(
    found: dict[str, Tensor], earlier: dict[str, Tensor], whole_layers: bool, how: str
) -> None:
    """Whole layers may go, if that was asked for, but not all of them; else each keeps something."""
    emptied = [
        name
        for name, keep in found.items()
        if not keep.any() and (name not in earlier or earlier[name].any())
    ]
    if emptied and not (whole_layers and any(keep.any() for keep in found.values())):
        raise ValueError(
            f"layer {emptied[0]!r} would be emptied completely ({how}): take less, scope='local', or leave "
            "it out of layers="
        )


def finalize(model: Network) -> Network:
    """A plain copy of a masked model: zeros in ordinary weights, no masks any more."""
    result = copy.deepcopy(model)
    for name, module in result.named_modules():
        if _mask_of(module) is None:
            continue
        if len(module.parametrizations) > 1 or len(module.parametrizations.weight) > 1:
            raise ValueError(f"layer {name!r} has parametrizations besides its mask: remove those first")
        # Not torch's remove_parametrizations: it edits the module's class, which a deep copy shares with its
        # original, so the original would lose its weight.
        weight = nn.Parameter(module.weight.detach(), module.parametrizations.weight.original.requires_grad)
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        module._parameters = {"weight": weight, **module._parameters}
    return result


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model by layer name: bool, the weight's shape, true = keep. Empty for a plain model."""
    found = {name: _mask_of(module) for name, module in model.named_modules()}
    return {name: mask.keep for name, mask in found.items() if mask is not None}


def set_mask(layer: nn.Module, keep: Tensor) -> None:
    """Mask ``layer.weight`` in place, or replace the mask it has."""
    mask = _mask_of(layer)
    if mask is None:
        # unsafe: no check that the result has the original's shape and type; it has, and the check runs the
        # mask
        parametrize.register_parametrization(layer, "weight", Mask(keep), unsafe=True)
    else:
        mask.keep = keep


# Groups that cut across a layer's inputs (the first layer's are the picture's colours) and across its outputs
# (the last layer's are the classes).
ACROSS_INPUTS = ("channel", "block", "layer")
ACROSS_OUTPUTS = ("filter", "group_wise", "grouped_kernel", "block", "layer")


def sparsifiable(model: nn.Module, granularity: Method, layers: Iterable[str] | None) -> dict[str, Any]:
    """The layers that :func:`sparsify` works on, by name; its docstring says which they are by default."""
    available = {
        name: module for name, module in model.named_modules() if isinstance(module, granularities.LAYERS)
    }
    if not available:
        raise ValueError(
            f"{type(model).__name__} has no convolution or linear layer: there is nothing to remove"
        )
    if layers is None:
        names = list(available)
        first = granularity.name in ACROSS_INPUTS or granularity.family == "N:M"
        last = granularity.name in ACROSS_OUTPUTS
        names = names[first : len(names) - last]
        names = [name for name in names if not granularities.objection(granularity, available[name])]
        if not names:
            raise ValueError(
                f"{type(model).__name__} has no layer in which removing a {granularity.name} makes sense by "
                "default; name one in layers= if it is meant"
            )
        return {name: available[name] for name in names}
    chosen = {}
    for name in layers:
        if name not in available:
            raise ValueError(f"layers: {name!r}: {registry.suggestion(name, list(available))}")
        if reason := granularities.objection(granularity, available[name]):
            raise ValueError(
                f"layers: granularity {granularity.name!r} makes no sense at layer {name!r}: {reason}"
            )
        chosen[name] = available[name]
    if not chosen:
        raise ValueError("layers is empty: name at least one, or leave it out for all")
    return chosen


def _mask_of(module: Any) -> Mask | None:
    if not parametrize.is_parametrized(module, "weight"):
        return None
    found = [step for step in module.parametrizations.weight if isinstance(step, Mask)]
    return found[0] if found else None
