"""A lab as its author wrote it: the master notebook, solutions included, and the checks that belong to it."""

from __future__ import annotations

import ast
import copy
import json
import re
import types
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from prunelab.grading import check

SETUP_TAG = "exercise-setup"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
KEYS = {"schema_version", "grade_id", "solution", "grade", "locked", "task"}  # nbgrader's, version 3


class Source(NamedTuple):
    """The files of a lab, as they can be sent to another machine."""

    name: str
    notebook: bytes
    checks: bytes


@dataclass(frozen=True)
class Lab:
    """What the files say.

    Attributes:
        notebook: the master, as JSON.
        answers: for each exercise, in the notebook's order, its answer cell's place.
        exercises: what is asked, for each exercise.
        setup: the sources of the cells that a student's function may rely on.
        modules: what those import.
    """

    name: str
    notebook: dict[str, Any]
    answers: dict[str, int]
    exercises: dict[str, check.Exercise]
    setup: list[str]
    modules: list[str]

    @property
    def points(self) -> float:
        return sum(exercise.points for exercise in self.exercises.values())


def sources(paths: Iterable[Path]) -> list[Source]:
    """The labs in folders of masters, or single ones.

    Raises:
        ValueError: there is no such notebook, or two of one name.
    """
    found = []
    for path in paths:
        notebooks = sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
        for notebook in notebooks:
            if not notebook.is_file():
                raise ValueError(f"{notebook}: there is no such notebook")
            checks = notebook.parent / "checks" / f"{notebook.stem}.py"
            text = checks.read_bytes() if checks.exists() else b""
            found.append(Source(notebook.stem, notebook.read_bytes(), text))
    names = [source.name for source in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"there are {names.count(name)} labs of the name {name!r}: name one")
    return found


@lru_cache(maxsize=64)
def understand(source: Source) -> Lab:
    """Read a lab, and see that notebook and checks fit together.

    Raises:
        ValueError: they do not; the message names the lab and the cell.
    """
    where = f"{source.name}.ipynb"
    notebook = json.loads(source.notebook)
    if write(notebook) != source.notebook:
        raise ValueError(
            f"{where} is not stored as Jupyter stores a notebook: open it there and save it once"
        )
    if not all("id" in cell for cell in notebook["cells"]):
        raise ValueError(f"{where} has cells without an id: store it in nbformat 4.5 or later")
    answers: dict[str, int] = {}
    points: dict[str, float] = {}
    setup: list[str] = []
    for place, cell in enumerate(notebook["cells"]):
        if SETUP_TAG in cell["metadata"].get("tags", []):
            setup.append(text_of(cell))
        graded = cell["metadata"].get("nbgrader")
        if graded is None:
            continue
        name = f"{where}, cell {graded.get('grade_id')!r}"
        missing, extra = KEYS - graded.keys(), graded.keys() - KEYS - {"points"}
        if missing or extra or graded["schema_version"] != 3:
            raise ValueError(f"{name}: nbgrader metadata of version 3 has the keys {', '.join(sorted(KEYS))}")
        if not re.fullmatch("[A-Za-z0-9-]+", graded["grade_id"]) or cell["cell_type"] != "code":
            raise ValueError(f"{name}: an id is letters, digits and hyphens, of a code cell")
        if graded["grade_id"] in answers or graded["grade_id"] in points:
            raise ValueError(f"{name}: there are two cells of this id")
        if graded["solution"] == graded["grade"] or graded["task"] or graded["locked"] != graded["grade"]:
            raise ValueError(f"{name}: must be an answer (solution) or a check (grade and locked), not both")
        if ("points" in graded) != graded["grade"]:
            raise ValueError(f"{name}: points belong to check cells, and each of them has some")
        if graded["solution"]:
            answers[graded["grade_id"]] = place
            without_solution(text_of(cell), name)
        else:
            points[graded["grade_id"]] = graded["points"]
    if answers and not source.checks:
        raise ValueError(f"{where} has exercises, so it needs checks/{source.name}.py beside it")
    exercises = _exercises(source)
    if sorted(points) != sorted(f"{name}-check" for name in answers):
        raise ValueError(f"{where}: answers {sorted(answers)} need check cells of the same ids and '-check'")
    if set(exercises) != set(answers):
        raise ValueError(
            f"{where} has the exercises {sorted(answers)}, its checks are of {sorted(exercises)}"
        )
    for name, exercise in exercises.items():
        if exercise.points != points[f"{name}-check"]:
            given = points[f"{name}-check"]
            raise ValueError(
                f"{where}, cell '{name}-check': {given:g} points in the notebook, but its parts add up to "
                f"{exercise.points:g}"
            )
    ordered = {name: exercises[name] for name in answers}
    return Lab(source.name, notebook, answers, ordered, setup, imports(setup))


