"""A class of eight, from the folder to the reports; and what happens when the machine fails on the way."""

import csv
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import attacks
import pytest
import samples

from prunelab import cli
from prunelab.grading import report, run, sandbox

PROJECT = Path(__file__).resolve().parents[2]
CLASS = samples.sample_class()
OPTIONS = ["--lab", str(samples.LABS), "--jobs", "1", "--timeout", "60", "--memory", "1"]


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="grading needs Linux: this is NOT TESTED")


def command(submissions, out, *more):
    return ["grade", str(submissions), "-o", str(out), *OPTIONS, *more]


def table(out):
    with open(out / "grades.csv", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def stored(out):
    """{student: (when it was graded, result)}, read without the code under test."""
    try:
        database = sqlite3.connect(out / "grades.sqlite")
        rows = database.execute("SELECT student, graded, result FROM results").fetchall()
        database.close()
    except sqlite3.OperationalError:  # not there yet
        return {}
    return {student: (graded, json.loads(result)) for student, graded, result in rows}


@pytest.fixture(scope="module")
def graded(sandboxed, tmp_path_factory):
    """The folder with the reports of the sample class."""
    folder = tmp_path_factory.mktemp("class")
    samples.hand_in(folder / "submissions", {student: data for student, (data, _) in CLASS.items()})
    assert cli.main(command(folder / "submissions", folder / "reports")) == 0
    return folder / "reports"


# ------------------------------------------------------------------------------------ the sample class


@pytest.mark.parametrize("student", CLASS)
def test_everybody_gets_the_points_that_were_counted_by_hand(graded, student):
    row = table(graded)[student]
    assert (float(row["points"]), float(row["of"])) == (CLASS[student][1], 12)


def verdicts(graded, student):
    [result] = json.loads((graded / f"students/{student}.json").read_text())
    exercises = result["exercises"]
    return {exercise["id"]: [part["verdict"] for part in exercise["parts"]] for exercise in exercises}


def test_the_reports_say_why(graded):
    assert verdicts(graded, "Ben partial") == {
        "sparsity": ["right", "right"],
        "filter-norms": ["right", "right", "an error: IndexError"],
        "smallest-mask": ["right", "wrong values"],
        "dense-layers": ["not attempted", "not attempted"],
    }
    assert verdicts(graded, "Cem wrong")["smallest-mask"] == ["wrong type or shape"] * 2
    assert verdicts(graded, "Dee empty")["sparsity"] == ["not attempted"] * 2
    assert verdicts(graded, "Eli crashed")["smallest-mask"] == ["no answer: its process ended"] * 2
    assert verdicts(graded, "Fay slow")["dense-layers"] == ["no answer: it ran out of time"] * 2
    assert verdicts(graded, "Gus renamed")["sparsity"] == ["no answer cell"] * 2
    far_more = "no answer: it answered with far more than was asked for"
    assert verdicts(graded, "Hal hostile")["filter-norms"] == [far_more] * 3
    assert r"sp\u0430rsity" in table(graded)["Gus renamed"]["notes"]


def test_the_whole_notebook_was_run_cell_by_cell(graded):
    def outcomes(student):
        [result] = json.loads((graded / f"students/{student}.json").read_text())
        return {cell["cell"]: cell["outcome"] for cell in result["notebook"]["cells"]}

    assert set(outcomes("Ada perfect").values()) == {"passed"} and len(outcomes("Ada perfect")) == 11
    assert outcomes("Ben partial")["dense-layers-check"] == "failed"
    assert outcomes("Ben partial")["sparsity-check"] == "passed"
    assert outcomes("Fay slow")["dense-layers-check"] == "failed"  # after its time for one cell
    crashed = outcomes("Eli crashed")
    assert crashed["filter-norms-check"] == "passed" and crashed["use-them"] != "passed"


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.links = [], "", []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name == "href"]

    def handle_data(self, data):
        self.text += data


