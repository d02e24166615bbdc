"""Sweeps: many runs of the same kind, described by a small file, resumable, here or on a cluster.

A **run** is one plain configuration, and :func:`run` turns it into plain results. It goes through as many of
these stages as the configuration names, in this order; each is a table of the arguments of the function that
does it, with those of :func:`prunelab.fit` where it trains:

============== =======================================================================================
``regularise`` training with a penalty: ``name`` (``pl.methods("regulariser")``), its arguments
``prune``      :func:`prunelab.prune`; or
``sparsify``   :func:`prunelab.sparsify`; or
``recipe``     a whole procedure: ``name`` (``pl.methods("recipe")``), its arguments
``finetune``   training afterwards
============== =======================================================================================

Beside them stand ``network`` and, where the defaults are not meant, :data:`SETTINGS`. A **sweep** is a TOML
file of such configurations, in which a list stands for all of its values, and several lists for all their
combinations::

    about = "Does the criterion still matter after fine-tuning?"
    network = "resnet20"
    finetune = { epochs = 1, lr = 0.02 }
    seed = [0, 1, 2]

    [[runs]]                       # nothing removed: what fine-tuning alone does

    [[runs]]
    prune.criterion = ["l1", "taylor2017", "random"]
    prune.flops = [0.7, 0.5, 0.3]  # share to prune to

What stands outside ``[[runs]]`` belongs to all of them. A list of tables stands for each of the tables. A
value that is itself a list is put into another one: ``prune.exclude = [["fc"]]``.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import os
import platform
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

import prunelab
from prunelab import metrics, models, planning, registry, regularisers, results
from prunelab.basics import processor
from prunelab.data import Data, DataError, load
from prunelab.executors import capacity, executor
from prunelab.registry import suggestion
from prunelab.results import Store
from prunelab.sparsify import sparsify
from prunelab.storage import storage_report
from prunelab.surgery import prune
from prunelab.training import evaluate, fit, recalibrate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Configuration = dict[str, Any]

STAGES = ("regularise", "prune", "sparsify", "recipe", "finetune")
# What a configuration says beside its network and stages, and what holds if it does not.
SETTINGS: Configuration = {
    "width": None,  # of a VGG or MobileNetV2
    "trained": True,  # begin with the weights that were trained on this data, or (false) with fresh ones
    "data": "cifar10",  # or "embedded"
    "pictures": None,  # train on so many; all by default
    "calibration": None,  # what criteria measure on: so many training pictures; 512 by default
    "precision": "float32",  # of training and evaluation; or "bfloat16"
    "report": "validation",  # what accuracy is measured on; "test" where nothing is chosen by it any more
    "seed": 0,
}
ALLOWED = {
    "data": ("cifar10", "embedded"),
    "precision": ("float32", "bfloat16"),
    "report": ("validation", "test"),
    "network": models.NETWORKS,
}


# --------------------------------------------------------------------------------------- configurations


def _options(function: Callable, *without: str) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(function).parameters if name not in without)


TRAINING = _options(
    fit, "model", "data", "seed", "callbacks", "checkpoint", "precision", "validate", "progress"
)


def checked(configuration: Configuration) -> Configuration:
    """The configuration with its settings written out: what is hashed, stored and run.

    Raises:
        ValueError: an unknown name or one that is missing, two ways of removing at once.
    """
    known = ("network", *SETTINGS, *STAGES)
    for name in configuration:
        if name not in known:
            raise ValueError(f"{name!r}: {suggestion(name, known)}")
    if "network" not in configuration:
        raise ValueError(f"network is missing. There are: {', '.join(models.NETWORKS)}")
    full = {"network": configuration["network"], **SETTINGS, **configuration}
    for name, allowed in ALLOWED.items():
        if full[name] not in allowed:
            raise ValueError(f"{name}={full[name]!r}: {suggestion(full[name], allowed)}")
    for name in ("seed", "pictures", "calibration"):
        value = full[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ValueError(f"{name}={value!r}: must be a whole number, 0 or more")
    if full["width"] is not None and "width" not in _options(getattr(models, full["network"])):
        raise ValueError(f"width={full['width']!r}: {full['network']} has a fixed width")
    if not isinstance(full["trained"], bool):
        raise ValueError(f"trained={full['trained']!r}: must be true or false")
    removing = [stage for stage in ("prune", "sparsify", "recipe") if stage in full]
    if len(removing) > 1:
        raise ValueError(f"{' and '.join(removing)} are given: take one of them")
    for stage in STAGES:
        if stage in full:
            _check_stage(stage, full[stage])
    return {name: full[name] for name in known if full.get(name) is not None}


def _check_stage(stage: str, given: Any) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{stage}={given!r}: must be a table of its arguments")
    own, training = _arguments(stage, given)
    for name, value in given.items():
        if name not in (*own, *training):
            raise ValueError(f"{stage}.{name}: {suggestion(name, (*own, *training))}")
        if name in own and name in registry.AXES:
            try:
                registry.find(name, value)
            except ValueError as error:
                raise ValueError(f"{stage}.{error}") from error
    if training and "epochs" not in given:
        raise ValueError(f"{stage}.epochs is missing: how long to train")


def _arguments(stage: str, given: Configuration) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a stage may be told: the arguments of its method, and those of its training."""
    if stage == "finetune":
        return (), TRAINING
    if stage == "prune":
        return _options(planning.decide, "model", "example", "data", "seed"), ()
    if stage == "sparsify":
        return _options(sparsify, "model", "data", "within", "seed"), ()
    method = _method(stage, given)
    if stage == "regularise":
        kind = ("kind",) if method.name == "gates" else ()
        return ("name", *kind, *_options(method.function)), TRAINING
    own = _options(method.function, "model", "data", "folder", "progress", "seed", "training")
    return ("name", *own), tuple(name for name in TRAINING if name not in own)


