"""Recipes: each step by step as its paper says, killed and continued, and with nothing shared by accident."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_training import STEPS, equal, kill, tiny_data, tiny_model, weights
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import recipes
from prunelab.recipes import erdos_renyi, rigl_update, set_update
from prunelab.regularisers import BatchNormL1
from prunelab.training import Callback, learning_rate

EPOCHS = 3
CASES = {
    "one_shot": {"amount": 0.6},
    "iterative": {"amount": 0.6, "rounds": 2},
    "progressive_kernel_pruning": {"amount": 0.6, "rounds": 2},
    "network_slimming": {"amount": 0.5, "strength": 1e-3},
    "gradual": {"amount": 0.6, "every": 2},
    "dense_sparse_dense": {"amount": 0.4},
    "soft_filter_pruning": {"amount": 0.5},
    "lottery_ticket": {"amount": 0.6, "rounds": 2, "rewind": 1, "controls": True},
    "synflow": {"amount": 0.6, "rounds": 4},
    "sparse_evolutionary_training": {"amount": 0.6},
    "rigl": {"amount": 0.6, "every": 3},
}
WITHOUT_MASKS = {"network_slimming", "dense_sparse_dense"}


def two_layers(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, 10),
        )


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cook(name, data, model=None, **arguments):
    settings = {"epochs": EPOCHS, "batch_size": 16, "lr": 0.05, "precision": "float32", "progress": False}
    recipe = pl.registry.find("recipe", name).function
    return recipe(two_layers() if model is None else model, data, **settings | CASES[name] | arguments)


def everything(result):
    """All tensors that a recipe hands back."""
    found = {"": result.model, **result.controls}
    return {f"{name}/{key}": value for name, model in found.items() for key, value in weights(model).items()}


def lengths(result):
    return {name: len(history) for name, history in result.histories.items()}


class Noting(Callback):
    def __init__(self):
        self.rows = []


@pytest.fixture
def watched(monkeypatch):
    """`watched(callback)` lets a callback take part in every training of a recipe, behind its own ones."""
    real = recipes.fit

    def attach(watcher):
        def fit(model, data, epochs, *, callbacks=(), **settings):
            return real(model, data, epochs, callbacks=[*callbacks, watcher], **settings)

        monkeypatch.setattr(recipes, "fit", fit)
        return watcher

    return attach


def stored(model, name):
    return model.get_submodule(name).parametrizations.weight.original


# ------------------------------------------------------------------------------------- all of them


def test_all_recipes_are_registered_with_their_papers():
    found = {method.name: method.cite for method in pl.methods("recipe")}
    assert list(found) and set(found) == set(CASES) and all(found.values())


@pytest.mark.parametrize("name", CASES)
def test_equal_seeds_give_equal_networks_and_the_argument_is_untouched(data, name):
    model = two_layers().eval()
    before = weights(model)
    torch.manual_seed(1)
    result = cook(name, data, model, seed=3)
    assert equal(weights(model), before) and not pl.masks(model)
    assert model.training is False
    torch.manual_seed(2)
    assert equal(everything(result), everything(cook(name, data, seed=3)))
    assert not equal(everything(result), everything(cook(name, data, seed=4)))
    assert all(len(history) in (EPOCHS, EPOCHS - 1) for history in result.histories.values())
    if name not in WITHOUT_MASKS:
        for layer, mask in pl.masks(result.model).items():
            weight = stored(result.model, layer)
            assert not weight[~mask].any() and (weight[mask] != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", sorted(set(CASES) - WITHOUT_MASKS))
def test_the_amount_removed_is_what_was_asked(data, name):
    model = cook(name, data).model
    masks = pl.masks(model)
    if name in ("progressive_kernel_pruning", "soft_filter_pruning"):
        dims = {"progressive_kernel_pruning": (2, 3), "soft_filter_pruning": (1, 2, 3)}[name]
        for layer in ("0", "3"):
            alive = masks[layer].any(dims)
            assert int((~alive).sum()) == round(CASES[name]["amount"] * alive.numel())
    else:
        gone, total = (sum(f(m) for m in masks.values()) for f in (lambda m: int((~m).sum()), torch.numel))
        assert gone == pytest.approx(0.6 * total, abs=len(masks))


class Killed(Exception):
    pass


@pytest.fixture
def steps(monkeypatch):
    """Counts the optimiser's steps; the one after the limit kills."""
    counter = SimpleNamespace(count=0, limit=math.inf)
    step = torch.optim.SGD.step

    def counting(self, *given, **named):
        counter.count += 1
        if counter.count > counter.limit:
            raise Killed
        return step(self, *given, **named)

    monkeypatch.setattr(torch.optim.SGD, "step", counting)
    return counter


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("when", [0.3, 0.8])
def test_a_killed_recipe_continues_to_the_same_networks(data, name, when, tmp_path, steps):
    expected = cook(name, data)
    total, steps.count = steps.count, 0
    steps.limit = int(when * total) + (int(when * total) % STEPS == 0)  # inside an epoch
    with pytest.raises(Killed):
        cook(name, data, folder=tmp_path / "run")
    steps.count, steps.limit = 0, math.inf
    result = cook(name, data, folder=tmp_path / "run")
    assert 0 < steps.count <= total - when * total + STEPS, "what was done before is not done again"
    assert equal(everything(result), everything(expected))
    assert lengths(result) == lengths(expected)
    steps.count = 0
    assert equal(everything(cook(name, data, folder=tmp_path / "run")), everything(expected))
    assert steps.count == 0, "a finished recipe is only read"


