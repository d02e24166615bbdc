r"""Penalties that make groups matter less while the network trains, so that they can be removed afterwards.

Each is a callback for :func:`prunelab.training.fit`, with its formula as a small function beside it. L1,
batch norm L1 and group lasso act in one of two ways. As a **penalty** they are added to the loss, and the
optimiser follows a subgradient: weights come close to zero but hardly ever reach it. With ``proximal=True``
the optimiser sees the plain loss, and each of its steps is followed by the regulariser's proximal step

.. math:: w \leftarrow \arg\min_v \tfrac12 \lVert v - w \rVert^2 + t \, R(v),

which sets what is small to exactly zero. Here :math:`t = \lambda \eta / (1 - \mu)` for strength
:math:`\lambda`, learning rate :math:`\eta` and momentum :math:`\mu`: as far as a constant gradient of size
:math:`\lambda` moves a weight in one step, once the momentum has built up. With :math:`t = \lambda \eta`, a
momentum of 0.9 would quietly make the regulariser ten times weaker than its penalty; this way both have the
same minimum, that of :math:`L + \lambda R`. The optimiser's weight decay is part of :math:`L` and stays at
work: with it, L1 becomes the elastic net.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunelab import granularity as granularities
from prunelab import registry
from prunelab.basics import Network
from prunelab.criteria import Criterion
from prunelab.granularity import Granularity
from prunelab.graph import behind
from prunelab.operations import BATCH_NORMS
from prunelab.registry import register
from prunelab.sparsify import Mask, finalize, masks, new_masks, set_mask, sparsifiable
from prunelab.training import Callback, Run

# --------------------------------------------------------------------------- L1 and group lasso


def soft_threshold(w: Tensor, threshold: float) -> Tensor:
    r"""Proximal step of L1: :math:`\operatorname{sign}(w) \max(|w| - t, 0)` (Tibshirani, 1996).

    Args:
        w: any shape.
        threshold: :math:`t \ge 0`; what is not larger becomes exactly zero, the rest comes closer by ``t``.
    Returns:
        The shape of ``w``.
    """
    return w.sign() * (w.abs() - threshold).clamp(min=0)


def group_norm(groups: Tensor) -> Tensor:
    r"""Penalty of the group lasso: :math:`\sum_g \sqrt{d} \, \lVert w_g \rVert_2` (Yuan & Lin, 2006).

    The root of the group's size keeps large groups from being cheaper per weight than small ones.

    Args:
        groups: ``(n, d)``, one row per group.
    Returns:
        A scalar. Where a group is zero, its gradient is taken as zero.
    """
    return math.sqrt(groups.shape[1]) * torch.linalg.vector_norm(groups, dim=1).sum()


def block_soft_threshold(groups: Tensor, threshold: float) -> Tensor:
    r"""Proximal step of :func:`group_norm`: :math:`w_g \max(1 - t \sqrt{d} / \lVert w_g \rVert_2, 0)` (Yuan &
    Lin, 2006, for one group).

    A group shrinks as a whole, keeps its direction, and dies as a whole.

    Args:
        groups: ``(n, d)``, one row per group.
        threshold: :math:`t \ge 0`.
    Returns:
        ``(n, d)``.
    """
    lengths = torch.linalg.vector_norm(groups, dim=1, keepdim=True)
    shrunk = (lengths - threshold * math.sqrt(groups.shape[1])).clamp(min=0)
    return groups * (shrunk / lengths.clamp(min=torch.finfo(groups.dtype).tiny))


class _Shrinking(Callback):
    """What L1 and its relatives share: ``strength * R(w)`` in the loss, or a proximal step after each step of
    the optimiser.
    """

    def __init__(self, strength: float, proximal: bool):
        self.strength, self.proximal = _checked_strength(strength), proximal

    def modules(self, model: nn.Module) -> dict[str, Any]:
        """The modules whose weight is regularised, by name."""
        raise NotImplementedError

    def measure(self, name: str, module: Any) -> Tensor:
        """R of the module's weight, a scalar."""
        return module.weight.abs().sum()

    def shrink(self, name: str, module: Any, threshold: float) -> Tensor:
        """The proximal step of ``threshold * R`` from the module's weight."""
        return soft_threshold(module.weight, threshold)

    def on_start(self, run: Run) -> None:
        for name, module in self.modules(run.model).items():
            if self.proximal:
                _stored(module, "weight", name)  # is there one tensor that the step may change?

    def penalty(self, run: Run) -> Tensor | float:
        if self.proximal:
            return 0.0
        return self.strength * sum(self.measure(*item) for item in self.modules(run.model).items())

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if not self.proximal:
            return
        settings = run.optimiser.param_groups[0]
        threshold = self.strength * settings["lr"] / (1 - settings.get("momentum", 0.0))
        for name, module in self.modules(run.model).items():
            _stored(module, "weight", name).copy_(self.shrink(name, module, threshold))