def test_a_students_page_shows_what_may_be_shown(graded):
    page = Page(graded / "students/Ben partial.html")
    assert "small-lab: 7 of 12 points" in page.text
    assert "the share of zeros, a number between 0 and 1" in page.text  # what was expected, in words
    assert "the values, not their sizes" in page.text  # the answer
    assert "sort the absolute values, not the values" in page.text  # a hint
    public = Page(graded / "students/Cem wrong.html").text
    assert "filter_norms(a tensor of shape (2, 2, 3, 3)" in public and "[18. 36.] expected" in public
    assert public.count(" returned, ") == 4  # of each exercise the public part only
    checks = samples.SOURCE.checks.decode()
    for line in ("torch.randn(shape, generator=draw)", "flatten(1).sum(1)", "mask[weight.abs()"):
        assert line in checks and line not in page.text


def test_the_overview_shows_the_class(graded):
    page = Page(graded / "overview.html")
    assert all(student in page.text for student in CLASS)
    assert "8 students; median 7.5 of 12 points" in page.text
    assert {(graded / link).exists() for link in page.links} == {True} and len(page.links) == 8
    hardest = page.text.index("Hardest first")
    assert page.text.index("dense_layers", hardest) < page.text.index("sparsity", hardest)


def test_junit_has_a_suite_for_each_student_and_a_test_for_each_part(graded):
    suites = ElementTree.parse(graded / "junit.xml").getroot()
    failures = {suite.get("name").split("/")[0]: len(suite.findall("testcase/failure")) for suite in suites}
    assert all(len(suite) == 9 for suite in suites)
    assert failures["Ada perfect"] == 0 and failures["Dee empty"] == 9 and failures["Hal hostile"] == 3


def test_results_say_how_they_were_made(graded):
    for _, result in stored(graded).values():
        assert result["sandbox"] is True and result["seed"] == 0


# ---------------------------------------------------------------------------------- killed, continued, spread


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def lives(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def sandboxes(pid):
    """Whether a program has students' code in a sandbox now: its processes, if so."""
    family = sandbox.family(pid)
    names = []
    for one in family:
        try:
            names.append(Path(f"/proc/{one}/comm").read_text().strip())
        except OSError:
            names.append("")
    return family if "bwrap" in names else []


FEW = ("Ada perfect", "Eli crashed", "Gus renamed")


def test_killed_in_the_middle_and_resumed_it_is_as_if_nothing_had_happened(graded, tmp_path):
    samples.hand_in(tmp_path / "submissions", {student: CLASS[student][0] for student in FEW})
    out = tmp_path / "reports"
    words = [*command(tmp_path / "submissions", out), "--jobs", "2"]
    program = [sys.executable, "-m", "prunelab", *words]
    process = subprocess.Popen(program, cwd=PROJECT, stderr=subprocess.DEVNULL)
    wait_until(lambda: stored(out) and sandboxes(process.pid))  # one is graded, another one in its sandbox
    inside = sandboxes(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(lives, inside)), 60)  # nobody is left behind
    before = stored(out)
    assert 0 < len(before) < len(FEW) and not (out / "grades.csv").exists()
    assert cli.main([*words, "--resume"]) == 0
    after = stored(out)
    assert {student: after[student] for student in before} == before  # none was graded twice
    assert table(out) == {student: table(graded)[student] for student in FEW}  # none lost; the same marks
    for student in FEW:
        name = f"students/{student}.json"
        assert (out / name).read_bytes() == (graded / name).read_bytes()


