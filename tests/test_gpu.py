"""The methods on a GPU, where there is one: the same choices as on the CPU, and trainings that run."""

import pytest
import torch

import prunelab as pl
from prunelab import registry
from prunelab.experiments import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

NETWORK = {"network": "resnet20", "data": "embedded", "pictures": 256}
SCORED = [m.name for m in registry.methods("criterion") if m.name not in ("gate", "obs")]
RECIPES = [m.name for m in registry.methods("recipe")]
PENALTIES = {
    "l1": {"strength": 1e-4},
    "batch_norm_l1": {"strength": 1e-4},
    "group_lasso": {"strength": 1e-4},
    "gates": {"strength": 1e-6},
    "growing": {"amount": 0.5, "delta": 1.0, "every": 1},
}


@pytest.fixture(scope="module", autouse=True)
def exact():
    """Convolutions in full single precision: a GPU rounds them more coarsely unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def data():
    return pl.data.load("embedded", quiet=True)


@pytest.mark.parametrize("criterion", SCORED)
def test_a_criterion_keeps_the_same_filters_as_on_the_cpu(criterion, data):
    """All but a few that are as good as equal: sums come out a little different there."""
    model, train = pl.models.resnet20(weights="embedded"), data.train.subset(64)
    how = {"criterion": criterion, "amount": 0.5, "seed": 0}
    here = pl.plan(model, data.example, data=train, **how)
    there = pl.plan(model.cuda(), data.example.cuda(), data=train.to("cuda"), **how)
    kept = [{name: set(layer) for name, layer in plan.kept.items()} for plan in (here, there)]
    assert kept[0].keys() == kept[1].keys()
    total = sum(map(len, kept[0].values()))
    assert sum(len(kept[0][name] ^ kept[1][name]) for name in kept[0]) <= 0.05 * total


@pytest.mark.parametrize("granularity", [m.name for m in registry.methods("granularity")])
def test_a_granularity_removes_the_same_weights_as_on_the_cpu(granularity):
    amount = None if granularity in ("2:4", "1:4", "pattern") else 0.5
    how = {
        "granularity": granularity,
        "amount": amount,
        "scope": "global" if granularity == "layer" else "local",
    }
    model = pl.models.resnet20(weights="embedded")
    here = pl.sparsify(model, **how)
    there = pl.sparsify(model.cuda(), **how)
    for name, mask in pl.masks(here).items():
        assert pl.masks(there)[name].is_cuda
        assert torch.equal(mask, pl.masks(there)[name].cpu()), name


@pytest.mark.parametrize("name", PENALTIES)
def test_a_regulariser_does_the_same_there(name):
    penalty = {"name": name, **PENALTIES[name], "epochs": 1, "lr": 0.01}
    here, there = (run({**NETWORK, "regularise": penalty}, device=device) for device in ("cpu", "cuda"))
    assert there["accuracy"] == pytest.approx(here["accuracy"], abs=0.03)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_there(name):
    amount = {"rounds": 2} if name in ("iterative", "lottery_ticket", "synflow") else {}
    outcome = run({**NETWORK, "recipe": {"name": name, "epochs": 1, "lr": 0.01, **amount}}, device="cuda")
    assert 0 < outcome["accuracy"] <= 1


def test_equal_weights_give_equal_accuracy(data):
    model, validation = pl.models.resnet20(weights="embedded"), data.validation.subset(1000)
    here = pl.evaluate(model, validation)
    there = pl.evaluate(model.cuda(), validation)
    assert there.accuracy == pytest.approx(here.accuracy, abs=0.002)
    assert there.loss == pytest.approx(here.loss, abs=1e-3)
