"""What runs inside the sandbox. A script of its own: it imports nothing of the package.

One process imports torch and what the lab's set-up cells need, then never runs a student's code itself: it
forks a child for each part of an exercise, and another two for nbval and its kernel. So the imports are paid
for once, and no part sees what an earlier one left in memory.

A child may lie, crash or be taken over. That is no matter: all that ever leaves here are frames of JSON and
raw numbers, and the grader, which knows the right answers, decides what they are worth. Frames and values are
written and read by the functions at the top, on both sides.
"""

from __future__ import annotations

import ast
import ctypes
import io
import json
import os
import resource
import shutil
import struct
import symtable
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterable
from typing import Any

HEADER = struct.Struct(">II")  # bytes of JSON, bytes of numbers
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
DEEPEST = 20  # lists in lists

# ------------------------------------------------------------------------------------ frames and values


def encode(value: Any) -> tuple[Any, bytes]:
    """A plain value as JSON, and the numbers of its tensors and arrays, one after the other.

    Raises:
        TypeError: the value, or something in it, is not plain.
    """
    import numpy

    numbers: list[bytes] = []

    def tree(node: Any, depth: int = 0) -> Any:
        if depth > DEEPEST:
            raise TypeError(f"nested deeper than {DEEPEST}")
        if isinstance(node, numpy.generic):
            node = node.item()
        if isinstance(node, numpy.ndarray):
            return {"array": numeric(node)}
        if "torch" in sys.modules and isinstance(node, sys.modules["torch"].Tensor):
            return {"tensor": numeric(node.detach().cpu().numpy())}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if isinstance(node, list | tuple):
            return [tree(item, depth + 1) for item in node]
        if isinstance(node, dict) and all(isinstance(key, str) for key in node):
            return {"dict": [[key, tree(item, depth + 1)] for key, item in node.items()]}
        raise TypeError(f"a {type(node).__name__} is not a number, text, tensor, array, list or dictionary")

    def numeric(array: Any) -> list[Any]:
        if str(array.dtype) not in DTYPES:
            raise TypeError(f"numbers of type {array.dtype}")
        numbers.append(array.tobytes())
        return [str(array.dtype), list(array.shape)]

    return tree(value), b"".join(numbers)


def decode(tree: Any, numbers: bytes) -> Any:
    """The value that :func:`encode` described.

    Raises:
        ValueError: anything that ``encode`` would not have written. No class is looked up by a name and
            nothing is unpickled.
    """
    import numpy

    position = 0

    def value(node: Any, depth: int = 0) -> Any:
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST}")
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if isinstance(node, list):
            return [value(item, depth + 1) for item in node]
        if isinstance(node, dict) and len(node) == 1:
            [(kind, content)] = node.items()
            if kind in ("tensor", "array"):
                return numeric(kind, content)
            if kind == "dict" and isinstance(content, list):
                pairs = [pair for pair in content if isinstance(pair, list) and len(pair) == 2]
                if len(pairs) == len(content) and all(isinstance(key, str) for key, _ in pairs):
                    return {key: value(item, depth + 1) for key, item in pairs}
        raise ValueError("not a plain value")

    def numeric(kind: str, content: Any) -> Any:
        nonlocal position
        if not (isinstance(content, list) and len(content) == 2 and content[0] in DTYPES):
            raise ValueError("not a plain array")
        dtype, shape = numpy.dtype(content[0]), content[1]
        if not (
            isinstance(shape, list) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)
        ):
            raise ValueError("not a shape")
        count = 1
        for length in shape:
            count *= length
        end = position + count * dtype.itemsize
        if end > len(numbers):
            raise ValueError(f"shape {shape} needs more numbers than there are")
        raw = numbers[position:end]
        position = end
        if dtype.kind == "b":  # a byte may be neither 0 nor 1
            array = numpy.frombuffer(raw, "uint8").reshape(shape) != 0
        else:
            array = numpy.frombuffer(raw, dtype).reshape(shape).copy()
        if kind == "array":
            return array
        import torch

        return torch.from_numpy(array)

    decoded = value(tree)
    if position != len(numbers):
        raise ValueError("more numbers than the shapes need")
    return decoded


def frame(message: Any, numbers: bytes = b"") -> bytes:
    text = json.dumps(message).encode()
    return HEADER.pack(len(text), len(numbers)) + text + numbers


