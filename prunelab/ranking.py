"""Which differences are real: means, spreads and ranks of methods that were run several times.

A **table** holds the results of each method, ``{"l1": [0.81, 0.80, …], "random": […]}``, in which the same
place of every list was measured under the same conditions (the same amount and seed): a *block*. Two ways of
asking:

- *Whose mean is higher?* :func:`honest_difference` says how far two means must lie apart before chance, as
  the spread over repetitions shows it, is no explanation. For repetitions of one setting.
- *Who is better again and again?* :func:`average_ranks` and :func:`critical_difference` only look at the
  order of the methods in each block, so that blocks may be as different as a light and a severe cut.

Both correct for the number of pairs that are compared. Their verdict is about the network and the data that
were measured, however many seeds there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

Table = Mapping[str, Sequence[float]]


def average_ranks(table: Table) -> dict[str, float]:
    """Mean over the blocks of each method's rank, 1 = the highest result; equal results share their ranks."""
    from scipy import stats  # takes a second, and few need it

    ranks = stats.rankdata(-_array(table), axis=0).mean(axis=1)
    return dict(zip(table, ranks.tolist()))


def friedman(table: Table) -> tuple[float, float]:
    r"""Friedman's test whether the methods differ at all (Demšar, 2006, section 3.2.2):

    .. math:: \chi^2_F = \frac{12 N}{k (k + 1)} \Big[ \sum_j R_j^2 - \frac{k (k + 1)^2}{4} \Big]

    for average ranks :math:`R_j` of :math:`k` methods in :math:`N` blocks.

    Returns:
        :math:`\chi^2_F`, and the probability of one as large if there were no difference: from the
        chi-squared distribution with :math:`k - 1` degrees of freedom, which needs about ten blocks.
    """
    from scipy import stats

    methods, blocks = _array(table).shape
    squares = sum(rank**2 for rank in average_ranks(table).values())
    chi = 12 * blocks / (methods * (methods + 1)) * (squares - methods * (methods + 1) ** 2 / 4)
    return chi, float(stats.chi2.sf(chi, methods - 1))


def critical_difference(table: Table, alpha: float = 0.05) -> float:
    r"""Nemenyi's test: average ranks that differ by at least this much differ significantly (Demšar, 2006,
    section 3.2.2):

    .. math:: CD = q_\alpha \sqrt{\frac{k (k + 1)}{6 N}}

    for :math:`k` methods in :math:`N` blocks; :math:`q_\alpha` is the quantile of the studentised range over
    :math:`\sqrt 2`.

    Args:
        alpha: the probability that, if no method differed, any pair would be called different.
    """
    from scipy import stats

    methods, blocks = _array(table).shape
    quantile = stats.studentized_range.ppf(1 - alpha, methods, math.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * blocks)))


def spread(table: Table) -> float:
    r"""How much repetitions of one method differ: the standard deviation within methods, pooled over all,

    .. math:: s = \sqrt{\tfrac{1}{k (n - 1)} \sum_{j, i} (x_{ji} - \bar x_j)^2}.
    """
    values = _array(table)
    if values.shape[1] < 2:
        raise ValueError("table has one result for each method: a spread needs at least two")
    return float(np.sqrt(values.var(axis=1, ddof=1).mean()))


def honest_difference(table: Table, alpha: float = 0.05) -> float:
    r"""Tukey's honestly significant difference: means that differ by more are different (Tukey, 1953):

    .. math:: HSD = q_\alpha(k, k (n - 1)) \; s / \sqrt n

    for :math:`k` methods with :math:`n` results each, :math:`s` their :func:`spread`, and :math:`q_\alpha`
    the quantile of the studentised range. It takes the spread to be the same for all methods.

    Args:
        alpha: the probability that, if no method differed, any pair would be called different.
    """
    from scipy import stats

    methods, repeats = _array(table).shape
    quantile = stats.studentized_range.ppf(1 - alpha, methods, methods * (repeats - 1))
    return float(quantile * spread(table) / math.sqrt(repeats))


def _array(table: Table) -> np.ndarray:
    lengths = {name: len(values) for name, values in table.items()}
    if len(lengths) < 2 or not all(lengths.values()):
        raise ValueError(f"table has {len(lengths)} methods: give at least two, each with its results")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"every method needs a result in each block; there are {lengths}")
    return np.array(list(table.values()), dtype=float)
