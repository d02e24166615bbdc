"""Statistics of rankings, against SciPy's and against the example of Demšar (2006)."""

import math

import numpy as np
import pytest
from scipy import stats

from prunelab import ranking
from prunelab.results import Row, to_json

# Table 6 of the paper: C4.5 as it is, and with one or both of two of its parameters tuned. Only the last two
# of `voting`, of which the second is ranked before the third, are printed as equal: there a digit is added.
PAPER = {
    "C4.5": [.763, .599, .954, .628, .882, .936, .661, .583, .775, 1, .940, .619, .972, .957],
    "m": [.768, .591, .971, .661, .888, .931, .668, .583, .838, 1, .962, .666, .981, .978],
    "cf": [.771, .590, .968, .654, .886, .916, .609, .563, .866, 1, .965, .614, .9751, .946],
    "m+cf": [.798, .569, .967, .657, .898, .931, .685, .625, .875, 1, .962, .669, .975, .970],
}  # fmt: skip


@pytest.fixture
def table():
    """Without ties, which SciPy's Friedman test corrects for."""
    values = np.random.default_rng(0).normal(size=(5, 8)) + np.arange(5)[:, None] / 3
    return {f"method {number}": row.tolist() for number, row in enumerate(values)}


def test_the_example_of_the_paper():
    ranks = ranking.average_ranks(PAPER)
    assert [round(rank, 3) for rank in ranks.values()] == [3.143, 2.0, 2.893, 1.964]
    chi, probability = ranking.friedman(PAPER)
    assert round(chi, 2) == 9.28 and probability == pytest.approx(stats.chi2.sf(9.28, 3), rel=0.01)
    assert round(ranking.critical_difference(PAPER), 2) == 1.25
    assert round(ranking.critical_difference(PAPER, alpha=0.1), 2) == 1.12


@pytest.mark.parametrize(("methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (10, 3.164)])
def test_the_quantiles_of_the_paper(methods, quantile):
    """Table 5 (a)."""
    table = {str(number): [0.0] * 6 for number in range(methods)}
    expected = quantile * math.sqrt(methods * (methods + 1) / 36)
    assert ranking.critical_difference(table) == pytest.approx(expected, rel=5e-4)


def test_friedman_is_scipys(table):
    chi, probability = ranking.friedman(table)
    expected = stats.friedmanchisquare(*table.values())
    assert chi == pytest.approx(expected.statistic) and probability == pytest.approx(expected.pvalue)


def test_ranks_by_hand():
    table = {"a": [0.9, 0.5, 0.7], "b": [0.8, 0.5, 0.9], "c": [0.1, 0.2, 0.8]}
    # Blocks: a b c; a and b share 1 and 2, then c; b c a.
    assert ranking.average_ranks(table) == {
        "a": pytest.approx((1 + 1.5 + 3) / 3),
        "b": pytest.approx((2 + 1.5 + 1) / 3),
        "c": pytest.approx((3 + 3 + 2) / 3),
    }


def test_two_means_differ_exactly_when_scipys_tukey_test_says_so(table):
    margin = ranking.honest_difference(table)
    expected = stats.tukey_hsd(*table.values())
    means = [np.mean(values) for values in table.values()]
    differ = [[abs(one - other) > margin for other in means] for one in means]
    assert differ == (expected.pvalue < 0.05).tolist() and 0 < np.sum(differ) < 20
    interval = expected.confidence_interval(0.95)
    assert margin == pytest.approx((interval.high[0, 1] - interval.low[0, 1]) / 2)


def test_the_spread_by_hand():
    # Squares around the means 2 and 5: 1 + 0 + 1 and 4 + 1 + 9, each over two degrees of freedom.
    assert ranking.spread({"a": [1, 2, 3], "b": [3, 4, 8]}) == pytest.approx(math.sqrt((2 + 14) / 4))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [1.0]}, "table has 1 methods"),
        ({"a": [], "b": []}, "each with its results"),
        ({"a": [1.0, 2.0], "b": [1.0]}, "every method needs a result in each block"),
    ],
)
def test_tables_that_cannot_be(table, message):
    for function in (ranking.average_ranks, ranking.critical_difference, ranking.honest_difference):
        with pytest.raises(ValueError, match=message):
            function(table)
    with pytest.raises(ValueError, match="a spread needs at least two"):
        ranking.spread({"a": [1.0], "b": [2.0]})