@register(
    "regulariser", name="l1", family="weights", cite="tibshirani1996regression", section="regularisation/l1"
)
class L1(_Shrinking):
    r"""L1 penalty on all weights (lasso): :math:`\lambda \sum_k |w_k|` (Tibshirani, 1996).

    The pull on a weight does not fade as it gets smaller, unlike weight decay's, so unneeded weights reach
    zero. Biases and batch norms are left alone.

    Args:
        strength: :math:`\lambda`.
        proximal: soft-threshold after each step (exact zeros) instead of adding the penalty to the loss.
        layers: names; by default all convolutions and linear layers.
    """

    def __init__(self, strength: float, *, proximal: bool = False, layers: Iterable[str] | None = None):
        super().__init__(strength, proximal)
        self.layers = None if layers is None else list(layers)

    def modules(self, model: nn.Module) -> dict[str, Any]:
        return sparsifiable(model, registry.find("granularity", "weight"), self.layers)


@register(
    "regulariser",
    name="batch_norm_l1",
    family="scale",
    cite="liu2017learning",
    section="regularisation/network-slimming",
)
class BatchNormL1(_Shrinking):
    r"""L1 penalty on the scales of all batch norms (network slimming): :math:`\lambda \sum_{\gamma} |\gamma|`
    (Liu et al., 2017, equation 1).

    A channel whose scale comes close to zero passes on a constant, and can be removed (criterion
    ``"bn_scale"``). The paper follows the subgradient, ``proximal=False``.

    Args:
        strength: :math:`\lambda`; the paper takes 1e-4 (VGG) and 1e-5 (ResNet, DenseNet).
        proximal: soft-threshold after each step (exact zeros) instead of adding the penalty to the loss.
    """

    def __init__(self, strength: float, *, proximal: bool = False):
        super().__init__(strength, proximal)

    def modules(self, model: nn.Module) -> dict[str, Any]:
        found = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, BATCH_NORMS) and module.affine
        }
        if not found:
            raise ValueError(f"{type(model).__name__} has no batch norm with a scale: regularise the weights")
        return found


@register(
    "regulariser",
    name="group_lasso",
    family="weights",
    cite="yuan2006model",
    section="regularisation/group-lasso",
)
class GroupLasso(_Shrinking):
    r"""Penalty under which whole groups go to zero (group lasso): :math:`\lambda \sum_g \sqrt{d_g} \, \lVert
    w_g \rVert_2` (Yuan & Lin, 2006; for the groups of a network: Wen et al., 2016).

    At granularity ``"weight"`` it is L1. A filter that has become zero may still pass on a constant, the
    shift of the batch norm behind it; physical removal drops that, too. A batch norm also hides how long a
    filter is from the loss, so all filters in front of one shrink, the needed ones too: there, an L1 penalty
    on the norm's scale or gates ask the better question.

    Args:
        strength: :math:`\lambda`.
        granularity: name (``pl.methods("granularity")``) or function ``(o, i, h, w) -> (groups, members)``.
        proximal: block soft-threshold after each step (whole groups become exactly zero) instead of adding
            the penalty to the loss.
        layers: names; by default those that ``sparsify`` takes at this granularity.
    """

    def __init__(
        self,
        strength: float,
        granularity: Granularity = "filter",
        *,
        proximal: bool = False,
        layers: Iterable[str] | None = None,
    ):
        super().__init__(strength, proximal)
        self.granularity = registry.find("granularity", granularity)
        if self.granularity.choose is not None:
            raise ValueError(
                f"granularity={self.granularity.name!r} chooses inside its groups, so they never go to zero "
                "as a whole: use one that cuts the weight into groups, such as 'filter'"
            )
        self.layers = None if layers is None else list(layers)
        self._positions: dict[tuple, Tensor] = {}

    def modules(self, model: nn.Module) -> dict[str, Any]:
        return sparsifiable(model, self.granularity, self.layers)

    def measure(self, name: str, module: Any) -> Tensor:
        return group_norm(granularities.matrix(module.weight, self.where(name, module)))

    def shrink(self, name: str, module: Any, threshold: float) -> Tensor:
        weight, where = module.weight, self.where(name, module)
        result = torch.empty_like(weight, memory_format=torch.contiguous_format)
        result.view(-1)[where] = block_soft_threshold(granularities.matrix(weight, where), threshold)
        return result

    def where(self, name: str, module: Any) -> Tensor:
        """The positions of the layer's groups, worked out once."""
        key = name, module.weight.shape, module.weight.device
        if key not in self._positions:
            self._positions[key] = granularities.positions(self.granularity, module, name)
        return self._positions[key]


