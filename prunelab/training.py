"""Training and evaluation: one loop, callbacks that act inside it, and runs that survive being killed."""

from __future__ import annotations

import copy
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from prunelab.basics import evaluating, whole_file
from prunelab.data import Data, Split

WARM_UP = 0.2  # share of a one-cycle run in which the learning rate still climbs


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


class Evaluation(NamedTuple):
    """Mean cross-entropy (nats), accuracy (0..1) and on how many pictures they were measured."""

    loss: float
    accuracy: float
    pictures: int


@dataclass
class Run:
    """What a callback sees of the training it takes part in.

    Attributes:
        model, optimiser: the things being trained.
        data: the whole data set (callbacks choose on ``data.validation``, never on ``data.test``).
        step, steps: optimiser steps done, and in all.
        epoch, epochs: whole epochs done, and in all.
        precision: the arithmetic of the forward passes, ``"float32"`` or ``"bfloat16"``.
        images, logits: of this step, ``(n, 3, h, w)`` normalised and ``(n, classes)`` float32; what a penalty
            on the answers needs.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    data: Data
    steps: int
    epochs: int
    step: int = 0
    epoch: int = 0
    precision: str = "float32"
    images: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0..1: the clock that schedules read."""
        return self.step / self.steps


class Callback:
    """Something that acts during training; override what you need.

    A callback with a memory also overrides ``state_dict`` and ``load_state_dict`` (tensors, numbers, strings,
    lists and dicts only), so that a resumed run continues as if it had never stopped.
    """

    def on_start(self, run: Run) -> None:
        """Before the first step (and again when a run is resumed, after everything was restored)."""

    def penalty(self, run: Run) -> Tensor | float:
        """Added to the loss of every step: a regulariser."""
        return 0.0

    def after_backward(self, run: Run) -> None:
        """Gradients are there, the optimiser has not used them yet."""

    def after_step(self, run: Run) -> None:
        """The optimiser has stepped; ``run.step`` already counts it."""

    def after_epoch(self, run: Run) -> None:
        """An epoch is over and was not yet validated or stored."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


class Distillation(Callback):
    r"""Learn from a teacher's answers besides the labels (Hinton et al., 2015, section 2).

    Adds :math:`\lambda T^2\, \mathrm{KL}(\sigma(z^t / T) \,\|\, \sigma(z^s / T))` to the loss, the mean over
    the batch: :math:`\sigma` is the softmax, :math:`z^t` the logits of the teacher, :math:`z^s` those of the
    network in training. A soft answer says which wrong classes are nearly right; :math:`T^2` keeps the size
    of its gradients.

    Args:
        teacher: a trained network with the same classes, such as the one before pruning; left as it is.
        temperature: :math:`T > 0`; the higher, the softer.
        strength: :math:`\lambda \ge 0`.
    """

    def __init__(self, teacher: nn.Module, temperature: float = 4.0, strength: float = 1.0):
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        if not strength >= 0:
            raise ValueError(f"strength={strength}: must be at least 0")
        self.teacher, self.temperature, self.strength = teacher, temperature, strength

    def penalty(self, run: Run) -> Tensor:
        with evaluating(self.teacher), torch.no_grad(), _autocast(run.images.device, run.precision):
            wanted = self.teacher(run.images).float()
        soft, answer = (F.log_softmax(z / self.temperature, dim=1) for z in (wanted, run.logits))
        divergence = F.kl_div(answer, soft, reduction="batchmean", log_target=True)
        return self.strength * self.temperature**2 * divergence


@dataclass
class History:
    """What happened, epoch by epoch.

    Attributes:
        epochs: one dict an epoch: ``epoch`` (from 1), ``loss``, ``train_accuracy``, ``learning_rate`` (at its
            end), ``seconds`` and, when validated, ``validation_loss`` and ``validation_accuracy``.
        interrupted: Ctrl-C ended it early.
        precision: the arithmetic that was used, ``"float32"`` or ``"bfloat16"``.
    """

    epochs: list[dict] = field(default_factory=list)
    precision: str = ""
    interrupted: bool = False

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, index: int) -> dict:
        return self.epochs[index]

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs)"
        last = self.epochs[-1]
        validation = last.get("validation_accuracy")
        known = f", validation accuracy {validation:.1%}" if validation is not None else ""
        stopped = ", interrupted" if self.interrupted else ""
        return f"History({len(self)} epochs, loss {last['loss']:.3f}{known}{stopped})"


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = 500,
    precision: str = "float32",
    progress: bool = True,
) -> Evaluation:
    """Loss and accuracy of ``model`` on every picture of ``split``, in evaluation mode.

    Args:
        batch_size: pictures per forward pass; changes speed and memory, not the result.
        precision: ``"float32"``, or ``"bfloat16"`` to run the forward passes in autocast.
        progress: show a progress bar when it takes longer than two seconds.
    """
    device = device_of(model)
    total_loss, correct = 0.0, 0
    batches = split.to(device).batches(batch_size)
    count = math.ceil(len(split) / batch_size)
    layout = _memory_format(model, split, precision)
    with evaluating(model), torch.no_grad(), _autocast(device, precision):
        for images, labels in tqdm(
            batches, total=count, desc="evaluating", leave=False, delay=2, disable=not progress
        ):
            logits = model(images.contiguous(memory_format=layout)).float()
            total_loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(1) == labels).sum().item()
    return Evaluation(total_loss / len(split), correct / len(split), len(split))


def recalibrate(
    model: nn.Module, split: Split, *, pictures: int = 500, batch_size: int = 250, augment: bool = True
) -> nn.Module:
    """A copy of ``model`` whose batch norms have measured their statistics anew; no weight is changed.

    A batch norm in evaluation mode centres and scales by what it saw in training. After a cut the layer
    before it puts out something else, so that a network that is not trained on is judged with the statistics
    of another one. This is the adaptive batch norm of Li et al. (2020, section 3).

    Args:
        split: training pictures, never those that the network is judged by.
        pictures: how many of them, the first ones; a few hundred do.
        batch_size: pictures per forward pass. Each batch counts alike, so it should divide them evenly.
        augment: as in the network's training (:func:`fit`), because plain pictures have other statistics.
    Returns:
        The copy, in evaluation mode, on the same device.
    """
    result = copy.deepcopy(model).eval()
    for module in result.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches
            module.train()
    some = split.subset(min(pictures, len(split))).to(device_of(model))
    with torch.no_grad():
        for images, _ in some.batches(batch_size, augment=augment):
            result(images)
    return result.eval()


def _memory_format(model: nn.Module, split: Split, precision: str) -> torch.memory_format:
    """Channels-last, unless the model does not take it: a ``view`` of a feature map fails there.

    Measured on two CPU cores: ResNet-20 is 1.2 to 1.5 times as fast with it, trained or evaluated, in either
    precision.
    """
    device = device_of(model)
    images = split.normalise(split.images[:2].to(device)).contiguous(memory_format=torch.channels_last)
    try:
        with evaluating(model), torch.no_grad(), _autocast(device, precision):
            model(images)
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def learning_rate(progress: float, peak: float, schedule: str) -> float:
    """The learning rate when a share ``progress`` (0..1) of the training is done.

    ``"one-cycle"`` climbs linearly to ``peak`` during the first fifth and falls linearly to zero (after
    Smith, 2018); ``"cosine"`` starts at ``peak`` and falls along half a cosine to zero (Loshchilov & Hutter,
    2017).
    """
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def fit(
    model: nn.Module,
    data: Data,
    epochs: int,
    *,
    lr: float = 0.2,
    schedule: str = "one-cycle",
    batch_size: int = 128,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    augment: bool = True,
    seed: int = 0,
    callbacks: Iterable[Callback] = (),
    checkpoint: str | os.PathLike | None = None,
    precision: str = "auto",
    validate: bool = True,
    progress: bool = True,
) -> History:
    """Train ``model`` in place on ``data.train`` with stochastic gradient descent and Nesterov momentum.

    Args:
        epochs: passes over the training split.
        lr: highest learning rate of the schedule.
        schedule: ``"one-cycle"`` or ``"cosine"``, see :func:`learning_rate`.
        momentum, weight_decay, label_smoothing: as in ``torch.optim.SGD`` and ``cross_entropy``.
        augment: random crops and flips.
        seed: decides the order, the augmentation and every random draw of the model. On a CPU, with the same
            number of threads, equal seeds give equal weights to the last bit.
        callbacks: act inside the loop, in the given order: schedules, regularisers, …
        checkpoint: a file to which the run is stored after every epoch (written beside, then renamed). If it
            is there already, the run continues from it; if that run was finished, its end is restored.
        precision: ``"float32"``, ``"bfloat16"`` (autocast), or ``"auto"``: what :func:`fastest_precision`
            measured to be faster on this machine.
        validate: measure ``data.validation`` after every epoch.
        progress: show a progress bar.
    Returns:
        The history. After Ctrl-C the model is as it was at the end of the last whole epoch.
    Raises:
        ValueError: an argument out of range, or a checkpoint of another run.
        TrainingDiverged: the loss became infinite or NaN; the model is as it was after the last whole epoch.
    """
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: must be at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if not lr > 0:
        raise ValueError(f"lr={lr}: must be above 0")
    if schedule not in ("one-cycle", "cosine"):
        raise ValueError(f"schedule={schedule!r}: use 'one-cycle' or 'cosine'")
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision={precision!r}: use 'auto', 'float32' or 'bfloat16'")
    callbacks = list(callbacks)
    device = device_of(model)
    settings = {
        "epochs": epochs,
        "lr": lr,
        "schedule": schedule,
        "batch_size": batch_size,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "augment": augment,
        "seed": seed,
        "pictures": len(data.train),
    }
    optimiser = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
    )
    steps_per_epoch = math.ceil(len(data.train) / batch_size)
    run = Run(model, optimiser, data, steps_per_epoch * epochs, epochs)
    history = History()
    stored = _read_checkpoint(checkpoint, settings, model, callbacks)
    if stored is not None:
        # A resumed run keeps the precision it began with, whatever is fastest here.
        precision = stored["precision"]
        _restore(stored, run, callbacks, history)
    elif precision == "auto":
        precision = fastest_precision(device.type)
    history.precision = run.precision = precision
    train = data.train.to(device)
    epoch_end = _snapshot(run, callbacks, history, settings, precision)
    bar = tqdm(
        total=run.steps,
        initial=run.step,
        desc=f"epoch {min(run.epoch + 1, epochs)}/{epochs}",
        unit="step",
        disable=not progress or run.epoch == epochs,
        mininterval=0.5,
    )
    try:
        with torch.random.fork_rng(devices=[]), bar:
            for callback in callbacks:
                callback.on_start(run)
            while run.epoch < epochs:
                bar.set_description(f"epoch {run.epoch + 1}/{epochs}")
                # One seed an epoch, so that a resumed run draws exactly what an uninterrupted one draws.
                epoch_seed = seed * 100_003 + run.epoch
                torch.manual_seed(epoch_seed)
                started = time.perf_counter()
                row = _train_epoch(
                    run, train, callbacks, bar, settings, epoch_seed=epoch_seed, precision=precision
                )
                run.epoch += 1
                for callback in callbacks:
                    callback.after_epoch(run)
                row = {"epoch": run.epoch, **row, "seconds": time.perf_counter() - started}
                if validate:
                    row["validation_loss"], row["validation_accuracy"], _ = evaluate(
                        model, data.validation, precision=precision, progress=False
                    )
                    bar.set_postfix_str(
                        f"loss {row['loss']:.3f}, validation {row['validation_accuracy']:.1%}"
                    )
                history.epochs.append(row)
                epoch_end = _snapshot(run, callbacks, history, settings, precision)
                _write_checkpoint(checkpoint, epoch_end)
    except KeyboardInterrupt:
        _restore(epoch_end, run, callbacks, history)
        history.interrupted = True
        print(f"stopped by hand: the model is as it was after epoch {run.epoch} of {epochs}")
    except TrainingDiverged:
        _restore(epoch_end, run, callbacks, history)
        raise
    return history


def _train_epoch(
    run: Run,
    train: Split,
    callbacks: list[Callback],
    bar: tqdm,
    settings: dict,
    *,
    epoch_seed: int,
    precision: str,
) -> dict:
    device = train.images.device
    total_loss, correct, seen, rate = 0.0, 0, 0, 0.0
    layout = _memory_format(run.model, train, precision)
    run.model.train()
    batches = train.batches(
        settings["batch_size"], shuffle=True, augment=settings["augment"], seed=epoch_seed
    )
    for images, labels in batches:
        # The rate of the middle of the step, so that the first and the last one are not zero.
        rate = learning_rate((run.step + 0.5) / run.steps, settings["lr"], settings["schedule"])
        for group in run.optimiser.param_groups:
            group["lr"] = rate
        run.images = images.contiguous(memory_format=layout)
        with _autocast(device, precision):
            logits = run.model(run.images).float()
        run.logits = logits
        loss = F.cross_entropy(logits, labels, label_smoothing=settings["label_smoothing"])
        for callback in callbacks:
            loss = loss + callback.penalty(run)
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(f"the loss became {value}", run, settings, precision)
        run.optimiser.zero_grad()
        loss.backward()
        for callback in callbacks:
            callback.after_backward(run)
        run.optimiser.step()
        run.step += 1
        for callback in callbacks:
            callback.after_step(run)
        total_loss += value * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
        seen += len(labels)
        bar.set_postfix_str(f"loss {total_loss / seen:.3f}, accuracy {correct / seen:.1%}", refresh=False)
        bar.update()
    # The last step has had no loss to show what it did.
    if not all(tensor.isfinite().all() for tensor in run.model.state_dict().values()):
        raise _diverged("weights became infinite or NaN", run, settings, precision)
    return {"loss": total_loss / seen, "train_accuracy": correct / seen, "learning_rate": rate}


def _diverged(what: str, run: Run, settings: dict, precision: str) -> TrainingDiverged:
    rate = run.optimiser.param_groups[0]["lr"]
    arithmetic = ", or precision='float32'" if precision == "bfloat16" else ""
    return TrainingDiverged(
        f"{what} in epoch {run.epoch + 1} at a learning rate of {rate:.3g}: try a lower lr (now "
        f"lr={settings['lr']:g}){arithmetic}. The model is as it was after epoch {run.epoch}"
    )


# ----------------------------------------------------------------------------------- stored runs


def _snapshot(run: Run, callbacks: list[Callback], history: History, settings: dict, precision: str) -> dict:
    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, dict):
            return {key: copied(item) for key, item in value.items()}
        return list(map(copied, value)) if isinstance(value, list) else value

    return copied(
        {
            "model": dict(run.model.state_dict()),
            "optimiser": run.optimiser.state_dict(),
            "callbacks": [callback.state_dict() for callback in callbacks],
            "history": history.epochs,
            "epoch": run.epoch,
            "step": run.step,
            "settings": settings,
            "precision": precision,
        }
    )


def _restore(stored: dict, run: Run, callbacks: list[Callback], history: History) -> None:
    run.model.load_state_dict(stored["model"])
    run.optimiser.load_state_dict(stored["optimiser"])
    for callback, state in zip(callbacks, stored["callbacks"], strict=True):
        callback.load_state_dict(state)
    history.epochs[:] = stored["history"]
    run.epoch, run.step = stored["epoch"], stored["step"]


def _read_checkpoint(
    path: str | os.PathLike | None, settings: dict, model: nn.Module, callbacks: list[Callback]
) -> dict | None:
    if path is None or not Path(path).exists():
        return None
    try:
        # Tensors and plain values only: reading it runs no code.
        stored = torch.load(path, weights_only=True, map_location="cpu")
        theirs = stored["settings"]
        shapes = {name: tensor.shape for name, tensor in stored["model"].items()}
        states = stored["callbacks"]
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"checkpoint {path} is not a stored run ({reason}): delete it to start afresh"
        ) from error
    different = [
        f"{key} was {theirs.get(key)!r}, is {value!r}"
        for key, value in settings.items()
        if theirs.get(key) != value
    ]
    if different:
        raise ValueError(
            f"checkpoint {path} is of a run with other settings ({'; '.join(different)}): "
            "delete it to start afresh, or name another file"
        )
    ours = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if ours != shapes:
        names = sorted(name for name in ours.keys() | shapes.keys() if ours.get(name) != shapes.get(name))
        raise ValueError(
            f"checkpoint {path} is of another network ({names[0]!r} differs, and {len(names) - 1} more): "
            "delete it to start afresh, or name another file"
        )
    if len(states) != len(callbacks):
        raise ValueError(
            f"checkpoint {path} is of a run with {len(states)} callbacks, this one has {len(callbacks)}: "
            "pass the same ones, or delete it to start afresh"
        )
    return stored


def _write_checkpoint(path: str | os.PathLike | None, stored: dict) -> None:
    if path is None:
        return
    with whole_file(Path(path)) as partial:
        torch.save(stored, partial)


# -------------------------------------------------------------------------------------- precision


def device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@lru_cache
def fastest_precision(device: str = "cpu") -> str:
    """``"bfloat16"`` where training a small convolutional network is at least 1.2x faster with it, else
    ``"float32"``.

    Measured once per process in about a second, alternating, on medians. ``PRUNELAB_PRECISION`` overrides it:
    set it where runs in different processes must use the same arithmetic even on a noisy machine.
    """
    chosen = os.environ.get("PRUNELAB_PRECISION")
    if chosen:
        if chosen not in ("float32", "bfloat16"):
            raise ValueError(f"PRUNELAB_PRECISION={chosen!r}: use 'float32' or 'bfloat16'")
        return chosen
    step = _training_step(torch.device(device))
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for attempt in range(6):
        for precision, measured in seconds.items():
            started = time.perf_counter()
            step(precision)
            if attempt:  # the first one warms up
                measured.append(time.perf_counter() - started)
    faster = statistics.median(seconds["float32"]) / statistics.median(seconds["bfloat16"])
    return "bfloat16" if faster >= 1.2 else "float32"


def _training_step(device: torch.device) -> Callable[[str], None]:
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()] * 4
        network = nn.Sequential(*layers).to(device)
        images = torch.randn(64, 16, 32, 32, device=device).contiguous(memory_format=torch.channels_last)

    def step(precision: str) -> None:
        with _autocast(device, precision):
            loss = network(images).float().square().mean()
        loss.backward()
        loss.item()  # waits for the device

    return step
