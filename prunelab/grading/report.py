"""What the instructor and the students get: a table of marks, a page and a JSON file for each student, JUnit
XML, and an overview of the class. Everything that a student wrote is text here, never markup, formula or
path.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import statistics
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from prunelab.basics import whole_file

Result = dict[str, Any]

STYLE = """
:root { color-scheme: light dark; --line: #8885; --good: #2a7d46; --bad: #b3402e; --soft: #8882; }
@media (prefers-color-scheme: dark) { :root { --good: #6cc58b; --bad: #f08a78; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin-top: 1.8rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--soft); padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.right { color: var(--good); } .wrong { color: var(--bad); } .quiet { opacity: .75; }
table.everybody th:first-child { min-width: 8rem; }
table.parts th:first-child { width: 32%; } table.parts th:last-child { width: 5rem; }
.bar { background: var(--good); height: .8rem; }
td.room { background: var(--soft); width: 60%; vertical-align: middle; }
.warning { border: 1px solid var(--bad); padding: .5rem .8rem; }
"""


def write(out: Path, results: list[Result]) -> None:
    """Write all reports into a folder; the same results give the same files."""
    students: dict[str, list[Result]] = {}
    for result in results:
        students.setdefault(result["student"], []).append(result)
    files = {"grades.csv": table(results), "junit.xml": junit(results), "overview.html": overview(students)}
    for student, own in students.items():
        name = file_name(student)
        files[f"students/{name}.html"] = page(student, own)
        files[f"students/{name}.json"] = json.dumps(own, indent=2) + "\n"
    for name, text in files.items():
        with whole_file(out / name) as partial:
            partial.write_text(text, encoding="utf8")


def file_name(student: str) -> str:
    """A name for a student's files that is safe everywhere, and different for different students."""
    safe = re.sub(r"[^A-Za-z0-9 ()-]+", "_", student).strip(" .")[:60]
    return safe if safe == student != "" else f"{safe}-{hashlib.sha256(student.encode()).hexdigest()[:8]}"


def number(value: float) -> str:
    return f"{value:g}"


# ------------------------------------------------------------------------------------ for machines


def table(results: list[Result]) -> str:
    """One line for each student and lab, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["student", "lab", "points", "of", "notes"])
    for result in results:
        row = [result["student"], result["lab"], number(result["points"]), number(result["of"])]
        writer.writerow([_no_formula(value) for value in [*row, "; ".join(result["notes"])]])
    return text.getvalue()


def _no_formula(text: str) -> str:
    """A cell that a spreadsheet shows and does not calculate."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def junit(results: list[Result]) -> str:
    """Each submission as a test suite, each part of an exercise as a test."""
    root = ElementTree.Element("testsuites")
    for result in results:
        parts = [(exercise, part) for exercise in result["exercises"] for part in exercise["parts"]]
        wrong = [part for _, part in parts if part["points"] != part["of"]]
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(f"{result['student']}/{result['lab']}"))
        suite.attrib |= {"tests": str(len(parts)), "failures": str(len(wrong)), "errors": "0"}
        for exercise, part in parts:
            name = f"{exercise['id']}: {part['title']}"
            case = ElementTree.SubElement(suite, "testcase", name=_xml(name), classname=_xml(result["lab"]))
            if part["points"] != part["of"]:
                failure = ElementTree.SubElement(case, "failure", message=_xml(part["verdict"]))
                failure.text = _xml(part["detail"] or part["hint"])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Without the characters that XML does not allow."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text)


# ------------------------------------------------------------------------------------ for people


def html(title: str, body: Iterable[str]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"  # a page that can load and run nothing
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += '<meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def page(student: str, results: list[Result]) -> str:
    """A student's report: points, what was expected, what went wrong in public parts, hints."""
    body = [f"<h1>{escape(student)}</h1>"]
    for result in results:
        body += _lab(result)
    return html(f"Report for {student}", body)


def _lab(result: Result) -> Iterable[str]:
    yield f"<h2>{escape(result['lab'])}: {number(result['points'])} of {number(result['of'])} points</h2>"
    if not result["sandbox"]:
        yield '<p class="warning">Graded without a sandbox: trust the marks as far as the code.</p>'
    if result["notes"]:
        yield "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in result["notes"]) + "</ul>"
    for exercise in result["exercises"]:
        yield f"<h3><code>{escape(exercise['function'])}</code>: "
        yield f"{number(exercise['points'])} of {number(exercise['of'])} points</h3>"
        yield f"<p>Expected: {_code(exercise['expects'])}.</p>"
        yield '<table class="parts"><tr><th>what was asked</th><th>result</th>'
        yield '<th class="number">points</th></tr>'
        for part in exercise["parts"]:
            right = part["points"] == part["of"]
            more = f"<pre>{escape(part['detail'])}</pre>" if part["detail"] else ""
            more += f'<div class="quiet">Hint: {_code(part["hint"])}</div>' if part["hint"] else ""
            yield f"<tr><td>{_code(part['title'])}</td>"
            colour = "right" if right else "wrong"
            yield f'<td><span class="{colour}">{escape(part["verdict"])}</span>{more}</td>'
            yield f'<td class="number">{number(part["points"])} of {number(part["of"])}</td></tr>'
        yield "</table>"
        if exercise["answer"]:
            yield "<details><summary>the answer as it was graded</summary>"
            yield f"<pre>{escape(exercise['answer'])}</pre></details>"
    if result["notebook"]:
        yield from _cells(result["notebook"])


def _cells(ran: Result) -> Iterable[str]:
    failing = [cell for cell in ran["cells"] if cell["outcome"] == "failed"]
    passed = sum(cell["outcome"] == "passed" for cell in ran["cells"])
    yield "<h3>The whole notebook</h3>"
    yield f"<p>{passed} of {len(ran['cells'])} code cells ran without an error. No points depend on this.</p>"
    if ran["note"]:
        yield f"<p>{escape(ran['note'][:1].upper() + ran['note'][1:])}.</p>"
    for cell in failing:
        yield f"<details><summary>cell <code>{escape(cell['cell'])}</code> failed</summary>"
        yield f"<pre>{escape(cell['text'])}</pre></details>"


def _code(text: str) -> str:
    """The words of a lab's author, with `code` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def overview(students: dict[str, list[Result]]) -> str:
    """The class: how the points are distributed, which parts were hardest, and everybody's points."""
    body = ["<h1>The class</h1>"]
    by_lab: dict[str, list[Result]] = {}
    for results in students.values():
        for result in results:
            by_lab.setdefault(result["lab"], []).append(result)
    for lab, results in by_lab.items():
        points = [result["points"] for result in results]
        body.append(f"<h2>{escape(lab)}</h2>")
        body.append(
            f"<p>{len(results)} students; median {number(statistics.median(points))} of "
            f"{number(results[0]['of'])} points.</p>"
        )
        body += _distribution(points, results[0]["of"])
        body += _hardest(results)
    body.append('<h2>Everybody</h2><table class="everybody"><tr><th>student</th>')
    body.append("".join(f'<th class="number">{escape(lab)}</th>' for lab in by_lab) + "<th>notes</th></tr>")
    for student, results in students.items():
        link = f'<a href="students/{escape(file_name(student))}.html">{escape(student)}</a>'
        own = {result["lab"]: result for result in results}
        cells = (
            f"{number(own[lab]['points'])} of {number(own[lab]['of'])}" if lab in own else "–"
            for lab in by_lab
        )
        body.append(f"<tr><td>{link}</td>" + "".join(f'<td class="number">{cell}</td>' for cell in cells))
        notes = [note for result in results for note in result["notes"]]
        body.append(f'<td class="quiet">{escape("; ".join(notes))}</td></tr>')
    body.append("</table>")
    return html("The class", body)


def _distribution(points: list[float], most: float) -> Iterable[str]:
    """How many students have which share of the points, in tenths."""
    counts = [0] * 10
    for value in points:
        counts[min(9, int(10 * value / most)) if most else 9] += 1
    yield '<table><tr><th>share of the points</th><th></th><th class="number">students</th></tr>'
    for tenth, count in enumerate(counts):
        width = 100 * count / max(counts)
        yield f'<tr><td>{10 * tenth} to {10 * tenth + 10} %</td><td class="room">'
        yield f'<div class="bar" style="width: {width:.0f}%"></div></td><td class="number">{count}</td></tr>'
    yield "</table>"


def _hardest(results: list[Result]) -> Iterable[str]:
    parts: dict[tuple[str, str], list[bool]] = {}
    for result in results:
        for exercise in result["exercises"]:
            for part in exercise["parts"]:
                name = exercise["function"], part["title"]
                parts.setdefault(name, []).append(part["points"] == part["of"])
    yield '<h3>Hardest first</h3><table><tr><th>exercise</th><th>part</th><th class="number">right</th></tr>'
    for (function, title), right in sorted(
        parts.items(), key=lambda item: (sum(item[1]) / len(item[1]), item[0])
    ):
        yield f"<tr><td><code>{escape(function)}</code></td><td>{_code(title)}</td>"
        yield f'<td class="number">{sum(right)} of {len(right)}</td></tr>'
    yield "</table>"
