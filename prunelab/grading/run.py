"""Grade one submission, or a class: what is asked inside the sandbox, and what becomes of the answers."""

from __future__ import annotations

import builtins
import hashlib
import json
import math
import re
import signal
import sqlite3
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import prunelab
from prunelab import executors
from prunelab.grading import check, report, sandbox, worker
from prunelab.grading import lab as labs
from prunelab.grading.collect import collect
from prunelab.grading.rebuild import Rebuilt, rebuild

Result = dict[str, Any]

RIGHT = "right"
# All that a report says of an error in a hidden part: a name of the student's own could carry the inputs out.
ERRORS = {
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, BaseException)
}
SLEEP_SECONDS = 20.0  # that an answer may take beyond its CPU time on a busy machine
RESULTS = "grades.sqlite"
TABLE = """
CREATE TABLE IF NOT EXISTS results (
    student TEXT,
    lab TEXT,
    key TEXT NOT NULL,  -- a hash of all that the result depends on
    result TEXT NOT NULL,
    graded REAL NOT NULL,  -- when, in seconds since 1970
    PRIMARY KEY (student, lab)
)
"""


@dataclass(frozen=True)
class Settings:
    """How a class is graded; the same settings give the same marks.

    Attributes:
        seed: decides the hidden inputs.
        timeout: seconds for a whole notebook; one cell may take a quarter of it.
        memory: gigabytes for all processes of a submission, beyond what the libraries take.
        isolated: whether there is a sandbox.
    """

    seed: int = 0
    timeout: float = 300.0
    memory: float = 4.0
    isolated: bool = True

    def __post_init__(self) -> None:
        for name in ("timeout", "memory"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be positive")


# ------------------------------------------------------------------------------------ one submission


def grade_submission(
    source: labs.Source, student: str, data: bytes | None, notes: list[str], settings: Settings
) -> Result:
    """Grade what a student handed in for a lab.

    Public parts are asked first, then the notebook is run, then come the hidden parts: so nothing that a
    report shows was made by a process that could have seen a hidden input.

    Args:
        data: the notebook as it was handed in, ``None`` if there is none.
        notes: what was odd about how it was handed in.
    Returns:
        points and reasons, as JSON; :mod:`prunelab.grading.report` shows all of it.
    Raises:
        SandboxError: the machine cannot run students' code; no marks are given then.
    """
    lab = labs.understand(source)
    rebuilt = rebuild(lab, data)
    sandbox.require(settings.isolated)
    sandbox.warm(lab.modules)
    session = Session(lab, settings)
    exercises: dict[str, Result] = {
        name: {
            "id": name,
            "function": exercise.function,
            "expects": exercise.expects,
            "answer": rebuilt.answers[name],
            "parts": [],
        }
        for name, exercise in lab.exercises.items()
    }
    ran = None
    try:
        for public in (True, False):
            for name, exercise in exercises.items():
                exercise["parts"] += _ask_parts(session, source, name, rebuilt, public)
            if public and any(rebuilt.attempted(lab, name) for name in exercises):
                ran = _run_notebook(session, rebuilt)
    finally:
        session.close()
    for exercise in exercises.values():
        exercise["points"] = sum(part["points"] for part in exercise["parts"])
        exercise["of"] = sum(part["of"] for part in exercise["parts"])
    return {
        "student": student,
        "lab": lab.name,
        "points": sum(exercise["points"] for exercise in exercises.values()),
        "of": lab.points,
        "exercises": list(exercises.values()),
        "notebook": ran,
        "notes": [*notes, *rebuilt.notes],
        "sandbox": settings.isolated,
        "seed": settings.seed,
    }


class Session:
    """A sandbox for one submission; another one, when what the student wrote has brought it down.

    Attributes:
        given_up: exercises that are not asked any more, and why.
    """

    def __init__(self, lab: labs.Lab, settings: Settings) -> None:
        self.lab, self.settings = lab, settings
        self.given_up: dict[str, str] = {}
        self.current: sandbox.Sandbox | None = None

    def sandbox(self) -> sandbox.Sandbox:
        if self.current is None or not self.current.usable:
            self.close()
            memory = int(self.settings.memory * 1e9)
            self.current = sandbox.Sandbox(self.lab.modules, memory=memory, isolated=self.settings.isolated)
        return self.current

    def close(self) -> None:
        if self.current is not None:
            self.current.close()


def _ask_parts(
    session: Session, source: labs.Source, name: str, rebuilt: Rebuilt, public: bool
) -> Iterator[Result]:
    if rebuilt.answers[name] is None:
        session.given_up[name] = "no answer cell"
    elif not rebuilt.attempted(session.lab, name):
        session.given_up[name] = "not attempted"
    for question in _questions(source, name, session.settings.seed):
        part = question.part
        if part.public == public:
            verdict, detail = session.given_up.get(name, ""), ""
            if not verdict:
                verdict, detail, go_on = _ask(session, name, rebuilt, question)
                if not go_on:
                    session.given_up[name] = verdict  # so it would be with each part
            yield {
                "title": part.title,
                "public": public,
                "points": part.points if verdict == RIGHT else 0,
                "of": part.points,
                "verdict": verdict,
                "hint": "" if verdict == RIGHT else part.hint,
                "detail": detail if public else "",
            }


@lru_cache(maxsize=256)
def _questions(source: labs.Source, name: str, seed: int) -> list[check.Question]:
    return check.questions(labs.understand(source).exercises[name], seed)


def _ask(session: Session, name: str, rebuilt: Rebuilt, question: check.Question) -> tuple[str, str, bool]:
    """Have a student's function called, and judge what comes back.

    Returns:
        the verdict, more about it (for public parts only), and whether there is any use in asking the next
        part.
    """
    lab, exercise = session.lab, session.lab.exercises[name]
    calls, numbers = worker.encode([list(call) for call in question.calls])
    request = {
        "do": "exercise",
        "setup": lab.setup,
        "answers": [rebuilt.answers[other] or "" for other in lab.answers][
            : list(lab.answers).index(name) + 1
        ],
        "function": exercise.function,
        "calls": calls,
        "seconds": exercise.seconds,
    }
    expected_bytes = [worker.frame(*worker.encode(expected)) for expected in question.expected]
    inside = session.sandbox()
    replies = inside.ask(
        request,
        numbers,
        seconds=4 * exercise.seconds + SLEEP_SECONDS,  # a loop is ended by CPU time; this ends what sleeps
        most=sandbox.FRAME_BYTES + 4 * max(map(len, expected_bytes)),
    )
    received = 0
    verdict, detail = "", ""
    try:
        for received, (message, numbers) in enumerate(replies, start=1):
            if received == 1 and message.get("defined") is not True:
                _, detail = _judge(exercise, (), None, message, b"")
                verdict = "the function is not defined"
            elif 1 < received <= 1 + len(question.calls) and not verdict:
                call, expected = question.calls[received - 2], question.expected[received - 2]
                verdict, detail = _judge(exercise, call, expected, message, numbers)
    except sandbox.Ended as end:
        return f"no answer: {end}", "", False
    if not verdict and received < 1 + len(question.calls):
        late = inside.exit_code in (-signal.SIGXCPU, -signal.SIGKILL)
        verdict = f"no answer: {'it ran out of time' if late else 'its process ended'}"
    return verdict or RIGHT, detail, received > 0 and verdict != "the function is not defined"


def _judge(
    exercise: check.Exercise, call: tuple, expected: Any, message: Result, numbers: bytes
) -> tuple[str, str]:
    """What is wrong with a message from the sandbox: in general words and in detail; nothing if right."""
    if "value" in message:
        try:
            answer = worker.decode(message["value"], numbers)
        except ValueError as error:
            return "wrong type or shape", str(error)
        verdict, detail = check.fault(exercise, call, expected, answer)
        given = ", ".join(check.show(argument) for argument in call)
        return verdict, _clean(f"{exercise.function}({given})\n{detail}" if verdict else "")
    raised = message.get("error")
    raised = raised if isinstance(raised, dict) else {}
    kind = raised.get("type")
    return f"an error: {kind if kind in ERRORS else 'Exception'}", _clean(raised.get("text"))


def _run_notebook(session: Session, rebuilt: Rebuilt) -> Result:
    """What nbval says of the whole notebook. It was said inside the sandbox, so no marks depend on it."""
    lab, timeout = session.lab, session.settings.timeout
    order = [cell["id"] for cell in lab.notebook["cells"] if cell["cell_type"] == "code"]
    request = {"do": "notebook", "name": f"{lab.name}.ipynb", "text": rebuilt.notebook}
    inside = session.sandbox()
    cells: dict[str, Result] = {}
    note = ""
    try:
        for message, _ in inside.ask({**request, "cell_timeout": timeout / 4}, seconds=timeout):
            cell, outcome = message.get("cell"), message.get("outcome")
            if isinstance(cell, str) and cell in order and outcome in ("passed", "failed", "skipped"):
                cells.setdefault(
                    cell, {"cell": cell, "outcome": outcome, "text": _clean(message.get("text"))}
                )
    except sandbox.Ended as end:
        note = f"the notebook did not run to its end: {end}"
    missing = {"outcome": "not run", "text": ""}
    return {"note": note, "cells": [cells.get(cell, {"cell": cell, **missing}) for cell in order]}


def _clean(text: Any, most: int = 3000) -> str:
    """Text from the sandbox as it can be stored and shown: without colours and control characters."""
    text = text if isinstance(text, str) else ""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text[: 4 * most])
    text = "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
    return text.encode(errors="replace").decode().strip()[:most]


