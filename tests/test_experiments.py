"""Sweeps: files, runs, and work that survives being killed. Where the machinery is tested, a run is a short
sleep; the workers import this file for it.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prunelab as pl
from prunelab import cli, executors, experiments, results
from prunelab import data as data_module
from prunelab.experiments import checked, combinations, read, run, sweep
from prunelab.results import Store

HERE = Path(__file__).parent
VERSION = pl.__version__


# ---------------------------------------------------------------------- what the workers do in these tests


def note(configuration):
    """Leave a line for each time that it is called."""
    with open(os.environ["SWEEP_LOG"], "a") as log:
        log.write(f"{configuration['number']} {os.getpid()}\n")
    return {"square": configuration["number"] ** 2}


def gated(configuration):
    """The same, and do not end before the test says so, which lets numbers up to a limit go."""
    answer = note(configuration)
    gate = Path(os.environ["SWEEP_LOG"]).with_name("gate")
    while not gate.exists() or configuration["number"] >= int(gate.read_text() or 0):
        time.sleep(0.02)
    return answer


def place(configuration, device="the default"):
    return {"device": device}


def stumble(configuration):
    if configuration["number"] == 1 and not Path(os.environ["SWEEP_LOG"]).exists():
        raise ArithmeticError("one is a difficult number")
    return note(configuration)


def die(configuration):
    """Kill the worker: always over number 1, over number 2 only the first time."""
    log = Path(os.environ["SWEEP_LOG"])
    before = log.read_text().split("\n") if log.exists() else []
    answer = note(configuration)
    number = configuration["number"]
    if number == 1 or (number == 2 and not any(line.startswith("2 ") for line in before)):
        os.kill(os.getpid(), signal.SIGKILL)
    return answer


def threads(configuration):
    return {"torch": torch.get_num_threads(), "openmp": os.environ["OMP_NUM_THREADS"]}


def no_data(configuration):
    raise data_module.DataError("no pictures here")


def numbers(count):
    return [{"number": number} for number in range(count)]


# -------------------------------------------------------------------------------------------- shared


@pytest.fixture
def start(monkeypatch):
    """Start a program, and see to it that it does not outlive the test."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    started = []

    def begin(*words):
        process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def log(tmp_path, monkeypatch):
    path = tmp_path / "log"
    monkeypatch.setenv("SWEEP_LOG", str(path))
    return path


def lines(log):
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def stored(path, configurations):
    store = Store(path)
    rows = store.rows(results.key(one, VERSION) for one in configurations)
    store.close()
    return list(rows.values())


def done_numbers(path):
    """The numbers of the runs that are recorded, read without any of the code under test."""
    if not path.exists():
        return []
    database = sqlite3.connect(path)
    try:
        rows = database.execute("SELECT configuration FROM runs WHERE state = 'done'").fetchall()
    except sqlite3.OperationalError:  # the table is not there yet
        rows = []
    database.close()
    return [json.loads(row[0])["number"] for row in rows]


def lives(process_id):
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    return True


def written(tmp_path, text):
    path = tmp_path / "try.toml"
    path.write_text(text)
    return path


# -------------------------------------------------------------------------------------------- files


def test_lists_stand_for_all_their_values():
    grid = {"a": 1, "b": {"c": [1, 2], "d": [["x", "y"], ["z"]]}, "e": [{"f": [3, 4]}, {"g": 5}]}
    assert combinations(grid) == [
        {"a": 1, "b": {"c": c, "d": d}, "e": e}
        for c in (1, 2)
        for d in (["x", "y"], ["z"])
        for e in ({"f": 3}, {"f": 4}, {"g": 5})
    ]


