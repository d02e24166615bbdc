"""Criteria that compare the groups of a layer with each other: what another group does as well is redundant.

Scores that look at each pair once have a weakness in common: of two equal groups *both* score low, and both
go. :func:`kmeans`, :func:`redundancy` and :func:`red` keep one of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.criteria import criterion, finite

# Granularities whose groups are worth comparing: more than one member, and not too many for all pairs.
PAIRS = ("kernel", "filter", "channel", "stripe", "group_wise", "grouped_kernel", "block")
PIECE = 1024  # rows of a matrix of pairs that are held in memory at once


@criterion(family="correlation", cite="he2019filter", section="criteria/correlation", granularities=PAIRS)
def geometric_median(groups: Tensor) -> Tensor:
    r"""Sum of distances to all others: :math:`s_j = \sum_k \lVert w_j - w_k \rVert_2` (FPGM, He et al.,
    2019).

    A group near the geometric median of its layer is near all others: they can stand in for it. A large
    filter far away from the others stays; so does a small one, which every norm would remove.

    Args:
        groups: ``(n, d)``, one row per group.
    Returns:
        ``(n,)``, higher = keep.
    """
    return torch.cat([_distances(rows, groups).sum(1) for rows in groups.split(PIECE)])


@criterion(family="correlation", cite="wang2019cop", section="criteria/correlation", granularities=PAIRS)
def filter_correlation(groups: Tensor) -> Tensor:
    r"""One minus the mean of the three strongest correlations with others: :math:`s_j = 1 - \frac{1}{3}
    \sum_{k \in \text{top 3}} |\rho_{jk}| / \max_{a \ne b} |\rho_{ab}|` (COP, Wang et al., 2019).

    :math:`\rho_{jk}` is Pearson's correlation of the members of two groups. Dividing by the layer's
    strongest correlation is the paper's way to make layers comparable; inside one layer it changes nothing.
    The paper measures a channel by the kernels that read it, which is this function at the granularity
    ``channel``, with one correlation over all places of a kernel instead of a mean over them; and it adds
    two terms for the parameters and the operations that a channel costs, which are left out.

    Args:
        groups: ``(n, d)``, one row per group. A group whose members are all equal correlates with nothing;
            one that is all zeros scores 0.
    Returns:
        ``(n,)`` in 0..1, higher = keep.
    """
    unit = F.normalize(_centred(groups), dim=1)
    strongest = [(rows @ unit.T).abs().topk(min(4, len(unit))).values for rows in unit.split(PIECE)]
    others = torch.cat(strongest)[:, 1:]  # the strongest is the group itself
    if others.numel() and others.max() > 0:
        others = others / others.max()
    scores = 1 - others.sum(1) / max(1, others.shape[1])
    return scores.masked_fill(~groups.any(1), 0)


@criterion(
    family="correlation", cite="ayinde2019redundant", section="criteria/correlation", granularities=PAIRS
)
def cosine(groups: Tensor) -> Tensor:
    r"""One minus the cosine with the most similar other: :math:`s_j = 1 - \max_{k \ne j} w_j \cdot w_k /
    (\lVert w_j \rVert \lVert w_k \rVert)` (similarity of Ayinde et al., 2019).

    The length does not count: filters that point the same way detect the same pattern. Filters that point in
    opposite directions do not, because of the ReLU behind them. The paper groups filters whose similarity is
    above a threshold; a score below one minus that threshold says that a filter would find a partner.

    Args:
        groups: ``(n, d)``, one row per group. All zeros score 0, a group without others scores 2.
    Returns:
        ``(n,)`` in 0..2, higher = keep.
    """
    unit = F.normalize(groups, dim=1)
    nearest = []
    for rows in torch.arange(len(unit), device=unit.device).split(PIECE):
        similarity = unit[rows] @ unit.T
        similarity[torch.arange(len(rows)), rows] = -1
        nearest.append(similarity.amax(1))
    return (1 - torch.cat(nearest)).clamp(min=0).masked_fill(~groups.any(1), 0)


@criterion(
    family="correlation",
    cite="li2018filter",
    section="criteria/correlation",
    needs=("generator",),
    granularities=("filter", "channel", "stripe", "grouped_kernel", "block"),
)
def kmeans(groups: Tensor, generator: torch.Generator) -> Tensor:
    r"""Order in which k-means needs a group as the representative of a cluster: :math:`s_j = 1 - t_j / n`
    (after Li et al., 2018, who keep the filter nearest to each centre).

    How many clusters are wanted is not known to a score, so all numbers are tried, in one nested order: the
    cluster with the largest sum of squares is split in two by k-means until every group is alone. The first
    representative is the group nearest to the centre of the layer; of the two halves of a split, one keeps
    the representative, and in the other the group nearest to the new centre becomes one, the :math:`t_j`-th.
    Removing any amount then leaves one representative of each of the clusters found so far.

    Being a rank, the score is the same in all layers: a global ranking takes equally much from each.

    Args:
        groups: ``(n, d)``, one row per group.
        generator: a CPU generator, which seeds k-means.
    Returns:
        ``(n,)`` in 0..1, higher = keep.
    Raises:
        ValueError: a weight is infinite or NaN.
    """
    from sklearn.cluster import KMeans  # here, because it takes a second to load

    points = finite(groups).double().cpu().numpy()
    seed = int(torch.randint(2**31, (1,), generator=generator))

    def deviations(members: np.ndarray) -> np.ndarray:
        return np.square(points[members] - points[members].mean(0)).sum(1)

    clusters = [np.arange(len(points))]
    squares = [deviations(clusters[0]).sum()]
    order = [int(deviations(clusters[0]).argmin())]  # order[i] represents clusters[i]
    while len(order) < len(points):
        widest = max(range(len(clusters)), key=lambda i: (len(clusters[i]) > 1, squares[i]))
        members, same = clusters[widest], np.ones(len(clusters[widest]), dtype=bool)
        if (points[members] != points[members[0]]).any():
            labels = KMeans(2, random_state=seed).fit_predict(points[members])
            same = labels == labels[members == order[widest]]
        if same.all():  # equal groups: k-means cannot tell them apart
            same = members != members[members != order[widest]][-1]
        for half, place in ((members[same], widest), (members[~same], len(clusters))):
            clusters[place : place + 1], squares[place : place + 1] = [half], [deviations(half).sum()]
        order.append(int(clusters[-1][deviations(clusters[-1]).argmin()]))
    scores = torch.empty(len(order))
    scores[order] = 1 - torch.arange(len(order)) / len(order)
    return scores.to(groups.device)


@criterion(family="correlation", cite="garg2020low", section="criteria/correlation", granularities=PAIRS)
def pca(groups: Tensor, share: float = 0.9) -> Tensor:
    r"""Leverage on the layer's principal components: :math:`s_j = \sum_{c \le k} u_{jc}^2`, with :math:`k`
    components holding the ``share`` of the variance (components: Garg et al., 2020; leverage:
    Mahoney and Drineas, 2009).

    :math:`u_c` is the :math:`c`-th eigenvector of the covariance of the groups over their members. Leverage
    is 1 for a group that no other can replace. It says nothing once :math:`k` reaches the number of groups:
    then all score 1.

    Args:
        groups: ``(n, d)``, one row per group. One whose members are all equal scores 0: it has no variance.
        share: above 0 to 1.
    Returns:
        ``(n,)`` in 0..1, higher = keep.
    Raises:
        ValueError: a weight is infinite or NaN, or ``share`` is out of range.
    """
    vectors, values, _ = torch.linalg.svd(_centred(finite(groups)), full_matrices=False)
    return vectors[:, : _count(values.square(), share)].square().sum(1)


def components(covariance: Tensor, share: float = 0.99) -> int:
    r"""How many principal components hold the ``share`` of a layer's variance: the width that it would need
    (Garg et al., 2020).

    Args:
        covariance: ``(n, n)``, of a layer's feature maps, or of its filters: ``groups.cov()``.
        share: above 0 to 1.
    Returns:
        0 (nothing varies) to n.
    """
    return _count(torch.linalg.eigvalsh(finite(covariance)).flip(0), share)


@criterion(
    family="correlation",
    cite="wang2021convolutional",
    section="criteria/correlation",
    granularities=("filter",),
)
def redundancy(groups: Tensor, threshold: float = 0.05) -> Tensor:
    r"""Which *layer* to prune from: :math:`s_j = \max_{t \le t_j} 1 / r_t`, where :math:`r_t` is the layer's
    :func:`structural_redundancy` after its :math:`t` smallest filters are gone (Wang et al., 2021).

    The paper repeats: find the most redundant layer, remove its filter with the smallest L1 norm, measure
    again. One filter of a layer is only in reach when the smaller ones are gone, which is what the maximum
    says; so removing the lowest scores of all layers together (``scope="global"``) takes the same filters in
    the same order. With ``scope="local"`` it is :func:`~prunelab.criteria.norms.l1`. Where layers are tied by
    additions, one redundant layer takes the channels of all of them with it.

    Args:
        groups: ``(n, d)``, one row per filter.
        threshold: see :func:`structural_redundancy`.
    Returns:
        ``(n,)``, float64, higher = keep.
    Raises:
        ValueError: a weight is infinite or NaN.
    """
    near = _graph(groups, threshold)
    order = groups.abs().sum(1).argsort(stable=True).cpu().numpy()
    scores = np.empty(len(order))
    for t in range(len(order)):
        left = order[t:]
        scores[t] = 1 / _graph_redundancy(near[np.ix_(left, left)])
    scores = np.maximum.accumulate(scores)
    # Among equals the smaller filter goes first. Layers of n and m filters differ by 1/(20nm) or not at all.
    scores += 1e-12 * np.arange(len(order))
    return torch.from_numpy(scores[order.argsort()]).to(groups.device)


def structural_redundancy(groups: Tensor, threshold: float = 0.05) -> float:
    r"""How much a layer repeats itself: :math:`r = n / (0.35\, q + 0.65\, c)` (Wang et al., 2021).

    The layer is a graph. Its vertices are the filters, scaled to length 1; two are joined where their
    distance, divided by :math:`\sqrt d`, is at most ``threshold``. :math:`q` is the number of connected
    parts (the size of the quotient space), :math:`c` the number of filters that have all others as
    neighbours (the 1-covering number; finding the smallest is hard, so the filter with most uncovered
    neighbours is taken again and again).

    The division by :math:`\sqrt d` makes wide layers dense graphs: two random filters are about
    :math:`\sqrt{2 / d}` apart.

    Args:
        groups: ``(n, d)``, one row per filter.
        threshold: for small networks such as ResNet-20; for wide ones a smaller value tells layers apart.
    Returns:
        1 (no two filters are near) to n (all are).
    Raises:
        ValueError: a weight is infinite or NaN.
    """
    return _graph_redundancy(_graph(groups, threshold))


@criterion(family="correlation", cite="yvinec2021red", section="criteria/correlation", granularities=PAIRS)
def red(groups: Tensor) -> Tensor:
    r"""Distance to the nearest different group once weights are hashed: :math:`s_j = \min_{k} \lVert h(w_j)
    - h(w_k) \rVert_2` over :math:`h(w_k) \ne h(w_j)` (after RED, Yvinec et al., 2021).

    :math:`h` is :func:`hash_weights`. Of groups that are equal after hashing, all but the last score 0. Zero
    counts as one of the others. The paper does not remove such filters, it merges them: see
    :func:`prunelab.merging.red`. This score says which would be merged first.

    Args:
        groups: ``(n, d)``, one row per group; all of a layer, because hashing looks at them together.
    Returns:
        ``(n,)``, higher = keep.
    Raises:
        ValueError: a weight is infinite or NaN.
    """
    hashed = hash_weights(groups)
    scores = []
    index = torch.arange(len(hashed), device=hashed.device)
    for rows in index.split(PIECE):
        distances = _distances(hashed[rows], hashed)
        equal = distances == 0
        nearest = distances.masked_fill(equal, torch.inf).amin(1).minimum(hashed[rows].norm(dim=1))
        has_later_twin = (equal & (index > rows[:, None])).any(1)
        scores.append(nearest.masked_fill(has_later_twin, 0))
    return torch.cat(scores)


def hash_weights(weights: Tensor) -> Tensor:
    r"""Replace every weight by the nearest mode of the layer's weight density: :math:`h(w) = M_i` for
    :math:`w` between the minima :math:`m_i` and :math:`m_{i+1}` of the density (RED, Yvinec et al., 2021).

    The density is a sum of Gaussians, one on each weight; here they are as wide as the median gap between
    neighbouring values. It is worked out on a grid of an eighth of that width. Each mode is rounded to the
    weight with the highest density, so that exact zeros stay zero.

    Args:
        weights: any shape; all weights of one layer.
    Returns:
        The same shape; fewer different values, all of which occur in ``weights``.
    Raises:
        ValueError: a weight is infinite or NaN.
    """
    from scipy.ndimage import gaussian_filter1d
    from scipy.signal import find_peaks

    values, where, counts = np.unique(
        finite(weights).double().cpu().numpy().ravel(), return_inverse=True, return_counts=True
    )
    if len(values) < 3:  # no gap is wider than another
        return weights.clone()
    gap = np.median(np.diff(values))
    cell = max(gap / 8, (values[-1] - values[0]) / 2**22)  # a bound on memory, where gaps differ very much
    width = max(gap / cell, 1)
    cells = np.rint((values - values[0]) / cell + 5 * width).astype(int)  # a margin in which the density is 0
    counted = np.bincount(cells, counts, minlength=cells[-1] + int(5 * width) + 1)
    density = gaussian_filter1d(counted, width, mode="constant")
    minima = find_peaks(-density)[0]
    _, part = np.unique(np.searchsorted(minima, cells), return_inverse=True)
    by_density = np.lexsort((density[cells], part))
    ends = np.searchsorted(part[by_density], np.arange(part[-1] + 1), side="right")
    modes = values[by_density[ends - 1]]
    return torch.from_numpy(modes[part][where]).to(weights).reshape(weights.shape)


@criterion(
    family="correlation",
    cite="kumar2022corrnet",
    section="criteria/correlation",
    needs=("covariance",),
    granularities=("filter",),
)
def cross_channel_correlation(groups: Tensor, covariance: Tensor) -> Tensor:
    r"""One minus the mean correlation of a feature map with the others: :math:`s_j = 1 - \frac{1}{n - 1}
    \sum_{k \ne j} |\rho_{jk}|` (Pearson's correlation of feature maps, Kumar et al., 2022).

    Args:
        groups: ``(n, d)``, one row per filter; not looked at.
        covariance: ``(n, n)``, of the feature maps' values over all pictures and positions. A map that never
            changes scores 0: a bias in the next layer does the same.
    Returns:
        ``(n,)`` in 0..1, higher = keep.
    """
    variance = covariance.diagonal()
    alive = variance > 1e-8 * variance.max()  # what is below is the rounding of a constant
    scale = torch.where(alive, variance, torch.inf).rsqrt()
    correlation = (covariance * scale * scale[:, None]).abs().fill_diagonal_(0)
    scores = 1 - correlation.sum(1) / max(1, len(correlation) - 1)
    return scores.clamp(min=0).masked_fill(~alive & variance.isfinite(), 0)


def _distances(rows: Tensor, groups: Tensor) -> Tensor:
    # Not by way of the scalar product: it is faster, but equal rows would not be exactly 0 apart.
    return torch.cdist(rows, groups, compute_mode="donot_use_mm_for_euclid_dist")


def _centred(groups: Tensor) -> Tensor:
    """Each row minus its mean; exactly zero where all its members are equal."""
    constant = (groups == groups[:, :1]).all(1, keepdim=True)
    return (groups - groups.mean(1, keepdim=True)).masked_fill(constant, 0)


def _count(variances: Tensor, share: float) -> int:
    """How many of the variances, largest first, sum up to the share of their total."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: must be above 0 and at most 1")
    sums = variances.clamp(min=0).cumsum(0)
    if not len(sums) or sums[-1] == 0:
        return 0
    return int((sums < sums[-1] * share * (1 - 1e-6)).sum()) + 1  # what rounding leaves out does not count


def _graph(groups: Tensor, threshold: float) -> np.ndarray:
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold}: must be 0 or more")
    unit = F.normalize(finite(groups), dim=1)
    return (_distances(unit, unit) <= threshold * groups.shape[1] ** 0.5).cpu().numpy()


def _graph_redundancy(near: np.ndarray) -> float:
    from scipy.sparse.csgraph import connected_components

    parts = connected_components(near, directed=False, return_labels=False)
    covering, uncovered = 0, np.ones(len(near), dtype=bool)
    while uncovered.any():
        covers = (near & uncovered).sum(1)
        covering += 1
        uncovered &= ~near[covers.argmax()]
        if covers.max() == 1:  # none of those left covers another
            covering += int(uncovered.sum())
            break
    return len(near) / (0.35 * parts + 0.65 * covering)