# ------------------------------------------------------------------------------------ a class


class Store:
    """The results so far, in one SQLite file: each is there whole or not at all, whatever happens."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(path, isolation_level=None)  # each statement is a transaction
        try:
            self.database.execute("PRAGMA synchronous = FULL")
            self.database.execute(TABLE)
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{path} is no file of results ({error}): name another folder with -o"
            ) from error

    def forget(self) -> None:
        self.database.execute("DELETE FROM results")

    def put(self, key: str, result: Result) -> None:
        row = (result["student"], result["lab"], key, json.dumps(result), time.time())
        self.database.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)", row)

    def get(self, student: str, lab: str) -> tuple[str, Result] | None:
        """The key and the result of a submission."""
        where = "SELECT key, result FROM results WHERE student = ? AND lab = ?"
        row = self.database.execute(where, (student, lab)).fetchone()
        return None if row is None else (row[0], json.loads(row[1]))

    def close(self) -> None:
        self.database.close()


def grade(
    submissions: Path,
    out: Path,
    masters: Iterable[Path],
    settings: Settings,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    resume: bool = False,
) -> dict[tuple[str, str], str]:
    """Grade a class and write its reports.

    Args:
        submissions: a folder or a zip; see :mod:`prunelab.grading.collect`.
        out: the folder for the reports and for ``grades.sqlite``.
        masters: the labs' master notebooks, or folders of them.
        jobs: submissions at a time, on this machine.
        scheduler: address of a Dask scheduler, ``tcp://…``, whose workers grade instead.
        resume: keep the results that are there already, if submission, lab and settings are the same.
    Returns:
        for whom the machine failed, as ``{(student, lab): why}``; these have no marks.
    Raises:
        ValueError: nothing to grade, or a lab that is not sound.
        SandboxError: this machine has no sandbox.
    """
    known = {source.name: source for source in labs.sources(masters) if labs.understand(source).exercises}
    if not known:
        raise ValueError("none of the labs has an exercise: name a lab with --lab, or a folder of masters")
    for source in known.values():
        labs.verify(labs.understand(source), settings.seed)
    found = collect(submissions, list(known))
    if scheduler is None:
        sandbox.require(settings.isolated)
    if scheduler is None and settings.isolated:
        for place in (submissions, out, *masters):
            for seen in sandbox.visible():
                if place.absolute().is_relative_to(seen):
                    raise ValueError(
                        f"{place} lies in {seen}, which students' code can read: move it elsewhere"
                    )
        for source in known.values():
            sandbox.warm(labs.understand(source).modules)
    failed: dict[tuple[str, str], str] = {}
    waiting: dict[Future, tuple[str, str, str]] = {}
    with (
        closing(Store(out / RESULTS)) as store,
        _pool(jobs, scheduler) as pool,
        tqdm(total=len(found), desc="grading", unit="notebook") as bar,
    ):
        if not resume:
            store.forget()

        def finish(at_most: int) -> None:
            """Store what is there, and wait for more as long as more than ``at_most`` are under way."""
            while waiting:
                seconds = None if len(waiting) > at_most else 0
                done = wait(waiting, timeout=seconds, return_when=FIRST_COMPLETED).done
                if not done:
                    return
                for future in done:
                    student, lab, key = waiting.pop(future)
                    try:
                        store.put(key, future.result())
                    except Exception as error:  # whatever it is: the others are graded all the same
                        failed[student, lab] = f"{type(error).__name__}: {error}"
                    bar.update()

        for submission in found:
            data, notes = submission.read()
            source = known[submission.lab]
            key = _key(source, data, notes, settings)
            stored = store.get(submission.student, submission.lab)
            if stored is not None and stored[0] == key:
                bar.update()
                continue
            task = (source, submission.student, data, notes, settings)
            waiting[pool.submit(grade_submission, *task)] = (submission.student, submission.lab, key)
            finish(2 * executors.capacity(pool))
        finish(0)
        names = [(submission.student, submission.lab) for submission in found]
        # Of somebody for whom the machine failed there may be a result that is no longer right.
        stored_results = (store.get(*name) for name in names if name not in failed)
        results = [stored[1] for stored in stored_results if stored is not None]
    report.write(out, results)
    return failed


def _key(source: labs.Source, data: bytes | None, notes: list[str], settings: Settings) -> str:
    """What a result depends on: if none of it has changed, the result is still right."""
    told = json.dumps([notes, asdict(settings), prunelab.__version__, data is None])
    digest = hashlib.sha256()
    for piece in (*source[1:], data or b"", told.encode()):
        digest.update(hashlib.sha256(piece).digest())
    return digest.hexdigest()


@contextmanager
def _pool(jobs: int, scheduler: str | None) -> Iterator[Executor]:
    if jobs == 1 and scheduler is None:
        yield Here()
    else:
        with executors.executor(workers=None if scheduler else jobs, scheduler=scheduler) as pool:
            yield pool


class Here(Executor):
    """This very process, one call after the other."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
