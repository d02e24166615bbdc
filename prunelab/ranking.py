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

import functools
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
    methods, blocks = _array(table).shape
    quantile = _studentized_range(alpha, methods, math.inf) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * blocks))


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
    methods, repeats = _array(table).shape
    quantile = _studentized_range(alpha, methods, methods * (repeats - 1))
    return quantile * spread(table) / math.sqrt(repeats)


@functools.cache  # a slow integral, and many tables have the same size
def _studentized_range(alpha: float, methods: int, degrees: float) -> float:
    from scipy import stats

    return float(stats.studentized_range.ppf(1 - alpha, methods, degrees))


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
    random: str | None = None,
) -> str:
    """What a sweep found for some methods, as a table in Markdown: the dense network, random choice if it was
    tried, and the methods that were asked for, with accuracies in per cent.

    Args:
        path: what ``prunelab sweep … --export json`` wrote.
        names: the methods, in the order of the rows; words of ``method`` joined by ``", "``.
        method, setting: entries of the configuration, joined by dots: what a row and what a column stand for;
            without a setting there is one column.
        random: the row that all are held against, as in :func:`beside_random`.
    Returns:
        A table with "before → after" the last training in each cell, or just the end where nothing was
        measured before; ± is the standard deviation over the seeds, and how many these are is said below. In
        bold what is better than random choice :attr:`beyond chance <BesideRandom.beyond_chance>`.
    Raises:
        ValueError: a method that was not run.
    """
    found, _ = _cells(path, method, setting)
    beside = beside_random(path, method, setting, random)
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
    bold = {(name, value) for name in names for value in found[name] if beside[name][value].beyond_chance}
    for name in names:
        cells = [_in_words(found[name].get(value, []), (name, value) in bold) for value in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    seeds = {
        head: max((len(found[name].get(value, [])) for name in names), default=0)
        for head, value in zip(heads, columns)
    }
    usual = max(seeds.values(), default=0)
    fewer = "".join(f"; {head}: {_count(number)}" for head, number in seeds.items() if number < usual)
    note = f"Validation accuracy in per cent, {_count(usual)}{fewer}."
    if bold:
        note += " Bold: above random choice by more than chance explains."
    return "\n".join([*lines, "", f"*{note}*"])


def _count(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def accuracies(
    path: str | os.PathLike,
    method: Sequence[str] = ("prune.criterion",),
    setting: str | None = "prune.flops",
    measure: str = "accuracy",
) -> dict[str, dict[float, list[float]]]:
    """What :func:`measured` shows, as numbers: of each method and setting the accuracies at the end, of all
    seeds, ``{"l1": {0.5: [0.75, …]}}``. No setting is ``math.nan``.

    Args:
        measure: another entry of the results to take in place of the accuracy, such as ``"sparsity"``.
    """
    found, _ = _cells(path, method, setting, measure)
    return {
        name: {value: [after for _, after in pairs] for value, pairs in row.items()}
        for name, row in found.items()
    }


class BesideRandom(NamedTuple):
    """A method at one setting, beside random choice: means over the seeds, in per cent."""

    mean: float  # accuracy at the end
    gain: float  # how far it is above its random choice; NaN without one
    needed: float  # by how much the two may differ by chance; infinite if that cannot be said

    @property
    def beyond_chance(self) -> bool:
        return self.gain > self.needed


def beside_random(
    path: str | os.PathLike,
    method: Sequence[str] = ("prune.criterion",),
    setting: str | None = "prune.flops",
    random: str | None = None,
) -> dict[str, dict[float, BesideRandom]]:
    """What :func:`measured` shows, beside random choice: ``{"block, l1": {0.5: BesideRandom(…), …}, …}``.

    A method's random choice is the row in whose name every criterion (a word from an entry of ``method`` that
    ends in ``criterion``) is ``random``, and all other words are the same: ``"block, random"`` for ``"block,
    l1"``, and ``"random"`` for ``"l1"``. Where methods differ in more than their criterion, ``random`` names
    one row for all of them, but for the dense network, which removed nothing. What a difference needs is the
    :func:`honest_difference` of all methods that are compared with the same random choice at the same
    setting, and of that choice itself: of those with as many results as it has. A method with fewer needs
    infinitely much, and so does any if there is one seed.
    """
    found, chance = _cells(path, method, setting)
    if random is not None:
        chance = {name: "" if name == "dense" else random for name in chance}
    families: dict[tuple[str, float], dict[str, list[float]]] = defaultdict(dict)
    for name, row in found.items():
        for value, pairs in row.items():
            families[chance[name], value][name] = [after for _, after in pairs]
    beside: dict[str, dict[float, BesideRandom]] = defaultdict(dict)
    for (floor_name, value), family in families.items():
        floor = family.get(floor_name, [])
        whole = {name: results for name, results in family.items() if len(results) == len(floor)}
        needed = honest_difference(whole) if len(floor) > 1 and len(whole) > 1 else math.inf
        for name, results in family.items():
            mean = statistics.mean(results)
            gain = mean - statistics.mean(floor) if floor else math.nan
            beside[name][value] = BesideRandom(
                100 * mean, 100 * gain, 100 * needed if name in whole else math.inf
            )
    return dict(beside)


def beyond_chance(
    beside: Mapping[str, Mapping[float, BesideRandom]],
    names: Mapping[str, str],
    setting: float,
    none: str = "none",
) -> str:
    """Which methods are above random choice by more than chance explains, as an English list.

    Args:
        beside: as from :func:`beside_random`.
        names: what to call each method, ``{"l1": "L1", …}``, in the order of the list.
        none: what to say if no method is.
    """
    return listed([words for name, words in names.items() if beside[name][setting].beyond_chance], none)


def listed(words: Sequence[str], none: str = "none") -> str:
    """As one says it: ``"L1, L2 and FPGM"``; ``none`` if there are no words."""
    if len(words) < 2:
        return words[0] if words else none
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _cells(
    path: str | os.PathLike, method: Sequence[str], setting: str | None, measure: str = "accuracy"
) -> tuple[dict[str, dict[float, list[tuple[float | None, float]]]], dict[str, str]]:
    """The accuracies before and after, of each method and setting; and the name of its random choice."""
    found: dict[str, dict[float, list[tuple[float | None, float]]]] = defaultdict(lambda: defaultdict(list))
    chance: dict[str, str] = {}
    for one in from_json(Path(path).read_text())["runs"]:
        row = flat(one["configuration"])
        words = {key: str(row[key]) for key in method if key in row}
        name = ", ".join(words.values()) or "dense"
        chance[name] = ", ".join("random" if key.endswith("criterion") else words[key] for key in words)
        both = one["result"].get("accuracy_before"), one["result"][measure]
        found[name][row.get(setting or "", math.nan)].append(both)
    return found, chance


def _in_words(pairs: Sequence[tuple[float | None, float]], bold: bool = False) -> str:
    if not pairs:
        return ""
    befores, afters = zip(*pairs)
    text = f"{100 * statistics.mean(afters):.1f}"
    if len(afters) > 1:
        text += f"\u00a0±\u00a0{100 * statistics.stdev(afters):.1f}"  # never broken over two lines
    text = f"**{text}**" if bold else text
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
