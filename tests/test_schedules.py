"""Schedules against their papers' formulas, and pruning along them while a network trains."""

import math
from functools import partial

import pytest
import torch
from test_training import STEPS, At, equal, interrupt, quick, tiny_data, tiny_model, weights
from torch import nn

import prunelab as pl
from prunelab import schedules
from prunelab.schedules import Gradual, apply_masks, attach_masks
from prunelab.training import Callback

TIMES = [step / 60 for step in range(61)]
RISING = ["one_shot", "iterative", "linear", "cosine", "agp", "one_cycle"]


@pytest.fixture(scope="module")
def data():
    return tiny_data()


# -------------------------------------------------------------------------------------- the curves


def schedule(name):
    return pl.registry.find("schedule", name).function


def test_all_schedules_are_registered_with_their_papers():
    found = {method.name: method.cite for method in pl.methods("schedule")}
    assert list(found) == [*RISING, "dense_sparse_dense"] and all(found.values())


@pytest.mark.parametrize("name", RISING)
def test_a_schedule_climbs_from_nothing_to_everything(name):
    values = [schedule(name)(t) for t in TIMES]
    assert values == sorted(values) and values[-1] == 1
    assert 0 <= values[0] < 0.01 and (values[0] == 0 or name == "one_cycle")


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("one_shot", {0: 0, 0.49: 0, 0.5: 1, 1: 1}),
        ("iterative", {0: 0, 0.01: 0.2, 0.2: 0.2, 0.21: 0.4, 0.4: 0.4, 0.6: 0.6, 0.8: 0.8, 0.81: 1, 1: 1}),
        ("linear", {0: 0, 0.3: 0.3, 1: 1}),
        ("cosine", {0: 0, 1 / 3: 0.25, 0.5: 0.5, 2 / 3: 0.75, 1: 1}),
        ("agp", {0: 0, 0.5: 0.875, 0.9: 0.999, 1: 1}),
        ("one_cycle", {0: (1 + math.e**-9) / (1 + math.e**5), 5 / 14: (1 + math.e**-9) / 2, 1: 1}),
        ("dense_sparse_dense", {0: 0, 0.33: 0, 0.34: 1, 0.66: 1, 0.67: 0, 1: 0}),
    ],
)
def test_values_by_hand(name, points):
    for t, share in points.items():
        assert schedule(name)(t) == pytest.approx(share, abs=1e-9)


def test_agp_is_the_general_formula_of_the_paper_between_any_two_sparsities():
    initial, final, first, count, every = 0.1, 0.85, 300, 40, 25
    for step in range(first, first + count * every + 1, every):
        paper = final + (initial - final) * (1 - (step - first) / (count * every)) ** 3
        ours = initial + (final - initial) * schedules.agp((step - first) / (count * every))
        assert ours == pytest.approx(paper, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 7, 25, 49])
def test_iterative_takes_exactly_its_steps(steps):
    for number in range(steps + 1):
        assert schedules.iterative(number / steps, steps) == pytest.approx(number / steps)
    fine = {schedules.iterative(t / 10_000, steps) for t in range(10_001)}
    assert len(fine) == steps + 1


# -------------------------------------------------------------------------------- during training


class Watching(Callback):
    """Notes, after each step, the masks, the stored weights and the momentum of each layer."""

    def __init__(self):
        self.rows = []

    def after_step(self, run):
        row = {"step": run.step}
        for name, keep in pl.masks(run.model).items():
            stored = run.model.get_submodule(name).parametrizations.weight.original
            momentum = run.optimiser.state[stored]["momentum_buffer"]
            row[name] = keep.clone(), stored.detach().clone(), momentum.clone()
        self.rows.append(row)

    def gone(self, name):
        return [int((~row[name][0]).sum()) for row in self.rows]


def gradually(pictures, epochs=3, model=None, **arguments):
    model = tiny_model() if model is None else model
    attach_masks(model)
    watching = Watching()
    quick(model, pictures, epochs, callbacks=[Gradual(**arguments), watching])
    return model, watching