def cook_and_die(name, folder, steps):
    """What the processes below do: they are gone after so many steps, with nothing tidied up."""
    torch.set_num_threads(1)
    step, count = torch.optim.SGD.step, itertools.count(1)

    def deadly(self, *given, **named):
        if next(count) > steps:
            kill()
        return step(self, *given, **named)

    torch.optim.SGD.step = deadly
    cook(name, tiny_data(), folder=folder)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("iterative", ["01-round-1.pt", "02-round-2.pt"]),
        ("lottery_ticket", ["01-dense.pt", "02-round-1.pt"]),
    ],
)
def test_a_recipe_whose_process_is_killed_continues_to_the_same_networks(data, name, files, tmp_path, steps):
    folder = tmp_path / "run"
    stored = (EPOCHS + 1) * STEPS  # the first training, and an epoch of the second
    code = f"import test_recipes; test_recipes.cook_and_die({name!r}, {str(folder)!r}, {stored + 2})"
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in folder.glob("*.pt")) == files
    result = cook(name, data, folder=folder)
    continued, steps.count = steps.count, 0
    expected = cook(name, data)
    assert continued == steps.count - stored, "what was stored is not done again"
    assert equal(everything(result), everything(expected))
    assert lengths(result) == lengths(expected)


def test_a_folder_of_another_call_is_refused(data, tmp_path):
    def own(groups, power=1):
        return groups.abs().pow(power).sum(1)

    folder = tmp_path / "run"
    cook("one_shot", data, folder=folder, criterion=own)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {"recipe.json", "01-fine-tuning.pt"}
    assert json.loads(files["recipe.json"])["criterion"].endswith("own")
    for change, message in (
        ({"amount": 0.5}, r"amount was 0\.6, is 0\.5"),
        ({"criterion": "l2"}, r"criterion was '.*own', is 'l2'"),
        ({"criterion": partial(own, power=2)}, r"criterion was '.*own', is '.*own\(power=2\)'"),
        ({"lr": 0.1}, r"lr was 0\.05, is 0\.1"),
        ({"momentum": 0.8}, r"momentum was None, is 0\.8"),
        ({"model": two_layers(seed=1)}, r"model was '\w+', is '\w+'"),
    ):
        with pytest.raises(ValueError, match=rf"holds another run \({message}\): delete it to start afresh"):
            cook("one_shot", data, folder=folder, **{"criterion": own} | change)
    with pytest.raises(ValueError, match="recipe was 'one_shot', is 'iterative'"):
        cook("iterative", data, folder=folder)
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_ctrl_c_stops_the_whole_recipe(data, tmp_path, watched):
    class Stopping(Callback):
        pressed = True

        def after_step(self, run):
            if self.pressed and run.step == STEPS + 1:
                raise KeyboardInterrupt

    stopping = watched(Stopping())
    with pytest.raises(KeyboardInterrupt):
        cook("iterative", data, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01-round-1.pt", "recipe.json"]
    stopping.pressed = False
    assert equal(everything(cook("iterative", data, folder=tmp_path)), everything(cook("iterative", data)))


def test_what_is_trained_is_said(data, capsys):
    cook("iterative", data, progress=True)
    assert capsys.readouterr().out == "iterative: round 1\niterative: round 2\n"
    cook("iterative", data)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("iterative", {"rounds": 0}, "rounds=0: must be at least 1"),
        ("one_shot", {"physical": True}, "granularity='weight' cannot be: use granularity='filter'"),
        ("one_shot", {"criterion": "l3"}, "There are"),
        ("lottery_ticket", {"rewind": EPOCHS}, "rewind=3: must be an epoch of the training, 0 to 2"),
        ("lottery_ticket", {"rounds": 0}, "rounds=0"),
        ("rigl", {"distribution": "er"}, "distribution='er': use 'erk' or 'uniform'"),
        ("rigl", {"every": 0}, "every=0"),
        ("rigl", {"fraction": 1.5}, r"fraction=1\.5: must be the share"),
        ("rigl", {"end": 0.0}, r"end=0\.0: must be a share"),
        ("sparse_evolutionary_training", {"fraction": -0.1}, r"fraction=-0\.1"),
        ("one_shot", {"amount": 60}, r"for 60 % write amount=0\.6"),
        ("soft_filter_pruning", {"amount": 30}, r"for 30 % write amount=0\.3"),
        ("synflow", {"rounds": 0}, "rounds=0"),
        ("network_slimming", {"amount": 2}, "amount=2: must be"),
        ("network_slimming", {"model": tiny_model(norm=False)}, "layer '0' has no batch norm with a scale"),
        ("lottery_ticket", {"scope": "layer"}, "scope='layer'"),
        ("gradual", {"criterion": "l3"}, "criterion='l3': did you mean"),
        ("gradual", {"granularity": "kernl"}, "did you mean 'kernel'"),
        *((name, {"amount": 1.0}, "amount=1: nothing would be left to train") for name in CASES),
    ],
)
def test_a_wrong_call_is_refused_before_the_first_step_and_leaves_its_folder_free(
    data, name, wrong, message, tmp_path, steps
):
    with pytest.raises(ValueError, match=message):
        cook(name, data, folder=tmp_path, **wrong)
    assert steps.count == 0 and not list(tmp_path.iterdir())