def test_a_cluster_grades_though_one_of_its_workers_is_killed(graded, tmp_path):
    pytest.importorskip("distributed", reason="Dask is missing: grading on a cluster is NOT TESTED")
    submissions = tmp_path / "submissions"
    samples.hand_in(submissions, {student: CLASS[student][0] for student in (*FEW, "Dee empty")})
    address = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    local = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    started = [
        subprocess.Popen([*dask, "scheduler", *local, "--scheduler-file", str(address)], **quiet),
    ]
    try:
        wait_until(address.exists)
        scheduler = json.loads(address.read_text())["address"]
        worker = [*dask, "worker", scheduler, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        workers = [subprocess.Popen(worker, **quiet) for _ in range(2)]
        started += workers
        out = tmp_path / "reports"
        words = [*command(submissions, out), "--scheduler", scheduler]
        program = [sys.executable, "-m", "prunelab", *words]
        bare = {**os.environ, "PATH": ""}  # bubblewrap is for the workers only
        grading = subprocess.Popen(program, cwd=PROJECT, stderr=subprocess.DEVNULL, env=bare)
        started.append(grading)
        wait_until(lambda: sandboxes(workers[0].pid))
        inside = sandboxes(workers[0].pid)
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        assert grading.wait(240) == 0
        assert not any(map(lives, inside))
        assert {student: row["points"] for student, row in table(out).items()} == {
            student: table(graded)[student]["points"] for student in (*FEW, "Dee empty")
        }
    finally:
        for process in started:
            process.kill()
            process.wait()


AS_ORDINARY_USER = """
import os, sys
sys.path.insert(0, {tests!r})
import samples
from prunelab.grading import run
assert os.getuid() == 1000
data = samples.stored(samples.notebook(filter_norms=samples.HOSTILE))
result = run.grade_submission(samples.SOURCE, "Hal", data, [], run.Settings(memory=1))
print([exercise["points"] for exercise in result["exercises"]], result["sandbox"])
"""


@pytest.mark.skipif(os.getuid() != 0, reason="whoever runs this is an ordinary user already")
@pytest.mark.skipif(PROJECT.is_relative_to("/tmp"), reason="the project lies in /tmp, which this test hides")
def test_an_ordinary_user_can_grade(sandboxed, tmp_path):
    """The same, by a process that has no rights at all; it sees the project through a sandbox of root's."""
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 1000, 1000)
    view = ["--ro-bind", "/", "/", "--tmpfs", "/root", "--proc", "/proc", "--dev-bind", "/dev", "/dev"]
    for path in {Path(sys.base_prefix), Path(sys.prefix), PROJECT, sandbox.cache()}:
        for parent in reversed(path.parents[:-1]):
            if parent.is_relative_to("/root"):
                view += ["--dir", str(parent)]
        view += ["--ro-bind", str(path), str(path)]
    view += ["--bind", "/proc", "/proc", "--bind", str(home), "/tmp"]
    script = AS_ORDINARY_USER.format(tests=str(Path(__file__).parent))
    variables = ["env", f"PRUNELAB_CACHE={sandbox.cache().parent}", "HOME=/tmp"]
    user = ["/usr/bin/setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", *variables]
    done = subprocess.run(
        ["bwrap", *view, "--chdir", "/tmp", "--", *user, sys.executable, "-c", script],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[3, 0, 3, 2] True\n", done.stderr


def test_what_is_handed_in_around_the_answers_gains_nothing(sandboxed, tmp_path):
    students = attacks.hostile_class(tmp_path / "class.zip")
    assert cli.main(command(tmp_path / "class.zip", tmp_path / "reports")) == 0
    points = {student: float(row["points"]) for student, row in table(tmp_path / "reports").items()}
    assert points == {"Ada": 12, **dict.fromkeys(students, 0)}
    said = verdicts(tmp_path / "reports", "Files")["filter-norms"]
    assert said == ["wrong values"] * 3  # its answers were read, and nothing that lay beside them
    for student in ("Skip", "Checks", "Ids", "Outputs", "Files"):
        [result] = json.loads((tmp_path / f"reports/students/{student}.json").read_text())
        cells = {cell["cell"]: cell["outcome"] for cell in result["notebook"]["cells"]}
        assert cells["filter-norms-check"] == "failed"  # by the lab's own check, which was not skipped
    assert {path.name for path in tmp_path.iterdir()} == {"class.zip", "reports"}


# ----------------------------------------------------------------------------------- without running anything


def pretend(monkeypatch, behaviour=None):
    """Replace the grading of one submission by something that takes no time; returns who was graded."""
    asked = []

    def grade_submission(source, student, data, notes, settings):
        asked.append(student)
        if behaviour:
            behaviour(student)
        result = {"student": student, "lab": source.name, "points": 1, "of": 2, "exercises": []}
        return {**result, "notebook": None, "notes": notes, "sandbox": True, "seed": settings.seed}

    monkeypatch.setattr(run, "grade_submission", grade_submission)
    monkeypatch.setattr(sandbox, "require", lambda isolated: None)
    monkeypatch.setattr(sandbox, "warm", lambda modules: None)
    return asked


def test_resuming_grades_what_is_new_or_changed_and_nothing_else(tmp_path, monkeypatch):
    asked = pretend(monkeypatch)
    place = samples.hand_in(tmp_path / "class", dict.fromkeys("ABC", b"{}"))
    words = command(place, tmp_path / "out")
    assert cli.main(words) == 0 and asked == ["A", "B", "C"]
    (place / "B/small-lab.ipynb").write_bytes(b"[]")
    samples.hand_in(place, {"D": b"{}"})
    asked.clear()
    assert cli.main([*words, "--resume"]) == 0 and asked == ["B", "D"]
    asked.clear()
    assert cli.main([*words, "--resume"]) == 0 and asked == []
    assert cli.main([*words, "--resume", "--seed", "1"]) == 0 and asked == ["A", "B", "C", "D"]
    asked.clear()
    shutil.rmtree(place / "A")
    assert cli.main(words) == 0 and asked == ["B", "C", "D"] and set(table(tmp_path / "out")) == set("BCD")


def test_a_machine_that_fails_for_one_grades_the_others_and_says_for_whom(tmp_path, monkeypatch, capsys):
    def fail(student):
        if student == "B":
            raise sandbox.SandboxError("no room")

    pretend(monkeypatch, fail)
    place = samples.hand_in(tmp_path / "class", dict.fromkeys("ABC", b"{}"))
    assert cli.main(command(place, tmp_path / "out")) == 3
    assert "prunelab: B, small-lab: not graded: SandboxError: no room\n" in capsys.readouterr().err
    assert set(table(tmp_path / "out")) == {"A", "C"}


def test_marks_that_are_no_longer_right_are_not_shown(tmp_path, monkeypatch):
    """Ben hands in something new; then the machine fails for him."""
    pretend(monkeypatch)
    place = samples.hand_in(tmp_path / "class", dict.fromkeys("AB", b"{}"))
    words = command(place, tmp_path / "out")
    assert cli.main(words) == 0 and set(table(tmp_path / "out")) == set("AB")
    (place / "B/small-lab.ipynb").write_bytes(b"[]")

    def fail(student):
        raise sandbox.SandboxError("no room")

    pretend(monkeypatch, fail)
    assert cli.main([*words, "--resume"]) == 3
    assert set(table(tmp_path / "out")) == {"A"}
    pretend(monkeypatch)
    assert cli.main([*words, "--resume"]) == 0 and set(table(tmp_path / "out")) == set("AB")


@needs_linux
def test_without_bubblewrap_it_refuses_and_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    place = samples.hand_in(tmp_path / "class", {"A": b"{}"})
    assert cli.main(command(place, tmp_path / "out")) == 3
    assert "sudo apt install bubblewrap" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [[], ["--no-sandbox"]])