def read_frame(stream: io.RawIOBase) -> tuple[Any, bytes] | None:
    """The next frame of a stream that can be trusted; ``None`` at its end."""

    def read(count: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < count and (piece := stream.read(count - len(pieces))):
            pieces += piece
        return bytes(pieces)

    header = read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    text, numbers = HEADER.unpack(header)
    return json.loads(read(text)), read(numbers)


# ------------------------------------------------------------------------------------ the first process


def main() -> None:
    """Serve the grader's requests, which come in on stdin; frames go out on what was stdout.

    What children send is worth nothing but as answers. So that the grader knows where one part ends and the
    next begins, this process reports, when a child has ended, with a token that no child can have seen.
    """
    # Not buffered: what has been read ahead would be in the memory of the next child.
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.dup(1)
    silence(0, 1)
    code = 0

    def send(message: Any, numbers: bytes = b"") -> None:
        data = memoryview(frame(message, numbers))
        while data:
            data = data[os.write(answers, data) :]

    while (received := read_frame(requests)) is not None:
        request, numbers = received
        match request.pop("do"):
            case "prepare":
                prepare(**request)
                silence(2)
            case "exercise":
                code = in_child(lambda: exercise(send, numbers, **request), requests)  # noqa: B023
            case "notebook":
                code = in_child(lambda: notebook(send, **request), requests)  # noqa: B023
            case "report":
                send({**request, "exit": code, "alone": not others()})


def silence(*descriptors: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


def prepare(modules: list[str], limits: dict[str, int], matplotlib: str) -> None:
    """Import what all children need, then give up, for good, what a child must not have."""
    import importlib
    import importlib.util

    for name in [*modules, "IPython.core.inputtransformer2", "ipykernel.kernelapp"]:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    folder = os.environ["MPLCONFIGDIR"]
    if os.path.isdir(matplotlib) and not os.path.isdir(folder):
        shutil.copytree(matplotlib, folder)  # its list of fonts takes seconds to make
    with open("/proc/self/statm") as file:
        space = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    restrict(resource.RLIMIT_AS, space + limits["memory"])  # beyond the libraries, which reserve much more
    restrict(resource.RLIMIT_NPROC, limits["processes"])
    restrict(resource.RLIMIT_FSIZE, limits["file"])
    restrict(resource.RLIMIT_NOFILE, 512)
    restrict(resource.RLIMIT_CORE, 0)
    os.nice(5)  # the grader goes first
    readable(False)


def restrict(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def readable(whether: bool) -> None:
    """Whether processes of the same user may open this one's memory and files through /proc."""
    PR_SET_DUMPABLE = 4
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(whether), 0, 0, 0)


def in_child(work: Callable[[], None], requests: io.RawIOBase) -> int:
    """Do ``work`` in a child, wait for its end, and return its exit code (a signal's number is negative)."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.setsid()
        requests.close()
        readable(True)
        work()
    finally:
        os._exit(0)


def others() -> list[int]:
    """Processes of this sandbox besides its first two (bubblewrap's and this one)."""
    if os.environ.get("PRUNELAB_SANDBOX") != "bubblewrap":
        return []  # process numbers are then those of the machine
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())]


# ------------------------------------------------------------------------------------ one part of an exercise


def exercise(
    send: Callable[..., None],
    numbers: bytes,
    setup: list[str],
    answers: list[str],
    function: str,
    calls: Any,
    seconds: int,
) -> None:
    """Define the function that the last of ``answers`` asks for, and send what it returns for each call."""
    restrict(resource.RLIMIT_CPU, seconds)
    arguments = decode(calls, numbers)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    import builtins

    from IPython.display import display

    builtins.display = display  # type: ignore[attr-defined]
    main.get_ipython = lambda: Magics()  # type: ignore[attr-defined]
    failure = None
    for source in [*setup, *needed([python(source) for source in answers])]:
        try:
            run_cell(source, main.__dict__)
        except BaseException as error:
            failure = failed(error)
    defined = getattr(main, function, None)
    if not callable(defined):
        send({"defined": False, "error": failure})
        return
    send({"defined": True})
    for given in arguments:
        try:
            message, raw = encode(defined(*given))
            send({"value": message}, raw)
        except BaseException as error:
            send({"error": failed(error)})


class Magics:
    """IPython's magics and shell commands, when a function is marked: they do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def python(source: str) -> str:
    """Plain Python for what a notebook's cell may hold."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return TransformerManager().transform_cell(source)
    except Exception:
        return source


def run_cell(source: str, namespace: dict[str, Any]) -> None:
    import linecache

    name = f"<cell {len(linecache.cache)}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    exec(compile(source, name, "exec"), namespace)


def needed(cells: list[str]) -> list[str]:
    """The last cell, and those of the earlier ones that define a name it uses, or a name that those use."""
    uses = [names(cell) for cell in cells]
    wanted, chosen = set(uses[-1][0]), [cells[-1]]
    for cell, (used, bound) in zip(reversed(cells[:-1]), reversed(uses[:-1])):
        if bound & wanted:
            chosen.append(cell)
            wanted |= used
    return chosen[::-1]


def names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell takes from outside its functions, and those that it defines at its top level."""
    try:
        parsed = ast.parse(source)
        scopes = [symtable.symtable(source, "cell", "exec")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(), set()
    used: set[str] = set()
    for scope in scopes:  # a function's own variables are nobody else's
        scopes += scope.get_children()
        used |= {
            symbol.get_name()
            for symbol in scope.get_symbols()
            if symbol.is_referenced() and (symbol.is_global() or scope.get_type() == "module")
        }
    bound: set[str] = set()
    for node in top_level(parsed.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(name.asname or name.name).partition(".")[0] for name in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    return used, bound


def top_level(nodes: Iterable[ast.AST]) -> Iterable[ast.AST]:
    """All nodes but those inside functions and classes."""
    for node in nodes:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from top_level(ast.iter_child_nodes(node))


def failed(error: BaseException) -> dict[str, str]:
    """An error in words; a hostile one may fail even here."""
    try:
        text = "".join(traceback.format_exception_only(error)).strip()
        return {"type": type(error).__name__[:100], "text": text[:2000]}
    except BaseException:
        return {"type": "Exception", "text": "an error that cannot be shown"}


# ------------------------------------------------------------------------------------ the whole notebook


def notebook(send: Callable[..., None], name: str, text: str, cell_timeout: float) -> None:
    """Have nbval run a notebook, and send what became of each of its cells."""
    folder = tempfile.mkdtemp(prefix="notebook-")  # fresh: nobody can have put anything there
    os.chdir(folder)
    with open(name, "w", encoding="utf8") as file:
        file.write(text)
    kernel = Kernel()  # forked before pytest and its threads come
    import jupyter_client.provisioning.local_provisioner as provisioner
    import pytest
    from nbval.kernel import RunningKernel

    provisioner.launch_kernel = kernel.start  # type: ignore[assignment]
    get_message = RunningKernel.get_message
    replies = [""]  # the last is how the kernel says that a cell ended

    def watched(running: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        message = get_message(running, *args, **kwargs)
        if message["msg_type"] == "execute_reply":
            replies.append(message["content"]["status"])
        return message

    RunningKernel.get_message = watched

    class Recorder:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
            report = yield
            if report.when == "call" or not report.passed:
                text = str(report.longrepr) if report.failed else ""
                if hasattr(call.excinfo and call.excinfo.value, "inner_traceback"):
                    error = call.excinfo.value
                    text = f"{error}\n{error.inner_traceback or ''}"
                outcome = "failed" if hasattr(report, "wasxfail") and not report.passed else report.outcome
                # nbval only knows of an error by its message, which a flood of others can drown.
                if report.passed and replies[-1] == "error" and not item.options["check_exception"]:
                    outcome, text = "failed", "The kernel says that this cell failed, and not why."
                send({"cell": item.cell.id, "outcome": outcome, "text": text[-4000:]})
            return report

    options = ["--nbval-lax", "--noconftest", "--nbval-current-env", f"--nbval-cell-timeout={cell_timeout:g}"]
    own = [f"--rootdir={folder}", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "nbval.plugin"]
    pytest.main([name, *options, *own], plugins=[Recorder()])
    kernel.kill()


class Kernel:
    """A child that waits, with everything imported, until Jupyter wants a kernel; then it is one.

    Looks to Jupyter like the ``subprocess.Popen`` that it would have made.
    """

    stdin = stdout = stderr = None

    def __init__(self) -> None:
        self.returncode: int | None = None
        read, self.pipe = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.close(self.pipe)
                with os.fdopen(read, "rb") as stream:
                    message = stream.read()
                if message:
                    wanted = json.loads(message)
                    os.chdir(wanted["cwd"])
                    from ipykernel.kernelapp import IPKernelApp

                    IPKernelApp.launch_instance(argv=["-f", wanted["connection"]])
            finally:
                os._exit(0)
        os.close(read)

    def start(self, command: list[str], cwd: str | None = None, **settings: Any) -> Kernel:
        connection = command[command.index("-f") + 1]
        os.write(self.pipe, json.dumps({"connection": connection, "cwd": cwd or os.getcwd()}).encode())
        os.close(self.pipe)
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            except ChildProcessError:
                self.returncode = 0
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        while self.poll() is None:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return self.returncode or 0

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)

    terminate = kill


if __name__ == "__main__":
    del sys.path[0]  # this folder: its modules are no one's business here
    main()