# --------------------------------------------------------------------- remove, then train again


def test_one_shot_removes_the_smallest_and_trains_the_others(data, watched):
    class Start(Callback):
        def on_start(self, run):
            self.before = weights(run.model)

    start = watched(Start())
    model = two_layers()
    result = cook("one_shot", data, model, amount=0.5)
    for name in ("0", "3", "7"):
        weight = model.get_submodule(name).weight.detach()
        keep = pl.masks(result.model)[name]
        assert weight[~keep].abs().max() <= weight[keep].abs().min()
        moved = stored(result.model, name) != start.before[f"{name}.parametrizations.weight.original"]
        assert moved[keep].float().mean() > 0.95


def test_iterative_removes_equal_parts_and_never_brings_back(data, watched):
    class Masks(Noting):
        def on_start(self, run):
            self.rows.append({name: mask.clone() for name, mask in pl.masks(run.model).items()})

    seen = watched(Masks()).rows
    cook("iterative", data, rounds=3, amount=0.6)
    assert len(seen) == 3
    for number, row in enumerate(seen, start=1):
        assert int((~row["7"]).sum()) == round(540 * 0.2 * number)
        assert number == 1 or not (row["7"] & ~seen[number - 2]["7"]).any()


def test_physical_removal_round_by_round(data):
    result = cook("iterative", data, granularity="filter", physical=True, amount=0.5, rounds=2)
    assert (result.model[0].out_channels, result.model[3].out_channels) == (4, 3)
    assert result.model[7].in_features == 27 and not pl.masks(result.model)
    once = cook("one_shot", data, granularity="filter", physical=True, amount=0.5)
    assert (once.model[0].out_channels, once.model[3].out_channels) == (4, 3)


def test_one_shot_with_a_share_of_the_granularitys_own(data):
    model = cook("one_shot", data, tiny_model(), granularity="2:4", amount=None).model
    assert pl.masks(model)["5"].view(-1, 4).sum(1).eq(2).all()
    assert pl.metrics.sparsity(cook("one_shot", data, amount=None).model) == 0.5


def test_progressive_kernel_pruning_is_iterative_on_kernels(data):
    kernels = cook("iterative", data, granularity="kernel", amount=0.6, rounds=2)
    assert equal(everything(cook("progressive_kernel_pruning", data)), everything(kernels))