def test_a_sweep_file(tmp_path):
    path = written(
        tmp_path,
        """
        about = "a try"
        network = "resnet20"
        seed = [1, 0]
        finetune = { epochs = 2, lr = 0.1 }
        [[runs]]
        [[runs]]
        data = "embedded"
        prune.criterion = ["l1", "random"]
        finetune.lr = 0.5
        [[runs]]
        """,
    )
    found = read(path)
    assert (found.name, found.about) == ("try", "a try")
    common = {
        "network": "resnet20", "trained": True, "precision": "float32", "report": "validation",
    }  # fmt: skip
    expected = []
    for seed in (0, 1):
        expected.append(
            {**common, "data": "cifar10", "seed": seed, "finetune": {"epochs": 2, "lr": 0.1}}
        )  # given twice, run once
        expected += [
            {
                **common,
                "data": "embedded",
                "seed": seed,
                "prune": {"criterion": name},
                "finetune": {"epochs": 2, "lr": 0.5},
            }
            for name in ("l1", "random")
        ]
    assert found.configurations == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network = ", "is not TOML"),
        ("runs = 3", "runs must be tables"),
        ("", "runs 1: network is missing. There are: resnet20"),
        ("network = 'resnet-20'", "network='resnet-20': did you mean 'resnet20'?"),
        ("network = 'resnet20'\nnetwrok = 1", "'netwrok': did you mean 'network'?"),
        ("network = 'resnet20'\nreport = 'tests'", "report='tests': did you mean 'test'?"),
        ("network = 'resnet20'\nwidth = 0.5", "width=0.5: resnet20 has a fixed width"),
        ("network = 'resnet20'\nseed = 1.5", "seed=1.5: must be a whole number"),
        ("network = 'resnet20'\nseed = []", "seed is an empty list"),
        ("network = 'resnet20'\ntrained = 'no'", "trained='no': must be true or false"),
        ("network = 'resnet20'\nprune = 'l1'", "prune='l1': must be a table of its arguments"),
        ("network = 'resnet20'\nprune.criterion = 'hrnk'", "prune.criterion='hrnk': did you mean 'hrank'?"),
        ("network = 'resnet20'\nprune.flop = 0.5", "prune.flop: did you mean 'flops'?"),
        (
            "network = 'resnet20'\nsparsify.granularity = 'stripes'",
            "sparsify.granularity='stripes': did you mean 'stripe'?",
        ),
        (
            "network = 'resnet20'\nprune.flops = 0.5\nsparsify.amount = 0.5",
            "prune and sparsify are given: take one of them",
        ),
        ("network = 'resnet20'\nfinetune.lr = 0.1", "finetune.epochs is missing"),
        ("network = 'resnet20'\nrecipe.epochs = 1", "recipe.name is missing. There are: one_shot"),
        ("network = 'resnet20'\nrecipe.name = 'riggle'", "recipe='riggle': did you mean 'rigl'?"),
        (
            "network = 'resnet20'\nrecipe = {name = 'gradual', schedule = 'apg', epochs = 1}",
            "recipe.schedule='apg': did you mean 'agp'?",
        ),
        (
            "network = 'resnet20'\nregularise = {name = 'l1', strenght = 1, epochs = 1}",
            "regularise.strenght: did you mean 'strength'?",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_named(tmp_path, text, message):
    with pytest.raises(ValueError) as raised:
        read(written(tmp_path, text))
    assert message in str(raised.value) and "try.toml" in str(raised.value)


def test_the_sweep_files_of_the_course_are_right():
    files = sorted((HERE.parent / "results" / "sweeps").glob("*.toml"))
    assert files
    for file in files:
        described = read(file)
        assert described.about and described.configurations
        assert {0} <= {one["seed"] for one in described.configurations}


def test_every_criterion_that_prunes_is_in_the_ranking():
    found = read(HERE.parent / "results" / "sweeps" / "criteria.toml").configurations
    named = Counter(one["prune"]["criterion"] for one in found if "prune" in one)
    able = {
        method.name
        for method in pl.methods("criterion")
        if not method.granularities or {"filter", "channel"} & set(method.granularities)
    }
    assert named.keys() == able and min(named.values()) >= 9
    dense = [one for one in found if "prune" not in one]
    assert [one["seed"] for one in dense] == [0, 1, 2]
    assert len({json.dumps(one["finetune"]) for one in found}) == 1  # the same for all


# ------------------------------------------------------------------------------------------ one run


@pytest.fixture
def few_pictures(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNELAB_CACHE", str(tmp_path))  # where another size may be stored
    monkeypatch.delenv("PRUNELAB_DATA", raising=False)
    monkeypatch.setattr(data_module, "EMBEDDED_COUNTS", {"train": 96, "validation": 40, "test": 60})
    experiments._loaded.cache_clear()
    yield pl.data.load("embedded", quiet=True)
    experiments._loaded.cache_clear()


SMALL = {"network": "vgg11", "width": 0.05, "trained": False, "data": "embedded"}
TRAINING = {"epochs": 1, "lr": 0.02, "batch_size": 32}


def small(seed):
    torch.manual_seed(seed)
    return pl.models.vgg11(width=0.05)


def trained(model, data, seed, callbacks=(), **training):
    how = {"seed": seed, "precision": "float32", "validate": False, "progress": False}
    pl.fit(model, data, callbacks=callbacks, **how, **training)
    return model


def without_times(result):
    return {name: value for name, value in result.items() if name != "seconds"}


def test_a_run_does_what_the_same_calls_by_hand_do(few_pictures):
    data = replace(few_pictures, train=few_pictures.train.subset(64))
    choice = {"criterion": "taylor2017", "flops": 0.4, "scope": "global"}
    more = {"pictures": 64, "calibration": 32, "seed": 5, "report": "test"}
    found = run({**SMALL, **more, "prune": choice, "finetune": {**TRAINING, "epochs": 2}})

    dense = small(5)
    model = pl.prune(dense, data.example, data=data.train.subset(32), seed=5, **choice)
    before = pl.evaluate(model, data.test).accuracy
    fresh = pl.evaluate(pl.recalibrate(model, data.train), data.test).accuracy
    after = pl.evaluate(trained(model, data, 5, **{**TRAINING, "epochs": 2}), data.test)
    assert (found["accuracy_before"], found["accuracy"], found["loss"]) == (
        before,
        after.accuracy,
        after.loss,
    )
    assert found["accuracy_recalibrated"] == fresh
    assert found["parameters"] == sum(p.numel() for p in model.parameters()) >= found["nonzero"]
    assert found["macs"] == pl.metrics.macs(model, data.example)
    assert found["bytes"]["dense"] == sum(t.nbytes for t in model.state_dict().values())
    assert found["dense"]["parameters"] == sum(p.numel() for p in dense.parameters())
    assert found["pictures_seen"] == 2 * 64 and set(found["bytes"]) >= {"bitmask", "csr"}
    json.dumps(found)


def test_trained_weights_are_the_default(few_pictures):
    found = run({"network": "mobilenetv2", "width": 0.5, "data": "embedded"})
    model = pl.models.mobilenetv2(weights="embedded", width=0.5)
    assert found["loss"] == pl.evaluate(model, few_pictures.validation).loss


def test_a_run_that_sparsifies(few_pictures):
    found = run({**SMALL, "sparsify": {"granularity": "kernel", "amount": 0.7}, "finetune": TRAINING})
    model = pl.sparsify(small(0), granularity="kernel", amount=0.7)
    before = pl.evaluate(model, few_pictures.validation)
    after = pl.evaluate(trained(model, few_pictures, 0, **TRAINING), few_pictures.validation)
    assert (found["accuracy_before"], found["loss"]) == (before.accuracy, after.loss)
    assert found["sparsity"] == pl.metrics.sparsity(model) > 0.6
    assert found["bytes"]["bitmask"] == pl.metrics.size(model, "bitmask") < found["bytes"]["dense"]


def test_a_run_that_regularises(few_pictures):
    penalty = {"name": "group_lasso", "strength": 1e-3, "proximal": True}
    found = run({**SMALL, "regularise": {**penalty, **TRAINING}, "prune": {"amount": 0.3}})
    lasso = pl.regularisers.GroupLasso(1e-3, proximal=True)
    model = trained(small(0), few_pictures, 0, [lasso], **TRAINING)
    model = pl.prune(model, few_pictures.example, amount=0.3)
    assert found["loss"] == pl.evaluate(model, few_pictures.validation).loss
    assert found["accuracy"] == found["accuracy_before"]


def test_a_run_of_a_recipe(few_pictures):
    recipe = {"name": "lottery_ticket", "amount": 0.5, "rounds": 1, "controls": True}
    found = run({**SMALL, "seed": 3, "recipe": {**recipe, **TRAINING}})
    made = pl.recipes.lottery_ticket(
        small(3), few_pictures, amount=0.5, rounds=1, controls=True, seed=3, progress=False, validate=False,
        precision="float32", **TRAINING,
    )  # fmt: skip
    assert found["loss"] == pl.evaluate(made.model, few_pictures.validation).loss
    assert "accuracy_before" not in found
    assert found["controls"] == {
        name: pl.evaluate(other, few_pictures.validation).accuracy for name, other in made.controls.items()
    }
    assert found["pictures_seen"] == 4 * len(few_pictures.train)  # dense, ticket, two controls


def test_gates_are_put_on_for_their_regulariser(few_pictures):
    gates = {"name": "gates", "kind": "sigmoid", "strength": 0.1, **TRAINING}
    found = run({**SMALL, "regularise": gates, "prune": {"criterion": "gate", "flops": 0.5}})
    assert 0.4 < found["macs"] / found["dense"]["macs"] < 0.6


def test_a_run_repeats_whatever_was_run_before(few_pictures):
    configuration = {**SMALL, "prune": {"criterion": "random", "flops": 0.5}, "finetune": TRAINING}
    first = run(configuration)
    other = run({**configuration, "seed": 1})
    torch.rand(3)
    assert without_times(run(configuration)) == without_times(first)
    assert other["loss"] != first["loss"]


# --------------------------------------------------------------------------------- the results file


def test_a_key_is_made_of_the_whole_configuration_and_the_version():
    one = {"a": 1, "b": {"c": 2, "d": 3}}
    assert results.key(one, "1") == results.key({"b": {"d": 3, "c": 2}, "a": 1}, "1")
    others = [results.key(one, "2"), results.key({**one, "a": 2}, "1"), results.key({"a": 1}, "1")]
    assert len({results.key(one, "1"), *others}) == 4


def test_defaults_are_part_of_the_key():
    short, long = {"network": "resnet20"}, {"seed": 0, "data": "cifar10", "network": "resnet20"}
    assert checked(short) == checked(long) == checked(checked(short))


def test_one_claims_and_the_other_waits(tmp_path):
    first, second = (Store(tmp_path / "r.sqlite", lease=0.3) for _ in range(2))
    run_key = results.key({"a": 1}, "1")
    with second.alive():
        assert first.claim({"a": 1}, "1") and not second.claim({"a": 1}, "1")
        assert second.states() == {run_key: "running"}
        time.sleep(0.4)  # first does not say that it is alive
        assert second.states() == {} and second.claim({"a": 1}, "1")
        assert not first.claim({"a": 1}, "1")
        time.sleep(0.4)
        assert not first.claim({"a": 1}, "1")  # second does
        assert not first.record(run_key, result={"x": 1})  # too late
        assert second.record(run_key, result={"x": 2}, seconds=3.0)
        assert not first.record(run_key, result={"x": 1})
    (row,) = first.rows([run_key]).values()
    assert (row.state, row.result, row.configuration, row.seconds) == ("done", {"x": 2}, {"a": 1}, 3.0)
    with first.alive():
        assert first.claim({"a": 2}, "1")
    assert second.claim({"a": 2}, "1")  # what was not finished was given back


def test_failures_are_claimed_again_only_when_asked_for(tmp_path):
    store = Store(tmp_path / "r.sqlite")
    store.claim({"a": 1}, "1")
    store.record(results.key({"a": 1}, "1"), error="broken")
    assert not store.claim({"a": 1}, "1")
    later = time.time() + 1
    assert store.states(later) == {} and store.claim({"a": 1}, "1", failed_before=later)


def test_another_file_is_not_written_to(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be taken for one " * 30)
    before = path.read_text()
    with pytest.raises(ValueError, match="is not a file of results"):
        Store(path)
    assert path.read_text() == before


def test_export_and_back(tmp_path):
    store = Store(tmp_path / "r.sqlite")
    configurations = [{"data": "x", "seed": seed, "prune": {"flops": 0.5}} for seed in (0, 1)]
    for number, configuration in enumerate(configurations):
        store.claim(configuration, "1")
        facts = {"torch": "2"}
        run_key = results.key(configuration, "1")
        store.record(run_key, result={"accuracy": number / 3, "bytes": {"csr": 7}}, seconds=2.0, facts=facts)
    rows = list(store.rows(results.key(one, "1") for one in configurations).values())
    assert results.to_csv(rows).splitlines() == [
        "data,seed,prune.flops,accuracy,bytes.csr,seconds,version",
        "x,0,0.5,0.0,7,2.0,1",
        "x,1,0.5,0.3333333333333333,7,2.0,1",
    ]
    text = results.to_json(rows, about="a try")
    shared = {"configuration": {"data": "x", "prune": {"flops": 0.5}}, "result": {"bytes": {"csr": 7}}}
    assert json.loads(text)["shared"] == shared
    back = results.from_json(text)
    assert back["about"] == "a try" and back["facts"] == [{"torch": "2"}]
    assert [one["configuration"] for one in back["runs"]] == configurations
    assert [one["result"] for one in back["runs"]] == [row.result for row in rows]
    assert [one["facts"] for one in back["runs"]] == [{"torch": "2"}] * 2
    assert results.from_json(results.to_json([]))["runs"] == []


# --------------------------------------------------------------------------------------- the machinery


def test_all_are_done_and_failures_do_not_stop_the_others(tmp_path, log):
    path = tmp_path / "r.sqlite"
    given = {"workers": 1, "progress": False, "function": stumble}
    # Number 1 comes first and fails, because nothing is in the log yet.
    order = [{"number": number} for number in (1, 0, 2)]
    assert sweep(order, path, **given) == {"done": 2, "failed": 1}
    first, *others = stored(path, order)
    assert (first.state, first.result) == ("failed", {}) and "one is a difficult number" in first.error
    assert [row.result for row in others] == [{"square": 0}, {"square": 4}]
    assert all(row.facts["torch"] == torch.__version__.split("+")[0] for row in others)
    assert sweep(order, path, **given) == {"done": 2, "failed": 1}
    assert Counter(number for number, _ in lines(log)) == {"0": 1, "2": 1}  # nothing was repeated
    assert sweep(order, path, retry_failed=True, **given) == {"done": 3, "failed": 0}
    assert Counter(number for number, _ in lines(log)) == {"0": 1, "1": 1, "2": 1}


def test_threads_are_pinned_and_the_environment_left_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    sweep([{}], tmp_path / "r.sqlite", function=threads, workers=1, threads=2, progress=False)
    (row,) = stored(tmp_path / "r.sqlite", [{}])
    assert row.result == {"torch": 2, "openmp": "2"} and row.facts["threads"] == 2
    assert "OMP_NUM_THREADS" not in os.environ and os.environ["MKL_NUM_THREADS"] == "7"


def test_the_device_is_given_to_the_run_and_noted(tmp_path):
    sweep([{}], tmp_path / "here.sqlite", function=place, workers=1, progress=False)
    sweep([{}], tmp_path / "there.sqlite", function=place, workers=1, device="mps", progress=False)
    (here,), (there,) = (stored(tmp_path / f"{name}.sqlite", [{}]) for name in ("here", "there"))
    assert (here.result, there.result) == ({"device": "the default"}, {"device": "mps"})
    assert "device" not in here.facts and there.facts["device"] == "mps"


def test_missing_data_stops_the_sweep(tmp_path):
    with pytest.raises(data_module.DataError, match="no pictures here"):
        sweep(numbers(2), tmp_path / "r.sqlite", function=no_data, workers=1, progress=False)
    assert stored(tmp_path / "r.sqlite", numbers(2)) == []  # nothing is claimed, nothing has failed


def test_a_worker_of_another_version_is_refused():
    with pytest.raises(ValueError, match=f"a worker has prunelab {VERSION}, the sweep has 0.0.1"):
        experiments._work(note, "0.0.1", 1, "cpu", {"number": 0})


def test_stopped_by_hand_waits_for_nothing_and_gives_back_what_was_claimed(tmp_path, log, monkeypatch):
    def stopped(*given):
        raise KeyboardInterrupt

    (tmp_path / "gate").write_text("1")  # number 0 ends, number 1 would never
    monkeypatch.setattr(experiments, "_finish", stopped)
    path = tmp_path / "r.sqlite"
    with pytest.raises(KeyboardInterrupt):
        sweep(numbers(3), path, function=gated, workers=2, progress=False)
    assert stored(path, numbers(3)) == []
    wait_until(lambda: not any(lives(process) for _, process in lines(log)), 30)


def test_a_worker_that_dies_takes_no_other_run_with_it(tmp_path, log):
    path = tmp_path / "r.sqlite"
    assert sweep(numbers(4), path, function=die, workers=2, progress=False) == {"done": 3, "failed": 1}
    rows = stored(path, numbers(4))
    assert [row.state for row in rows] == ["done", "failed", "done", "done"]
    assert "3 workers died over it" in rows[1].error


def test_killed_sweeps_lose_only_what_was_under_way(tmp_path, log, start):
    """Two processes work on one file; one is killed; the other finishes all; a third finds nothing to do."""
    path, count, gate = tmp_path / "r.sqlite", 20, tmp_path / "gate"
    script = (
        "import test_experiments as t; t.sweep(t.numbers({}), {!r}, function=t.gated, workers={}, lease=6)"
    )
    killed, other = (start("-c", script.format(count, str(path), workers)) for workers in (2, 1))
    wait_until(lambda: len(lines(log)) == 3)  # all three workers are at work, each on a run of its own
    workers = {process for _, process in lines(log)}
    assert len(workers) == 3 and {number for number, _ in lines(log)} == {"0", "1", "2"}
    gate.write_text("10")
    wait_until(lambda: len(done_numbers(path)) == 10 and len(lines(log)) == 13)
    killed.kill()  # while its two workers, and that of the other, have begun one run each
    killed.wait()
    wait_until(lambda: sum(lives(process) for process in workers) == 1)  # its workers end, too
    gate.write_text(str(count))
    assert other.wait(300) == 0
    assert sorted(done_numbers(path)) == list(range(count))
    times = Counter(int(number) for number, _ in lines(log))
    assert all(times[number] == 1 for number in range(10))  # what was done is not repeated
    assert sorted(times.values()) == [1] * (count - 2) + [2] * 2  # what was under way is
    assert sweep(numbers(count), path, function=gated, progress=False) == {"done": count, "failed": 0}
    assert Counter(int(number) for number, _ in lines(log)) == times
    check = sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone()
    assert check == ("ok",)


# ------------------------------------------------------------------------------------ the command line


FILE = """
network = "resnet20"
data = "embedded"
seed = [0, 1]
prune.flops = 0.5
"""


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.experiments, "sweep", lambda *given, **more: {"done": 1, "failed": 1})
    path, out = written(tmp_path, FILE), tmp_path / "r.sqlite"
    words = ["sweep", str(path), "--out", str(out)]
    assert cli.main([*words, "--status"]) == 1
    assert "there is no such file, so nothing was done yet" in capsys.readouterr().err

    first, second = read(path).configurations
    store = Store(out)
    store.claim(first, VERSION)
    store.record(results.key(first, VERSION), result={"accuracy": 0.5}, seconds=1.0)
    store.claim(second, VERSION)
    store.record(results.key(second, VERSION), error="Traceback\nValueError: too hot")
    store.claim(second, "0.0.1")
    assert cli.main([*words, "--status"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 runs done, 1 failed, 0 claimed, 0 to do" in shown and "ValueError: too hot" in shown
    assert f"1 rows are of other versions than prunelab {VERSION}" in shown

    assert cli.main([*words, "--export", "csv"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert dict(zip(head.split(","), line.split(",")))["accuracy"] == "0.5"
    assert cli.main([*words, "--export", "json"]) == 0
    exported = results.from_json(capsys.readouterr().out)
    [exported_run] = exported["runs"]
    assert exported_run == {"configuration": first, "result": {"accuracy": 0.5}, "seconds": 1.0, "facts": {}}
    assert exported["command"].startswith("prunelab sweep ") and exported["versions"]["prunelab"] == VERSION

    assert cli.main([*words, "--plot", str(tmp_path / "r.png")]) == 1
    assert "no setting with two methods to compare" in capsys.readouterr().err

    assert cli.main(words) == 1
    assert "1 runs done, 1 failed" in capsys.readouterr().out
    path.write_text("network = 'resnet'")
    assert cli.main(words) == 1
    assert "network='resnet': did you mean 'resnet" in capsys.readouterr().err


def test_runs_of_another_machine_are_not_done_again(tmp_path, capsys):
    path = written(tmp_path, FILE)
    first, second = read(path).configurations
    away = Store(tmp_path / "away.sqlite")
    for number, one in enumerate((first, second)):
        away.claim(one, VERSION)
        away.record(
            results.key(one, VERSION),
            result={"accuracy": number / 3},
            seconds=1.0,
            facts={"processor": f"of machine {number}"},
        )
    cli.main(["sweep", str(path), "--out", str(away.path), "--export", "json"])
    stored = tmp_path / "stored.json"
    stored.write_text(capsys.readouterr().out)

    here = Store(tmp_path / "here.sqlite")
    here.claim(first, VERSION)
    here.record(results.key(first, VERSION), result={"accuracy": 0.9}, seconds=1.0)  # done here before
    assert cli.main(["sweep", str(path), "--out", str(here.path), "--known", str(stored)]) == 0
    assert "1 runs taken over" in capsys.readouterr().out
    rows = list(here.rows(results.key(one, VERSION) for one in (first, second)).values())
    assert [row.result["accuracy"] for row in rows] == [0.9, 1 / 3]
    assert [row.state for row in rows] == ["done", "done"]
    assert rows[1].facts == {"processor": "of machine 1"}
    assert here.take(results.from_json(stored.read_text())["runs"], "0.0.1") == 2  # not of this version


@pytest.mark.parametrize("failed", [True, False], ids=["failed", "only claimed"])
def test_what_was_not_done_here_is_taken_from_where_it_was_done(tmp_path, failed):
    store = Store(tmp_path / "r.sqlite")
    configuration = {"seed": 0}
    store.claim(configuration, "1")
    if failed:
        store.record(results.key(configuration, "1"), error="no memory")
    done = {"configuration": configuration, "result": {"accuracy": 0.5}, "seconds": 2.0, "facts": {}}
    assert store.take([done], "1") == 1
    [row] = store.rows([results.key(configuration, "1")]).values()
    assert (row.state, row.result, row.error) == ("done", {"accuracy": 0.5}, None)


def test_compare_and_plot(tmp_path, capsys):
    path = written(tmp_path, FILE + "prune.criterion = ['l1', 'l2']\n")
    out, picture = tmp_path / "r.sqlite", tmp_path / "r.svg"
    words = ["sweep", str(path), "--out", str(out)]
    store = Store(out)
    for number, one in enumerate(read(path).configurations):
        store.claim(one, VERSION)
        store.record(results.key(one, VERSION), result={"accuracy": 0.5 + number / 100}, seconds=1.0)
    cli.main([*words, "--export", "json"])
    stored = tmp_path / "stored.json"
    stored.write_text(capsys.readouterr().out)
    assert cli.main([*words, "--compare", str(stored)]) == 0
    shown = capsys.readouterr().out
    assert "l1" in shown and "accuracy of 2 of 2 methods is what it was" in shown and "DIFFERS" not in shown
    changed = json.loads(stored.read_text())
    changed["runs"][0]["result"]["accuracy"] += 0.3  # the first of the two seeds of l1
    stored.write_text(json.dumps(changed))
    assert cli.main([*words, "--compare", str(stored)]) == 0  # so large a spread allows much
    changed["runs"][2]["result"]["accuracy"] += 0.3
    stored.write_text(json.dumps(changed))
    assert cli.main([*words, "--compare", str(stored)]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "DIFFERS" in line] == ["l1"]
    assert cli.main([*words, "--plot", str(picture)]) == 0
    assert "<svg" in picture.read_text()


def test_as_a_program(tmp_path):
    """A real sweep, from the file to the export."""
    path = written(tmp_path, FILE)
    words = [sys.executable, "-m", "prunelab", "sweep", str(path), "--out", "r.sqlite"]
    environment = {**os.environ, "PRUNELAB_CACHE": str(tmp_path), "PRUNELAB_DATA": "embedded"}
    how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([*words, "--workers", "1"], **how)
    assert done.returncode == 0 and "try: 2 runs done, 0 failed, in r.sqlite" in done.stdout, done.stderr
    assert "2/2" in done.stderr
    shown = subprocess.run([*words, "--export", "json"], **how).stdout
    runs = results.from_json(shown)["runs"]
    assert [one["configuration"]["seed"] for one in runs] == [0, 1]
    assert len({one["result"]["accuracy_before"] for one in runs}) == 1  # l1 draws nothing
    assert runs[0]["result"]["macs"] / 40_551_040 == pytest.approx(0.5, abs=0.02)


# ------------------------------------------------------------------------------------------- a cluster


@pytest.fixture
def cluster(start, tmp_path):
    """A Dask scheduler and a function that starts workers, each a process that talks over TCP."""
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    here = ["--host", "127.0.0.1", "--scheduler-file", str(file), "--no-dashboard"]
    start("-m", "distributed.cli.dask_scheduler", "--port", "0", *here)
    wait_until(lambda: file.exists() and file.read_text().rstrip().endswith("}"))
    address = json.loads(file.read_text())["address"]

    def worker(threads=1):
        words = ["--nthreads", str(threads), "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
        words += ["--local-directory", str(tmp_path)]
        return start("-m", "distributed.cli.dask_worker", address, *words)

    return address, worker


def test_a_cluster_that_loses_a_worker(tmp_path, log, cluster):
    address, worker = cluster
    count, gate, path = 8, tmp_path / "gate", tmp_path / "r.sqlite"
    first, second = worker(), worker()

    def kill_one():
        wait_until(lambda: len({process for _, process in lines(log)}) == 2)  # both are at work
        gate.write_text("4")
        wait_until(lambda: len(done_numbers(path)) == 4 and len(lines(log)) == 6)
        first.kill()
        gate.write_text(str(count))

    with ThreadPoolExecutor() as pool:
        killing = pool.submit(kill_one)
        counted = sweep(numbers(count), path, function=gated, scheduler=address, progress=False)
        killing.result()
    assert counted == {"done": count, "failed": 0}
    assert [row.result["square"] for row in stored(path, numbers(count))] == [n**2 for n in range(count)]
    times = Counter(int(number) for number, _ in lines(log))
    assert sorted(times.values()) == [1] * (count - 1) + [2]  # the one that it was at began anew
    ours = {str(first.pid), str(second.pid)}
    assert {process for _, process in lines(log)} == ours


def test_workers_of_a_cluster_have_one_thread(tmp_path, log, cluster):
    address, worker = cluster
    worker(threads=2)
    with pytest.raises(ValueError, match="has 2 threads: start it with --nthreads 1"):
        sweep(numbers(2), tmp_path / "r.sqlite", function=note, scheduler=address, progress=False)
    assert stored(tmp_path / "r.sqlite", numbers(2)) == []


def test_no_cluster_there(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "PATIENCE", 1)
    pytest.importorskip("distributed")
    with pytest.raises(ValueError, match="no Dask scheduler answers there"):
        sweep(numbers(1), tmp_path / "r.sqlite", scheduler="tcp://127.0.0.1:1", progress=False)
    with pytest.raises(ValueError, match="workers=2: the cluster at tcp://x has its own"):
        sweep(numbers(1), tmp_path / "r.sqlite", workers=2, scheduler="tcp://x", progress=False)
    with pytest.raises(ValueError, match="threads=0: must be at least 1"):
        sweep(numbers(1), tmp_path / "r.sqlite", threads=0, progress=False)
