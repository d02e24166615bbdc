"""The capstone's score, by hand, what it measures, and how an entry gets into the file the book shows."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab import leaderboard
from prunelab.leaderboard import BUDGET, FLOOR, Entry, measure

ROOT = Path(__file__).parents[1]


def entry(**changed):
    return Entry(
        **{"accuracy": 0.90, "dense_accuracy": 0.91, "size_ratio": 0.25, "time_ratio": 0.64} | changed
    )


def test_score_is_the_geometric_mean_of_compression_and_speedup():
    assert entry().score == pytest.approx(2.5)  # the root of 4 times 1.5625


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({"accuracy": 0.91 - FLOOR - 1e-6}, ["accuracy"]),
        ({"time_ratio": BUDGET + 1e-6}, ["time"]),
        ({"accuracy": 0.1, "time_ratio": 1.0}, ["accuracy", "time"]),
    ],
    ids=["floor", "budget", "both"],
)
def test_a_broken_rule_is_named_and_scores_nothing(changed, broken):
    assert entry(**changed).score == 0
    assert entry(**changed).broken == broken


def test_rules_are_kept_at_their_limits():
    assert not entry(accuracy=0.5, dense_accuracy=0.5 + FLOOR - 1e-9).broken
    assert not entry(time_ratio=BUDGET).broken


def test_measured_beside_the_dense_network():
    torch.manual_seed(0)
    data = pl.data.load("embedded")
    dense = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    few = data.validation.subset(128)
    twin = measure(copy.deepcopy(dense), dense, few, repeats=3)
    assert (twin.size_ratio, twin.accuracy) == (1, twin.dense_accuracy)
    assert twin.accuracy == pl.evaluate(dense, few, progress=False).accuracy
    small = pl.prune(dense, data.example, amount=0.75)
    found = measure(small, dense, few, repeats=3)
    assert found.accuracy == pl.evaluate(small, few, progress=False).accuracy
    assert found.size_ratio == pl.metrics.parameters(small) / pl.metrics.parameters(dense)
    assert found.time_ratio < 0.8  # a sixteenth of the work


def test_the_plot_tells_who_breaks_a_rule_and_where_scores_are_equal():
    figure = leaderboard.plot({"ada": entry(), "bob": entry(time_ratio=0.95)})
    [ax] = figure.axes
    ada, bob = ax.lines[:2]
    assert (ada.get_xdata()[0], ada.get_ydata()[0]) == (0.64, 0.25)
    assert bob.get_label() == "bob (no score)" and bob.get_markerfacecolor() == "none"
    lines = [line for line in ax.lines if line.get_linestyle() == ":"]
    ends = [end for line in lines for end in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    scores = {round((size * time) ** -0.5, 6) for time, size in ends}
    assert scores == {float(text.get_text()) for text in ax.texts if text.get_text() != "budget"}
    with pytest.raises(ValueError, match="entries is empty"):
        leaderboard.plot({})


def test_an_entry_is_added_from_a_file_and_the_others_stay(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("board", ROOT / "benchmarks" / "leaderboard.py")
    board = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(board)
    data = pl.data.load("embedded", quiet=True)
    monkeypatch.setattr(pl.data, "load", lambda name: data)  # the command asks for CIFAR-10
    monkeypatch.setattr(
        board,
        "measure",
        lambda network, dense, split: entry(size_ratio=pl.metrics.size_ratio(dense, network)),
    )
    monkeypatch.setattr(board, "RESULTS", tmp_path / "leaderboard.json")
    before = {"command": "x", "machine": {"processor": "y"}, "entries": {"bob": {"how": "z"}}}
    board.RESULTS.write_text(json.dumps(before))
    dense = pl.models.resnet20(weights="cifar10")
    small = pl.prune(dense, data.example, amount=0.5)
    file = pl.save(small, tmp_path / "small.safetensors")
    monkeypatch.setattr("sys.argv", ["leaderboard.py", "--add", "ada", "--how", "l1", str(file)])
    board.main()
    after = json.loads(board.RESULTS.read_text())
    ada = after["entries"].pop("ada")
    assert after == before
    assert ada["how"] == "l1" and ada["accuracy"] == 0.90 and ada["processor"]
    assert ada["size_ratio"] == pl.metrics.size_ratio(dense, small) < 0.3
    monkeypatch.setattr("sys.argv", ["leaderboard.py", "--add", "ada"])
    with pytest.raises(SystemExit):
        board.main()
