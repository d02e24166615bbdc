"""Training: against a loop written by hand, killed and continued, and stopped in every way it can stop."""

import itertools
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import training
from prunelab.data import Data, Split
from prunelab.training import Callback, TrainingDiverged, evaluate, fit, learning_rate, recalibrate

EPOCHS, BATCH = 3, 16
STEPS = 4  # of an epoch: 56 pictures in batches of 16, the last one smaller


def tiny_data() -> Data:
    """Ten colours under noise."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (10, 3, 1, 1), generator=generator)

    def split(count):
        labels = torch.randint(0, 10, (count,), generator=generator)
        noise = torch.randint(-40, 41, (count, 3, 32, 32), generator=generator)
        images = (colours[labels] + noise).clamp(0, 255).to(torch.uint8)
        return Split(images, labels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    return Data("embedded", tuple("abcdefghij"), split(56), split(30), split(20), "made for the tests")


def tiny_model(dropout=0.2, norm=True, seed=0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=4),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(384, 10),
        )


class Remembering(Callback):
    """Its penalty grows with every step it has seen: without its memory, other weights come out."""

    def __init__(self):
        self.seen = 0
        self.average = torch.zeros(10)

    def penalty(self, run):
        return 1e-3 * self.seen * run.model[5].bias.sub(self.average).square().sum()

    def after_step(self, run):
        self.seen += 1
        self.average = 0.9 * self.average + run.model[5].bias.detach()

    def state_dict(self):
        return {"seen": self.seen, "average": self.average}

    def load_state_dict(self, state):
        self.seen, self.average = state["seen"], state["average"]


class At(Callback):
    """Does something after the given step."""

    def __init__(self, step=None, action=None):
        self.step, self.action, self.steps = step, action, []

    def after_step(self, run):
        self.steps.append(run.step)
        if run.step == self.step:
            self.action(run)


@pytest.fixture(autouse=True)
def one_thread():
    """The killed processes below run with one thread, so what they are compared with does, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def quick(model, data, epochs=EPOCHS, **more):
    return fit(
        model,
        data,
        epochs,
        **{"batch_size": BATCH, "lr": 0.05, "precision": "float32", "progress": False} | more,
    )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def timeless(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


# ---------------------------------------------------------------------------- what one step does


def reference_loop(model, data, steps, *, lr, momentum, weight_decay, smoothing, rate, penalty):
    """Nesterov's method on the whole training split, from its formulas; no optimiser, no loss function."""
    images, labels = data.train.normalise(data.train.images), data.train.labels
    velocity = [torch.zeros_like(w) for w in model.parameters()]
    losses = []
    for step in range(steps):
        log_p = model(images).log_softmax(1)
        truth = (1 - smoothing) * F.one_hot(labels, 10) + smoothing / 10
        loss = -(truth * log_p).sum(1).mean() + penalty(model)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for w, v, g in zip(model.parameters(), velocity, gradients, strict=True):
                g = g + weight_decay * w
                v.mul_(momentum).add_(g)
                w -= rate(step) * lr * (g + momentum * v)
    return losses


class Pulling(Callback):
    def penalty(self, run):
        return 0.01 * sum(w.abs().sum() for w in run.model.parameters())


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize(("weight_decay", "smoothing", "pulled"), [(0.0, 0.0, False), (0.1, 0.2, True)])
def test_training_is_nesterovs_method(data, momentum, weight_decay, smoothing, pulled):
    steps = 5
    ours, theirs = (tiny_model(dropout=0.0, norm=False) for _ in range(2))
    history = quick(
        ours,
        data,
        steps,  # one batch an epoch
        batch_size=len(data.train),
        lr=0.1,
        schedule="cosine",
        momentum=momentum,
        weight_decay=weight_decay,
        label_smoothing=smoothing,
        augment=False,
        callbacks=[Pulling()] if pulled else [],
    )
    losses = reference_loop(
        theirs,
        data,
        steps,
        lr=0.1,
        momentum=momentum,
        weight_decay=weight_decay,
        smoothing=smoothing,
        rate=lambda step: (1 + math.cos(math.pi * (step + 0.5) / steps)) / 2,
        penalty=lambda model: 0.01 * sum(w.abs().sum() for w in model.parameters()) if pulled else 0.0,
    )
    assert [row["loss"] for row in history] == pytest.approx(losses, rel=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_learning_rates_by_hand():
    one_cycle = {0: 0, 0.1: 0.5, 0.2: 1, 0.4: 0.75, 0.6: 0.5, 0.8: 0.25, 1: 0}
    cosine = {0: 1, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1: 0}
    for schedule, points in (("one-cycle", one_cycle), ("cosine", cosine)):
        for progress, share in points.items():
            assert learning_rate(progress, 0.4, schedule) == pytest.approx(0.4 * share, abs=1e-12)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_every_step_has_the_rate_of_its_middle(data, schedule):
    rates = []

    class Reading(Callback):
        def after_step(self, run):
            rates.append(run.optimiser.param_groups[0]["lr"])

    history = quick(tiny_model(), data, lr=0.3, schedule=schedule, callbacks=[Reading()])
    steps = EPOCHS * STEPS
    assert rates == [learning_rate((step + 0.5) / steps, 0.3, schedule) for step in range(steps)]
    assert [row["learning_rate"] for row in history] == rates[STEPS - 1 :: STEPS]
    assert min(rates) > 0


def test_it_learns(data):
    model = tiny_model()
    before = evaluate(model, data.validation).accuracy
    history = quick(model, data, 25)
    assert history[-1]["validation_accuracy"] > before + 0.3
    assert history[-1]["loss"] < history[0]["loss"] / 2


class Flattening(nn.Module):
    """Looks at its pictures as many a first network does: `view` needs them colour after colour in memory."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(256, 10)
        self.layouts = set()

    def forward(self, x):
        self.layouts.add(x.is_contiguous())
        return self.linear(F.relu(self.conv(x)).view(len(x), -1))


@pytest.mark.parametrize("augment", [True, False])
def test_channels_last_where_the_model_takes_it(data, augment):
    model, layouts = tiny_model(), set()
    model[0].register_forward_hook(
        lambda module, given, output: layouts.add(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    quick(model, data, 1, augment=augment)
    assert layouts == {True}
    flattening = Flattening()
    assert len(quick(flattening, data, 1, augment=augment)) == 1
    assert evaluate(flattening, data.test).pictures == 20 and True in flattening.layouts


# ------------------------------------------------------------------------------------- what is told


def test_the_history_tells_what_was_measured(data):
    """At a rate of almost zero the network stands still, so that every epoch can be measured from outside."""
    model = tiny_model(dropout=0.0, norm=False)
    history = quick(model, data, 2, lr=1e-12, weight_decay=0.0, augment=False)
    for number, row in enumerate(history, start=1):
        assert set(row) == {
            "epoch", "loss", "train_accuracy", "learning_rate", "seconds", "validation_loss",
            "validation_accuracy",
        }  # fmt: skip
        assert row["epoch"] == number and row["seconds"] > 0
        for part, loss, accuracy in (
            (data.train, row["loss"], row["train_accuracy"]),
            (data.validation, row["validation_loss"], row["validation_accuracy"]),
        ):
            measured = evaluate(model, part)
            assert (loss, accuracy) == pytest.approx((measured.loss, measured.accuracy), rel=1e-5)
    assert len(history) == 2 and history.precision == "float32" and not history.interrupted
    assert re.fullmatch(r"History\(2 epochs, loss \d\.\d{3}, validation accuracy \d+\.\d%\)", repr(history))


def test_without_validation_the_validation_split_is_not_touched(data):
    blind = Data("embedded", data.classes, data.train, None, None, "")
    history = quick(tiny_model(), blind, 1, validate=False)
    assert "validation_accuracy" not in history[0] and "validation" not in repr(history)


def test_evaluate_is_the_mean_over_single_pictures(data):
    model = tiny_model()
    model[1].running_mean.uniform_(-1, 1)
    model.eval()
    losses, hits = [], []
    with torch.no_grad():
        for image, label in zip(data.train.images, data.train.labels, strict=True):
            logits = model((image[None].double() / 255 - 0.5).div(0.25).float())[0].double()
            losses.append(float(logits.exp().sum().log() - logits[label]))
            hits.append(int(logits.argmax()) == int(label))
    for batch_size in (500, 16, 1):
        result = evaluate(model.train(), data.train, batch_size=batch_size)
        assert result.loss == pytest.approx(sum(losses) / 56, rel=1e-5)
        assert result.accuracy == sum(hits) / 56 and result.pictures == 56


def test_evaluate_leaves_the_model_as_it_was(data):
    model = tiny_model().train()
    model[1].eval()  # frozen
    before = weights(model)
    evaluate(model, data.test)
    assert equal(before, weights(model))
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(w.grad is None for w in model.parameters())
    with pytest.raises(RuntimeError):
        evaluate(model, Split(data.test.images[:, :, :9], data.test.labels, data.test.mean, data.test.std))
    assert model.training and not model[1].training
    evaluate(model.eval(), data.test)
    assert not model.training


def test_recalibrate_measures_the_statistics_anew_and_nothing_else(data):
    model = tiny_model().train()
    model[1].running_mean.fill_(9.0)
    before = weights(model)
    fresh = recalibrate(model, data.train, batch_size=28, augment=False)
    assert equal(before, weights(model)) and model.training and not fresh.training
    seen = model[0](data.train.normalise(data.train.images)).detach().transpose(0, 1)  # a channel first
    assert torch.allclose(fresh[1].running_mean, seen.flatten(1).mean(1), atol=1e-5)
    halves = [half.flatten(1).var(1) for half in seen.split(28, dim=1)]
    assert torch.allclose(fresh[1].running_var, torch.stack(halves).mean(0), rtol=1e-4)
    assert equal(dict(fresh.named_parameters()), dict(model.named_parameters()))
    assert not torch.equal(recalibrate(model, data.train)[1].running_mean, fresh[1].running_mean)  # augmented


def test_recalibrate_brings_back_what_only_the_statistics_had_lost():
    pictures = pl.data.load("embedded", quiet=True)
    model = pl.models.resnet20(weights="embedded").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var *= 100
    fresh = recalibrate(model, pictures.train, pictures=250)
    spoiled, restored = (evaluate(m, pictures.validation.subset(250)).accuracy for m in (model, fresh))
    assert restored > spoiled + 0.3


# ------------------------------------------------------------------------------------- repeatable


def test_equal_seeds_give_equal_weights_to_the_last_bit(data):
    def run(seed, scramble):
        torch.manual_seed(scramble)  # what was drawn before must not matter
        model = tiny_model()
        return weights(model), timeless(quick(model, data, seed=seed)), weights(model)

    first, again, other = run(1, 5), run(1, 6), run(2, 5)
    assert equal(first[0], other[0])
    assert equal(first[2], again[2]) and first[1] == again[1]
    assert not equal(first[2], other[2])


@pytest.mark.parametrize("augment", [True, False])
def test_order_augmentation_and_dropout_are_new_in_every_epoch(data, augment):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            if self.training:
                seen.append((x, F.dropout(torch.ones(50))))
            return x

    whole = {"batch_size": len(data.train), "augment": augment, "validate": False}
    quick(nn.Sequential(Spy(), tiny_model()), data, **whole)
    original = data.train.normalise(data.train.images)
    orders = [torch.cdist(images.flatten(1), original.flatten(1)).argmin(1) for images, _ in seen]
    assert len(seen) == EPOCHS
    for order, (images, _) in zip(orders, seen, strict=True):
        unchanged = (images == original[order]).all(dim=(1, 2, 3)).float().mean()
        assert unchanged < 0.1 if augment else unchanged == 1
    if not augment:
        assert all(sorted(order.tolist()) == list(range(56)) for order in orders)
        assert len({tuple(order.tolist()) for order in [*orders, torch.arange(56)]}) == EPOCHS + 1
    for (images, dropped), (other_images, other_dropped) in itertools.combinations(seen, 2):
        assert not torch.equal(images, other_images) and not torch.equal(dropped, other_dropped)


def test_training_leaves_the_callers_random_numbers_alone(data):
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    quick(tiny_model(), data, 1)
    assert torch.equal(torch.rand(5), expected)


# -------------------------------------------------------------------------------------- callbacks


def test_callbacks_are_called_in_order(data, monkeypatch, tmp_path):
    calls = []

    class Logging(Callback):
        def __init__(self, name):
            self.name = name

    def logs(event):
        def method(self, run):
            calls.append((event, self.name, run.step, run.epoch, run.progress))
            return 0.0

        return method

    for event in ("on_start", "penalty", "after_backward", "after_step", "after_epoch"):
        setattr(Logging, event, logs(event))
    for name, event in (("evaluate", "validated"), ("_write_checkpoint", "stored")):
        real = getattr(training, name)
        monkeypatch.setattr(
            training, name, lambda *a, real=real, event=event, **k: calls.append((event,)) or real(*a, **k)
        )
    quick(tiny_model(), data, 2, callbacks=[Logging("a"), Logging("b")], checkpoint=tmp_path / "run.pt")

    expected = [("on_start", name, 0, 0, 0.0) for name in "ab"]
    for epoch in range(2):
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            for event, done in (("penalty", step), ("after_backward", step), ("after_step", step + 1)):
                expected += [(event, name, done, epoch, done / (2 * STEPS)) for name in "ab"]
        done = (epoch + 1) * STEPS
        expected += [("after_epoch", name, done, epoch + 1, done / (2 * STEPS)) for name in "ab"]
        expected += [("validated",), ("stored",)]
    assert calls == expected


def test_a_callback_sees_the_model_the_data_and_its_gradients(data):
    model = tiny_model()
    first = model[0].weight.detach().clone()

    class Freezing(Callback):
        def after_backward(self, run):
            assert run.model is model and run.data is data
            assert (run.steps, run.epochs) == (2 * STEPS, 2)
            assert run.model[0].weight.grad.abs().sum() > 0
            run.model[0].weight.grad.zero_()

    quick(model, data, 2, weight_decay=0.0, callbacks=[Freezing()])
    assert torch.equal(model[0].weight, first)


def test_masked_weights_stay_zero(data):
    dense = tiny_model()
    for granularity in ("weight", "filter"):
        model = pl.sparsify(dense, granularity=granularity, amount=0.5)
        keep = pl.masks(model)
        before = weights(pl.finalize(model))
        quick(model, data)
        after = weights(pl.finalize(model))
        for name, mask in keep.items():
            assert (after[f"{name}.weight"][~mask] == 0).all() and (~mask).any()
            assert (after[f"{name}.weight"][mask] != before[f"{name}.weight"][mask]).any()


# ---------------------------------------------------------------------------- killed, and continued


def whole_run(checkpoint=None, killer=None):
    """A run with everything that has a state: dropout, batch norm, masks, momentum, a callback."""
    model = pl.sparsify(tiny_model(), amount=0.3)
    callbacks = [Remembering(), killer or At()]
    history = quick(model, tiny_data(), callbacks=callbacks, checkpoint=checkpoint)
    return model, history, callbacks


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(checkpoint, how):
    """What the processes below do: die inside an epoch, or while the checkpoint is being written."""
    torch.set_num_threads(1)
    if how == "writing":

        def half(stored, path):
            Path(path).write_bytes(b"half of a checkpoint")
            kill()

        torch.save = half
    whole_run(checkpoint, At(STEPS + 2, kill) if how == "training" else None)


def dies(checkpoint, how):
    code = f"import test_training; test_training.run_and_die({str(checkpoint)!r}, {how!r})"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_run_continues_to_the_same_weights(tmp_path):
    checkpoint = tmp_path / "runs" / "run.pt"
    dies(checkpoint, "training")  # in the middle of epoch 2
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    kept = checkpoint.read_bytes()
    dies(checkpoint, "writing")  # at the end of epoch 2
    assert checkpoint.read_bytes() == kept
    assert len(list(checkpoint.parent.glob("*.partial"))) == 1

    model, history, callbacks = whole_run(checkpoint)
    assert callbacks[1].steps == list(range(STEPS + 1, EPOCHS * STEPS + 1))  # epochs 2 and 3 only
    expected_model, expected_history, expected_callbacks = whole_run()
    assert equal(weights(model), weights(expected_model))
    assert timeless(history) == timeless(expected_history)
    assert callbacks[0].seen == expected_callbacks[0].seen == EPOCHS * STEPS
    assert torch.equal(callbacks[0].average, expected_callbacks[0].average)


def test_a_finished_run_is_restored_at_once(data, tmp_path, monkeypatch):
    model = tiny_model()
    history = quick(model, data, checkpoint=tmp_path / "run.pt")
    monkeypatch.setattr(training, "_train_epoch", None)  # nothing is trained
    again = tiny_model(seed=1)
    restored = quick(again, data, checkpoint=tmp_path / "run.pt")
    assert equal(weights(again), weights(model)) and list(restored) == list(history)


def test_the_checkpoint_appears_whole(data, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    save = torch.save
    before = []

    def watched(stored, partial):
        before.append(path.read_bytes() if path.exists() else None)
        save(stored, partial)
        assert (path.read_bytes() if path.exists() else None) == before[-1]

    monkeypatch.setattr(torch, "save", watched)
    quick(tiny_model(), data, checkpoint=path)
    assert before[0] is None and len(set(before)) == EPOCHS
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_a_checkpoint_of_other_settings(data, tmp_path):
    path = tmp_path / "run.pt"
    quick(tiny_model(), data, checkpoint=path)
    kept = path.read_bytes()
    with pytest.raises(ValueError) as caught:
        quick(tiny_model(), data, 5, lr=0.1, checkpoint=path)
    assert str(caught.value) == (
        f"checkpoint {path} is of a run with other settings (epochs was 3, is 5; lr was 0.05, is 0.1): "
        "delete it to start afresh, or name another file"
    )
    for other in (
        {"seed": 1},
        {"schedule": "cosine"},
        {"momentum": 0.8},
        {"weight_decay": 0.0},
        {"label_smoothing": 0.1},
        {"augment": False},
        {"batch_size": 20},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(other))} was"):
            quick(tiny_model(), data, checkpoint=path, **other)
    fewer = Data("embedded", data.classes, data.train.subset(20), data.validation, data.test, "")
    with pytest.raises(ValueError, match="pictures was 56, is 20"):
        quick(tiny_model(), fewer, checkpoint=path)
    assert path.read_bytes() == kept


def test_a_checkpoint_of_another_network_or_other_callbacks(data, tmp_path):
    path = tmp_path / "run.pt"
    quick(tiny_model(), data, checkpoint=path)
    wider = tiny_model(seed=1)
    wider[5] = nn.Linear(384, 11)
    masked = pl.sparsify(tiny_model(seed=1), amount=0.5)
    for model in (wider, masked):
        before = weights(model)
        with pytest.raises(ValueError, match=f"checkpoint {path} is of another network.*delete it"):
            quick(model, data, checkpoint=path)
        assert equal(weights(model), before)
    with pytest.raises(ValueError, match="of a run with 0 callbacks, this one has 1: pass the same ones"):
        quick(tiny_model(), data, checkpoint=path, callbacks=[Remembering()])


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "something else", "trap"])
def test_a_damaged_checkpoint(data, tmp_path, damage):
    path, model = tmp_path / "run.pt", tiny_model()
    if damage == "something else":
        torch.save([1, 2, 3], path)
    elif damage == "trap":
        path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    else:
        quick(tiny_model(), data, checkpoint=path)
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "truncated": whole[:-200], "text": b"hello"}[damage])
    kept, before = path.read_bytes(), weights(model)
    with pytest.raises(ValueError) as caught:
        quick(model, data, checkpoint=path)
    assert str(caught.value).startswith(f"checkpoint {path} is not a stored run (")
    assert str(caught.value).endswith("): delete it to start afresh") and "\n" not in str(caught.value)
    assert path.read_bytes() == kept and equal(weights(model), before)
    assert not (tmp_path / "sprung").exists()  # reading ran no code


# ---------------------------------------------------------------------------- stopped before the end


def after_epochs(data, count):
    """The weights after so many whole epochs of three, from a run that was not stopped."""
    kept = []

    class Keeping(Callback):
        def after_epoch(self, run):
            kept.append(weights(run.model))

    model = tiny_model()
    kept.append(weights(model))
    quick(model, data, callbacks=[Keeping()])
    return kept[count]


def interrupt(run):
    raise KeyboardInterrupt


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_ctrl_c_keeps_the_last_whole_epoch(data, tmp_path, capsys, whole):
    model = tiny_model()
    stopping = At(whole * STEPS + 3, interrupt)
    history = quick(model, data, callbacks=[stopping], checkpoint=tmp_path / "run.pt")
    assert equal(weights(model), after_epochs(data, whole))
    assert history.interrupted and len(history) == whole
    said = f"stopped by hand: the model is as it was after epoch {whole} of 3\n"
    assert capsys.readouterr().out == said

    model = tiny_model()
    history = quick(model, data, callbacks=[At()], checkpoint=tmp_path / "run.pt")
    assert equal(weights(model), after_epochs(data, 3)) and not history.interrupted


def test_ctrl_c_during_validation_keeps_the_epoch_before(data, monkeypatch):
    model, rounds = tiny_model(), []
    real = evaluate

    def stopped(*given, **named):
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(training, "evaluate", stopped)
    history = quick(model, data)
    monkeypatch.undo()
    assert len(history) == 1 and equal(weights(model), after_epochs(data, 1))


class Poison(Callback):
    def __init__(self, step, value):
        self.step, self.value = step, value

    def penalty(self, run):
        return self.value if run.step == self.step else 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_restores(data, tmp_path, value):
    model = tiny_model()
    with pytest.raises(TrainingDiverged) as caught:
        quick(model, data, callbacks=[Poison(STEPS + 1, value)], checkpoint=tmp_path / "run.pt")
    assert re.fullmatch(
        rf"the loss became {value} in epoch 2 at a learning rate of 0\.\d+: try a lower lr \(now lr=0\.05\)"
        r"\. The model is as it was after epoch 1",
        str(caught.value),
    )
    assert equal(weights(model), after_epochs(data, 1))
    assert torch.load(tmp_path / "run.pt", weights_only=True)["epoch"] == 1


def test_a_rate_that_is_far_too_high_diverges(data):
    model = tiny_model(norm=False)
    before = weights(model)
    with pytest.raises(
        TrainingDiverged, match=r"in epoch 1 .*try a lower lr \(now lr=1e\+20\), or precision"
    ):
        quick(model, data, lr=1e20, precision="bfloat16")
    assert equal(weights(model), before)


def test_weights_that_the_last_step_spoils_are_not_kept(data):
    def spoil(run):
        with torch.no_grad():
            run.model[5].bias[0] = math.nan

    model = tiny_model()
    with pytest.raises(TrainingDiverged, match=r"weights became infinite or NaN in epoch 2 .*after epoch 1"):
        quick(model, data, callbacks=[At(2 * STEPS, spoil)], validate=False)
    assert equal(weights(model), after_epochs(data, 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs=0: must be at least 1"),
        ({"lr": 0.0}, "lr=0.0: must be above 0"),
        ({"lr": math.nan}, "lr=nan: must be above 0"),
        ({"schedule": "linear"}, "schedule='linear': use 'one-cycle' or 'cosine'"),
        ({"precision": "float16"}, "precision='float16': use 'auto', 'float32' or 'bfloat16'"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
    ],
)
def test_wrong_arguments(data, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        quick(tiny_model(), data, **wrong)


# ------------------------------------------------------------------------------- precision, progress


@pytest.fixture
def measured(monkeypatch):
    """`fastest_precision` on a machine on which a step takes the given times."""

    def measure(**milliseconds):
        clock = itertools.count()  # stands still but for the steps
        now = [0.0]
        monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now[0]))

        def step(precision):
            # The very first call is slow, as first calls are; it must not count.
            now[0] += milliseconds[precision] + (1000 if next(clock) < 2 else 0)

        monkeypatch.setattr(training, "_training_step", lambda device: step)
        training.fastest_precision.cache_clear()
        return training.fastest_precision()

    monkeypatch.delenv("PRUNELAB_PRECISION", raising=False)
    yield measure
    training.fastest_precision.cache_clear()


def test_bfloat16_only_where_it_is_measured_to_be_faster(measured):
    assert measured(float32=20, bfloat16=10) == "bfloat16"
    assert measured(float32=10, bfloat16=20) == "float32"
    assert measured(float32=10, bfloat16=10) == "float32"
    assert measured(float32=10.5, bfloat16=10) == "float32"  # too little to be sure


def test_the_measurement_runs_and_draws_nothing(monkeypatch):
    monkeypatch.delenv("PRUNELAB_PRECISION", raising=False)
    training.fastest_precision.cache_clear()
    torch.manual_seed(4)
    state = torch.random.get_rng_state()
    assert training.fastest_precision("cpu") in ("float32", "bfloat16")
    assert torch.equal(state, torch.random.get_rng_state())
    training.fastest_precision.cache_clear()


def test_the_precision_can_be_ordered(data, measured, monkeypatch):
    for ordered in ("bfloat16", "float32"):
        monkeypatch.setenv("PRUNELAB_PRECISION", ordered)
        training.fastest_precision.cache_clear()
        assert quick(tiny_model(), data, 1, precision="auto").precision == ordered
    monkeypatch.setenv("PRUNELAB_PRECISION", "half")
    training.fastest_precision.cache_clear()
    with pytest.raises(ValueError, match="PRUNELAB_PRECISION='half': use 'float32' or 'bfloat16'"):
        quick(tiny_model(), data, 1, precision="auto")


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_precision_is_that_of_the_forward_passes_only(data, precision, dtype):
    model, seen = tiny_model(), set()
    model[0].register_forward_hook(lambda module, given, output: seen.add((module.training, output.dtype)))
    history = quick(model, data, 1, precision=precision)
    assert seen == {(True, dtype), (False, dtype)} and history.precision == precision
    assert all(w.dtype == torch.float32 for w in model.parameters())
    seen.clear()
    evaluate(model, data.test)
    assert seen == {(False, torch.float32)}


def test_a_continued_run_keeps_its_precision(data, tmp_path):
    path = tmp_path / "run.pt"
    quick(tiny_model(), data, callbacks=[At(STEPS + 1, interrupt)], checkpoint=path, precision="bfloat16")
    model, whole = tiny_model(), tiny_model()
    assert quick(model, data, callbacks=[At()], checkpoint=path).precision == "bfloat16"
    quick(whole, data, precision="bfloat16")
    assert equal(weights(model), weights(whole))


def test_the_progress_bar_outside_a_terminal(data, capsys):
    slow = At(2, lambda run: time.sleep(0.6))  # longer than the bar waits between two pictures of itself
    quick(tiny_model(), data, 2, progress=True, callbacks=[slow])
    shown = capsys.readouterr().err
    number = r"\d\.\d{3}"
    assert re.search(
        rf"epoch 1/2:  \d+%\|.*\| \d/8 \[00:00<00:0\d, .*, loss {number}, accuracy \d+\.\d%\]", shown
    )
    assert re.search(
        rf"epoch 2/2: 100%\|.*\| 8/8 \[00:0\d<00:00, .*, loss {number}, validation \d+\.\d%\]", shown
    )
    assert shown.count("epoch") < 12  # not a line for every step


def test_the_progress_bar_can_be_switched_off(data, capsys):
    quick(tiny_model(), data)
    evaluate(tiny_model(), data.test, progress=False)
    assert capsys.readouterr() == ("", "")


def test_the_progress_bar_of_a_continued_run_starts_where_it_was(data, tmp_path, capsys):
    path = tmp_path / "run.pt"
    quick(tiny_model(), data, callbacks=[At(STEPS + 1, interrupt)], checkpoint=path)
    capsys.readouterr()
    quick(tiny_model(), data, callbacks=[At()], checkpoint=path, progress=True)
    shown = capsys.readouterr().err.split("\r")
    assert re.match(r"epoch 2/3:  33%\|.*\| 4/12 ", shown[1]) and "12/12" in shown[-1]


def test_distillation_adds_the_divergence_from_the_teacher() -> None:
    # At T = 2 the teacher's logits 2 ln 2 and 0 say (2/3, 1/3), the student's equal ones (1/2, 1/2).
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).train()
    with torch.no_grad():
        teacher[1].weight.zero_()
        teacher[1].bias.copy_(torch.tensor([2 * math.log(2), 0.0]))
    run = SimpleNamespace(
        images=torch.randn(5, 3, 2, 2), logits=torch.zeros(5, 2, requires_grad=True), precision="float32"
    )
    divergence = 2 / 3 * math.log(2 / 3 / 0.5) + 1 / 3 * math.log(1 / 3 / 0.5)
    found = training.Distillation(teacher, temperature=2.0, strength=0.5).penalty(run)
    assert found.item() == pytest.approx(0.5 * 2**2 * divergence, rel=1e-5)
    found.backward()
    assert run.logits.grad[0, 0] < 0 < run.logits.grad[0, 1]  # towards the teacher's answer
    assert teacher[1].weight.grad is None and teacher.training


def test_distillation_teaches_what_no_label_says() -> None:
    """With labels drawn at random, only the teacher can have taught its answers."""
    data, teacher = tiny_data(), tiny_model(dropout=0.0)
    fit(teacher, data, 20, batch_size=BATCH, lr=0.05, precision="float32", progress=False)
    labels = torch.randint(0, 10, (56,), generator=torch.Generator().manual_seed(1))
    confused = replace(data, train=replace(data.train, labels=labels))
    agreement = []
    for callbacks in ([], [training.Distillation(teacher, strength=1.0)]):
        student = tiny_model(dropout=0.0, seed=1)
        fit(
            student, confused, 20, batch_size=BATCH, lr=0.05, precision="float32", callbacks=callbacks,
            progress=False,
        )  # fmt: skip
        images = data.validation.normalise(data.validation.images)
        with torch.no_grad():
            same = student.eval()(images).argmax(1) == teacher.eval()(images).argmax(1)
        agreement.append(same.double().mean().item())
    assert agreement[1] > agreement[0] + 0.3


@pytest.mark.parametrize(("argument", "value"), [("temperature", 0.0), ("strength", -1.0)])
def test_distillation_refuses_what_makes_no_sense(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        training.Distillation(tiny_model(), **{argument: value})
