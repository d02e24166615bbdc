"""Criteria that watch the network at work: what do its feature maps look like on real pictures?

They look at the maps behind batch norm, addition and activation, as the next layer sees them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.criteria import criterion, finite


def l2_per_layer(scores: Tensor) -> Tensor:
    r"""One layer's scores divided by their Euclidean length: :math:`s_j / \sqrt{\sum_k s_k^2}` (Molchanov et
    al., 2017, section 2.3).

    The scale of activations and gradients changes from layer to layer; without it a global ranking would
    first of all rank the layers.
    """
    return F.normalize(scores.double(), dim=0, eps=1e-300).to(scores.dtype)  # squares of tiny scores vanish


@criterion(
    family="activation",
    cite="molchanov2017pruning",
    section="criteria/activation",
    needs=("maps",),
    granularities=("filter",),
    normalise=l2_per_layer,
)
def mean_activation(maps: Tensor) -> Tensor:
    r"""Mean of a feature map: :math:`s_j = \frac{1}{hw} \sum_{x, y} z_{jxy}` (Molchanov et al., 2017, section
    2.2).

    Args:
        maps: ``(b, n, h, w)``, feature maps of ``b`` pictures.
    Returns:
        ``(b, n)``, to be averaged over the pictures; higher = keep.
    """
    return maps.mean((2, 3))


@criterion(
    family="activation",
    cite="molchanov2017pruning",
    section="criteria/activation",
    needs=("covariance",),
    granularities=("filter",),
    normalise=l2_per_layer,
)
def activation_std(groups: Tensor, covariance: Tensor) -> Tensor:
    r"""Standard deviation of a feature map's values: :math:`s_j = \sqrt{\frac{1}{m} \sum_i (z_{ji} -
    \mu_j)^2}` over all ``m`` pictures and places (Molchanov et al., 2017, section 2.2).

    A map that hardly varies tells the next layer hardly anything: a constant can move into its bias. The
    variance ranks the filters of a layer in the same way.

    Args:
        groups: ``(n, d)``, not used.
        covariance: ``(n, n)``, of the maps' values over all pictures and places.
    Returns:
        ``(n,)``, higher = keep.
    """
    return covariance.diagonal().clamp(min=0).sqrt()  # rounding can leave a constant map just below zero


@criterion(
    family="activation",
    cite="li2017pruning",
    section="criteria/activation",
    needs=("maps",),
    granularities=("filter",),
    normalise=l2_per_layer,
)
def activation_l2(maps: Tensor) -> Tensor:
    r"""Euclidean length of a feature map: :math:`s_j = \lVert z_j \rVert_2 = \sqrt{\sum_{x, y} z_{jxy}^2}`
    (Li et al., 2017, section 4.5).

    Args:
        maps: ``(b, n, h, w)``, feature maps of ``b`` pictures.
    Returns:
        ``(b, n)``, to be averaged over the pictures; higher = keep.
    """
    return maps.square().sum((2, 3)).sqrt()


@criterion(
    family="activation",
    cite="hu2016trimming",
    section="criteria/activation",
    needs=("maps",),
    granularities=("filter",),
)
def apoz(maps: Tensor) -> Tensor:
    r"""Average percentage of zeros: :math:`s_j = 1 - \mathrm{APoZ}_j = 1 - \frac{1}{hw} \sum_{x, y}
    [z_{jxy} = 0]` (Hu et al., 2016).

    The paper prunes where the share of zeros is *high*, so what is scored is the share of the others. It
    needs a ReLU: any other activation hardly ever gives an exact zero, and all maps would score 1.

    Args:
        maps: ``(b, n, h, w)``, feature maps of ``b`` pictures behind a ReLU.
    Returns:
        ``(b, n)`` in 0..1, to be averaged over the pictures; higher = keep.
    """
    finite(maps, "maps")
    return (maps != 0).float().mean((2, 3))


@criterion(
    family="activation",
    cite="luo2017entropy",
    section="criteria/activation",
    needs=("pooled",),
    granularities=("filter",),
)
def entropy(groups: Tensor, pooled: Tensor, bins: int = 16) -> Tensor:
    r"""Entropy of a feature map's mean over the pictures: :math:`s_j = -\sum_k p_{jk} \log p_{jk}` in nats
    (Luo & Wu, 2017).

    :math:`p_{jk}` is the share of pictures whose mean falls into bin ``k`` of a histogram from the smallest
    to the largest mean of map ``j``. A map that says the same of every picture has entropy zero. The size of
    the activations does not matter, so a map of tiny noise passes for an informative one.

    Args:
        groups: ``(n, d)``, not used.
        pooled: ``(pictures, n)``, spatial mean of each feature map.
        bins: of equal width; few compared with the pictures, or the histogram shows chance.
    Returns:
        ``(n,)`` in 0..log(bins), higher = keep.
    """
    finite(pooled, "pooled")
    low, high = pooled.aminmax(dim=0)
    places = (pooled - low) / (high - low).where(high > low, 1) * bins
    codes = places.long().clamp(max=bins - 1)  # the largest value belongs to the last bin
    shares = F.one_hot(codes, bins).double().mean(0)
    return torch.special.entr(shares).sum(1).to(pooled.dtype)


@criterion(
    family="activation",
    cite="lin2020hrank",
    section="criteria/activation",
    needs=("maps",),
    granularities=("filter",),
    normalise=l2_per_layer,
)
def hrank(maps: Tensor) -> Tensor:
    r"""HRank: the rank of a feature map as a matrix, :math:`s_j = \mathrm{rank}(Z_j)` with :math:`Z_j \in
    \mathbb{R}^{h \times w}` (Lin et al., 2020).

    A map of low rank holds little that its rows do not share. Deep layers have small maps and so few possible
    ranks; a linear layer has 1 x 1 maps, and its rank only says whether a unit is silent.

    Args:
        maps: ``(b, n, h, w)``, feature maps of ``b`` pictures.
    Returns:
        ``(b, n)`` in 0..min(h, w), to be averaged over the pictures; higher = keep.
    """
    finite(maps, "maps")
    return torch.linalg.matrix_rank(maps).to(maps.dtype)


@criterion(
    family="activation",
    cite="sui2021chip",
    section="criteria/activation",
    needs=("maps",),
    granularities=("filter",),
    normalise=l2_per_layer,
)
def chip(maps: Tensor) -> Tensor:
    r"""Channel independence (CHIP): :math:`s_j = \lVert A \rVert_* - \lVert M_j \odot A \rVert_*`, the loss
    of nuclear norm when map ``j`` is blanked (Sui et al., 2021).

    :math:`A \in \mathbb{R}^{n \times hw}` has one map of the picture in each row, :math:`M_j` zeroes row
    ``j``, and the nuclear norm is the sum of the singular values: a smooth stand-in for the rank. A map that
    the others can express takes little of it away.

    One decomposition per picture is enough. Since :math:`\pi \sigma = \int_0^\infty \log(1 + \sigma^2 / t^2)
    \, dt`, a nuclear norm is an integral over :math:`\log\det(1 + A A^T / t^2)`, and blanking a row changes
    that by :math:`\log(1 - \ell_j(t))`, with the leverage :math:`\ell_j(t) = a_j (A^T A + t^2)^{-1} a_j^T`:

    .. math:: s_j = -\frac{1}{\pi} \int_0^\infty \log\bigl(1 - \ell_j(t)\bigr) \, dt

    Args:
        maps: ``(b, n, h, w)``, feature maps of ``b`` pictures.
    Returns:
        ``(b, n)``, to be averaged over the pictures; higher = keep.
    """
    finite(maps, "maps")
    rows = maps.flatten(2).double()
    size = rows.square().sum((1, 2), keepdim=True).sqrt()
    rows = rows / size.where(size > 0, 1)
    few = rows.shape[1] <= rows.shape[2]  # maps, compared with their places: decompose the smaller matrix
    squares, basis = torch.linalg.eigh(rows @ rows.mT if few else rows.mT @ rows)
    squares = squares.clamp(min=0).unsqueeze(1)  # of the singular values
    energy = basis.square() * squares if few else (rows @ basis).square()  # (b, n, r)
    # In u = log t the integrand is smooth and dies away on both sides: the plain sum is right to 1e-6.
    step = 0.5
    t = torch.arange(-20, 20, step, device=maps.device, dtype=torch.double).exp()
    leverage = energy @ (1 / (squares.mT + t.square()))  # (b, n, len(t))
    lost = torch.log1p(-leverage.clamp(max=1 - 1e-16)) @ t * (-step / math.pi)
    return (lost * size.squeeze(2)).to(maps.dtype)
