"""The scan, layer by layer."""

import copy
import importlib

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import prunelab as pl
from prunelab import sensitivity
from prunelab.data import Data, Split

sparsify_module = importlib.import_module("prunelab.sparsify")  # pl.sparsify is the function


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)

    def split(count):
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator).to(torch.uint8)
        labels = torch.randint(0, 10, (count,), generator=generator)
        return Split(images, labels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    return Data("random", tuple("abcdefghij"), split(16), split(60), split(4), "drawn for a test")


@pytest.fixture(scope="module")
def model(data):
    """Labels are what the network itself says, so that every change can only cost accuracy."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.Flatten(), nn.Linear(54, 10)
    )
    with torch.no_grad():
        data.validation.labels.copy_(network(data.validation.normalise(data.validation.images)).argmax(1))
    return network


@pytest.fixture(scope="module")
def scan(model, data):
    return sensitivity.scan(model, data, criterion="l2", amounts=[0.5, 0.25], progress=False)


def test_a_scan_sparsifies_one_layer_at_a_time(scan, model, data):
    assert list(scan.rows) == ["0", "2"], "the last layer's filters are the classes"
    assert scan.dense == 1.0 and scan.pictures == 60
    for layer, row in scan.rows.items():
        assert list(row) == [0.5, 0.25]
        for amount, accuracy in row.items():
            alone = pl.sparsify(model, granularity="filter", criterion="l2", amount=amount, layers=[layer])
            assert accuracy == pl.evaluate(alone, data.validation, progress=False).accuracy
    assert min(row[0.5] for row in scan.rows.values()) < 1


def test_a_scan_leaves_the_network_alone_and_takes_names_and_other_granularities(model, data):
    before = copy.deepcopy(model.state_dict())
    only = sensitivity.scan(
        model, data, granularity="kernel", amounts=[0.5], layers=["2"], pictures=10, progress=False
    )
    assert list(only.rows) == ["2"] and only.pictures == 10
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert not pl.masks(model)


def test_a_criterion_that_needs_data_gets_training_pictures(model, data):
    by_gradient = sensitivity.scan(model, data, criterion="snip", amounts=[0.5], progress=False)
    alone = pl.sparsify(
        model, granularity="filter", criterion="snip", amount=0.5, layers=["2"], data=data.train
    )
    accuracy = pl.evaluate(alone, data.validation, progress=False).accuracy
    assert by_gradient.rows["2"][0.5] == accuracy


def test_evidence_is_gathered_once_for_all_amounts(model, data, monkeypatch):
    gathered, real = [], sparsify_module.collect

    def counting(criteria, *given, **named):
        gathered.extend(criterion.name for criterion in criteria)
        return real(criteria, *given, **named)

    monkeypatch.setattr(sparsify_module, "collect", counting)
    amounts = [0.25, 0.5, 0.75]
    found = sensitivity.scan(model, data, criterion="snip", amounts=amounts, progress=False)
    assert gathered == ["snip"]
    for amount in amounts:
        each = sensitivity.scan(model, data, criterion="snip", amounts=[amount], progress=False)
        assert {layer: row[amount] for layer, row in found.rows.items()} == {
            layer: row[amount] for layer, row in each.rows.items()
        }


def test_with_fine_tuning_every_network_is_trained_as_long(model, data):
    tuned = sensitivity.scan(
        model, data, amounts=[0.5], layers=["2"], fine_tune=2, lr=0.05, seed=3, progress=False
    )
    alone = pl.sparsify(model, granularity="filter", amount=0.5, layers=["2"])
    for network, found in ((alone, tuned.rows["2"][0.5]), (copy.deepcopy(model), tuned.dense)):
        pl.fit(network, data, 2, lr=0.05, seed=3, validate=False, progress=False)
        assert found == pl.evaluate(network, data.validation, progress=False).accuracy
    assert tuned.fine_tune == 2 and "epochs of fine-tuning: 2" in repr(tuned)
    assert tuned.dense < 1, "it learned the training pictures' labels, which are random"
    assert pl.evaluate(model, data.validation, progress=False).accuracy == 1, "the network itself did not"


def test_the_table_and_the_picture():
    rows = {f"layer{j}": {0.25: 0.9 - 0.01 * j, 0.5: 0.5} for j in range(9)}
    found = sensitivity.Scan(rows, 0.91, 1000)
    lines = repr(found).splitlines()
    assert lines[0].split() == ["layer", "0.25", "0.5"]
    assert lines[1].split() == ["layer0", "90.0%", "50.0%"]
    assert lines[-1] == "dense: 91.0%; 1000 validation pictures"
    assert len({len(line) for line in lines[:-1]}) == 1
    assert found.most_sensitive == [f"layer{j}" for j in range(8, -1, -1)]
    figure = found.plot()
    assert isinstance(figure, Figure)
    drawn = [line.get_label() for line in figure.axes[0].lines if line.get_label().startswith("layer")]
    assert drawn == found.most_sensitive[:7]
    assert len(found.plot(["layer0"]).axes[0].lines) == 2  # and the dense network
    with pytest.raises(ValueError, match="layers: 'conv' was not scanned; there are"):
        found.plot(["conv"])


def test_what_a_scan_refuses(model, data):
    with pytest.raises(ValueError, match="amounts is empty"):
        sensitivity.scan(model, data, amounts=[])
    with pytest.raises(ValueError, match="fine_tune=-1: must be 0 epochs or more"):
        sensitivity.scan(model, data, fine_tune=-1)
    with pytest.raises(ValueError, match="layers: '3x'"):
        sensitivity.scan(model, data, layers=["3x"], amounts=[0.5])
    with pytest.raises(ValueError, match="emptied completely"):
        sensitivity.scan(model, data, amounts=[1.0], progress=False)