@pytest.mark.parametrize("name", RISING)
@pytest.mark.parametrize("every", [1, 2, None])
def test_the_amount_follows_the_schedule(data, name, every):
    start, end, amount, steps = 0.25, 0.75, 0.6, 3 * STEPS
    model, watching = gradually(data, schedule=name, amount=amount, every=every, start=start, end=end)
    share = 0.0
    for row in watching.rows:
        if row["step"] % (every or STEPS) == 0 or row["step"] == 9:  # 9 of 12: the end of the window
            t = min((row["step"] / steps - start) / (end - start), 1)
            share = schedule(name)(t) if t >= 0 else 0.0
        for layer in ("0", "5"):
            mask = row[layer][0]
            assert int((~mask).sum()) == round(share * amount * mask.numel())
    assert share == 1 and pl.metrics.sparsity(model) == pytest.approx(0.6, abs=0.001)


def test_the_window_ends_at_the_whole_amount_even_between_two_looks(data):
    _, watching = gradually(data, schedule="linear", amount=0.5, every=100, end=0.8)
    assert watching.gone("5") == [0] * 9 + [1920] * 3  # 0.8 of 12 steps is 9.6: after the tenth


def test_pruning_at_once_before_the_first_step(data):
    at_once = partial(schedules.one_shot, at=0)
    _, watching = gradually(data, schedule=at_once, amount=0.5)
    assert watching.gone("5") == [1920] * 12


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_the_dead_stay_dead_and_only_the_others_are_trained(data, granularity, scope):
    _, watching = gradually(data, amount=0.5, every=1, granularity=granularity, scope=scope)
    layers = ["0", "5"] if granularity == "weight" else ["0"]
    for before, after in zip(watching.rows, watching.rows[1:], strict=False):
        for name in layers:
            (old, *_), (keep, stored, momentum) = before[name], after[name]
            assert not (keep & ~old).any(), "nothing comes back"
            assert not stored[~keep].any() and not momentum[~keep].any()
            assert (stored[keep] != before[name][1][keep]).float().mean() > 0.9
            assert (momentum[keep] != 0).float().mean() > 0.9
    assert all(watching.gone(name)[-1] > 0 for name in layers)


def test_the_weights_removed_are_the_smallest_at_that_moment(data):
    """Filters of the first layer, chosen once in the middle, from the weights as they were then."""
    _, watching = gradually(data, schedule="one_shot", amount=0.5, granularity="filter", every=1, end=0.5)
    pruned = next(row for row in watching.rows if not row["0"][0].all())
    assert pruned["step"] == 3
    before = tiny_model()
    attach_masks(before)
    stopped = []
    quick(before, data, 3, callbacks=[At(3, lambda run: stopped.append(weights(run.model)))])
    then = stopped[0]["0.parametrizations.weight.original"]
    smallest = then.abs().sum((1, 2, 3)).argsort()[:3].sort().values
    assert (~pruned["0"][0].flatten(1).any(1)).nonzero().flatten().tolist() == smallest.tolist()


def test_a_criterion_with_data_and_chosen_layers(data):
    model, watching = gradually(data, criterion="gradient", data=data.train, amount=0.4, layers=["5"])
    assert watching.gone("5")[-1] == round(0.4 * 3840) and watching.gone("0")[-1] == 0
    assert model.training
    by_default, _ = gradually(data, criterion="gradient", amount=0.4, layers=["5"])
    assert equal(weights(by_default), weights(model)), "it measures on the training pictures"


def test_dense_sparse_dense_lifts_the_masks_and_the_returned_start_at_zero(data):
    model, watching = gradually(data, schedule="dense_sparse_dense", amount=0.5, every=1, end=1.0)
    assert watching.gone("5") == [0] * 3 + [1920] * 4 + [0] * 5
    sparse, lifted, after = (watching.rows[number]["5"] for number in (6, 7, 8))
    returned = ~sparse[0]
    assert not lifted[1][returned].any() and not lifted[2][returned].any()
    assert (after[1][returned] != 0).float().mean() > 0.9
    assert all(mask.all() for mask in pl.masks(model).values())


