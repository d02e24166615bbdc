"""What would go, before anything does: from scores and a target to a decision for every channel.

Every criterion puts the channels into one **order of removal**. A target is a point on that order: parameters
and FLOPs follow from how many channels each layer keeps, so the point is found by bisection, without
removing anything. Where the next channel to go is a large step, one that many layers share, it may stay, and
smaller ones behind it fill the gap.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunelab import granularity, plots, registry, selection
from prunelab.basics import Network, evaluating
from prunelab.channels import Channels, Example, inputs, trace
from prunelab.criteria import Criterion
from prunelab.evidence import Batches, checked, collect
from prunelab.latency import LatencyTable
from prunelab.registry import suggestion
from prunelab.regularisers import fold_gates, gate_values
from prunelab.sparsify import finalize, masks

CLOSE = 1e-3  # how near to a target is near enough, relative to it
FILLINGS = 50  # how many channels behind one that is too much may be tried in its place
REDUCTIONS = {"mean": "mean", "sum": "sum", "max": "amax"}  # as torch calls them


# ------------------------------------------------------------------------------------------- scores


def channel_scores(
    model: nn.Module,
    channels: Channels,
    rank: registry.Method,
    *,
    scope: str = "local",
    reduce: str = "mean",
    data: Batches | None = None,
    seed: int = 0,
) -> Tensor:
    """What a criterion thinks of each class of channels, ``(classes,)`` float64, higher = keep.

    It combines the scores of the class's filters; for a criterion that judges input channels, those that they
    get from the layers that read them.

    Args:
        channels: what :func:`~prunelab.channels.trace` found in ``model``.
        scope: with ``"global"``, each layer's scores are normalised first if the criterion's paper does.
        reduce: how a class's scores become one: ``"mean"``, ``"sum"`` or ``"max"``.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: {suggestion(reduce, tuple(REDUCTIONS))}")
    by = "filter" if not rank.granularities or "filter" in rank.granularities else "channel"
    if by not in (rank.granularities or (by,)):
        raise ValueError(
            f"criterion {rank.name!r} judges a {' or a '.join(rank.granularities)}: to prune, take one that "
            "judges filters or channels"
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    classes = {
        name: channels.classes[layer.outputs if by == "filter" else layer.inputs]
        for name, layer in channels.layers.items()
        if layer.makes and (by == "filter" or _reads(modules[name]))
    }
    # A layer none of whose channels can go is not asked: the picture's colours, the classes.
    layers = {name: modules[name] for name, found in classes.items() if channels.free[found].any()}
    shape = registry.find("granularity", by)
    evidence = collect([rank], model, layers, data, seed=seed) if rank.needs else None
    normalise = rank.normalise if scope == "global" else None
    found = []
    with torch.no_grad():
        for name, layer in layers.items():
            if evidence:
                scores = evidence.score(rank, name, granularity.positions(shape, layer))
            else:
                groups = granularity.groups(shape, layer.weight, layer)
                scores = checked(rank.function(groups), rank, len(groups), name)
            scores = scores.double().cpu()
            found.append(normalise(scores) if normalise else scores)
    where = [classes[name] for name in layers]
    result = torch.zeros(len(channels.free), dtype=torch.float64)
    return result.scatter_reduce(
        0, torch.cat(where), torch.cat(found), REDUCTIONS[reduce], include_self=False
    )


def _reads(module: Any) -> bool:
    """Whether every filter of this layer reads all of its channels, so that it can judge them."""
    return isinstance(module, nn.Linear) or module.groups == 1


# --------------------------------------------------------------------------------------------- order


def tied(channels: Channels) -> dict[tuple[str, ...], Tensor]:
    """The removable classes, by the set of layers that make them, in the order in which the network does."""
    sets: list[tuple[str, ...]] = [()]
    number = np.zeros(len(channels.free), dtype=int)  # of the set of layers that have made a class so far
    for name, filters in channels.makers().items():
        before, which = np.unique(number[filters.numpy()], return_inverse=True)
        number[filters.numpy()] = len(sets) + which
        sets += [(*sets[earlier], name) for earlier in before]
    free = np.flatnonzero(channels.free)
    found, first, which = np.unique(number[free], return_index=True, return_inverse=True)
    return {sets[found[place]]: torch.from_numpy(free[which == place]) for place in first.argsort()}


@dataclass(frozen=True)
class Order:
    """In which order channels go.

    Attributes:
        classes: ``(n,)`` the removable classes, the first to go first.
        shares: ``(n,)`` float64, ascending: a class goes when the amount is above its share.
        sets: for each set of layers that are tied together, its classes in that order.
        units: for each set, how many filters of a layer one of its classes stands for.
        total: how many classes there are, removable or not.
    """

    classes: Tensor
    shares: Tensor
    sets: list[Tensor]
    units: list[int]
    total: int

    def at(self, amount: float, round_to: int = 1) -> Tensor:
        """Which classes stay when a share ``amount`` of them goes, ``(classes,)`` bool."""
        return self.keep(int((self.shares < amount).sum()), round_to)

    def keep(self, count: int, round_to: int = 1, but: Sequence[int] = ()) -> Tensor:
        """Which classes stay when the first ``count`` go, but for those at the places ``but``, ``(classes,)``
        bool; of each set so many more stay that the number of its filters is a multiple of ``round_to``.
        """
        keep = torch.ones(self.total, dtype=torch.bool)
        keep[self.classes[:count]] = False
        keep[self.classes[list(but)]] = True
        if round_to > 1:
            for members, unit in zip(self.sets, self.units):
                step = round_to // math.gcd(round_to, unit)
                stay = int(keep[members].sum())
                wanted = min(-(-stay // step) * step, len(members))
                gone = members[~keep[members]]
                keep[gone[len(gone) - (wanted - stay) :]] = True  # the last to go come back first
        return keep


def order(
    channels: Channels,
    scores: Tensor,
    scope: str,
    *,
    most: float | Mapping[str, float] = 1.0,
    exclude: Iterable[str] = (),
) -> Order:
    """Rank the channels; every layer keeps at least one filter.

    Args:
        scores: ``(classes,)``, see :func:`channel_scores`. Equal scores: the first goes first.
        scope: ``"local"``: ranked inside each set of tied layers, all of which shrink in step (the literature
            calls that uniform); ``"global"``: ranked across the network.
        most, exclude: see :func:`decide`.
    """
    sets, makers, total = tied(channels), channels.makers(), len(channels.free)
    caps = _caps(makers, most, exclude)
    if scores[channels.free].isnan().any():
        raise ValueError("scores hold NaN: such channels cannot be ranked")
    worth = scores.numpy()
    ranked = [members.numpy()[_ascending(worth[members.numpy()])] for members in sets.values()]
    classes = np.concatenate(ranked)
    if selection.check_scope(scope) == "local":
        shares = np.concatenate([(np.arange(len(members)) + 0.5) / len(members) for members in ranked])
        by_share = _ascending(shares)
        classes, shares = classes[by_share], shares[by_share]
    else:
        classes = classes[_ascending(worth[classes])]
        shares = (np.arange(len(classes)) + 0.5) / len(classes)
    place = np.full(total, len(classes))
    place[classes] = np.arange(len(classes))
    stays = np.zeros(total, dtype=bool)
    for name, made in makers.items():
        filters = made.numpy()
        allowed = min(math.floor(caps[name] * len(filters) + 1e-9), len(filters) - 1)
        stays[filters[_ascending(place[filters])[allowed:]]] = True
    goes = ~stays[classes]
    units = [int((makers[names[0]] == members[0]).sum()) for names, members in sets.items()]
    return Order(
        torch.from_numpy(classes[goes]),
        torch.from_numpy(shares[goes]),
        [*map(torch.from_numpy, ranked)],
        units,
        total,
    )


def _ascending(values: np.ndarray) -> np.ndarray:
    """Where each value stands in ascending order; equal ones stay in theirs."""
    return values.argsort(kind="stable")


def _caps(
    makers: dict[str, Tensor], most: float | Mapping[str, float], exclude: Iterable[str]
) -> dict[str, float]:
    """The largest share of each layer's filters that may go; where several entries name one, the last."""
    caps = dict.fromkeys(makers, 1.0)
    excluded = [exclude] if isinstance(exclude, str) else exclude
    shares = most if isinstance(most, Mapping) else {None: most}
    entries = [("most", part, share) for part, share in shares.items()]
    for argument, part, share in [*entries, *(("exclude", part, 0.0) for part in excluded)]:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            where = "" if part is None else f" for {part!r}"
            raise ValueError(f"{argument}={share!r}{where}: must be a share of a layer's filters, 0..1")
        inside = [name for name in makers if part in (None, name) or name.startswith(f"{part}.")]
        if not inside:
            raise ValueError(f"{argument}={part!r}: {suggestion(part, tuple(makers))}")
        caps.update(dict.fromkeys(inside, float(share)))
    return caps


# ---------------------------------------------------------------------------------------------- cost


class Costs:
    """Parameters and multiply-accumulates of the network that a decision leaves, without building it.

    What is multiplied outside layers, as in attention, is counted once; pruning does not change it.
    """

    def __init__(self, model: nn.Module, channels: Channels, example: Example):
        self.channels, self.rest = channels, 0
        self.tensors: dict[str, tuple[int, list[Tensor]]] = {}  # numel, and the classes along its dimensions
        sizes = {name: tensor.numel() for name, tensor in model.named_parameters(remove_duplicate=False)}
        self.parameters = {name for name, _ in model.named_parameters()}  # one name each, if shared
        self.fixed = sum(sizes[name] for name in self.parameters if name not in channels.slices)
        classes: dict[int, Tensor] = {}
        for name, dimensions in channels.slices.items():
            if name in sizes:
                found = [classes.setdefault(id(ids), channels.classes[ids]) for ids in dimensions.values()]
                self.tensors[name] = sizes[name], found
        if channels.pins:
            everything = torch.ones(len(channels.free), dtype=torch.bool)
            one = tuple(item[:1].to(next(model.parameters())) for item in inputs(example))
            self.rest = count_flops(model, one) // 2 - self.macs(everything)

    def _left(self, keep: Tensor) -> dict[str, float]:
        """How many entries of each parameter stay."""
        kept: dict[int, float] = {}
        left = {}
        for name, (size, dimensions) in self.tensors.items():
            share = 1.0
            for classes in dimensions:
                if id(classes) not in kept:
                    kept[id(classes)] = int(keep[classes].sum()) / len(classes)
                share *= kept[id(classes)]
            left[name] = size * share
        return left

    def params(self, keep: Tensor) -> int:
        """Parameters that stay."""
        left = self._left(keep)
        return self.fixed + round(sum(left[name] for name in self.parameters & left.keys()))

    def macs(self, keep: Tensor) -> int:
        """Multiply-accumulates of one picture."""
        return sum(self.layer_macs(keep).values()) + self.rest

    def layer_macs(self, keep: Tensor) -> dict[str, int]:
        """The same for each layer."""
        left = self._left(keep)
        return {
            name: round(layer.macs * left[f"{name}.weight"] / self.tensors[f"{name}.weight"][0])
            for name, layer in self.channels.layers.items()
            if layer.makes
        }


# ---------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Plan:
    """What would stay. It is made by :func:`plan` and carried out by :func:`prunelab.prune`; as JSON it can
    be kept, compared and edited.

    Attributes:
        kept: for each layer that makes channels, the filters that stay.
        layers: for each of them ``filters``, ``kept``, ``macs`` before and after, and ``tied`` to which
            others.
        totals: ``params``, ``macs`` (and ``latency`` in seconds, as predicted, if that was the target) before
            and after.
        target: what was asked for, ``{"flops": 0.5}``, and ``reached``, the share that the plan comes to.
        pinned: where channels stay because something needs all of them, and why.
        example: shapes of the inputs.
    """

    kept: dict[str, list[int]]
    layers: dict[str, dict[str, Any]]
    totals: dict[str, list[float]]
    target: dict[str, float]
    pinned: list[str]
    example: list[list[int]]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            ValueError: it is not one; the message says what is missing.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not a plan as Plan.to_json writes it: {error}") from error

    def _cells(self) -> list[list[str]]:
        head = ["layer", "filters", "kept", "share", "MACs", "kept", "tied to"]
        body = [
            [
                name, f"{row['filters']:,}", f"{row['kept']:,}", f"{row['kept'] / row['filters']:.0%}",
                f"{row['macs'][0]:,}", f"{row['macs'][1]:,}", ", ".join(row["tied"][:1]) + (
                    f" and {len(row['tied']) - 1} more" if len(row["tied"]) > 1 else ""),
            ]
            for name, row in self.layers.items()
        ]  # fmt: skip
        return [head, *body]

    def _lines(self) -> list[str]:
        units = {"params": "parameters", "macs": "multiply-accumulates", "latency": "seconds (predicted)"}
        lines = [
            f"{units[name]}: {before:,.4g} -> {after:,.4g} ({after / before:.1%})"
            if name == "latency"
            else f"{units[name]}: {before:,} -> {after:,} ({after / before:.1%})"
            for name, (before, after) in self.totals.items()
        ]
        asked = ", ".join(f"{name}={value:g}" for name, value in self.target.items() if name != "reached")
        lines.append(f"asked for {asked}, reached {self.target['reached']:.4g}")
        return lines + [f"pinned: {line}" for line in self.pinned]

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        table = [
            "  ".join(
                cell.ljust(width) if column in (0, 6) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in cells
        ]
        return "\n".join([*table, "", *self._lines()])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def plot(self) -> Figure:
        """How many filters each layer had and keeps."""
        return plots.widths({name: (row["filters"], row["kept"]) for name, row in self.layers.items()})


def plan(model: nn.Module, example: Example, **choice: Any) -> Plan:
    """What would go, and what it would leave; nothing is removed yet.

    Args:
        model, example: as for :func:`prunelab.prune`.
        choice: ``criterion="l1"``, ``amount=0.5`` or ``params=``, ``flops=``, ``latency=``,
            ``scope="local"``, ``reduce=``, ``round_to=``, ``most=``, ``exclude=``, ``data=``, ``seed=``,
            ``zeroed=``: see :func:`decide`.
    """
    return _describe(decide(model, example, **choice), example)


def _target(given: dict[str, float]) -> tuple[str, float]:
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given: take one of them")
    ((name, value),) = given.items() or {"amount": 0.5}.items()
    if name == "amount":
        if selection.check_amount(value) == 1:
            raise ValueError("amount=1: every layer would be emptied completely; take less")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: must be the share of the dense network's to keep, above 0 to 1")
    return name, float(value)


@dataclass
class Decision:
    """A point on an order of removal.

    Attributes:
        source: the network without masks and gates, which was traced and is to be cut.
        channels: what :func:`~prunelab.channels.trace` found in it.
        keep: ``(classes,)`` bool, which classes of channels stay.
        target: what was asked for, and reached.
        costs: how parameters and FLOPs follow from a decision.
        seconds: how the time does, if that was the target.
    """

    source: nn.Module
    channels: Channels
    keep: Tensor
    target: dict[str, float]
    costs: Costs | None = None
    seconds: Callable[[Tensor], float] | None = None


def decide(
    model: nn.Module,
    example: Example,
    *,
    criterion: Criterion = "l1",
    amount: float | None = None,
    params: float | None = None,
    flops: float | None = None,
    latency: float | None = None,
    scope: str = "local",
    reduce: str = "mean",
    round_to: int = 1,
    most: float | Mapping[str, float] = 1.0,
    exclude: Iterable[str] = (),
    data: Batches | None = None,
    seed: int = 0,
    zeroed: bool = False,
) -> Decision:
    """Decide which channels would go; nothing is removed yet.

    Channels that are added to each other can only go together; such a class has one score.

    Args:
        model: any network that ``torch.fx`` can trace; left untouched.
        example: one input, such as ``data.example`` ``(1, 3, 32, 32)``, or a tuple of them.
        criterion: name (``pl.methods("criterion")``) or function ``(filters, members) -> (filters,)``, higher
            = keep.
        amount: share of the removable channels to remove, 0 to below 1 (0.5 if no target is given).
        params, flops, latency: at most one, instead of ``amount``: the share of the dense network's
            parameters, FLOPs, or time for ``example`` on its device, to prune *to*. The nearest point that
            the order of removal reaches is taken; the last steps leave out channels that would overshoot it.
        scope: ``"local"``: all sets of tied layers shrink by the same share (uniform); ``"global"``: channels
            are ranked across the network.
        reduce: how the scores of channels that go together become one: ``"mean"``, ``"sum"``, ``"max"``.
        round_to: keep multiples of this many filters, which some hardware likes.
        most: the largest share of a layer's filters that may go, 0..1, for all layers or by name, of a layer
            or of a module around several: ``{"stage1": 0.3, "stage3": 0.8}``. One filter always stays.
        exclude: names of layers, or of modules around them, that keep all their filters.
        data: what the criterion measures on, if it needs data; never the test split.
        seed: for criteria that draw random numbers.
        zeroed: see :func:`prunelab.prune`.
    Raises:
        ValueError: an unknown name, a number out of range, two targets, data missing, nothing to remove.
        TraceError: the network cannot be traced.
    """
    rank = registry.find("criterion", criterion)
    given = {"amount": amount, "params": params, "flops": flops, "latency": latency}
    target, value = _target({name: value for name, value in given.items() if value is not None})
    if not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to={round_to!r}: must be a whole number of filters, 1 or more")
    source = plain(model)
    channels = trace(source, example, zeroed=zeroed)
    if not channels.free.any():
        pins = f", or are needed whole:\n{channels.pinned()}" if channels.pins else ""
        raise ValueError(
            f"{type(model).__name__} has no channels that can be removed: all are its inputs or outputs{pins}"
        )
    # The model as it came is judged: gates are what their criterion looks at.
    scores = channel_scores(model, channels, rank, scope=scope, reduce=reduce, data=data, seed=seed)
    ranking = order(channels, scores, scope, most=most, exclude=exclude)
    if target == "amount":
        keep = ranking.at(value, round_to)
        reached = float(1 - keep[channels.free].double().mean())
        return Decision(source, channels, keep, {target: value, "reached": reached})
    seconds = LatencyTable(source, inputs(example), channels).seconds if target == "latency" else None
    costs = Costs(source, channels, example)
    measure = seconds or {"params": costs.params, "flops": costs.macs}[target]
    dense = measure(torch.ones(ranking.total, dtype=torch.bool))
    keep = _nearest(ranking, lambda kept: measure(kept) / dense, value, round_to)
    reached = measure(keep) / dense
    return Decision(source, channels, keep, {target: value, "reached": reached}, costs, seconds)


def count_flops(model: nn.Module, examples: tuple[Tensor, ...]) -> int:
    """Floating-point operations of one forward pass, counted while it runs: two per multiply-accumulate."""
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*examples)
    return counter.get_total_flops()


def _nearest(ranking: Order, share: Callable[[Tensor], float], value: float, round_to: int) -> Tensor:
    """Bisection: the more goes, the less is left. Then one by one, without those that are too much."""
    low, high = 0, len(ranking.classes)  # share(low) >= value; the answer is low or the point behind it
    while high - low > 1:
        middle = (low + high) // 2
        if share(ranking.keep(middle, round_to)) >= value:
            low = middle
        else:
            high = middle
    keep = ranking.keep(low, round_to)
    best, nearest = keep, abs(share(keep) - value)
    too_much: list[int] = []
    for count in range(high, min(high + FILLINGS, len(ranking.classes) + 1)):
        if nearest <= CLOSE * value:
            break
        keep = ranking.keep(count, round_to, too_much)
        left = share(keep)
        if left < value:
            too_much.append(count - 1)
        if abs(left - value) < nearest:
            best, nearest = keep, abs(left - value)
    return best


def _describe(decision: Decision, example: Example) -> Plan:
    keep, channels = decision.keep, decision.channels
    costs = decision.costs or Costs(decision.source, channels, example)
    measures: dict[str, Callable[[Tensor], float]] = {"params": costs.params, "macs": costs.macs}
    if decision.seconds:
        measures["latency"] = decision.seconds
    everything = torch.ones_like(keep)
    together = {name: names for names in tied(channels) for name in names}
    before, after = (costs.layer_macs(item) for item in (everything, keep))
    layers = {
        name: {
            "filters": len(filters),
            "kept": int(keep[filters].sum()),
            "macs": [before[name], after[name]],
            "tied": [other for other in together.get(name, ()) if other != name],
        }
        for name, filters in channels.makers().items()
    }
    return Plan(
        kept={
            name: keep[filters].nonzero().flatten().tolist() for name, filters in channels.makers().items()
        },
        layers=layers,
        totals={name: [measure(everything), measure(keep)] for name, measure in measures.items()},
        target=decision.target,
        pinned=channels.pinned().splitlines(),
        example=shapes(example),
    )


def plain(model: Network) -> Network:
    """The network without masks and gates, whose zeros and factors are in its weights; itself if it has
    none.
    """
    model = fold_gates(model) if gate_values(model) else model  # first: it can tell a gate from a mask
    return finalize(model) if masks(model) else model


def shapes(example: Example) -> list[list[int]]:
    """Of the network's inputs, for one picture."""
    return [[1, *item.shape[1:]] for item in inputs(example)]


def keep_from(channels: Channels, kept: dict[str, list[int]]) -> Tensor:
    """The decision per class, ``(classes,)`` bool, that leaves each layer the filters ``kept`` lists."""
    keep = torch.ones(len(channels.free), dtype=torch.bool)
    for name, filters in channels.makers().items():
        stays = torch.zeros(len(filters), dtype=torch.bool)
        stays[kept[name]] = True
        keep[filters[~stays]] = False
    return keep