# ------------------------------------------------------------------------------------- runs of a sweep


def ran(accuracy, seed=0, **configuration):
    return {
        "configuration": {"network": "x", "seed": seed, **configuration},
        "result": {"accuracy": accuracy},
    }


def test_runs_are_sorted_into_a_table_for_each_setting():
    runs = [
        ran(0.9),
        *(
            ran(flops + seed / 100 + (name == "l2") / 1000, seed, prune={"criterion": name, "flops": flops})
            for name in ("l1", "l2")
            for flops in (0.3, 0.5)
            for seed in (1, 0)
        ),
        # What no word tells apart is told apart by its numbers; a number that came with a word is no setting.
        ran(0.1, prune={"criterion": "l1", "flops": 0.5}, calibration=64),
        ran(0.2, regularise={"name": "gates", "strength": 0.1}, prune={"criterion": "l1", "flops": 0.5}),
    ]
    assert ranking.tables(runs) == {
        "": {"dense": [0.9]},
        "prune.flops=0.3": {"l1": pytest.approx([0.3, 0.31]), "l2": pytest.approx([0.301, 0.311])},
        "prune.flops=0.5": {
            "l1": pytest.approx([0.5, 0.51]),
            "l2": pytest.approx([0.501, 0.511]),
            "l1, calibration=64": [0.1],
            "l1, gates": [0.2],
        },
    }
    assert ranking.tables(runs, "size") == {}


def changed(runs, by):
    return [{**one, "result": {"accuracy": one["result"]["accuracy"] + by}} for one in runs]


def test_sweeps_agree_within_the_spread_over_the_seeds():
    stored = [ran(value, seed, prune={"criterion": "l1"}) for seed, value in enumerate((0.50, 0.52, 0.54))]
    stored += [ran(value, seed, prune={"criterion": "l2"}) for seed, value in enumerate((0.60, 0.60, 0.66))]
    first, second = ranking.compare(stored, changed(stored, 0.08))
    # Standard deviations 0.02 and sqrt(0.0012), with their mean as median; the second's own is larger.
    assert first.allowed == pytest.approx(4 * (0.02 + math.sqrt(0.0012)) / 2 * math.sqrt(2 / 3))
    assert second.allowed == pytest.approx(4 * math.sqrt(0.0012 * 2 / 3))
    assert (first.method, first.stored, first.fresh) == ("l1", pytest.approx(0.52), pytest.approx(0.60))
    assert first.agrees and second.agrees
    assert not any(one.agrees for one in ranking.compare(stored, changed(stored, -0.2)))
    with pytest.raises(ValueError, match="1 runs are only in one of both, such as .*l1"):
        ranking.compare(stored, stored[1:])


# ------------------------------------------------------------------------------------ in the book


def stored(tmp_path, *runs):
    """An exported sweep of (before, after, seed, stages)."""
    rows = []
    for before, after, seed, stages in runs:
        result = {"accuracy": after} | ({} if before is None else {"accuracy_before": before})
        rows.append(Row("", "1", {"seed": seed, **stages}, "done", 0.0, 1.0, result))
    path = tmp_path / "sweep.json"
    path.write_text(to_json(rows))
    return path


