"""Where students' code runs: a bubblewrap sandbox with limits, a pipe into it, and a pipe out of it.

The sandbox has no network. Of the machine's files it sees the system's and Python's libraries and this
package, all read-only; whatever it writes lies in its own memory. It cannot become another user or make a
sandbox of its own. Root first becomes ``nobody``, because the limit on the number of processes does not bind
root.

What one process may use is limited by the kernel (memory, CPU time, size of a file, number of processes).
What the processes of a sandbox use together is watched from here. When it is too much, or takes too long,
the sandbox is killed, and the kernel ends every process in it, whatever it has done to hide.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import secrets
import select
import shutil
import signal
import site
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import prunelab
from prunelab import data, embedded
from prunelab.grading import worker

NOBODY = 65534
PROCESSES = 128  # threads count, too: pytest, a kernel and torch have about 30
FILE_BYTES = 100_000_000  # of one file
TMP_BYTES, SHM_BYTES = 250_000_000, 50_000_000  # of all files together: they lie in memory
FRAME_BYTES = 1_000_000  # the least that an answer may have, whatever is expected
START_SECONDS = 120.0  # torch may come from a slow disk
COMPILE_SECONDS = 900.0  # once
WATCH_SECONDS = 0.2  # between two looks at the memory

# System calls that no lab needs and by which memory could be had that belongs to no process, or another
# process read: their numbers on x86-64 and on 64-bit ARM. They fail with "operation not permitted".
DENIED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
}


class SandboxError(RuntimeError):
    """This machine cannot run students' code as it should: no student's doing. It says what to mend."""


class Ended(Exception):
    """The sandbox is gone or had to be ended. The message says why, in words for a student's report."""