def test_on_other_systems_it_refuses_and_says_what_to_do(tmp_path, monkeypatch, capsys, more):
    monkeypatch.setattr(sys, "platform", "darwin")
    place = samples.hand_in(tmp_path / "class", {"A": b"{}"})
    assert cli.main([*command(place, tmp_path / "out"), *more]) == 3
    assert "grading needs Linux" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs_linux
def test_a_sandbox_that_does_not_start_is_the_machines_fault(tmp_path, monkeypatch, capsys):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'no permission to make a namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "warm", lambda modules: None)
    place = samples.hand_in(tmp_path / "class", {"A": samples.stored(samples.notebook())})
    assert cli.main(command(place, tmp_path / "out")) == 3
    assert "does not start: its process ended; no permission to make a namespace" in capsys.readouterr().err


def test_what_must_stay_hidden_may_not_lie_where_the_sandbox_looks(tmp_path, monkeypatch, capsys):
    pretend(monkeypatch)
    monkeypatch.setattr(sandbox, "visible", lambda: [tmp_path])
    place = samples.hand_in(tmp_path / "class", {"A": b"{}"})
    assert cli.main(command(place, tmp_path / "out")) == 1
    assert "which students' code can read" in capsys.readouterr().err


@needs_linux
def test_without_a_sandbox_the_report_says_so(tmp_path, capsys):
    """The only code that runs outside the sandbox in these tests: the lab's own solutions."""
    place = samples.hand_in(tmp_path / "class", {"A": samples.stored(samples.notebook())})
    assert cli.main([*command(place, tmp_path / "out"), "--no-sandbox"]) == 0
    assert "NO SANDBOX" in capsys.readouterr().err
    assert table(tmp_path / "out")["A"]["points"] == "12"
    assert "Graded without a sandbox" in Page(tmp_path / "out/students/A.html").text
    assert stored(tmp_path / "out")["A"][1]["sandbox"] is False


