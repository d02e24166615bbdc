"""Saving and loading: what comes back is what was stored, and nothing else is accepted quietly."""

import json
import struct

import pytest
import torch
from torch import nn

import prunelab as pl

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pruned(amount=0.4):
    torch.manual_seed(0)
    return pl.prune(pl.models.resnet20(), X[:1], criterion="random", amount=amount)


@pytest.mark.parametrize(
    ("make", "shortcut"),
    [
        (lambda: pl.models.resnet20(), "A"),
        (lambda: pl.sparsify(pl.models.resnet20(), granularity="kernel", amount=0.6), "A"),
        (pruned, "A"),
        (lambda: pl.prune(pruned(), X[:1], amount=0.3), "A"),
        (lambda: pl.sparsify(pruned(), amount=0.5), "A"),
        (lambda: pl.prune(pl.models.resnet20(shortcut="B"), X[:1]), "B"),
    ],
    ids=["dense", "sparse", "pruned", "pruned twice", "pruned and sparse", "shortcut B"],
)
def test_round_trip(make, shortcut, tmp_path):
    model = make().eval()
    path = pl.save(model, tmp_path / "model.safetensors")
    loaded = pl.load(path, pl.models.resnet20(shortcut=shortcut)).eval()
    assert torch.equal(loaded(X), model(X))
    assert pl.masks(loaded).keys() == pl.masks(model).keys()
    assert pl.metrics.macs(loaded, X[:1]) == pl.metrics.macs(model, X[:1])
    again = pl.save(loaded, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes(), "a loaded network can be stored again, and is the same"


def test_a_bias_that_pruning_added_comes_back(tmp_path):
    def network():
        layers = (
            nn.Conv2d(3, 8, 1),
            nn.Sigmoid(),
            nn.Conv2d(8, 6, 1, bias=False),
            nn.Flatten(),
            nn.Linear(6144, 2),
        )
        return nn.Sequential(*layers)

    small = pl.prune(network(), X[:1])
    assert small[2].bias is not None
    assert torch.equal(pl.load(pl.save(small, tmp_path / "small"), network())(X), small(X))


def test_two_inputs_are_remembered(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x, y):
            return self.b(self.a(x) * self.a(y))

    x, y = torch.randn(2, 3, 4)
    small = pl.prune(Two(), (x, y))
    assert torch.equal(pl.load(pl.save(small, tmp_path / "two"), Two())(x, y), small(x, y))


def test_the_argument_is_left_untouched(tmp_path):
    path = pl.save(pruned(), tmp_path / "model.safetensors")
    full = pl.models.resnet20()
    before = {name: tensor.clone() for name, tensor in full.state_dict().items()}
    pl.load(path, full)
    assert all(torch.equal(before[name], tensor) for name, tensor in full.state_dict().items())


def test_the_file_holds_tensors_and_json_only(tmp_path):
    data = pl.save(pruned(), tmp_path / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    facts = json.loads(header["__metadata__"]["prunelab"])
    assert set(facts) == {"masked", "pruned"}
    assert b"pickle" not in data[:20_000]


def test_a_damaged_or_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        pl.load(tmp_path / "none.safetensors", pl.models.resnet20())
    path = pl.save(pl.models.resnet20(), tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is damaged"):
        pl.load(path, pl.models.resnet20())
    path.write_bytes(b"not a network")
    with pytest.raises(ValueError, match="is damaged"):
        pl.load(path, pl.models.resnet20())


@pytest.mark.parametrize(
    "make",
    [lambda m: m, lambda m: pl.sparsify(m, amount=0.5), lambda m: pl.prune(m, X[:1])],
    ids=["dense", "sparse", "pruned"],
)
def test_another_network_or_number_of_classes(make, tmp_path):
    path = pl.save(make(pl.models.resnet20()), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="10 classes, this one has 100: give num_classes=10"):
        pl.load(path, pl.models.resnet20(num_classes=100))
    for other in (pl.models.vgg16(), pl.models.resnet32(), pl.models.resnet20(shortcut="B")):
        with pytest.raises(ValueError, match=r"another network|does not fit this"):
            pl.load(path, other)


def test_nothing_half_written_is_left_behind(tmp_path, monkeypatch):
    import prunelab.files

    path = pl.save(pl.models.resnet20(), tmp_path / "model.safetensors")
    before = path.read_bytes()

    def fails(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(prunelab.files, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        pl.save(pl.models.resnet20(), path)
    assert path.read_bytes() == before