def _method(stage: str, given: Configuration) -> registry.Method:
    axis = {"regularise": "regulariser", "recipe": "recipe"}[stage]
    if "name" not in given:
        raise ValueError(
            f"{stage}.name is missing. There are: {', '.join(m.name for m in registry.methods(axis))}"
        )
    try:
        return registry.find(axis, given["name"])
    except ValueError as error:
        raise ValueError(f"{stage}.name: {error}") from error


# ---------------------------------------------------------------------------------------- sweep files


@dataclass(frozen=True)
class Sweep:
    """What a sweep file describes: its name, a sentence about it, and the configurations, each once."""

    name: str
    about: str
    configurations: list[Configuration]


def read(path: str | os.PathLike) -> Sweep:
    """Read a sweep file. All runs of the smallest seed come first, so that a sweep that is stopped early has
    something to show.

    Raises:
        ValueError: it is not TOML, or a name in it is unknown; the message says where.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    about, grids = content.pop("about", ""), content.pop("runs", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise ValueError(f"{path}: runs must be tables, each headed [[runs]]")
    found: dict[str, Configuration] = {}
    for number, grid in enumerate(grids, 1):
        try:
            for combination in combinations(_merged(content, grid)):
                configuration = checked(combination)
                found.setdefault(results.key(configuration, ""), configuration)
        except ValueError as error:
            raise ValueError(f"{path}, runs {number}: {error}") from error
    return Sweep(path.stem, str(about), sorted(found.values(), key=lambda item: item["seed"]))


def combinations(grid: Configuration) -> list[Configuration]:
    """Every choice of one value from each list; the first list varies slowest."""
    choices = []
    for name, value in grid.items():
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError(f"{name} is an empty list")
        choices.append(
            [one for item in values for one in (combinations(item) if isinstance(item, dict) else [item])]
        )
    return [dict(zip(grid, chosen)) for chosen in itertools.product(*choices)]


def _merged(base: Configuration, grid: Configuration) -> Configuration:
    both = base.keys() & grid.keys()
    nested = {
        n: _merged(base[n], grid[n]) for n in both if isinstance(base[n], dict) and isinstance(grid[n], dict)
    }
    return {**base, **grid, **nested}


# ----------------------------------------------------------------------------------------------- a run


def run(configuration: Configuration, device: str = "cpu") -> dict[str, Any]:
    """Carry out one configuration.

    It depends on nothing but its argument, the data and the stored weights, and chooses nothing: on a CPU,
    with the same number of threads, equal configurations give equal results to the last bit.

    Args:
        device: where the network and the pictures are, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    Returns:
        ``accuracy`` and ``loss`` at the end; ``accuracy_before`` what was fine-tuned, unless a recipe did the
        work; ``accuracy_recalibrated``, where something was cut, with fresh statistics in the batch norms
        (:func:`prunelab.training.recalibrate`) but no fine-tuning; all on the validation pictures or those
        that ``report`` names; of the network (and, as ``dense``, of the one before) ``parameters``,
        ``nonzero`` ones, ``sparsity``, ``macs``,
        ``nonzero_macs`` and ``bytes`` by encoding (:func:`prunelab.metrics.size`); ``controls``, the accuracy
        of each, if the recipe made some; ``pictures_seen`` in all trainings; ``seconds`` for removing
        (recipes train meanwhile), for training, and of the processor in all, which do not count what others
        do on a busy machine; ``source`` of the data.
    """
    full = checked(configuration)
    data = _data(full["data"], full.get("pictures"), device)
    split = getattr(data, full["report"])
    look = data.train if "calibration" not in full else data.train.subset(full["calibration"])
    how = {"seed": full["seed"], "precision": full["precision"], "progress": False, "validate": False}
    seconds = {"removing": 0.0, "training": 0.0}
    seen, busy = 0, time.process_time()

    def accuracy(network: nn.Module) -> Any:
        return evaluate(network, split, precision=full["precision"], progress=False)

    def train(network: nn.Module, given: Configuration, callbacks: Iterable = ()) -> None:
        nonlocal seen
        started = time.perf_counter()
        history = fit(network, data, **given, callbacks=callbacks, **how)
        seconds["training"] += time.perf_counter() - started
        seen += len(history) * len(data.train)

    model = _network(full).to(device)
    outcome: dict[str, Any] = {"dense": _sizes(model, data)}
    if "regularise" in full:
        method, own, training = _split("regularise", full["regularise"])
        if method.name == "gates":
            kind = {"kind": own.pop("kind")} if "kind" in own else {}
            model = regularisers.attach_gates(model, **kind)
        train(model, training, [method.function(**own)])
    started = time.perf_counter()
    if "prune" in full:
        model = prune(model, data.example, data=look, seed=full["seed"], **full["prune"])
    elif "sparsify" in full:
        model = sparsify(model, data=look, seed=full["seed"], **full["sparsify"])
    elif "recipe" in full:
        method, own, training = _split("recipe", full["recipe"])
        made = method.function(model, data, **own, **training, **how)
        model = made.model
        seen += sum(len(history) for history in made.histories.values()) * len(data.train)
        if made.controls:
            outcome["controls"] = {name: accuracy(other).accuracy for name, other in made.controls.items()}
    seconds["removing"] = time.perf_counter() - started
    if "recipe" not in full:
        outcome["accuracy_before"] = accuracy(model).accuracy
    if "prune" in full or "sparsify" in full:
        outcome["accuracy_recalibrated"] = accuracy(recalibrate(model, data.train)).accuracy
    if "finetune" in full:
        train(model, full["finetune"])
    outcome["loss"], outcome["accuracy"], _ = accuracy(model)
    seconds["processor"] = time.process_time() - busy
    return {
        **outcome,
        **_sizes(model, data),
        "pictures_seen": seen,
        "seconds": seconds,
        "source": data.source,
    }


def _split(stage: str, given: Configuration) -> tuple[registry.Method, Configuration, Configuration]:
    """The method that a stage names, its arguments, and those of the training."""
    own, training = _arguments(stage, given)
    return (
        _method(stage, given),
        {name: value for name, value in given.items() if name in own and name != "name"},
        {name: value for name, value in given.items() if name in training},
    )


@lru_cache(maxsize=1)  # a worker does many runs
def _loaded(name: str, device: str) -> Data:
    return load(name, quiet=True).to(device)


def _data(name: str, count: int | None, device: str) -> Data:
    data = _loaded(name, device)
    return data if count is None else replace(data, train=data.train.subset(count))


def _network(full: Configuration) -> Any:
    width = {"width": full["width"]} if "width" in full else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(full["seed"])
        weights = full["data"] if full["trained"] else None
        return getattr(models, full["network"])(weights=weights, **width)


def _sizes(model: nn.Module, data: Data) -> dict[str, Any]:
    plain = planning.plain(model)  # gates folded, masks as zeros
    return {
        "parameters": metrics.parameters(plain),
        "nonzero": metrics.nonzero_parameters(plain),
        "sparsity": metrics.sparsity(plain),
        "macs": metrics.macs(plain, data.example),
        "nonzero_macs": metrics.nonzero_flops(plain, data.example) // 2,
        "bytes": {encoding: metrics.size(plain, encoding) for encoding in storage_report(plain)},
    }


# --------------------------------------------------------------------------------------------- a sweep

POLL = 0.5  # seconds between two looks at what others have done
DEATHS = 3  # so many workers must have died over a run before it counts as failed


def sweep(
    configurations: Iterable[Configuration],
    path: str | os.PathLike,
    *,
    function: Callable[..., dict[str, Any]] = run,
    workers: int | None = None,
    threads: int = 1,
    scheduler: str | None = None,
    device: str = "cpu",
    retry_failed: bool = False,
    lease: float = 30.0,
    progress: bool = True,
) -> dict[str, int]:
    """Carry out what is not yet in a results file.

    Killed at any moment and started again, it repeats no run that was finished; those that were under way
    begin anew once their lease is over. Several sweeps may work on one file: no run is done by two of them.

    Args:
        configurations: see :func:`read`.
        path: the SQLite file, see :mod:`prunelab.results`.
        function: what carries out a configuration; a function of a module that the workers can import.
        workers, threads, scheduler: see :func:`prunelab.executors.executor`. The threads are part of what
            makes a run repeat to the last bit.
        device: another one than ``"cpu"`` is given to ``function`` as ``device=``. Several workers on one GPU
            are faster than one: small networks leave most of it idle.
        retry_failed: also do the runs that failed in earlier sweeps.
        lease: seconds after which the runs of a sweep that was killed are free again.
        progress: show a progress bar with the time left.
    Returns:
        How many of the configurations are ``"done"`` and how many have ``"failed"``.
    """
    version = prunelab.__version__
    work = partial(_work, function, version, threads, device)
    wanted = {results.key(configuration, version): configuration for configuration in configurations}
    store = Store(path, lease)
    before = time.time() if retry_failed else 0.0
    known = store.states(before)
    waiting = {key: one for key, one in wanted.items() if known.get(key, "running") == "running"}
    # What is there already (`initial`) says nothing about the time that the rest will take.
    there = len(wanted) - len(waiting)
    bar = tqdm(total=len(wanted), initial=there, unit="run", smoothing=0, disable=not progress)
    deaths: Counter[str] = Counter()
    with contextlib.closing(store), bar, store.alive():
        while waiting:
            with executor(workers=workers, threads=threads, scheduler=scheduler) as pool:
                # If a worker dies, its pool is done for, and a new one goes on.
                _work_through(pool, waiting, store, work, before, deaths, bar)
        states = store.states()
    return {state: sum(states[key] == state for key in wanted) for state in ("done", "failed")}


def _work_through(
    pool: Executor,
    waiting: dict[str, Configuration],
    store: Store,
    work: Callable[[Configuration], dict[str, Any]],
    failed_before: float,
    deaths: Counter[str],
    bar: tqdm,
) -> None:
    """Carry out what is ``waiting``, until nothing is or a worker has died; what is over is taken out.

    Args:
        deaths: how many workers have died over each run.
    """
    flying: dict[Future, str] = {}
    victims: list[str] = []
    broken = False
    while not broken:
        states = store.states(failed_before)
        for key in [key for key in waiting if states.get(key, "running") != "running"]:
            del waiting[key]  # done here or by another sweep
        before, bar.n = bar.n, bar.total - len(waiting)
        if bar.n != before or sys.stderr.isatty():  # a clock that moves, but not in a log
            bar.refresh()
        if not waiting:
            return
        ours = set(flying.values())
        free = [key for key in waiting if key not in states and key not in ours]
        # Of several runs under way, over which did the worker die? Each of them is tried alone.
        suspects = [key for key in free if key in deaths]
        alone = suspects or any(key in deaths for key in ours)
        for key in suspects or free:
            if len(flying) >= (1 if alone else capacity(pool)):
                break
            if store.claim(waiting[key], prunelab.__version__, failed_before):
                try:
                    flying[pool.submit(work, waiting[key])] = key
                except BrokenExecutor:
                    store.release(key)
                    broken = True
                    break
        if not flying:
            time.sleep(POLL)  # others are at work on the rest, or the cluster has no workers yet
        for future in wait(flying, POLL, FIRST_COMPLETED).done:
            victims += _finish(future, flying.pop(future), store)
        broken = broken or bool(victims)
    for future in wait(flying).done:  # they have lost their workers, too, or were quicker
        victims += _finish(future, flying.pop(future), store)
    for key in victims:
        deaths[key] += 1
        if deaths[key] < DEATHS:
            store.release(key)
        else:
            store.record(key, error=f"{DEATHS} workers died over it: killed, perhaps for want of memory")


def _finish(future: Future, key: str, store: Store) -> list[str]:
    """Write down how a run ended; if its worker died, that is its key in a list."""
    try:
        store.record(key, **future.result())
    except BrokenExecutor:
        return [key]
    except (DataError, WorkerError):
        raise
    except CancelledError as error:
        raise ConnectionError("the Dask scheduler is gone: start it and the same sweep again") from error
    except Exception as error:  # of the cluster, not of the run
        store.record(key, error="".join(traceback.format_exception(error)))
    return []


class WorkerError(ValueError):
    """A worker that can do no run at all, whereupon the sweep stops."""


def _work(
    function: Callable[..., dict[str, Any]],
    version: str,
    threads: int,
    device: str,
    configuration: Configuration,
) -> dict[str, Any]:
    """In a worker: carry out one configuration, and say how that went as plain values."""
    if prunelab.__version__ != version:
        raise WorkerError(
            f"a worker has prunelab {prunelab.__version__}, the sweep has {version}: install the same on both"
        )
    torch.set_num_threads(threads)
    started = time.perf_counter()
    said = io.StringIO()  # progress bars of several workers would write into each other
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            where = {} if device == "cpu" else {"device": device}
            ended: dict[str, Any] = {"result": function(configuration, **where)}
    except DataError:
        raise  # all runs would fail alike: the sweep stops and says why
    except Exception:
        ended = {"error": traceback.format_exc()}
    facts = {
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "processor": processor(),
        "threads": threads,
    }
    return {**ended, "seconds": time.perf_counter() - started, "facts": facts | accelerator(device)}


def accelerator(device: str) -> dict[str, str]:
    """What to note of a machine besides its processor, if torch worked on something else: its ``device``."""
    if device == "cpu":
        return {}
    return {"device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device}