# ---------------------------------------------------------------------------------------- gates

STRETCH = (-0.1, 1.1)  # gamma and zeta, Louizos et al. (2018)
TEMPERATURE = 2 / 3  # beta
# An open hard-concrete gate begins at exactly 1 in evaluation mode (from logit 2.4 on) and is shut in one of
# 60 draws, so that there is something to learn from. An open sigmoid gate begins at 0.98.
OPEN = {"hard-concrete": 2.5, "sigmoid": 4.0}


def hard_concrete(log_alpha: Tensor, noise: Tensor | None = None) -> Tensor:
    r"""A gate between 0 and 1 that is often exactly 0 or 1 and still has a gradient (Louizos et al., 2018).

    .. math::
        s = \sigma\big((\log u - \log(1 - u) + \log\alpha) / \beta\big), \quad
        z = \min(1, \max(0, s (\zeta - \gamma) + \gamma))

    A binary concrete variable :math:`s`, stretched to :math:`(\gamma, \zeta)` and cut off. At test time
    :math:`s = \sigma(\log\alpha)`.

    Args:
        log_alpha: ``(n,)``, learned.
        noise: ``(n,)`` :math:`u`, uniform in 0..1; none for the gate at test time.
    Returns:
        ``(n,)``.
    """
    low, high = STRETCH
    s = log_alpha if noise is None else (noise.logit() + log_alpha) / TEMPERATURE
    return (s.sigmoid() * (high - low) + low).clamp(0, 1)


def hard_concrete_open(log_alpha: Tensor) -> Tensor:
    r"""Probability that a gate is not zero: :math:`\sigma(\log\alpha - \beta \log(-\gamma/\zeta))` (Louizos
    et al., 2018).

    Summed over the gates it is the expected L0 norm, whose gradient is known although no draw's is.

    Args:
        log_alpha: ``(n,)``.
    Returns:
        ``(n,)`` in 0..1.
    """
    low, high = STRETCH
    return (log_alpha - TEMPERATURE * math.log(-low / high)).sigmoid()


class Gate(nn.Module):
    """One learned gate for each filter of a layer.

    Attributes:
        kind: ``"hard-concrete"`` or ``"sigmoid"``.
        layer: name of the layer whose filters are gated.
        members: weights of one filter.
        logits: ``(filters,)``: log alpha, or what the sigmoid is taken of.
    """

    def __init__(self, kind: str, layer: str, filters: int, weight: Tensor):
        super().__init__()
        self.kind, self.layer, self.members = kind, layer, weight.numel() // filters
        self.logits = nn.Parameter(weight.new_full((filters,), OPEN[kind]))
        self.noise: Tensor
        self.register_buffer("noise", weight.new_full((filters,), 0.5), persistent=False)

    def draw(self) -> None:
        """New noise, equal for equal seeds on every device."""
        self.noise.copy_(torch.rand(len(self.noise)))

    def forward(self) -> Tensor:
        """``(filters,)``: what the filters are multiplied with in this mode, training or evaluation."""
        if self.kind == "sigmoid":
            return self.logits.sigmoid()
        return hard_concrete(self.logits, self.noise if self.training else None)

    def value(self) -> Tensor:
        """``(filters,)``: what the filters are multiplied with in evaluation mode."""
        return self.logits.sigmoid() if self.kind == "sigmoid" else hard_concrete(self.logits)

    def openness(self) -> Tensor:
        """``(filters,)``: what a penalty pushes down, the probability of not being zero, or the gate."""
        return self.logits.sigmoid() if self.kind == "sigmoid" else hard_concrete_open(self.logits)