def test_network_slimming_cuts_the_smallest_scales_and_trains_every_parameter_that_is_left(data, watched):
    class Models(Noting):
        def on_start(self, run):
            self.rows.append(weights(run.model))
            self.model, self.optimiser = run.model, run.optimiser

    watcher = watched(Models())
    seen = watcher.rows
    result = cook("network_slimming", data, amount=0.5, strength=1e-2)
    wide = two_layers()
    pl.fit(
        wide, data, EPOCHS, batch_size=16, lr=0.05, precision="float32", progress=False,
        callbacks=[BatchNormL1(1e-2)],
    )  # fmt: skip
    scales = torch.cat([wide[1].weight, wide[4].weight]).detach().abs()
    kept = scales >= scales.sort().values[7]
    for norm, (kept_here, layer) in {"1": (kept[:8], wide[1]), "4": (kept[8:], wide[4])}.items():
        assert torch.equal(seen[1][f"{norm}.weight"], layer.weight.detach()[kept_here])
    trained = {id(p) for group in watcher.optimiser.param_groups for p in group["params"]}
    assert trained == {id(p) for p in result.model.parameters()} and watcher.model is result.model
    after = weights(result.model)
    for name, _ in result.model.named_parameters():
        assert (after[name] != seen[1][name]).float().mean() > 0.9, name


def test_an_l1_penalty_makes_the_scales_smaller(data, watched):
    class Scales(Noting):
        def after_step(self, run):
            if run.step == run.steps:
                self.rows.append(sum(run.model[layer].weight.abs().sum().item() for layer in (1, 4)))

    seen = watched(Scales()).rows
    cook("network_slimming", data, strength=0.0)
    cook("network_slimming", data, strength=0.05)
    assert seen[2] < seen[0]


# ------------------------------------------------------------------------------- during training


def test_gradual_is_fit_with_the_callback(data):
    model = two_layers()
    pl.schedules.attach_masks(model)
    callback = pl.schedules.Gradual("cosine", 0.7, every=2, scope="global", end=0.9)
    pl.fit(
        model, data, EPOCHS, batch_size=16, lr=0.05, precision="float32", progress=False, callbacks=[callback]
    )
    result = cook("gradual", data, schedule="cosine", amount=0.7, every=2, scope="global", end=0.9)
    assert equal(weights(result.model), weights(model))


def test_dense_sparse_dense(data, watched):
    class Phases(Noting):
        def on_start(self, run):
            self.rows.append((weights(pl.finalize(run.model)), bool(pl.masks(run.model))))

    rows = watched(Phases()).rows
    result = cook("dense_sparse_dense", data, amount=0.4)
    assert [masked for _, masked in rows] == [False, True, False]
    rates = [history[-1]["learning_rate"] for history in result.histories.values()]
    assert rates[0] == rates[1] == pytest.approx(10 * rates[2])
    assert list(result.histories) == ["dense", "sparse", "dense again"]
    after = weights(result.model)
    for name in ("0.weight", "3.weight", "7.weight"):
        start = rows[2][0][name]
        returned = start == 0
        assert int(returned.sum()) == round(0.4 * start.numel())
        assert torch.equal(returned, rows[1][0][name] == 0)
        assert (after[name][returned] != 0).float().mean() > 0.9


def test_soft_filter_pruning_zeroes_the_smallest_filters_and_lets_them_train_on(data, watched):
    class Filters(Noting):
        def after_step(self, run):
            self.rows.append(run.model[0].weight.detach().clone())

        def after_epoch(self, run):
            self.rows.append(run.model[0].weight.detach().clone())

    rows = watched(Filters()).rows
    result = cook("soft_filter_pruning", data, amount=0.5)
    ends = [(STEPS + 1) * epoch - 1 for epoch in range(1, EPOCHS + 1)]
    for end in ends:
        norms = rows[end - 1].flatten(1).norm(dim=1)
        zero = ~rows[end].flatten(1).any(1)
        assert int(zero.sum()) == 4 and norms[zero].max() <= norms[~zero].min()
        if end != ends[-1]:
            assert rows[end + 1][zero].flatten(1).any(1).all(), "they go on training"
    assert torch.equal(pl.masks(result.model)["0"].flatten(1).any(1), rows[-1].flatten(1).any(1))
    assert torch.equal(result.model[0].weight, rows[-1])


# ----------------------------------------------------------------------------------- lottery tickets


