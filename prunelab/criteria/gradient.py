"""Criteria that ask the loss: how would it change if a group changed?"""

from __future__ import annotations

from torch import Tensor

from prunelab.criteria import criterion
from prunelab.criteria.activation import l2_per_layer


@criterion(family="gradient", cite="evci2020rigging", section="criteria/gradient", needs=("gradients",))
def gradient(groups: Tensor, gradients: Tensor) -> Tensor:
    r"""Size of the loss gradient: :math:`s_j = \sum_k \left| \partial L / \partial w_{jk} \right|`.

    How fast the loss would change, not by how much: a large gradient on a weight that is already zero still
    scores high. RigL (Evci et al., 2020) chooses by it which weights *return*.

    Args:
        groups: ``(n, d)``, one row per group.
        gradients: ``(n, d)``, gradient of the mean loss over the data.
    Returns:
        ``(n,)``, higher = keep.
    """
    return gradients.abs().sum(1)


@criterion(
    family="gradient",
    cite="molchanov2017pruning",
    section="criteria/taylor",
    needs=("maps", "map_gradients"),
    granularities=("filter",),
    normalise=l2_per_layer,
)
def taylor2017(maps: Tensor, map_gradients: Tensor) -> Tensor:
    r"""First-order Taylor expansion in a feature map: :math:`s_j = \frac{1}{N} \sum_i \left|
    \frac{1}{hw} \sum_{x, y} \frac{\partial L_i}{\partial z_{ijxy}} z_{ijxy} \right|` (Molchanov et al., 2017,
    equation 8; picture :math:`i` of :math:`N`).

    The expected change of the loss if the map were zero. The mean over the map comes first, then the absolute
    value, then the mean over the pictures: a picture whose loss would rise and one whose loss would fall both
    count.

    Args:
        maps: ``(b, n, h, w)``, feature maps of ``b`` pictures.
        map_gradients: ``(b, n, h, w)``, of each picture's own loss.
    Returns:
        ``(b, n)``, to be averaged over the pictures; higher = keep.
    """
    return (map_gradients * maps).mean((2, 3)).abs()


@criterion(
    family="gradient",
    cite="molchanov2019importance",
    section="criteria/taylor",
    needs=("batch_gradients",),
)
def taylor_weight(groups: Tensor, batch_gradients: Tensor) -> Tensor:
    r"""First-order Taylor expansion in every weight: :math:`s_j = \frac{1}{B} \sum_b \sum_k (g_{bjk}
    w_{jk})^2` (Molchanov et al., 2019: the sum of the members' importances).

    The squared change of the loss if each weight alone were zero. Squared for each batch and then averaged,
    since the gradient's mean vanishes where training has converged.

    Args:
        groups: ``(n, d)``, one row per group.
        batch_gradients: ``(b, n, d)``, gradient of the mean loss of each batch.
    Returns:
        ``(n,)``, higher = keep.
    """
    return (batch_gradients * groups).square().mean(0).sum(1)


@criterion(
    family="gradient",
    cite="molchanov2019importance",
    section="criteria/taylor",
    needs=("batch_gradients",),
)
def taylor_gate(groups: Tensor, batch_gradients: Tensor) -> Tensor:
    r"""First-order Taylor expansion in a gate on the group: :math:`s_j = \frac{1}{B} \sum_b \left( \sum_k
    g_{bjk} w_{jk} \right)^2` (Molchanov et al., 2019: the importance of the group as one).

    A gate is a factor in front of the whole group, equal to 1. The sum is the loss's derivative with respect
    to it, so that weights which pull in opposite directions cancel. Here the gate stands on the weights; the
    paper's best one stands behind batch norm and gates its shift, too.

    Args:
        groups: ``(n, d)``, one row per group.
        batch_gradients: ``(b, n, d)``, gradient of the mean loss of each batch.
    Returns:
        ``(n,)``, higher = keep.
    """
    return (batch_gradients * groups).sum(2).square().mean(0)


@criterion(family="gradient", cite="lee2019snip", section="criteria/gradient", needs=("gradients",))
def snip(groups: Tensor, gradients: Tensor) -> Tensor:
    r"""Connection sensitivity (SNIP): :math:`s_j = \sum_k \left| g_{jk} w_{jk} \right|` (Lee et al., 2019,
    section 4.1).

    Meant for a network before its training. The paper divides by the sum over the whole network, which
    changes no ranking and is left out.

    Args:
        groups: ``(n, d)``, one row per group.
        gradients: ``(n, d)``, gradient of the mean loss over the data.
    Returns:
        ``(n,)``, higher = keep.
    """
    return (gradients * groups).abs().sum(1)


@criterion(family="gradient", cite="wang2020grasp", section="criteria/gradient", needs=("hessian_gradient",))
def grasp(groups: Tensor, hessian_gradient: Tensor) -> Tensor:
    r"""Gradient signal preservation (GraSP): :math:`s_j = \sum_k w_{jk} (H g)_{jk}` (Wang et al., 2020,
    with the sign turned so that higher = keep).

    Removing weights changes the squared length of the gradient by about :math:`-2 \sum w (H g)`. The paper
    computes :math:`-w \odot H g` and removes the weights with the *highest* values: without them the gradient
    flows most. Meant for a network before its training: in a trained one the important groups stand at both
    ends of the scale, and those with negative scores go first.

    Args:
        groups: ``(n, d)``, one row per group.
        hessian_gradient: ``(n, d)``, Hessian times gradient of the mean loss.
    Returns:
        ``(n,)``, higher = keep.
    """
    return (groups * hessian_gradient).sum(1)


@criterion(family="gradient", cite="tanaka2020pruning", section="criteria/gradient", needs=("synflow",))
def synflow(groups: Tensor, synflow: Tensor) -> Tensor:
    r"""Synaptic flow (SynFlow): :math:`s_j = \sum_k \left| w_{jk} \, \partial R / \partial w_{jk} \right|`
    with :math:`R = \mathbb{1}^T \prod_l |W_l| \, \mathbb{1}` (Tanaka et al., 2020).

    ``R`` is the sum of the outputs when a picture of ones runs through the network of absolute weights: no
    data, no labels. Meant for a network before its training and for many small rounds; in one round it can
    empty layers, as others do.

    Args:
        groups: ``(n, d)``, one row per group.
        synflow: ``(n, d)``, the derivative of ``R``.
    Returns:
        ``(n,)``, higher = keep.
    """
    return (groups * synflow).abs().sum(1)


@criterion(family="gradient", cite="sanh2020movement", section="criteria/gradient", needs=("movement",))
def movement(groups: Tensor, movement: Tensor) -> Tensor:
    r"""Movement during fine-tuning: :math:`s_j = -\sum_t \eta_t \sum_k g_{jk}^{(t)} w_{jk}^{(t)}` (Sanh et
    al., 2020, section 4).

    Positive for weights that move away from zero, negative for those that shrink: it asks where a weight is
    going, not how large it is. Where a trained network only trembles, the important groups have the largest
    sums of either sign, and half of them go first: it needs a fine-tuning that really moves the weights.

    Args:
        groups: ``(n, d)``, one row per group, not used.
        movement: ``(n, d)``, minus learning rate times gradient times weight, summed over the steps.
    Returns:
        ``(n,)``, higher = keep.
    """
    return movement.sum(1)