def test_results_of_something_else_are_not_overwritten(tmp_path, monkeypatch, capsys):
    pretend(monkeypatch)
    place = samples.hand_in(tmp_path / "class", {"A": b"{}"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/grades.sqlite").write_bytes(b"my own notes" * 100)
    assert cli.main(command(place, tmp_path / "out")) == 1
    assert "is no file of results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("timeout", "0"), ("memory", "-1"), ("memory", "nan"), ("jobs", "0")]
)
def test_settings_that_make_no_sense(tmp_path, name, value, capsys):
    place = samples.hand_in(tmp_path / "class", {"A": b"{}"})
    assert cli.main([*command(place, tmp_path / "out"), f"--{name}", value]) == 1
    assert f"{name}={value}" in capsys.readouterr().err.replace(".0:", ":").replace("workers", "jobs")


# ------------------------------------------------------------------------------------ hostile text in reports


def test_what_a_student_wrote_is_never_markup_formula_or_path():
    evil = "<script>alert(1)</script>"
    part = {"title": "x", "public": True, "points": 0, "of": 1, "verdict": "no", "hint": evil, "detail": evil}
    exercise = {"id": "x", "function": "x", "expects": "x", "answer": f"</pre>{evil}", "parts": [part]}
    cells = [{"cell": evil, "outcome": "failed", "text": f"{evil}\x00\x1b[31m\ufffe"}]
    names = [evil, "=HYPERLINK(0)", "../../etc/passwd", "..", "a/b", "a\\b", "\u202eevil", "", "x" * 300]
    results = [
        {
            "student": name, "lab": "lab", "points": 0, "of": 1, "seed": 0, "sandbox": True,
            "notes": [evil, "\x0b"],
            "exercises": [{**exercise, "points": 0, "of": 1}], "notebook": {"note": evil, "cells": cells},
        }
        for name in names
    ]  # fmt: skip
    for page in (
        report.page(evil, results),
        report.overview({name: [one] for name, one in zip(names, results)}),
    ):
        assert "<script" not in page and "&lt;script" in page
    ElementTree.fromstring(report.junit(results))
    for row in csv.reader(io.StringIO(report.table(results), newline="")):
        assert not row[0].startswith("=")
    files = [report.file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert all("/" not in file and "\\" not in file and file.strip(".") and len(file) < 100 for file in files)


def test_reports_are_written_whole_into_the_folder_and_nowhere_else(tmp_path):
    result = {"student": "../up", "lab": "lab", "points": 0, "of": 0, "exercises": [], "notebook": None}
    report.write(tmp_path / "out", [{**result, "notes": [], "sandbox": True, "seed": 0}])
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    name = report.file_name("../up")
    assert written == {f"out/{file}" for file in ("grades.csv", "junit.xml", "overview.html")} | {
        f"out/students/{name}.html",
        f"out/students/{name}.json",
    }