def test_table_for_the_book(tmp_path):
    cut = {"flops": 0.5, "criterion": "l1"}
    path = stored(
        tmp_path,
        (0.9, 0.88, 0, {}),
        (0.1, 0.80, 0, {"prune": cut}),
        (0.3, 0.82, 1, {"prune": cut}),
        (0.2, 0.60, 0, {"prune": cut | {"criterion": "random"}}),
        (0.5, 0.85, 0, {"prune": cut | {"flops": 0.7}}),
        (0.5, 0.85, 0, {"prune": cut | {"criterion": "l2", "flops": 0.3}}),
    )
    assert ranking.measured(path, ["l1"]).splitlines() == [
        "| | 70 % of the FLOPs left | 50 % of the FLOPs left |",
        "|---|---|---|",
        "| dense, trained alike | 90.0 → 88.0 | 90.0 → 88.0 |",
        "| random |  | 20.0 → 60.0 |",
        "| l1 | 50.0 → 85.0 | 20.0 → 81.0\u00a0±\u00a01.4 |",
        "",
        "*Validation accuracy in per cent, 2 seeds; 70 % of the FLOPs left: one seed.*",
    ]
    found = ranking.accuracies(path)
    assert found["l1"] == {0.5: [0.80, 0.82], 0.7: [0.85]} and found["random"] == {0.5: [0.60]}
    assert ranking.accuracies(path, measure="accuracy_before")["l1"][0.5] == [0.1, 0.3]
    with pytest.raises(ValueError, match="sweep.json: linf"):
        ranking.measured(path, ["linf", "l1"])


def test_bold_is_what_chance_does_not_explain(tmp_path):
    def cut(name):
        return {"prune": {"flops": 0.5, "criterion": name}}

    runs = {"random": (0.60, 0.62), "l1": (0.80, 0.82), "l2": (0.63, 0.65)}
    path = stored(
        tmp_path,
        *((0.1, after, seed, cut(name)) for name, pair in runs.items() for seed, after in enumerate(pair)),
    )
    # s = 0.0141, two runs each, q(0.05; 3, 3) = 5.91: 5.91 * 0.0141 / sqrt 2 = 0.059
    *lines, _, note = ranking.measured(path, ["l1", "l2"]).splitlines()[2:]
    assert [line.split("→")[1] for line in lines] == [
        " 61.0\u00a0±\u00a01.4 |",
        " **81.0\u00a0±\u00a01.4** |",
        " 64.0\u00a0±\u00a01.4 |",
    ]
    assert note.endswith("2 seeds. Bold: above random choice by more than chance explains.*")
    found = ranking.beside_random(path)
    assert found["l1"][0.5] == pytest.approx((81, 20, 5.9), abs=0.02)
    assert found["l2"][0.5] == pytest.approx((64, 3, 5.9), abs=0.02)
    assert [found[name][0.5].beyond_chance for name in ("random", "l1", "l2")] == [False, True, False]


def test_each_method_is_compared_with_its_own_random_choice(tmp_path):
    def cut(granularity, criterion, amount):
        stage = {"granularity": granularity, "criterion": criterion, "amount": amount}
        return {"sparsify": {key: value for key, value in stage.items() if value}}

    runs = {
        ("weight", "l1", 0.5): (0.80, 0.82),
        ("weight", "l2", 0.5): (0.90,),  # one seed
        ("weight", "random", 0.5): (0.60, 0.62),
        ("filter", "l1", 0.5): (0.70, 0.90),  # as high as weights, but its own random choice is, too
        ("filter", "random", 0.5): (0.70, 0.88),
        ("weight", "l1", 0.9): (0.50,),  # one seed of both
        ("weight", "random", 0.9): (0.10,),
        ("block", "l1", 0.5): (0.80, 0.82),  # no random choice
        ("l1", "", 0.5): (0.80, 0.82),  # these two are no criteria, though they sound like it
        ("random", "", 0.5): (0.10, 0.12),
    }
    path = stored(
        tmp_path,
        (None, 0.95, 0, {}),
        *(
            (None, after, seed, cut(*how))
            for how, afters in runs.items()
            for seed, after in enumerate(afters)
        ),
    )
    how = ["sparsify.granularity", "sparsify.criterion"], "sparsify.amount"
    one_row = ranking.beside_random(path, *how, random="weight, random")
    every = {name: after for name, after in runs.items() if len(after) == 2}  # all of them at one half
    needed = 100 * ranking.honest_difference(every)
    assert one_row["filter, l1"][0.5] == pytest.approx((80, 19, needed))
    assert math.isnan(next(iter(one_row["dense"].values())).gain)
    found = ranking.beside_random(path, *how)
    pair = {"l1": [0.80, 0.82], "random": [0.60, 0.62]}
    assert found["weight, l1"][0.5] == pytest.approx((81, 20, 100 * ranking.honest_difference(pair)))
    assert found["filter, l1"][0.5][:2] == pytest.approx((80, 1))
    assert found["weight, l2"][0.5] == pytest.approx((90, 29, math.inf))
    assert found["weight, l1"][0.9] == pytest.approx((50, 40, math.inf))
    for name in ("block, l1", "dense"):
        (alone,) = found[name].values()
        assert math.isnan(alone.gain) and alone.needed == math.inf
    beyond = {(name, value) for name, row in found.items() for value, one in row.items() if one.beyond_chance}
    assert beyond == {("weight, l1", 0.5)}
    table = ranking.measured(path, [", ".join(filter(None, names)) for *names, _ in runs], *how)
    assert [line for line in table.splitlines() if "**" in line] == [
        "| weight, l1 | **81.0\u00a0±\u00a01.4** | 50.0 |"
    ]


