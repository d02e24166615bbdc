"""Which differences are real: means, spreads and ranks of methods that were run several times, as by a
sweep.

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

import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prunelab.results import flat, from_json

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


# ------------------------------------------------------------------------------------- runs of a sweep


def tables(runs: Iterable[Mapping[str, Any]], measure: str = "accuracy") -> dict[str, dict[str, list[float]]]:
    """Sort the runs of a sweep into tables, one for each setting: ``{"prune.flops=0.5": {"l1": [...]}}``.

    A setting is a number, such as an amount, that was varied while all else stayed the same. Methods are
    called by the words that tell them apart; what no word tells apart, also by its numbers. Repetitions, in
    the order of their seeds, are the blocks.

    Args:
        runs: as ``prunelab.results.from_json(...)["runs"]``.
        measure: what to compare, an entry of the results. Runs without it are left out.
    """
    rows = [(flat(one["configuration"]), flat(one["result"])) for one in runs]
    seeds = [row.pop("seed", 0) for row, _ in rows]
    varied = [name for name in dict.fromkeys(n for row, _ in rows for n in row)
              if len({json.dumps(row.get(name)) for row, _ in rows}) > 1]  # fmt: skip

    def without(row: dict[str, Any], name: str) -> str:
        return json.dumps({key: value for key, value in row.items() if key != name}, sort_keys=True)

    settings = []
    for name in varied:
        values = defaultdict(set)
        for row, _ in rows:
            if isinstance(row.get(name), int | float) and not isinstance(row[name], bool):
                values[without(row, name)].add(row[name])
        if any(len(found) > 1 for found in values.values()):
            settings.append(name)
    method = [name for name in varied if name not in settings]
    labels: dict[str, str] = {}  # of each method, told apart by everything that varies but settings
    for row, _ in rows:
        known = {name: row[name] for name in method if name in row}
        words = [value for value in known.values() if isinstance(value, str)]
        label = ", ".join(words) or "dense"
        identity = json.dumps(known)
        if label in labels.values() and identity not in labels:
            label = ", ".join(v if isinstance(v, str) else f"{name}={v}" for name, v in known.items())
        labels.setdefault(identity, label)
    result: dict[str, dict[str, list[float]]] = {}
    for _, (row, outcome) in sorted(zip(seeds, rows), key=lambda pair: pair[0]):
        if measure in outcome:
            setting = ", ".join(f"{name}={row[name]:g}" for name in settings if name in row)
            label = labels[json.dumps({name: row[name] for name in method if name in row})]
            result.setdefault(setting, {}).setdefault(label, []).append(outcome[measure])
    return result


SETTINGS: dict[str, Callable[[float], str]] = {
    "prune.flops": lambda share: f"{100 * share:.0f} % of the FLOPs left",
    "sparsify.amount": lambda share: f"sparsity {100 * share:.0f} %",
    "recipe.amount": lambda share: f"amount {100 * share:.0f} %",
    "regularise.strength": "strength {:g}".format,
}


def measured(
    path: str | os.PathLike,
    names: Iterable[str],
    method: Sequence[str] = ("prune.criterion",),
    setting: str | None = "prune.flops",
) -> str:
    """What a sweep found for some methods, as a table in Markdown: the dense network, random choice if it was
    tried, and the methods that were asked for, with accuracies in per cent.

    Args:
        path: what ``prunelab sweep … --export json`` wrote.
        names: the methods, in the order of the rows; words of ``method`` joined by ``", "``.
        method, setting: entries of the configuration, joined by dots: what a row and what a column stand for;
            without a setting there is one column.
    Returns:
        A table with "before → after" the last training in each cell, or just the end where nothing was
        measured before; ± is the standard deviation over the seeds, and how many these are is said below. In
        bold what is above random choice by more than the :func:`honest_difference` of all methods of the
        column.
    Raises:
        ValueError: a method that was not run.
    """
    found = _cells(path, method, setting)
    dense = found.pop("dense", {})
    names = dict.fromkeys(["random"] * ("random" in found) + list(names))
    if missing := names.keys() - found.keys():
        raise ValueError(f"not in {path}: {', '.join(sorted(missing))}")
    values = {value for name in names for value in found[name]}
    columns = sorted(values - {math.nan}, reverse=setting == "prune.flops")  # the lightest cut first
    heads = [SETTINGS[setting](value) for value in columns if setting]
    if math.nan in values:  # 2:4 says itself how much goes
        columns, heads = [*columns, math.nan], [*heads, "as it says" if setting else "accuracy"]
    lines = ["| | " + " | ".join(heads) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    if dense:
        cells = [_in_words(next(iter(dense.values())))] * len(columns)
        lines.append("| dense, trained alike | " + " | ".join(cells) + " |")
    floors = {value: _floor(found, value) for value in columns}
    for name in names:
        cells = [_in_words(found[name].get(value, []), floors[value]) for value in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    seeds = {
        head: max((len(found[name].get(value, [])) for name in names), default=0)
        for head, value in zip(heads, columns)
    }
    usual = max(seeds.values(), default=0)
    fewer = "".join(f"; {head}: {_count(number)}" for head, number in seeds.items() if number < usual)
    return "\n".join([*lines, "", f"*Validation accuracy in per cent, {_count(usual)}{fewer}.*"])


def _count(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def accuracies(
    path: str | os.PathLike,
    method: Sequence[str] = ("prune.criterion",),
    setting: str | None = "prune.flops",
) -> dict[str, dict[float, list[float]]]:
    """What :func:`measured` shows, as numbers: of each method and setting the accuracies at the end, of all
    seeds, ``{"l1": {0.5: [0.75, …]}}``. No setting is ``math.nan``.
    """
    return {
        name: {value: [after for _, after in pairs] for value, pairs in row.items()}
        for name, row in _cells(path, method, setting).items()
    }


def _cells(
    path: str | os.PathLike, method: Sequence[str], setting: str | None
) -> dict[str, dict[float, list[tuple[float | None, float]]]]:
    found: dict[str, dict[float, list[tuple[float | None, float]]]] = defaultdict(lambda: defaultdict(list))
    for one in from_json(Path(path).read_text())["runs"]:
        row = flat(one["configuration"])
        name = ", ".join(str(row[key]) for key in method if key in row) or "dense"
        both = one["result"].get("accuracy_before"), one["result"]["accuracy"]
        found[name][row.get(setting or "", math.nan)].append(both)
    return found


def _floor(found: Mapping[str, Mapping[float, list]], value: float) -> float:
    """The accuracy above which a method is better than random choice, and not by chance."""
    table = {name: [after for _, after in row[value]] for name, row in found.items() if value in row}
    repeats = len(table.get("random", []))
    whole = {name: accuracies for name, accuracies in table.items() if len(accuracies) == repeats}
    if repeats < 2 or len(whole) < 2:
        return math.inf
    return statistics.mean(whole["random"]) + honest_difference(whole)


def _in_words(pairs: Sequence[tuple[float | None, float]], floor: float = math.inf) -> str:
    if not pairs:
        return ""
    befores, afters = zip(*pairs)
    text = f"{100 * statistics.mean(afters):.1f}"
    if len(afters) > 1:
        text += f" ± {100 * statistics.stdev(afters):.1f}"
    text = f"**{text}**" if statistics.mean(afters) > floor else text
    return text if None in befores else f"{100 * statistics.mean(befores):.1f} → {text}"


class Difference(NamedTuple):
    """One method in two sweeps: the means over the seeds, and how far they may lie apart by chance."""

    setting: str
    method: str
    stored: float
    fresh: float
    allowed: float

    @property
    def agrees(self) -> bool:
        return abs(self.stored - self.fresh) <= self.allowed


ERRORS = 4.0  # standard errors of a difference: beyond them, one in ten thousand lies by chance


def compare(
    stored: Iterable[Mapping[str, Any]], fresh: Iterable[Mapping[str, Any]], measure: str = "accuracy"
) -> list[Difference]:
    r"""Whether a sweep that was run again comes to what it came to before.

    Another machine adds up in another order, which training amplifies as it does another seed. So two means
    over :math:`n` and :math:`m` seeds may differ by :data:`ERRORS` times :math:`s \sqrt{1/n + 1/m}`, where
    :math:`s` is the stored results' standard deviation over the seeds: the method's own or, as that of three
    seeds is small by luck now and then, the median of all methods of its setting, whichever is larger.

    Raises:
        ValueError: a run that one of them has and the other has not.
    """
    stored, fresh = list(stored), list(fresh)
    missing = {json.dumps(one["configuration"], sort_keys=True) for one in stored} ^ {
        json.dumps(one["configuration"], sort_keys=True) for one in fresh
    }
    if missing:
        raise ValueError(f"{len(missing)} runs are only in one of both, such as {min(missing)}")
    before, now = tables(stored, measure), tables(fresh, measure)
    result = []
    for setting, table in before.items():
        spreads = {name: statistics.stdev(values) for name, values in table.items() if len(values) > 1}
        usual = statistics.median(spreads.values()) if spreads else 0.0
        for name, values in table.items():
            again = now[setting][name]
            error = max(usual, spreads.get(name, 0.0)) * math.sqrt(1 / len(values) + 1 / len(again))
            means = statistics.mean(values), statistics.mean(again)
            result.append(Difference(setting, name, *means, ERRORS * error))
    return result


def _array(table: Table) -> np.ndarray:
    lengths = {name: len(values) for name, values in table.items()}
    if len(lengths) < 2 or not all(lengths.values()):
        raise ValueError(f"table has {len(lengths)} methods: give at least two, each with its results")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"every method needs a result in each block; there are {lengths}")
    return np.array(list(table.values()), dtype=float)