class Rounds(Callback):
    """The network at the start of each training, and after its first epoch."""

    def __init__(self):
        self.starts, self.first = [], None

    def on_start(self, run):
        self.starts.append((weights(run.model), {n: m.clone() for n, m in pl.masks(run.model).items()}))

    def after_epoch(self, run):
        if self.first is None:
            self.first = weights(run.model)


@pytest.mark.parametrize("rewind", [0, 1])
def test_a_lottery_ticket_is_rewound_and_has_the_last_rounds_mask(data, watched, rewind):
    rounds = watched(Rounds())
    model = two_layers()
    result = cook("lottery_ticket", data, model, amount=0.784, rounds=3, rewind=rewind, controls=False)
    assert list(result.histories) == ["dense", "round 1", "round 2", "round 3"] and not result.controls
    early = rounds.first if rewind else rounds.starts[0][0]
    total = sum(mask.numel() for mask in rounds.starts[0][1].values())
    for number, (start, masks) in enumerate(rounds.starts):
        gone = sum(int((~mask).sum()) for mask in masks.values())
        assert gone == round(total * (1 - 0.6**number))  # 0.784 = 1 - 0.6 ** 3
        for name, mask in masks.items():
            key = f"{name}.parametrizations.weight.original"
            if number:
                assert torch.equal(start[key], early[key] * mask)
                assert not (mask & ~rounds.starts[number - 1][1][name]).any()
        if number:
            assert all(
                torch.equal(start[key], early[key]) for key in ("1.weight", "1.running_mean", "7.bias")
            )
    if not rewind:
        assert torch.equal(early["0.parametrizations.weight.original"], model[0].weight.detach())
    dense, *others = result.histories.values()
    steps = EPOCHS * STEPS
    rates = [learning_rate((epoch * STEPS - 0.5) / steps, 0.05, "one-cycle") for epoch in (1, 2, 3)]
    assert [row["learning_rate"] for row in dense] == pytest.approx(rates)
    for history in others:
        assert [row["epoch"] for row in history] == list(range(rewind + 1, EPOCHS + 1))
        assert [row["learning_rate"] for row in history] == pytest.approx(rates[rewind:])


def test_the_first_mask_is_that_of_the_trained_dense_network(data, watched):
    rounds = watched(Rounds())
    cook("lottery_ticket", data, amount=0.5, rounds=1, rewind=0, controls=False, scope="global")
    dense = two_layers()
    pl.fit(dense, data, EPOCHS, batch_size=16, lr=0.05, precision="float32", progress=False)
    expected = pl.masks(pl.sparsify(dense, amount=0.5, scope="global"))
    assert equal(rounds.starts[1][1], expected)


def test_the_controls_of_a_lottery_ticket(data, watched):
    rounds = watched(Rounds())
    result = cook("lottery_ticket", data, amount=0.6, rounds=2, rewind=1, controls=True)
    assert list(result.controls) == ["random reinitialisation", "random mask"]
    masks = pl.masks(result.model)
    (initial, _), (redrawn, redrawn_masks), (scattered, scattered_masks) = (
        rounds.starts[0],
        *rounds.starts[3:],
    )
    assert equal(redrawn_masks, masks)
    assert equal(pl.masks(result.controls["random reinitialisation"]), masks)
    assert equal(pl.masks(result.controls["random mask"]), scattered_masks)
    for name, mask in masks.items():
        key = f"{name}.parametrizations.weight.original"
        assert torch.equal(scattered[key], rounds.first[key] * scattered_masks[name])
        assert int(scattered_masks[name].sum()) == int(mask.sum())
        assert not torch.equal(scattered_masks[name], mask)
        new, old = redrawn[key][mask], initial[key]
        assert torch.isin(new, old).all() and (new != old[mask]).float().mean() > 0.9
    assert lengths(result)["random reinitialisation"] == EPOCHS
    assert lengths(result)["random mask"] == EPOCHS - 1


# -------------------------------------------------------------------------------- sparse throughout


def test_synflow_leaves_a_geometric_share_each_round_and_no_layer_empty(data, monkeypatch):
    amounts, real = [], recipes.new_masks

    def spy(model, **named):
        amounts.append(named["amount"])
        return real(model, **named)

    monkeypatch.setattr(recipes, "new_masks", spy)
    model = cook("synflow", data, amount=0.936, rounds=3, epochs=1).model
    assert amounts == pytest.approx([0.6, 0.84, 0.936])  # 0.4, 0.4 ** 2, 0.4 ** 3 are left
    assert all(mask.any() for mask in pl.masks(model).values())
    assert pl.metrics.sparsity(model) == pytest.approx(0.936, abs=0.002)


