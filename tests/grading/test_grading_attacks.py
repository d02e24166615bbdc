"""Every attack gains nothing and harms nothing, while an honest answer beside it keeps its points."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import attacks
import pytest
import samples

from prunelab.grading import run, sandbox, worker
from prunelab.grading.rebuild import rebuild

PORT = "47123"  # where the attack on the network looks for a service of this machine
LEFT = "left-behind"  # what attacks call the processes that they leave
MINE = f"left-{os.getpid()}"  # the same for this run: another one may be under way on this machine
SETTINGS = run.Settings(memory=1, timeout=60)


@pytest.fixture(scope="module")
def session(sandboxed):
    """One sandbox for all attacks, as long as it lives; they get little time."""
    sandbox.warm(samples.LAB.modules)
    session = run.Session(samples.LAB, SETTINGS)
    patience = pytest.MonkeyPatch()
    patience.setattr(run, "SLEEP_SECONDS", 2)
    patience.setattr(samples.LAB.exercises["filter-norms"], "seconds", 1)
    yield session
    session.close()
    patience.undo()


@pytest.fixture
def service():
    """The port of something that listens on this machine, and a list of those who called."""
    callers = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            while True:
                try:
                    callers.append(server.accept()[1])
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
        socket.create_connection(("127.0.0.1", port), timeout=5).close()  # it does listen
        yield port, callers
        server.shutdown(socket.SHUT_RDWR)


def marks(session, rebuilt, name):
    """The parts of an exercise as they would be marked: first the public ones, then the hidden."""
    session.given_up.clear()
    return [
        part
        for public in (True, False)
        for part in run._ask_parts(session, samples.SOURCE, name, rebuilt, public)
    ]


def left_behind():
    names = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            names.append(path.read_text().strip())
    return names.count(MINE)


@pytest.mark.parametrize("attack", attacks.ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_gains_nothing_and_the_answer_beside_it_loses_nothing(session, attack):
    source = attack.source.replace(LEFT, MINE)
    rebuilt = rebuild(samples.LAB, samples.stored(samples.notebook(filter_norms=source)))
    hostile = marks(session, rebuilt, "filter-norms")
    assert [part["points"] for part in hostile] == [0, 0, 0], hostile
    assert "HIDDEN" not in str([part for part in hostile if not part["public"]])
    for name in ("sparsity", "dense-layers"):  # one before it, and one after it, which uses the first
        honest = marks(session, rebuilt, name)
        assert [part["verdict"] for part in honest] == ["right", "right"], honest
    assert left_behind() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="grading needs Linux: this is NOT TESTED")
def test_processes_that_are_left_can_be_found():
    assert sum(LEFT in attack.source for attack in attacks.ATTACKS) == 2 and left_behind() == 0
    rename = "import sys; open('/proc/self/comm', 'w').write(sys.argv[1]); input()"
    with subprocess.Popen([sys.executable, "-c", rename, MINE], stdin=subprocess.PIPE) as process:
        while not left_behind():
            assert process.poll() is None
        process.communicate(b"\n")


def test_without_an_attack_the_points_are_there(session):
    noisy = rebuild(samples.LAB, samples.stored(samples.notebook(filter_norms=samples.NOISY)))
    assert [part["points"] for part in marks(session, noisy, "filter-norms")] == [1, 2, 1]


def test_an_answer_may_use_earlier_ones_and_suffers_from_no_other(session):
    bad = {"filter_norms": "import os\nos._exit(0)", "smallest_mask": "while True: pass"}
    rebuilt = rebuild(samples.LAB, samples.stored(samples.notebook(**bad)))
    assert [part["verdict"] for part in marks(session, rebuilt, "dense-layers")] == ["right", "right"]


def test_the_network_is_out_of_reach(session, service):
    port, callers = service
    [attack] = [one for one in attacks.ATTACKS if one.name.startswith("the network")]
    assert PORT in attack.source
    source = attack.source.replace(PORT, str(port))
    rebuilt = rebuild(samples.LAB, samples.stored(samples.notebook(filter_norms=source)))
    assert all(part["verdict"] == "wrong values" for part in marks(session, rebuilt, "filter-norms"))
    assert len(callers) == 1  # the fixture's own call


def test_nothing_is_written_to_this_machine(session):
    for name in ("disk", "pickle", "hidden inputs kept", "forged result", "conftest"):
        [attack, *_] = [one for one in attacks.ATTACKS if name in one.name]
        rebuilt = rebuild(samples.LAB, samples.stored(samples.notebook(filter_norms=attack.source)))
        marks(session, rebuilt, "filter-norms")
    names = ("pickled", "seen.pt", "fill0", "grades.csv", "sitecustomize.py")
    here = [Path(folder, name) for folder in ("/tmp", "/dev/shm", os.getcwd(), "/") for name in names]
    assert [path for path in here if path.exists()] == []


def ask(inside, source, *arguments):
    """What a function ``f`` returns inside a sandbox."""
    calls, numbers = worker.encode([list(arguments)])
    request = {"setup": [], "answers": [source], "function": "f", "calls": calls, "seconds": 5}
    replies = list(inside.ask({"do": "exercise", **request}, numbers, seconds=60))
    assert "value" in replies[1][0], replies
    return worker.decode(replies[1][0]["value"], replies[1][1])


LIMITS = """
def f():
    import os, resource, time
    forked = 0
    try:
        while forked < 500:
            if os.fork() == 0:
                time.sleep(60)
            forked += 1
    except OSError:
        pass
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (10_000, 10_000))
    except (OSError, ValueError):
        forked = -forked
    return [forked, os.getuid(), sorted(os.listdir("/"))]