@pytest.mark.parametrize("name", ["linear", "dense_sparse_dense"])  # the second falls after the kill
def test_a_killed_run_continues_to_the_same_weights(data, tmp_path, name):
    def run(path=None, stop=None):
        model = tiny_model()
        attach_masks(model)
        callbacks = [Gradual(name, 0.7, every=3, scope="global", end=1.0), At(stop, interrupt)]
        quick(model, data, callbacks=callbacks, checkpoint=path)
        return weights(model)

    run(tmp_path / "run.pt", stop=2 * STEPS + 2)
    continued = run(tmp_path / "run.pt")
    assert equal(continued, run())


def test_clear_errors(data):
    with pytest.raises(ValueError, match="did you mean 'agp'"):
        Gradual("agq")
    with pytest.raises(ValueError, match="for 50 % write amount=0.5"):
        Gradual(amount=50)
    for window in ((-0.1, 0.5), (0.5, 0.5), (0.2, 1.1)):
        with pytest.raises(ValueError, match="must be 0 <= start < end <= 1"):
            Gradual(start=window[0], end=window[1])
    with pytest.raises(ValueError, match="every=0: must be a number of steps"):
        Gradual(every=0)
    with pytest.raises(ValueError, match=r"the model has no masks: call .*attach_masks\(model\) before fit"):
        quick(tiny_model(), data, callbacks=[Gradual()])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"criterion": "l3"}, "criterion='l3': did you mean"),
        ({"granularity": "kernl"}, "did you mean 'kernel'"),
        ({"granularity": "1:4"}, "amount=0.5: granularity '1:4' removes the same share of every group"),
        ({"criterion": "hrank"}, "'hrank' does not judge granularity 'weight'"),
        ({"scope": "layer"}, "scope='layer'"),
        ({"layers": ["1"]}, "layers: '1'"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_before_the_first_step(data, wrong, message):
    model = tiny_model()
    attach_masks(model)
    stepped = At(1, lambda run: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match=message):
        quick(model, data, callbacks=[Gradual(**wrong), stepped])


# ------------------------------------------------------------------------------------- the masks


def test_attached_masks_change_nothing_and_keep_earlier_ones(data):
    model, masked = tiny_model(), tiny_model()
    attach_masks(masked)
    assert {name: bool(mask.all()) for name, mask in pl.masks(masked).items()} == {"0": True, "5": True}
    quick(model, data, 1)
    quick(masked, data, 1)
    assert equal(weights(model), weights(pl.finalize(masked)))
    sparse = pl.sparsify(tiny_model(), amount=0.5, layers=["5"])
    before = pl.masks(sparse)["5"].clone()
    attach_masks(sparse)
    assert torch.equal(pl.masks(sparse)["5"], before) and pl.masks(sparse)["0"].all()
    attach_masks(one := tiny_model(), layers=["5"])
    assert list(pl.masks(one)) == ["5"]


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_masks_clear_what_the_optimiser_remembers(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    attach_masks(model)
    parameters = model.parameters()
    optimiser = (
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        if kind == "sgd"
        else torch.optim.Adam(parameters, lr=0.1)
    )
    model(torch.randn(5, 4)).square().sum().backward()
    optimiser.step()
    keep = torch.tensor([[1, 0, 1, 0]] * 3).bool()
    other = model[1].weight.detach().clone()
    apply_masks(model, {"0": keep}, optimiser)
    stored = model[0].parametrizations.weight.original
    memories = [value for value in optimiser.state[stored].values() if value.shape == stored.shape]
    assert len(memories) == {"sgd": 1, "adam": 2}[kind]
    for values in (stored, model[0].weight, *memories):
        assert not values[~keep].any() and values[keep].all()
    assert torch.equal(model[1].weight, other) and pl.masks(model)["1"].all()
