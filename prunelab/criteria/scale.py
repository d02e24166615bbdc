"""Criteria that read the number a channel is multiplied with: training has already said what it is worth."""

from __future__ import annotations

from torch import Tensor

from prunelab.criteria import criterion


@criterion(
    family="scale",
    cite="liu2017learning",
    section="criteria/scale",
    needs=("norm_scale",),
    granularities=("filter",),
)
def bn_scale(groups: Tensor, norm_scale: Tensor) -> Tensor:
    r"""Size of the batch norm's scale: :math:`s_j = |\gamma_j|` (network slimming, Liu et al., 2017, section
    3).

    Behind batch norm a feature map has standard deviation :math:`|\gamma_j|`, whatever the size of the
    filter's weights. The paper trains with an L1 penalty on :math:`\gamma` first; without it, few scales are
    near zero.

    Args:
        groups: ``(n, d)``, one row per filter; not looked at.
        norm_scale: ``(n,)``, :math:`\gamma` of the batch norm behind the layer.
    Returns:
        ``(n,)``, higher = keep.
    """
    return norm_scale.abs()


@criterion(
    family="scale",
    cite="louizos2018learning",
    section="criteria/scale",
    needs=("gates",),
    granularities=("filter",),
)
def gate(groups: Tensor, gates: Tensor) -> Tensor:
    r"""Size of the learned gate that multiplies a filter's output: :math:`s_j = |g_j|` (Louizos et al.,
    2018).

    A gate that training has closed is zero, and its filter has no effect on the output.

    Args:
        groups: ``(n, d)``, one row per filter; not looked at.
        gates: ``(n,)``, the value of each filter's gate.
    Returns:
        ``(n,)``, higher = keep.
    """
    return gates.abs()