class Sandbox:
    """A fresh sandbox, in which the worker waits for requests.

    Args:
        modules: what the worker imports before anything else.
        memory: bytes that all processes may use together, beyond what the libraries take.
        isolated: ``False`` runs the worker on the bare machine: only for code that you trust.
        compiling: leave compiled modules in :func:`cache`, which only the bare machine can.
    Raises:
        SandboxError: it does not start.
    """

    def __init__(self, modules: list[str], *, memory: int, isolated: bool = True, compiling: bool = False):
        self.received, self.complaint, self.ended, self.exit_code = bytearray(), b"", "", 0
        self.folder = None if isolated else tempfile.TemporaryDirectory(prefix="prunelab-unsafe-")
        home = self.folder.name if self.folder else "/tmp"
        environment = variables(home) | {"PRUNELAB_SANDBOX": "bubblewrap" if isolated else "none"}
        if compiling:
            del environment["PYTHONDONTWRITEBYTECODE"]
        command = [sys.executable, worker.__file__]
        filtered = syscall_filter() if isolated else None
        if isolated:
            command = wrapped(command, environment, filtered)
        self.memory, self.watched = sys.maxsize, 0.0
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env=environment,
            cwd=home,
            pass_fds=[] if filtered is None else [filtered],
        )
        if filtered is not None:
            os.close(filtered)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            os.set_blocking(stream.fileno(), False)  # type: ignore[union-attr]
        limits = {"memory": memory, "processes": PROCESSES, "file": FILE_BYTES}
        request = {
            "do": "prepare",
            "modules": modules,
            "limits": limits,
            "matplotlib": str(cache() / "fonts"),
        }
        try:
            for _ in self.ask(request, seconds=START_SECONDS):
                pass
        except Ended as end:
            self.close()
            said = self.complaint.decode(errors="replace").strip()
            hint = " (is the creation of user namespaces forbidden on this machine?)" if isolated else ""
            raise SandboxError(
                f"the sandbox does not start: {end}; {said or 'it says nothing'}{hint}"
            ) from None
        except BaseException:
            self.close()
            raise
        self.memory = memory + self.memory_used()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def usable(self) -> bool:
        return not self.ended and self.process.poll() is None

    def ask(
        self, request: dict[str, Any], numbers: bytes = b"", *, seconds: float, most: int = FRAME_BYTES
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Have the worker do something, and go through what is sent from the sandbox until that is done.

        Whoever is in there may have sent it. What comes later belongs to nobody's answer any more: only the
        worker itself can say that it has finished. If a process was left running, the sandbox is then closed.

        Args:
            seconds: for all of it.
            most: bytes of one message, and of its numbers.
        Raises:
            Ended: not done in time, too much memory, or something that is no message.
        """
        until, token = time.monotonic() + seconds, secrets.token_hex()
        self._send(worker.frame(request, numbers), until)
        self._send(worker.frame({"do": "report", "token": token}), until)
        while (received := self._receive(until, most))[0].get("token") != token:
            yield received
        self.exit_code = received[0]["exit"]
        if not received[0]["alone"]:
            self.close()

    def _send(self, data: bytes, until: float) -> None:
        waiting, stream = memoryview(data), self.process.stdin
        assert stream is not None
        while waiting:
            self._wait(until, writing=True)
            try:
                waiting = waiting[os.write(stream.fileno(), waiting) :]
            except BlockingIOError:
                pass
            except OSError:
                self._end("its process ended")

    def _receive(self, until: float, most: int) -> tuple[dict[str, Any], bytes]:
        header = worker.HEADER.size
        assert self.process.stdout is not None
        while True:
            if len(self.received) >= header:
                text, numbers = worker.HEADER.unpack_from(self.received)
                if text > most or numbers > most:
                    self._end("it answered with far more than was asked for")
                if len(self.received) >= header + text + numbers:
                    raw = bytes(self.received[header : header + text + numbers])
                    del self.received[: header + text + numbers]
                    try:
                        message = json.loads(raw[:text])
                    except (ValueError, RecursionError):
                        message = None
                    if not isinstance(message, dict):
                        self._end("it answered with something that is no message")
                    return message, raw[text:]
            self._wait(until)
            try:
                piece = os.read(self.process.stdout.fileno(), 1 << 20)
            except BlockingIOError:
                continue
            if not piece:
                self._end("its process ended")
            self.received += piece

    def _wait(self, until: float, writing: bool = False) -> None:
        """Wait until the pipe can be used, and meanwhile watch over the sandbox."""
        into, out, complaints = self.process.stdin, self.process.stdout, self.process.stderr
        assert into and out and complaints
        while not self.ended:
            now = time.monotonic()
            if now > until:
                self._end("it ran out of time")
            if now > self.watched + WATCH_SECONDS and self.memory < sys.maxsize:
                self.watched = now
                if self.memory_used() > self.memory:
                    self._end("it ran out of memory")
            reading, writing_to = ([complaints], [into]) if writing else ([out, complaints], [])
            readable, writable, _ = select.select(reading, writing_to, [], WATCH_SECONDS)
            if complaints in readable:
                with suppress(BlockingIOError):
                    self.complaint = (self.complaint + os.read(complaints.fileno(), 1 << 16))[-2000:]
            if writable or out in readable:
                return
        raise Ended(self.ended)

    def _end(self, why: str) -> None:
        self.ended = why
        self.close()
        raise Ended(why)

    def memory_used(self) -> int:
        """Bytes of memory that the sandbox's processes use together, besides the code of the libraries."""
        inside = family(self.process.pid)
        most = sum(_kilobytes(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:")) for pid in inside)
        if 1024 * most <= self.memory < sys.maxsize:
            return 1024 * most
        # Forked processes share pages, which were counted once for each: now exactly, which takes longer.
        shared = ("Pss_Anon:", "Pss_Shmem:")
        return 1024 * sum(_kilobytes(f"/proc/{pid}/smaps_rollup", shared) for pid in inside)

    def close(self) -> None:
        """End every process of the sandbox, and wait until they are gone."""
        self.ended = self.ended or "it was closed"
        if self.process.returncode is None:  # otherwise its number may be somebody else's by now
            inside = family(self.process.pid)
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            for pid in inside[1:]:  # without a sandbox, nobody else would end these
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        if self.folder:
            self.folder.cleanup()


def family(root: int) -> list[int]:
    """The numbers of a process and of all its descendants."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _kilobytes(path: str, names: tuple[str, ...]) -> int:
    try:
        with open(path) as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(names))
    except OSError:
        return 0  # it has ended


# -------------------------------------------------------------------------------- what the sandbox is made of


def variables(home: str) -> dict[str, str]:
    """The environment: nothing of the grader's own, the lab's fast mode, one thread for each process."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "USER": "student",
        "LOGNAME": "student",
        "LANG": "C.UTF-8",
        "IPYTHONDIR": f"{home}/ipython",
        "MPLCONFIGDIR": f"{home}/matplotlib",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(package().parent),
        "PYTHONPYCACHEPREFIX": str(cache() / "bytecode"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PRUNELAB_FAST": "1",
        "PRUNELAB_DATA": "embedded",
        "PRUNELAB_CACHE": str(cache()),
    }


def package() -> Path:
    return Path(worker.__file__).resolve().parents[1]


def cache() -> Path:
    """Made by :func:`warm` before any student's code runs; the sandbox may only read it."""
    return (data.cache_folder() / "grading").absolute()


def visible() -> list[Path]:
    """What the sandbox sees of the machine besides ``/usr``."""
    interpreter = Path(sys.executable).resolve().parents[1]  # base_prefix may be a link to it
    seen = [interpreter, Path(sys.base_prefix), Path(sys.prefix), package(), cache()]
    if site.ENABLE_USER_SITE:
        seen.append(Path(site.getusersitepackages()))
    return [path for path in dict.fromkeys(path.absolute() for path in seen) if path.is_dir()]


def wrapped(command: list[str], environment: dict[str, str], filtered: int | None) -> list[str]:
    """``command`` inside bubblewrap."""
    bwrap = bubblewrap()
    view = ["--ro-bind", "/usr", "/usr"]
    for path in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64")):
        if path.is_symlink():
            view += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            view += ["--ro-bind", str(path), str(path)]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        view += ["--ro-bind-try", name, name]
    for path in visible():
        if not path.is_relative_to("/usr"):
            for parent in reversed(path.parents[:-1]):
                view += ["--dir", str(parent)]
            view += ["--ro-bind", str(path), str(path)]
    inside = [
        bwrap,
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
    ]
    inside += ["--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"]
    if filtered is not None:
        inside += ["--seccomp", str(filtered)]
    inside += ["--clearenv"]
    for name, value in environment.items():
        inside += ["--setenv", name, value]
    own = ["--proc", "/proc", "--dev", "/dev", "--size", str(SHM_BYTES), "--tmpfs", "/dev/shm"]
    own += ["--remount-ro", "/dev", "--size", str(TMP_BYTES), "--tmpfs", "/tmp"]
    for path in visible():
        if path.is_relative_to("/tmp"):  # which has just been covered
            own += ["--ro-bind", str(path), str(path)]
    own += ["--remount-ro", "/", "--chdir", "/tmp", "--", *command]
    if os.getuid() != 0:
        return [*inside, *view, *own]
    # Two sandboxes, one in the other: root shows nobody the files, which may lie where only root can look;
    # then nobody makes the real one, as an ordinary user would.
    outside = [bwrap, "--die-with-parent", *view, "--bind", "/proc", "/proc", "--dev-bind", "/dev", "/dev"]
    outside += [
        "--dir",
        "/tmp",
        "--chdir",
        "/",
        "--",
        "/usr/bin/setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
    ]
    return [*outside, "--clear-groups", "--pdeathsig=KILL", "--", *inside, "--ro-bind", "/", "/", *own]


def require(isolated: bool) -> None:
    """Make sure that this machine can run students' code at all.

    Raises:
        SandboxError: it is no Linux, or has no bubblewrap.
    """
    if sys.platform != "linux":
        raise SandboxError(
            "grading needs Linux, for the limits and the sandbox are its kernel's: use a virtual machine, or "
            "name a Dask cluster on Linux with --scheduler"
        )
    if isolated:
        bubblewrap()


def bubblewrap() -> str:
    """Where bubblewrap is.

    Raises:
        SandboxError: nowhere.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError(
            "bubblewrap is missing: install it (Debian, Ubuntu: `sudo apt install bubblewrap`; Fedora: "
            "`sudo dnf install bubblewrap`), or say --no-sandbox, if you trust every line that was handed in"
        )
    return found


def syscall_filter() -> int | None:
    """A file descriptor from which bubblewrap reads the filter for :data:`DENIED`, in the kernel's terms."""
    columns = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
    if platform.machine() not in columns:
        return None
    column, architecture = columns[platform.machine()]
    numbers = [pair[column] for pair in DENIED.values()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # instructions of classic BPF
    allow, refuse = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
    program = [(load, 0, 0, 4), (equal, 0, len(numbers) + 3, architecture)]
    program += [(load, 0, 0, 0), (at_least, len(numbers) + 1, 0, 0x40000000)]  # x32 is another set of numbers
    program += [(equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    program += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    read, write = os.pipe()
    os.write(write, b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    os.close(write)
    return read


# ---------------------------------------------------------------------------- once, before any student's code


def warm(modules: list[str]) -> None:
    """Fill :func:`cache`: compiled modules, matplotlib's list of fonts, the embedded pictures.

    Runs only the course's own code, on the bare machine. The second time it has nothing to do.

    Raises:
        SandboxError: the package, its modules or nbval do not load.
    """
    folder = cache()
    versions = [sys.version, torch.__version__, prunelab.__version__, str(embedded.VERSION), *sorted(modules)]
    stamp = folder / f"made-{hashlib.sha256(repr(versions).encode()).hexdigest()[:12]}"
    if stamp.exists():  # also for whoever may only read the cache
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another grader may be at it: then this one finds it done
        if not stamp.exists():
            _fill(folder, modules)
            stamp.touch()


def _fill(folder: Path, modules: list[str]) -> None:
    settings = {**os.environ, **variables(str(folder)), "MPLCONFIGDIR": str(folder / "fonts")}
    del settings["PYTHONDONTWRITEBYTECODE"]
    script = "import matplotlib.font_manager; from prunelab import data; data.load('embedded', quiet=True)"
    done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True)
    if done.returncode:
        raise SandboxError(f"the package does not load: {done.stderr.strip().rpartition(chr(10))[2]}")
    cell = {"cell_type": "code", "id": "fails", "source": "1 / 0", "metadata": {}, "outputs": []}
    cells = [{**cell, "execution_count": None}]
    text = json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    request = {"do": "notebook", "name": "warm.ipynb", "text": text, "cell_timeout": 60}
    try:
        with Sandbox(modules, memory=8 << 30, isolated=False, compiling=True) as bare:
            answers = [message for message, _ in bare.ask(request, seconds=COMPILE_SECONDS)]
    except Ended as end:
        raise SandboxError(f"a notebook of one cell cannot be run: {end}") from None
    if not answers:
        raise SandboxError("nbval does not run: install it with `pip install prunelab[grading]`")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # root fills it, nobody reads it