def _exercises(source: Source) -> dict[str, check.Exercise]:
    module = types.ModuleType(f"checks of {source.name}")
    exec(compile(source.checks, f"checks/{source.name}.py", "exec"), module.__dict__)
    found = [value for value in vars(module).values() if isinstance(value, check.Exercise)]
    return {exercise.grade_id: exercise for exercise in found}


def imports(cells: list[str]) -> list[str]:
    """The modules that the course's own cells import, in their order."""
    names: dict[str, None] = {}
    for cell in cells:
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.Import):
                names |= dict.fromkeys(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names[node.module] = None
    return list(names)


def text_of(cell: dict[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def without_solution(text: str, where: str = "cell") -> str:
    """An answer cell's source with its solutions taken out.

    Raises:
        ValueError: no marker, or one without its partner.
    """
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        marker = line.strip()
        if marker in (BEGIN, END):
            if (marker == BEGIN) == inside:
                raise ValueError(f"{where}: {marker!r} without its partner")
            inside = not inside
            if inside:
                indent = line[: len(line) - len(line.lstrip())]
                kept.append(f'{indent}raise NotImplementedError("your code here")\n')
        elif not inside:
            kept.append(line)
    if inside or kept == text.splitlines(keepends=True):
        raise ValueError(f"{where}: the solution must stand between {BEGIN!r} and {END!r}")
    result = "".join(kept)
    return result if text.endswith("\n") else result.removesuffix("\n")


def released(lab: Lab) -> dict[str, Any]:
    """The students' notebook: solutions taken out, answers and checks protected; everything else as it is."""
    notebook = copy.deepcopy(lab.notebook)
    for cell in notebook["cells"]:
        graded = cell["metadata"].get("nbgrader")
        if graded is None:
            continue
        cell["metadata"]["deletable"] = False
        if graded["solution"]:
            cell["source"] = without_solution(text_of(cell)).splitlines(keepends=True)
            cell["outputs"], cell["execution_count"] = [], None
        else:
            cell["metadata"]["editable"] = False
    return notebook


def write(notebook: dict[str, Any]) -> bytes:
    """A notebook as Jupyter stores it."""
    text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True, separators=(",", ": "))
    return f"{text}\n".encode()


def verify(lab: Lab, seed: int = 0) -> None:
    """See that the lab's own solutions get full marks. Runs them here: they are the course's own.

    Raises:
        ValueError: one does not; the message says which, and what it returned.
    """
    namespace: dict[str, Any] = {}
    for source in [*lab.setup, *(text_of(lab.notebook["cells"][place]) for place in lab.answers.values())]:
        exec(compile(source, f"{lab.name}.ipynb", "exec"), namespace)
    for name, exercise in lab.exercises.items():
        where = f"{lab.name}.ipynb, exercise {name!r}"
        if exercise.function not in namespace:
            raise ValueError(f"{where}: the answer cell defines no {exercise.function}")
        if not any(part.public for part in exercise.parts):
            raise ValueError(f"{where}: at least one part of its checks must be public")
        for question in check.questions(exercise, seed):
            for call, expected in zip(question.calls, question.expected):
                answer = namespace[exercise.function](*copy.deepcopy(call))
                _, detail = check.fault(exercise, call, expected, check.plain(answer))
                if detail:
                    raise ValueError(
                        f"{where}, part {question.part.title!r}: the lab's own solution: {detail}"
                    )