class Gated(nn.Module):
    """Multiplies a tensor, first dimension = filters, by a gate that is a submodule of the tensor's module.

    The gate stands in a list, because torch would store it twice if two parametrizations owned it.
    """

    def __init__(self, gate: Gate):
        super().__init__()
        self.gate = [gate]

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * _per_filter(self.gate[0](), tensor)


def attach_gates(
    model: Network, kind: str = "hard-concrete", *, layers: Iterable[str] | None = None
) -> Network:
    """Multiply each filter by a learned gate (Louizos et al., 2018).

    The gate acts on the scale and the shift of the batch norm behind the layer; where there is none, on the
    layer's own weight and bias. At gate 0 the filter is silent. All gates begin open, and hard-concrete ones
    leave the network as it was in evaluation mode. Attach them before ``fit``, train with :class:`Gates`,
    then :func:`fold_gates` and prune.

    Args:
        model: any network that ``torch.fx`` can trace; left untouched.
        kind: ``"hard-concrete"`` (random in training, exactly zero when shut) or ``"sigmoid"``.
        layers: names; by default all convolutions and linear layers but the last, whose filters are the
            classes.
    Returns:
        A copy with gates. Masks stay.
    Raises:
        ValueError: an unknown kind or layer, gates are there already, or a batch norm that has no scale.
        TraceError: the network cannot be traced.
    """
    if kind not in OPEN:
        raise ValueError(f"kind={kind!r}: {registry.suggestion(kind, tuple(OPEN))}")
    if _gates(model):
        raise ValueError(f"this {type(model).__name__} has gates already: fold_gates removes them")
    masked = masks(model)
    result = finalize(model) if masked else copy.deepcopy(model)
    chosen = sparsifiable(result, registry.find("granularity", "filter"), layers)
    _, found = behind(result, list(chosen))
    for name, layer in chosen.items():
        if name not in found:
            raise ValueError(f"layers: {name!r} is not used in the forward function: leave it out")
        norm = found[name].norm
        host = layer if norm is None else result.get_submodule(norm)
        if host.weight is None:
            raise ValueError(f"layer {name!r}: its batch norm {norm!r} has no scale to gate: leave it out")
        if norm is None and isinstance(layer, granularities.TRANSPOSED):
            raise ValueError(
                f"layer {name!r} is a transposed convolution without a batch norm to gate: leave it out"
            )
        if "gate" in host._modules:
            raise ValueError(f"layer {name!r} shares its batch norm {norm!r} with another: leave one out")
        filters = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        host.gate = Gate(kind, name, filters, layer.weight.detach())
        host.gate.train(host.training)
        host.register_forward_pre_hook(_draw)
        for entry in ("weight", "bias"):
            if getattr(host, entry) is not None:
                # unsafe: no trial run that checks type and shape, which a product does not change
                parametrize.register_parametrization(host, entry, Gated(host.gate), unsafe=True)
    for name, keep in masked.items():
        set_mask(result.get_submodule(name), keep)
    return result


def gate_values(model: nn.Module) -> dict[str, Tensor]:
    """The gates in evaluation mode, ``(filters,)`` in 0..1 by layer name; empty where there are none."""
    return {gate.layer: gate.value().detach() for gate in _gates(model)}


