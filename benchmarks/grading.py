"""What grading costs: beside plain nbval, as the class grows, and in memory; and what every attack came to.

    python benchmarks/grading.py cost      # each lab, in turn with plain nbval
    python benchmarks/grading.py class     # 10 to 200 submissions, two at a time
    python benchmarks/grading.py sample    # the eight students of the instructor's guide
    python benchmarks/grading.py attacks   # each attack of the tests, as a whole submission
    python benchmarks/grading.py nbgrader  # what nbgrader gives for each lab's solutions, and in that class

"cost NAME" and "attacks NAME" measure only one anew.

Needs bubblewrap, and the project's tests, whose small lab and attacks it takes. Each part replaces its own
entry of results/grading.json, and takes minutes to half an hour. CPU seconds are those of all processes
together, so that they can be compared on a busy machine; a wall-clock time says little there.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prunelab import basics
from prunelab.grading import lab as labs
from prunelab.grading import run, sandbox
from prunelab.grading.rebuild import rebuild

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "results" / "grading.json"
sys.path.insert(0, str(PROJECT / "tests" / "grading"))

import attacks  # noqa: E402
import gradebook  # noqa: E402
import samples  # noqa: E402

REPEATS = 3
SIZES = (10, 20, 50, 100, 200)


# ------------------------------------------------------------------------------------ measuring


def cpu_seconds(root: int) -> float:
    """CPU time of a process, its descendants, and those of them that have ended."""
    ticks = 0
    for pid in sandbox.family(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def watching_sandboxes() -> Iterator[dict[str, float]]:
    """Add up what sandboxes use, when they are closed, and keep the most memory that one of them had."""
    used = {"cpu": 0.0, "memory": 0.0}
    close, memory_used = sandbox.Sandbox.close, sandbox.Sandbox.memory_used

    def counted_close(self: sandbox.Sandbox) -> None:
        if self.process.poll() is None:
            used["cpu"] += cpu_seconds(self.process.pid)
        close(self)

    def counted_memory(self: sandbox.Sandbox) -> int:
        memory = memory_used(self)
        used["memory"] = max(used["memory"], memory)
        return memory

    sandbox.Sandbox.close, sandbox.Sandbox.memory_used = counted_close, counted_memory
    try:
        yield used
    finally:
        sandbox.Sandbox.close, sandbox.Sandbox.memory_used = close, memory_used


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Wall-clock and CPU seconds of ``work``: of this process, its children, and sandboxes."""

    def own() -> float:
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(resource.getrusage(kind).ru_utime + resource.getrusage(kind).ru_stime for kind in kinds)

    with watching_sandboxes() as used:
        begin, before = time.perf_counter(), own()
        work()
        return {"seconds": time.perf_counter() - begin, "cpu": own() - before + used["cpu"]}


# ------------------------------------------------------------------------------------ beside plain nbval