def test_erdos_renyi_by_hand():
    shapes = {"linear": (20, 30), "conv": (10, 20, 3, 3)}
    found = erdos_renyi(shapes, 0.1)
    epsilon = 0.1 * (600 + 1800) / (50 + 36)
    assert found == pytest.approx({"linear": epsilon * 50 / 600, "conv": epsilon * 36 / 1800})


@pytest.mark.parametrize("density", [0.0, 0.02, 0.2, 0.5, 0.9, 1.0])
def test_erdos_renyi_has_the_density_that_was_asked(density):
    shapes = {
        name: tuple(module.weight.shape)
        for name, module in pl.models.resnet20().named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    found = erdos_renyi(shapes, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(found[n] * sizes[n] for n in sizes) == pytest.approx(density * sum(sizes.values()))
    assert all(0 <= value <= 1 for value in found.values())
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    sparse = [name for name in shapes if found[name] < 1]
    ratios = [found[name] / raw[name] for name in sparse]
    assert max(ratios, default=1) == pytest.approx(min(ratios, default=1))
    assert all(raw[full] >= raw[name] for full in shapes if found[full] == 1 for name in sparse)


def test_a_uniform_start_keeps_the_first_layer_dense(data):
    masks = pl.masks(cook("rigl", data, distribution="uniform", amount=0.75, every=100).model)
    assert masks["0"].all()
    assert [int(masks[name].sum()) for name in ("3", "7")] == [108, 135]


def test_rigl_update_by_hand():
    weight = torch.tensor([[0.0, 0.5, -0.1], [0.2, 0.0, -0.9]])
    keep = torch.tensor([[False, True, True], [True, False, True]])
    gradient = torch.tensor([[0.3, 9.0, 0.1], [9.0, -0.4, 9.0]])
    # half of four: -0.1 and 0.2 are dropped; of what is out now, 9.0 and -0.4 are largest
    expected = torch.tensor([[False, True, False], [True, True, True]])
    assert torch.equal(rigl_update(weight, keep, gradient, 0.5), expected)
    assert torch.equal(rigl_update(weight, keep, gradient, 0.2), keep)  # less than one
    once = rigl_update(torch.ones(4), torch.tensor([True, True, False, False]), torch.ones(4), 0.5)
    assert once.tolist() == [True, True, False, False]  # ties: the first of the equal ones, dropped and grown


def slow_rigl(weight, keep, gradient, fraction):
    weight, alive, gradient = weight.flatten().tolist(), keep.flatten().tolist(), gradient.flatten().tolist()
    count = int(fraction * sum(alive))
    for _ in range(count):
        place = min((i for i, a in enumerate(alive) if a), key=lambda i: (abs(weight[i]), i))
        alive[place] = False
        weight[place] = math.inf
    for _ in range(count):
        place = max((i for i, a in enumerate(alive) if not a), key=lambda i: (abs(gradient[i]), -i))
        alive[place] = True
    return torch.tensor(alive).view_as(keep)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_rigl_update_the_slow_way(seed, fraction):
    generator = torch.Generator().manual_seed(seed)
    weight, gradient, places = torch.randn(3, 4, 3, 2, 2, generator=generator)
    keep = places > 0
    found = rigl_update(weight * keep, keep, gradient, fraction)
    assert torch.equal(found, slow_rigl(weight * keep, keep, gradient, fraction))


class Steps(Noting):
    """Masks, stored weights and momentum after each step."""

    def after_step(self, run):
        row = {}
        for name, mask in pl.masks(run.model).items():
            weight = stored(run.model, name)
            momentum = run.optimiser.state.get(weight, {}).get("momentum_buffer")
            momentum = torch.zeros_like(weight) if momentum is None else momentum.clone()
            row[name] = mask.clone(), weight.detach().clone(), momentum
        self.rows.append(row)


def test_rigl_moves_weights_only_when_it_is_due_and_instead_of_a_step(data, watched):
    watcher = watched(Steps())
    result = cook("rigl", data, amount=0.7, every=3, fraction=0.4, end=0.75)
    rows = watcher.rows
    assert len(rows) == EPOCHS * STEPS == 12
    for step in range(1, 12):  # the step after `step` steps
        changed = False
        for name in ("0", "3", "7"):
            (old, before, _), (new, after, momentum) = rows[step - 1][name], rows[step][name]
            assert int(old.sum()) == int(new.sum())
            changed |= not torch.equal(old, new)
            assert not after[~new].any() and not momentum[~new].any()
            if step in (3, 6):  # below 0.75 * 12
                assert torch.equal(after[old & new], before[old & new]), "no step of the optimiser"
                assert not after[new & ~old].any() and not momentum[new & ~old].any()
                share = 0.4 / 2 * (1 + math.cos(math.pi * step / 9))
                assert int((new & ~old).sum()) <= int(share * int(old.sum()))
            else:
                assert torch.equal(old, new)
                assert (after[new] != before[new]).float().mean() > 0.9
        assert changed == (step in (3, 6))
    assert not any(module._forward_hooks for module in result.model.modules())


def test_rigl_sees_the_gradients_of_removed_weights(data, watched, monkeypatch):
    """Against the plain network with the same weights and the whole training split as one batch."""
    seen, expected = [], []

    class Reference(Callback):
        def after_step(self, run):
            if run.step != 2:
                return
            plain = two_layers()
            state = {key: value for key, value in weights(run.model).items() if not key.endswith("keep")}
            plain.load_state_dict({key.replace("parametrizations.weight.original", "weight"): value
                                   for key, value in state.items()})  # fmt: skip
            images = data.train.normalise(data.train.images)
            F.cross_entropy(plain(images), data.train.labels).backward()
            expected.extend(plain.get_submodule(name).weight.grad for name in ("0", "3", "7"))

    def spy(weight, keep, gradient, fraction):
        seen.append((gradient.clone(), keep.clone()))
        return rigl_update(weight, keep, gradient, fraction)

    watched(Reference())
    monkeypatch.setattr(recipes, "rigl_update", spy)
    cook("rigl", data, every=2, epochs=4, batch_size=56, augment=False, end=0.6)
    assert len(seen) == len(expected) == 3
    for (gradient, keep), reference in zip(seen, expected, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
        assert gradient[~keep].any()


def test_set_update_by_hand():
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4, -0.5, -0.05, -0.6, -0.7, 0.0, 0.0, 0.0, 0.0])
    keep = torch.tensor([True] * 8 + [False] * 4)
    seen = set()
    for seed in range(200):
        new = set_update(weight, keep, 0.5, torch.Generator().manual_seed(seed))
        assert int(new.sum()) == 8
        # the larger two positive and the lower two negative ones stay: half of either sign
        assert new[[2, 3, 6, 7]].all()
        seen.add(tuple(new.tolist()))
    assert len(seen) > 40, "places are drawn at random"
    assert all(any(pattern[place] for pattern in seen) for place in (0, 1, 4, 5, 8, 9, 10, 11))
    assert torch.equal(set_update(weight, keep, 0.2, torch.Generator()), keep)  # less than one of either sign


def test_set_moves_weights_between_epochs_only(data, watched):
    class Epochs(Steps):
        def after_epoch(self, run):
            self.after_step(run)

    rows = watched(Epochs()).rows
    result = cook("sparse_evolutionary_training", data, amount=0.7, fraction=0.4)
    densities = erdos_renyi({"0": (8, 3, 3, 3), "3": (6, 8, 3, 3), "7": (10, 54)}, 0.3)
    ends = [(STEPS + 1) * epoch - 1 for epoch in range(1, EPOCHS + 1)]
    for name in ("0", "3", "7"):
        for number, (before, after) in enumerate(itertools.pairwise(rows), start=1):
            (old, weight, _), (new, moved, momentum) = before[name], after[name]
            assert int(new.sum()) == round(densities[name] * new.numel())
            assert not moved[~new].any() and not momentum[~new].any()
            if number in ends[:-1]:
                assert not torch.equal(old, new) and not moved[new & ~old].any()
                assert torch.equal(moved[old & new], weight[old & new])
                assert not momentum[new & ~old].any()
            else:
                assert torch.equal(old, new)
    assert torch.equal(pl.masks(result.model)["3"], rows[-1]["3"][0])


def test_another_network_works_as_well(data):
    """Dropout, an identity, a biased convolution."""
    for name in ("rigl", "lottery_ticket", "sparse_evolutionary_training"):
        result = cook(name, data, tiny_model())
        assert pl.metrics.sparsity(result.model) == pytest.approx(0.6, abs=0.01)