def fold_gates(model: Network) -> Network:
    """A copy without gates that computes the same in evaluation mode: they are multiplied into the weights.

    A filter whose gate is zero is silent now, scale and shift, so its removal changes nothing. Masks stay.
    """
    result = copy.deepcopy(model)
    for host in [module for module in result.modules() if isinstance(module._modules.get("gate"), Gate)]:
        value, masked = host.gate.value().detach(), masks(host).get("")
        folded: dict[str, Any] = {}
        for entry, steps in host.parametrizations.items():
            original = steps.original
            data = original.detach() * _per_filter(value, original)
            folded[entry] = nn.Parameter(data, original.requires_grad)
        # Not torch's remove_parametrizations: it edits the class, which a deep copy shares with its original.
        host.__class__ = parametrize.type_before_parametrizations(host)
        del host._modules["parametrizations"], host._modules["gate"]
        host._parameters = {**folded, **host._parameters}
        for number, hook in list(host._forward_pre_hooks.items()):
            if hook is _draw:
                del host._forward_pre_hooks[number]
        if masked is not None:
            set_mask(host, masked)
    return result


@register(
    "regulariser", name="gates", family="gates", cite="louizos2018learning", section="regularisation/gates"
)
class Gates(Callback):
    r"""Price of open gates: :math:`\lambda \sum_g |g| \, P(z_g \ne 0)`, the expected number of weights that
    are left (Louizos et al., 2018).

    :math:`|g|` is the number of weights of the gated filter. Sigmoid gates, which are never exactly zero, pay
    :math:`\lambda \sum_g |g| \, z_g`. The network needs its gates before ``fit``, see :func:`attach_gates`.
    The optimiser's weight decay is kept from them: it would pull every gate to one half, whatever the gate
    does for the loss.

    Args:
        strength: :math:`\lambda`, what one weight costs.
    """

    def __init__(self, strength: float):
        self.strength = _checked_strength(strength)

    def on_start(self, run: Run) -> None:
        if not _gates(run.model):
            raise ValueError(
                f"this {type(run.model).__name__} has no gates: train what attach_gates(model) returns"
            )

    def penalty(self, run: Run) -> Tensor:
        return self.strength * sum(
            (gate.members * gate.openness().sum() for gate in _gates(run.model)), torch.zeros(())
        )

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        decay = run.optimiser.param_groups[0]["weight_decay"]
        for gate in _gates(run.model):
            if gate.logits.grad is not None:
                gate.logits.grad -= decay * gate.logits  # the optimiser is about to add it


def _gates(model: nn.Module) -> list[Gate]:
    return [module for module in model.modules() if isinstance(module, Gate)]


def _draw(host: Any, inputs: tuple) -> None:
    """Before each forward pass: one draw for all that the gate multiplies."""
    if host.gate.training:
        host.gate.draw()


def _per_filter(values: Tensor, tensor: Tensor) -> Tensor:
    return values.view(-1, *[1] * (tensor.dim() - 1))


# ------------------------------------------------------------------------------ growing regularisation