def plain_nbval(notebook: bytes, name: str) -> None:
    """Run a notebook with nbval as it is, in the same environment, with nothing else loaded."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{name}.ipynb").write_bytes(notebook)
        words = ["-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "-p", "nbval.plugin"]
        settings = sandbox.variables(folder)
        subprocess.run(
            [sys.executable, *words, "-p", "no:cacheprovider", f"{name}.ipynb"],
            cwd=folder,
            env=settings,
            capture_output=True,
            check=True,
        )


def cost(names: list[str]) -> dict[str, Any]:
    """Both in turn: the notebook alone with nbval, and all of the grading. Labs that are not named stay."""
    known = {source.name: source for source in [samples.SOURCE, *labs.sources([PROJECT / "labs"])]}
    stored = json.loads(RESULTS.read_text())["cost"]["labs"] if names else {}
    measured = {name: stored[name] for name in known if name in stored}
    for source in known.values():
        lab = labs.understand(source)
        if not lab.exercises or (names and lab.name not in names):
            continue
        solved = labs.write(lab.notebook)
        rebuilt = rebuild(lab, solved).notebook.encode()
        sandbox.warm(lab.modules)
        settings = run.Settings()
        rows: dict[str, list[dict[str, float]]] = {"nbval": [], "grading": []}
        points = []

        def grade() -> None:
            points.append(run.grade_submission(source, "x", solved, [], settings)["points"])  # noqa: B023

        for _ in tqdm(range(REPEATS), desc=lab.name):
            rows["nbval"].append(timed(lambda: plain_nbval(rebuilt, lab.name)))  # noqa: B023
            rows["grading"].append(timed(grade))
        assert set(points) == {lab.points}, f"{lab.name}: {points}"
        medians = {
            name: {key: statistics.median(row[key] for row in runs) for key in ("seconds", "cpu")}
            for name, runs in rows.items()
        }
        overhead = {key: medians["grading"][key] / medians["nbval"][key] - 1 for key in ("seconds", "cpu")}
        parts = sum(len(exercise.parts) for exercise in lab.exercises.values())
        measured[lab.name] = {**medians, "overhead": overhead, "parts": parts}
    return {"repeats": REPEATS, "labs": {name: measured[name] for name in known if name in measured}}


# ------------------------------------------------------------------------------------ as the class grows


def growth(jobs: int = 2) -> dict[str, Any]:
    """Grade one class of the largest size, and take stock whenever one of the sizes is reached."""
    kinds = [
        samples.stored(samples.notebook()),
        samples.stored(samples.notebook(filter_norms=samples.NOISY)),
        samples.stored(samples.notebook(filter_norms=samples.PARTIAL, smallest_mask=samples.NEARLY)),
        samples.stored(
            samples.notebook(dense_layers=None, sparsity="def sparsity(weight):\n    return 0.5\n")
        ),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        class_ = {f"student {number:03}": kinds[number % len(kinds)] for number in range(SIZES[-1])}
        samples.hand_in(place / "submissions", class_)
        sandbox.warm(samples.LAB.modules)
        words = [
            "grade",
            str(place / "submissions"),
            "-o",
            str(place / "reports"),
            "--lab",
            str(samples.LABS),
        ]
        begin, busy = time.perf_counter(), machine_seconds()
        process = subprocess.Popen(
            [sys.executable, "-m", "prunelab", *words, "--jobs", str(jobs)], cwd=PROJECT
        )
        usage = Usage(process.pid)
        while process.poll() is None:
            time.sleep(0.2)
            usage.look()
            done = graded(place / "reports" / run.RESULTS)
            if len(rows) < len(SIZES) and done >= SIZES[len(rows)]:
                seconds = time.perf_counter() - begin
                row = {"submissions": SIZES[len(rows)], "seconds": seconds, "cpu": usage.cpu}
                rows.append({**row, "grader_bytes": usage.memory, "peak_bytes": usage.peak})
        assert process.returncode == 0 and len(rows) == len(SIZES), rows
        seconds = time.perf_counter() - begin
        busy = (machine_seconds() - busy - usage.cpu) / seconds
    # From the first size to the last: starting Python is no part of the rate.
    first, last = rows[0], rows[-1]
    more = last["submissions"] - first["submissions"]
    return {
        "jobs": jobs,
        "per_minute": 60 * more / (last["seconds"] - first["seconds"]),
        "cpu_each": (last["cpu"] - first["cpu"]) / more,
        "rows": rows,
        "cores_used_by_others": busy,
    }


class Usage:
    """What a grading run takes, looked at again and again.

    Attributes:
        cpu: seconds of the grader, its workers and all sandboxes until now; what a sandbox did between the
            last look and its end is missing.
        memory: bytes that the grader and its workers had at the last look, without their sandboxes.
        peak: bytes, the most of it and of the sandboxes together, at every tenth look: this one takes long.
    """

    def __init__(self, root: int) -> None:
        self.root, self.looks, self.cpu, self.memory, self.peak = root, 0, 0.0, 0.0, 0.0
        self.seen: dict[tuple[int, str], float] = {}

    def look(self) -> None:
        boxes: set[int] = set()
        self.memory = 0.0
        self.looks += 1
        for pid in sandbox.family(self.root):  # parents come before their children
            if pid in boxes:
                continue
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                start, ticks = facts(pid)
            except OSError:
                continue
            if words[0].endswith(b"bwrap"):
                inside = sandbox.family(pid)
                boxes |= set(inside)
                self.seen[pid, start] = cpu_seconds(pid)
            else:
                self.seen[pid, start] = ticks / os.sysconf("SC_CLK_TCK")
                self.memory += memory(pid, "status", "RssAnon:")
        self.cpu = sum(self.seen.values())
        if self.looks % 10 == 0:
            inside = sum(memory(pid, "smaps_rollup", "Pss_Anon:", "Pss_Shmem:") for pid in boxes)
            self.peak = max(self.peak, self.memory + inside)


def facts(pid: int) -> tuple[str, int]:
    """When a process started, and the clock ticks that it has worked itself."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[19], int(fields[11]) + int(fields[12])


def memory(pid: int, file: str, *names: str) -> float:
    """Bytes that a file of ``/proc`` tells of a process; none if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0.0
    return 1024.0 * sum(int(line.split()[1]) for line in lines if line.startswith(names))


def machine_seconds() -> float:
    """CPU seconds of all processes of this machine, since it was started."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def graded(path: Path) -> int:
    import sqlite3

    if not path.exists():
        return 0
    database = sqlite3.connect(path)
    try:
        return database.execute("SELECT COUNT(*) FROM results").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    finally:
        database.close()


# -------------------------------------------------------------------------------- eight students, and attacks


