"""What a criterion may look at besides the weights, gathered for all layers and criteria in one pass.

A criterion names its evidence in ``needs``; each is an argument of its function. Shapes, for a layer that is
cut into ``n`` groups of ``d`` weights:

==================== ================== ====================================================================
need                 shape              what it is
==================== ================== ====================================================================
``generator``                           a seeded random generator on the CPU
``gradients``        ``(n, d)``         of the mean cross-entropy over all pictures
``batch_gradients``  ``(b, n, d)``      the same for each of the ``b`` batches
``fisher``           ``(n, d)``         mean over pictures of each picture's squared gradient
``hessian_diagonal`` ``(n, d)``         Hutchinson's estimate of the Hessian's diagonal
``hessian_gradient`` ``(n, d)``         Hessian times gradient
``synflow``          ``(n, d)``         gradient of SynFlow's R: all weights made positive, a picture of ones
``movement``         ``(n, d)``         minus weight times gradient, summed over a short fine-tuning of a copy
``norm_scale``       ``(n,)``           scale of the batch norm behind each filter
``gates``            ``(n,)``           value of the learned gate on each filter
``maps``             ``(b, n, h, w)``   one batch's feature maps, behind batch norm, addition and activation
``map_gradients``    ``(b, n, h, w)``   of each picture's own loss
``perturbed_maps``   ``(b, n, h, w)``   the feature maps of the same pictures with noise on them
``pooled``           ``(pictures, n)``  mean of each feature map over its positions
``labels``           ``(pictures,)``    classes, int64
``covariance``       ``(n, n)``         of the feature maps' values, over all pictures and positions
``input_gram``       ``(g, k, k)``      mean of x xᵀ over the input patches x that a filter of group g sees
``patches``          ``(s, i, k)``      sampled input patches, ``i`` channels of ``k`` places
``silenced_loss``    ``(n,)``           how much the mean loss rises when a group is silenced
==================== ================== ====================================================================

A criterion that looks at ``maps`` is called once a batch and returns ``(b, n)``, one number for each picture
and channel; their mean over all pictures is the score. Feature maps are never stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from prunelab.basics import evaluating
from prunelab.criteria import finite
from prunelab.data import Split
from prunelab.granularity import matrix
from prunelab.observation import KINDS, Batch, Kind, MapMeans, Network
from prunelab.registry import Method, suggestion

Batches = Split | Iterable[tuple[Tensor, Tensor]]

BATCH_SIZE = 32  # a larger one takes more memory and no less time
PICTURES = 512  # drawn from a Split; batches of the caller's own are used to the last


def collect(
    criteria: Iterable[Method],
    model: nn.Module,
    layers: dict[str, Any],
    data: Batches | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Evidence:
    """Gather all that ``criteria`` need, in one pass over the data.

    Args:
        layers: the layers that will be scored, by name.
        data: batches ``(images, labels)``, or a :class:`~prunelab.data.Split`, of which 512 random pictures
            are used; for criteria that need them.
        seed: decides the pictures, and everything that is drawn at random.
        progress: show a progress bar when it takes longer than two seconds.
    Raises:
        ValueError: a criterion needs data and there is none, or evidence that the network cannot give; or a
            weight is infinite or NaN.
    """
    return Evidence(list(criteria), model, layers, data, seed, progress)


class Evidence:
    """What was gathered for some criteria; :meth:`score` lets them judge."""

    def __init__(
        self,
        criteria: list[Method],
        model: nn.Module,
        layers: dict[str, Any],
        data: Batches | None,
        seed: int,
        progress: bool,
    ):
        self.layers = layers
        for name, layer in layers.items():
            finite(layer.weight, f"the weight of layer {name!r}")
        self.kinds: dict[str, Kind] = {}
        self.means: dict[str, MapMeans] = {}
        for criterion in criteria:
            for need in criterion.needs:
                if need not in KINDS:
                    raise ValueError(
                        f"criterion {criterion.name!r} needs {need!r}: {suggestion(need, list(KINDS))}"
                    )
                if need not in self.kinds:
                    self.kinds[need] = KINDS[need]()
            if "maps" in criterion.needs:
                self.means[criterion.name] = MapMeans(criterion)
        gatherers: list[Kind] = [*self.kinds.values(), *self.means.values()]
        watchers = [gatherer for gatherer in gatherers if gatherer.needs_data]
        if watchers and data is None:
            names = [c.name for c in criteria if any(KINDS[need].needs_data for need in c.needs)]
            raise ValueError(
                f"criterion {names[0]!r} needs data: pass data=data.train (or any batches of it)"
            )
        network = Network(model, layers, seed, progress)
        with evaluating(model), torch.enable_grad():  # batch norm as at test time, its statistics unchanged
            for gatherer in gatherers:
                gatherer.start(network)
            if watchers:
                assert data is not None
                self._watch(network, watchers, data, seed, progress)

    @staticmethod
    def _watch(network: Network, watchers: list[Kind], data: Batches, seed: int, progress: bool) -> None:
        batches, total = _batches(data, seed)
        device = next(network.model.parameters()).device
        count = 0
        for images, labels in tqdm(
            batches, total=total, desc="gathering evidence", leave=False, delay=2, disable=not progress
        ):
            if len(labels):
                batch = Batch(network, images.to(device), labels.to(device))
                for watcher in watchers:
                    watcher.see(batch)
                count += 1
        if count == 0:
            raise ValueError("data is empty: there was no batch in it")
        for watcher in watchers:
            watcher.finish()

    @torch.no_grad()
    def score(self, criterion: Method, name: str, where: Tensor) -> Tensor:
        """What ``criterion`` thinks of one layer's groups.

        Args:
            name: the layer.
            where: positions ``(groups, members)``, see :func:`prunelab.granularity.positions`.
        Returns:
            ``(groups,)``, higher = keep.
        Raises:
            ValueError: the criterion returned something else, or numbers that are not finite.
        """
        if criterion.name in self.means:
            scores = self.means[criterion.name].of(name, where)
        else:
            found = {need: self.kinds[need].of(name, where) for need in criterion.needs}
            scores = criterion.function(matrix(self.layers[name].weight, where), **found)
        return checked(scores, criterion, len(where), name)


def checked(scores: Tensor, criterion: Method, groups: int, name: str) -> Tensor:
    """The scores that ``criterion`` gave the groups of layer ``name``, if there is a finite one for each."""
    if scores.shape != (groups,) or not scores.isfinite().all():
        raise ValueError(
            f"criterion {criterion.name!r} must return one finite number for each of the {groups} "
            f"groups of layer {name!r}; it returned shape {tuple(scores.shape)}"
            + ("" if scores.isfinite().all() else " with infinite or NaN values: is a weight damaged?")
        )
    return scores


def _batches(data: Batches, seed: int) -> tuple[Iterator[tuple[Tensor, Tensor]], int | None]:
    if isinstance(data, Split):
        count = min(PICTURES // BATCH_SIZE, -(-len(data) // BATCH_SIZE))
        return itertools.islice(data.batches(BATCH_SIZE, shuffle=True, seed=seed), count), count
    return iter(data), len(data) if isinstance(data, Sized) else None
