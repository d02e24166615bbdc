"""Where work is done: in processes of this machine, or on a Dask cluster. Either is an ordinary
``concurrent.futures.Executor``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PATIENCE = 10  # seconds in which a scheduler has to answer


@contextmanager
def executor(
    *, workers: int | None = None, threads: int = 1, scheduler: str | None = None
) -> Iterator[Executor]:
    """An executor for a while; :func:`capacity` says how many calls it works on at once.

    When the block is left early, by an error or Ctrl-C, calls that are still running are not waited for:
    processes are stopped, a cluster's results are forgotten. If this process is killed, its workers end, too.

    Args:
        workers: processes on this machine, by default as many as its cores allow.
        threads: CPU threads of each.
        scheduler: address of a Dask scheduler, ``tcp://…``, instead of processes here. Its workers must have
            one thread each (``dask worker --nthreads 1``): torch's number of threads and random state belong
            to a whole process.
    Raises:
        ValueError: a number below 1, Dask not installed, or no scheduler at this address.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if scheduler is not None and workers is not None:
        raise ValueError(f"workers={workers}: the cluster at {scheduler} has its own; leave workers out")
    if scheduler is not None:
        pool: _Processes | _Cluster = _Cluster(scheduler)
    else:
        pool = _Processes(workers or max(1, (os.cpu_count() or 1) // threads), threads)
    try:
        yield pool
    except BaseException:
        pool.abandon()
        raise
    pool.shutdown()


def capacity(pool: Executor) -> int:
    """How many calls the executor works on at once, now: a cluster may grow and shrink."""
    return pool.capacity() if isinstance(pool, _Processes | _Cluster) else 1


class _Processes(ProcessPoolExecutor):
    """Processes that were started afresh (not forked, which threads of torch do not survive)."""

    def __init__(self, workers: int, threads: int):
        self.workers = workers
        # Libraries read these when they are loaded, which is before a new process runs anything of ours.
        self.settings = {name: os.environ.get(name) for name in THREAD_SETTINGS}
        os.environ.update(dict.fromkeys(THREAD_SETTINGS, str(threads)))
        spawn = multiprocessing.get_context("spawn")
        super().__init__(workers, mp_context=spawn, initializer=_prepare, initargs=(threads,))
        try:
            self.submit(os.getpid).result()
        except BrokenExecutor as error:
            self.shutdown()
            raise ValueError(
                "workers do not start; a script that uses them must do so under `if __name__ == '__main__':`"
            ) from error

    def capacity(self) -> int:
        return self.workers

    def abandon(self) -> None:
        processes = list((self._processes or {}).values())
        self.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        for name, value in self.settings.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the first one decides
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()  # without this, the workers of a process that was killed would stay for ever
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class _Cluster(Executor):
    """Dask's own executor, and what it does not tell: how many workers there are."""

    def __init__(self, scheduler: str):
        try:
            from distributed import Client
        except ImportError as error:
            raise ValueError(
                f"scheduler={scheduler!r} needs Dask: install it with 'pip install prunelab[cluster]'"
            ) from error
        self.scheduler = scheduler
        try:
            self.client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"scheduler={scheduler!r}: no Dask scheduler answers there ({error}); `dask scheduler` "
                "starts one and prints its address"
            ) from error
        self.executor = self.client.get_executor(pure=False)

    def capacity(self) -> int:
        threads = self.client.nthreads()
        for worker, number in threads.items():
            if number != 1:
                raise ValueError(
                    f"the Dask worker {worker} has {number} threads: start it with --nthreads 1, because "
                    "torch's number of threads and random state belong to a whole process"
                )
        return len(threads)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        return self.executor.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.executor.shutdown(wait=wait)
        self.client.close()

    def abandon(self) -> None:
        self.shutdown(wait=False)