def sample_class() -> list[dict[str, Any]]:
    """The class of the instructor's guide: points, and the first thing that went wrong in each exercise."""
    rows = []
    for student, (data, deserved) in tqdm(samples.sample_class().items(), desc="sample class"):
        result = run.grade_submission(samples.SOURCE, student, data, [], run.Settings(memory=1, timeout=60))
        assert result["points"] == deserved, f"{student}: {result['points']} points, not {deserved}"
        wrong = {}
        for exercise in result["exercises"]:
            for part in exercise["parts"]:
                if part["points"] != part["of"]:
                    wrong.setdefault(exercise["function"], part["verdict"])
        points = {"points": result["points"], "of": result["of"]}
        rows.append({"student": student, **points, "wrong": wrong, "notes": result["notes"]})
    return rows


def attack_table(names: list[str]) -> dict[str, Any]:
    """Each attack as a whole submission, with honest answers beside it. Those that are not named stay."""
    stored = json.loads(RESULTS.read_text())["attacks"] if names else {"rows": []}
    rows = {row["attack"]: row for row in stored["rows"]}
    settings = run.Settings(memory=1, timeout=80)
    for attack in tqdm([one for one in attacks.ATTACKS if not names or one.name in names], desc="attacks"):
        data = samples.stored(samples.notebook(filter_norms=attack.source))
        with watching_sandboxes() as used:
            begin = time.perf_counter()
            result = run.grade_submission(samples.SOURCE, "x", data, [], settings)
            seconds = time.perf_counter() - begin
        hostile = next(exercise for exercise in result["exercises"] if exercise["id"] == "filter-norms")
        honest = [exercise for exercise in result["exercises"] if exercise is not hostile]
        cells = {cell["cell"]: cell["outcome"] for cell in result["notebook"]["cells"]}
        rows[attack.name] = {
            "attack": attack.name,
            "verdict": hostile["parts"][-1]["verdict"],
            "nbval": result["notebook"]["note"] or f"its check {cells['filter-norms-check']}",
            "gained": hostile["points"],
            "beside": sum(exercise["points"] for exercise in honest),
            "beside_of": sum(exercise["of"] for exercise in honest),
            "seconds": seconds,
            "memory": used["memory"],
        }
    around = stored["around"] if names else attacks_around_answers()
    ordered = [rows[attack.name] for attack in attacks.ATTACKS if attack.name in rows]
    return {"memory_limit": settings.memory, "rows": ordered, "around": around}


def attacks_around_answers() -> list[dict[str, Any]]:
    """What is handed in beside and around the answers: the class of a platform's zip, one of it honest."""
    with tempfile.TemporaryDirectory() as folder:
        students = attacks.hostile_class(Path(folder) / "class.zip")
        out = Path(folder) / "reports"
        settings = run.Settings(memory=1, timeout=80)
        assert not run.grade(Path(folder) / "class.zip", out, [samples.LABS], settings)
        with open(out / "grades.csv", newline="") as file:
            marks = {row["student"]: row for row in csv.DictReader(file)}
    assert marks.keys() == {"Ada", *students}
    honest = {"beside": float(marks["Ada"]["points"]), "beside_of": float(marks["Ada"]["of"])}
    return [
        {
            "attack": attack,
            "notes": marks[student]["notes"],
            "gained": float(marks[student]["points"]),
            **honest,
        }
        for student, attack in students.items()
    ]


# ------------------------------------------------------------------------------- nbgrader's verdict


def verdict_of_nbgrader() -> dict[str, Any]:
    """Points that nbgrader gives to every released lab with its solutions, and to four students of the class.

    The four are honest: nbgrader runs them on the bare machine.
    """
    known = [labs.understand(source) for source in labs.sources([PROJECT / "labs"])]
    known = [lab for lab in known if lab.exercises]
    released = {lab.name: labs.write(labs.released(lab)) for lab in [samples.LAB, *known]}
    handed_in = {(lab.name, "solved"): labs.write(lab.notebook) for lab in known}
    deserved = {(lab.name, "solved"): lab.points for lab in known}
    for student in ("Ada perfect", "Ben partial", "Cem wrong", "Dee empty"):
        name = (samples.LAB.name, student)
        handed_in[name], deserved[name] = samples.sample_class()[student]
    with tempfile.TemporaryDirectory() as folder:
        marks = gradebook.mark(Path(folder), released, handed_in)
    rows = [
        {"lab": lab, "student": student, "nbgrader": given, "of": most, "here": deserved[lab, student]}
        for (lab, student), (given, most) in marks.items()
    ]
    return {"version": importlib.metadata.version("nbgrader"), "rows": rows}


def main() -> None:
    parts = {"class": growth, "sample": sample_class, "nbgrader": verdict_of_nbgrader}
    by_name = {"cost": cost, "attacks": attack_table}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=[*by_name, *parts])
    parser.add_argument("names", nargs="*", help="labs for cost, or attacks: the others keep their results")
    options = parser.parse_args()
    part = options.part
    measured = by_name[part](options.names) if part in by_name else parts[part]()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    stored["command"] = "python benchmarks/grading.py cost|class|sample|attacks|nbgrader"
    stored["machine"] = {"processor": basics.processor(), "cores": os.cpu_count()}
    stored["versions"] = basics.versions()
    stored[part] = measured
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