"""


def test_limits_hold_for_root_and_for_everybody_else(session):
    inside = session.sandbox()
    forked, user, root = ask(inside, LIMITS)
    assert -sandbox.PROCESSES < forked < -50  # negative: the limit could not be raised
    assert user == sandbox.NOBODY
    assert not {"home", "mnt", "srv", "var", "sys", "run"} & set(root)
    assert not inside.usable  # processes were left running
    assert inside.process.poll() is not None and sandbox.family(inside.process.pid) == [inside.process.pid]


def test_what_the_sandbox_sees_of_the_course(session):
    source = (
        "def f(path):\n    import os\n    return sorted(os.listdir(path)) if os.path.isdir(path) else []\n"
    )
    project = Path(__file__).resolve().parents[2]
    seen = ask(session.sandbox(), source, str(project))
    assert set(seen) <= {"prunelab", ".venv"}  # no labs, no checks, no submissions
    assert ask(session.sandbox(), source, str(samples.LABS)) == []
    assert ask(session.sandbox(), source, str(project / "prunelab")) != []
    cached = "def f(path):\n    return len(open(path, 'rb').read(9))\n"
    assert ask(session.sandbox(), cached, str(sandbox.cache() / "embedded.safetensors")) == 9


# ------------------------------------------------------------------------------------ the notebook's run

TAKEN_OVER = "\n".join(
    attack.source.removesuffix(attacks.WRONG)
    for attack in attacks.ATTACKS
    if attack.name.startswith(("AST", "disabled", "conftest", "forged result", "comments"))
)


LEAK = """
def filter_norms(weight):
    with open("/tmp/seen", "a") as file:
        file.write(f"{tuple(weight.shape)}")
    return torch.zeros(1)
"""
TELL = """
def dense_layers(layers, most):
    raise ValueError("seen: " + open("/tmp/seen").read())
"""
KILLED = "import os\nprint('x' * 10**6)\nos.kill(os.getppid(), 9)" + attacks.WRONG
# The kernel sends no message of an error, as happens when too many others wait to be sent.
SILENCED = "get_ipython()._showtraceback = lambda *_: None\n" + attacks.WRONG
FLOOD = "for _ in range(1000):\n    print('x' * 10**6)\n" + attacks.WRONG


def whole_notebook(**answers):
    """What is said of a submission: the result, the points, and what nbval said of each cell."""
    result = run.grade_submission(
        samples.SOURCE, "Eve", samples.stored(samples.notebook(**answers)), [], SETTINGS
    )
    points = {exercise["id"]: exercise["points"] for exercise in result["exercises"]}
    return result, points, {cell["cell"]: cell["outcome"] for cell in result["notebook"]["cells"]}


def test_nbval_is_deceived_and_the_points_are_not(sandboxed):
    result, points, outcomes = whole_notebook(filter_norms=TAKEN_OVER + LEAK, dense_layers=TELL)
    assert set(outcomes.values()) == {"passed"}  # every assert was deleted
    assert points == {"sparsity": 3, "filter-norms": 0, "smallest-mask": 3, "dense-layers": 0}
    # The report shows what the student's process said, but that had not seen a hidden input by then.
    assert "seen: (2, 2, 3, 3)" in str(result) and "(8, 4, 3, 3)" not in str(result)


@pytest.mark.parametrize(
    ("source", "outcome"),
    [(KILLED, "not run"), (FLOOD, "failed"), (SILENCED, "failed")],
    ids=["killed", "flooded", "silenced"],
)
def test_a_notebook_that_is_cut_short_costs_its_own_points_only(sandboxed, source, outcome):
    _, points, outcomes = whole_notebook(filter_norms=source)
    assert points == {"sparsity": 3, "filter-norms": 0, "smallest-mask": 3, "dense-layers": 2}
    assert outcomes["sparsity-check"] == "passed" and outcomes["filter-norms-check"] == outcome