def growing_strength(step: int, *, delta: float, every: int, ceiling: float) -> float:
    r"""Strength of the growing penalty: :math:`\min(\tau, \delta (\lfloor t/K \rfloor + 1))` (Wang et al.,
    2021, section 3.2).

    Args:
        step: :math:`t`, optimiser steps done.
        delta, every, ceiling: :math:`\delta`, :math:`K` and :math:`\tau`.
    """
    return min(ceiling, delta * (step // every + 1))


@register(
    "regulariser", name="growing", family="weights", cite="wang2021growing", section="regularisation/growing"
)
class GrowingRegularisation(Callback):
    r"""GReg-1: choose what to remove, drive it to zero by an L2 penalty that grows, then remove it (Wang et
    al., 2021, section 3.2).

    Before the first step a criterion chooses the groups. They alone pay
    :math:`\tfrac12 \lambda \lVert w_g \rVert_2^2`, where :math:`\lambda` grows by ``delta`` every ``every``
    steps up to ``ceiling`` and stays there for ``settle`` steps; meanwhile the rest of the network takes
    over. Then the groups are set to zero and kept there, while the rest is fine-tuned. Filters fall silent
    together with their bias and the batch norm behind them, as if they were physically removed.

    Args:
        amount: share of the groups to remove, 0..1.
        granularity, criterion, scope, layers: as in ``sparsify``. The paper ranks filters by L1 in each
            layer. A criterion that needs data measures on training pictures.
        delta, every, ceiling: the authors' settings for ImageNet are the defaults, which take 50,000 steps.
        settle: steps at the ceiling before the removal.
    """

    def __init__(
        self,
        amount: float,
        *,
        granularity: Granularity = "filter",
        criterion: Criterion = "l1",
        scope: str = "local",
        layers: Iterable[str] | None = None,
        delta: float = 1e-4,
        every: int = 5,
        ceiling: float = 1.0,
        settle: int = 0,
    ):
        if not delta > 0 or not ceiling >= delta:
            raise ValueError(f"delta={delta:g}, ceiling={ceiling:g}: it must hold that 0 < delta <= ceiling")
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1 step")
        if settle < 0:
            raise ValueError(f"settle={settle}: must be at least 0 steps")
        self.choice: dict[str, Any] = {
            "amount": amount,
            "granularity": granularity,
            "criterion": criterion,
            "scope": scope,
            "layers": None if layers is None else list(layers),
        }
        self.growth: dict[str, Any] = {"delta": delta, "every": every, "ceiling": ceiling}
        self.removal = every * math.ceil(ceiling / delta) + settle  # steps done when the groups are removed
        self.keep: dict[str, Tensor] = {}  # by layer, the weight's shape, true = stays

    def on_start(self, run: Run) -> None:
        if self.removal > run.steps:
            raise ValueError(
                f"the penalty needs {self.removal} steps to reach its ceiling and settle, this run has "
                f"{run.steps}: train longer, or take a larger delta (now {self.growth['delta']:g}) or a "
                f"smaller every (now {self.growth['every']})"
            )
        if run.step == 0:
            self.keep = new_masks(run.model, data=run.data.train, **self.choice)
        self.silenced = (
            self._silenced(run.model)
            if registry.find("granularity", self.choice["granularity"]).name == "filter"
            else []
        )

    def _silenced(self, model: nn.Module) -> list[tuple[str, str, Tensor]]:
        """What else belongs to a removed filter: (module, its vector, which of its entries stay)."""
        _, found = behind(model, list(self.keep))
        result = []
        for name, keep in self.keep.items():
            where = granularities.positions(registry.find("granularity", "filter"), model.get_submodule(name))
            stays = granularities.matrix(keep, where.to(keep.device)).any(1)
            norm = found[name].norm if name in found else None
            hosts = [(name, "bias"), *([(norm, "weight"), (norm, "bias")] if norm is not None else [])]
            result += [
                (host, entry, stays)
                for host, entry in hosts
                if getattr(model.get_submodule(host), entry) is not None
            ]
        return result

    def penalty(self, run: Run) -> Tensor | float:
        if run.step >= self.removal:
            return 0.0
        strength = growing_strength(run.step, **self.growth)
        layers = {name: run.model.get_submodule(name) for name in self.keep}
        return strength * sum(
            (layer.weight * ~self.keep[name].to(layer.weight.device)).square().sum() / 2
            for name, layer in layers.items()
        )

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if run.step < self.removal:
            return
        weights = [(name, "weight", keep) for name, keep in self.keep.items()]
        for name, entry, stays in weights + self.silenced:
            parameter = _stored(run.model.get_submodule(name), entry, name)
            parameter.mul_(stays.to(parameter.device))  # after every step, so momentum revives nothing

    def state_dict(self) -> dict:
        return {"keep": self.keep}

    def load_state_dict(self, state: dict) -> None:
        self.keep = state["keep"]


# ---------------------------------------------------------------------------------- shared


def _checked_strength(strength: float) -> float:
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength={strength}: must be at least 0 and finite")
    return strength


def _stored(module: Any, entry: str, name: str) -> nn.Parameter:
    """The parameter behind ``module.weight`` or ``.bias``: itself, or what is stored under its mask."""
    if not parametrize.is_parametrized(module, entry):
        return getattr(module, entry)
    steps = module.parametrizations[entry]
    if not all(isinstance(step, Mask) for step in steps):
        raise ValueError(
            f"the {entry} of {name!r} has gates, so it cannot be set to zero by itself: use proximal=False, "
            "or fold_gates first"
        )
    return steps.original
