"""What was handed in is not run: the master is, with the sources of the student's answers put into it.

Tags, metadata, outputs, further cells and anything else that came with the submission stay behind.
"""

from __future__ import annotations

import copy
import json
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from prunelab.grading import lab as labs

MOST_BYTES = 20_000_000  # of a notebook; one with many pictures has about 5 million
MOST_CHARACTERS = 100_000  # of an answer
FOR_NBVAL = re.compile(r"\s*#+\s*(NBVAL|PYTEST_VALIDATE)_[A-Z_]+\s*")  # a comment that nbval obeys


@dataclass
class Rebuilt:
    """A submission as it will be run.

    Attributes:
        answers: for each exercise the source of the student's answer, ``None`` where there is none.
        notes: what was found odd, in words for the report.
        notebook: the master with these answers, as text; where there is none, the cell as it was released.
    """

    answers: dict[str, str | None]
    notes: list[str] = field(default_factory=list)
    notebook: str = ""

    def attempted(self, lab: labs.Lab, name: str) -> bool:
        """Whether an answer is more than what was released."""
        answer = self.answers[name]
        return answer is not None and answer.strip() != stub(lab, name).strip()


def rebuild(lab: labs.Lab, data: bytes | None) -> Rebuilt:
    """Take the answers out of what was handed in. Never fails: what cannot be read is noted, and missing."""
    result = Rebuilt(dict.fromkeys(lab.answers))
    try:
        cells = _cells(data, result.notes)
    except ValueError as error:
        result.notes.append(str(error))
        cells = []
    if cells:
        _take_answers(lab, cells, result)
        _compare_the_rest(lab, cells, result.notes)
    result.notebook = _put_together(lab, result.answers)
    return result


def stub(lab: labs.Lab, name: str) -> str:
    """An answer cell's source as it was released."""
    return labs.without_solution(labs.text_of(lab.notebook["cells"][lab.answers[name]]))


def _cells(data: bytes | None, notes: list[str]) -> list[dict[str, Any]]:
    if data is None:
        raise ValueError("nothing was handed in")
    if len(data) > MOST_BYTES:
        raise ValueError(f"the file is too large: a notebook may have {MOST_BYTES / 1e6:.0f} MB")
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError:
        text = data.decode("utf8", errors="replace")
        notes.append("the file is not UTF-8 text: what could not be read was replaced by a question mark")
    text = text.removeprefix("\ufeff")
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the file is not a notebook: it is no valid JSON") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise ValueError("the file is not a notebook of a version that Jupyter has written since 2015")
    return [cell for cell in cells if isinstance(cell, dict)]


def _take_answers(lab: labs.Lab, cells: list[dict[str, Any]], result: Rebuilt) -> None:
    found: dict[str, list[str]] = {name: [] for name in lab.answers}
    order, unknown = [], []
    for cell in cells:
        name = _grade_id(cell)
        if name is None:
            continue
        if name in found:
            if cell.get("cell_type") != "code":
                result.notes.append(f"the answer {name!r} is no longer a code cell, so it was left out")
                continue
            order.append(name)
            found[name].append(_source(cell))
        elif name.removesuffix("-check") not in found:
            unknown.append(name)
    for name, texts in found.items():
        if len(texts) > 1:
            result.notes.append(
                f"the answer {name!r} is there {len(texts)} times: the last one that was worked on counts"
            )
        worked_on = [text for text in texts if text.strip() != stub(lab, name).strip()] or texts
        if not worked_on:
            near = next((other for other in unknown if _look_alike(other, name)), None)
            more = f", though there is one called {near!a} in other letters" if near else ""
            result.notes.append(f"the answer cell {name!r} is missing (renamed or deleted){more}")
        elif len(worked_on[-1]) > MOST_CHARACTERS:
            result.notes.append(
                f"the answer {name!r} is longer than {MOST_CHARACTERS:,} characters: left out"
            )
        else:
            result.answers[name] = _neutral(worked_on[-1], name, result.notes)
    if list(dict.fromkeys(order)) != [name for name in lab.answers if name in order]:
        result.notes.append("the answer cells are in another order: they were run in the lab's")
    if unknown:
        listed = ", ".join(ascii(name[:60]) for name in unknown[:5])
        result.notes.append(f"cells with ids that this lab does not have were left out: {listed}")
    if not order and unknown:
        result.notes.append("this looks like another lab, or another version of this one")


def _grade_id(cell: dict[str, Any]) -> str | None:
    metadata = cell.get("metadata")
    graded = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = graded.get("grade_id") if isinstance(graded, dict) else None
    return name if isinstance(name, str) else None


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source", "")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    return source.encode(errors="replace").decode() if isinstance(source, str) else ""


def _neutral(text: str, name: str, notes: list[str]) -> str:
    """The source without the comments by which a cell could tell nbval to skip it."""
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not FOR_NBVAL.fullmatch(line)]
    if kept != lines:
        notes.append(f"comments for nbval were taken out of the answer {name!r}")
    return "".join(kept)


def _look_alike(one: str, other: str) -> bool:
    """Whether an id is another one with letters of other alphabets, accents, or one other letter in it."""

    def bare(text: str) -> str:
        plain = unicodedata.normalize("NFKD", text).casefold()
        return "".join(letter for letter in plain if unicodedata.category(letter) not in ("Mn", "Cf"))

    first, second = bare(one), bare(other)
    wrong = sum(a != b and a.isascii() for a, b in zip(first, second))
    return wrong + abs(len(first) - len(second)) <= 1


def _compare_the_rest(lab: labs.Lab, cells: list[dict[str, Any]], notes: list[str]) -> None:
    """Say which of the lab's own cells were changed; they are run as they were released."""
    answers = set(lab.answers.values())
    own = [cell for place, cell in enumerate(lab.notebook["cells"]) if place not in answers]
    handed_in = {cell["id"]: _source(cell) for cell in cells if isinstance(cell.get("id"), str)}
    changed = [
        cell["id"]
        for cell in own
        if cell["cell_type"] == "code" and handed_in.get(cell["id"]) != labs.text_of(cell)
    ]
    if changed:
        listed = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
        notes.append(
            f"cells of the lab were changed or deleted ({listed}): they were run as they were released"
        )
    known = {cell["id"] for cell in lab.notebook["cells"]}
    added = [cell for cell in cells if cell.get("cell_type") == "code" and _source(cell).strip()]
    added = [cell for cell in added if cell.get("id") not in known and _grade_id(cell) not in lab.answers]
    if added:
        notes.append(f"{len(added)} code cells of the student's own were left out")


def _put_together(lab: labs.Lab, answers: dict[str, str | None]) -> str:
    notebook = copy.deepcopy(lab.notebook)
    names = {place: name for name, place in lab.answers.items()}
    for place, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        if place in names:
            answer = answers[names[place]]
            cell["source"] = stub(lab, names[place]) if answer is None else answer
        tags = [tag for tag in cell["metadata"].get("tags", []) if tag != "nbval-check-output"]
        cell["metadata"], cell["outputs"], cell["execution_count"] = {"tags": tags}, [], None
    return json.dumps(notebook)
