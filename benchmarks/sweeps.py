"""How sweeps scale: with workers, here and over TCP, and with the size of the network.

    python benchmarks/sweeps.py        # about six minutes; wants two idle cores

- workers: the same runs with one worker and with two, as processes of this machine and as workers of a Dask
  scheduler that is started for it (`pip install prunelab[cluster]`). Each worker has begun and loaded its
  pictures before the clock starts, as in a sweep that lasts for hours; ratios of times that took turns.
- networks: processor seconds of one run (prune to half of the FLOPs, a short fine-tuning) for networks of
  growing size, one after the other.

Embedded pictures. Writes results/sweeps.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prunelab import basics, experiments
from prunelab.executors import THREAD_SETTINGS, capacity, executor

RESULTS = Path(__file__).parents[1] / "results" / "sweeps.json"
RUNS, TURNS, WORKERS = 4, 3, (1, 2)
BASE = {
    "data": "embedded",
    "pictures": 1000,
    "prune": {"flops": 0.5, "criterion": "l1"},
    "finetune": {"epochs": 1, "lr": 0.02},
}
NETWORKS: list[dict[str, Any]] = [
    {"network": "vgg16", "width": 0.25},
    {"network": "resnet20"},
    {"network": "mobilenetv2", "width": 0.5},
    {"network": "resnet56", "trained": False},  # these weights are of CIFAR-10 only; the cost is the same
]


@contextmanager
def processes(workers: int) -> Iterator[dict]:
    yield {"workers": workers}


@contextmanager
def cluster(workers: int) -> Iterator[dict]:
    """A Dask scheduler and its workers, each a process of its own that talks over TCP."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        where = ["--host", "127.0.0.1", "--scheduler-file", str(file), "--no-dashboard", "--port", "0"]
        # As many threads as the processes of the other way have; torch reads it when it is loaded.
        environment = os.environ | dict.fromkeys(THREAD_SETTINGS, "1")
        quiet: dict[str, Any] = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "env": environment,
        }
        started = [
            subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *where], **quiet)
        ]
        try:
            while not file.exists():
                time.sleep(0.2)
            address = json.loads(file.read_text())["address"]
            alone = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", folder]
            for _ in range(workers):
                words = [sys.executable, "-m", "distributed.cli.dask_worker", address, *alone]
                started.append(subprocess.Popen(words, **quiet))
            yield {"scheduler": address}
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait()


def seconds(way: dict, workers: int) -> float:
    """How long the runs take, once all workers are there and have done one run each."""
    runs = [experiments.checked({**BASE, "network": "resnet20", "seed": seed}) for seed in range(RUNS)]
    with executor(**way) as pool:
        while capacity(pool) < workers:
            time.sleep(0.2)
        for future in [pool.submit(experiments.run, runs[0]) for _ in range(workers)]:
            future.result()
        started = time.perf_counter()
        for future in [pool.submit(experiments.run, one) for one in runs]:
            future.result()
        return time.perf_counter() - started


def scaling(progress: tqdm) -> dict:
    """Wall seconds for each way and number of workers, in turns, and by how much two are faster than one."""
    rows: dict[str, dict] = {}
    for _ in range(TURNS):
        for name, start in (("processes", processes), ("dask", cluster)):
            for workers in WORKERS:
                with start(workers) as way:
                    taken = seconds(way, workers)
                rows.setdefault(name, {}).setdefault(str(workers), []).append(taken)
                progress.update()
    for found in rows.values():
        found["speedup"] = statistics.median(one / two for one, two in zip(found["1"], found["2"]))
    return rows


def growth(progress: tqdm) -> list[dict]:
    rows = []
    for network in NETWORKS:
        spent = []
        for seed in range(TURNS):
            with executor(workers=1) as pool:
                result = pool.submit(experiments.run, experiments.checked({**BASE, **network, "seed": seed}))
                spent.append(result.result()["seconds"]["processor"])
            progress.update()
        rows.append(
            {**network, "macs": result.result()["dense"]["macs"], "seconds": statistics.median(spent)}
        )
    return rows


def main() -> None:
    with tqdm(total=TURNS * (2 * len(WORKERS) + len(NETWORKS))) as progress:
        rows, networks = scaling(progress), growth(progress)
    result = {
        "command": "python benchmarks/sweeps.py",
        "data": "embedded",
        "machine": {"cores": os.cpu_count(), "processor": basics.processor(), "threads": 1},
        "versions": basics.versions("dask"),
        "runs": RUNS,
        "scaling": rows,
        "networks": networks,
    }
    print({name: found["speedup"] for name, found in rows.items()}, networks)
    with basics.whole_file(RESULTS) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