def test_methods_beyond_chance_in_words():
    good, bad = ranking.BesideRandom(80, 5, 4), ranking.BesideRandom(80, 4, 4)
    beside = {name: {0.5: good, 0.3: bad} for name in ("l1", "l2", "fpgm")} | {"l0": {0.5: bad, 0.3: bad}}
    names = {"l1": "L1", "l0": "L0", "l2": "L2", "fpgm": "FPGM"}
    assert ranking.beyond_chance(beside, names, 0.5) == "L1, L2 and FPGM"
    assert ranking.beyond_chance(beside, names, 0.3) == "none"
    assert ranking.beyond_chance(beside, names, 0.3, "none of them") == "none of them"
    assert ranking.listed(["L1"]) == "L1" and ranking.listed(["L1", "L2"]) == "L1 and L2"


def test_table_of_recipes_has_no_before_and_names_may_be_of_two_words(tmp_path):
    path = stored(tmp_path, (None, 0.8, 0, {"recipe": {"name": "gradual", "amount": 0.9, "kind": "x"}}))
    how = ("recipe.name", "recipe.kind"), "recipe.amount"
    assert ranking.measured(path, ["gradual, x"], *how).splitlines()[2] == "| gradual, x | 80.0 |"


def test_table_without_settings_has_one_column(tmp_path):
    path = stored(
        tmp_path,
        (None, 0.8, 0, {"recipe": {"name": "rigl", "amount": 0.9}}),
        (None, 0.7, 0, {"recipe": {"name": "synflow", "amount": 0.5}}),
    )
    assert ranking.measured(path, ["synflow", "rigl"], ["recipe.name"], None).splitlines() == [
        "| | accuracy |",
        "|---|---|",
        "| synflow | 70.0 |",
        "| rigl | 80.0 |",
        "",
        "*Validation accuracy in per cent, one seed.*",
    ]


def test_table_of_methods_that_have_no_setting(tmp_path):
    path = stored(
        tmp_path,
        (0.5, 0.8, 0, {"sparsify": {"granularity": "2:4"}}),
        (0.4, 0.7, 0, {"sparsify": {"granularity": "row", "amount": 0.75}}),
        (0.6, 0.9, 0, {"sparsify": {"granularity": "row", "amount": 0.5}}),
    )
    assert ranking.measured(path, ["2:4", "row"], ["sparsify.granularity"], "sparsify.amount").splitlines()[
        :-2
    ] == [
        "| | sparsity 50 % | sparsity 75 % | as it says |",
        "|---|---|---|---|",
        "| 2:4 |  |  | 50.0 → 80.0 |",
        "| row | 60.0 → 90.0 | 40.0 → 70.0 |  |",
    ]
