"""No measured number is typed into prose: it would stay behind when the measurement is made anew.

What looks like one (a decimal fraction, a percentage, "3 times") has to come from somewhere: in a page
from `glue`, which fetches it from a result; in a lab from the outputs that are stored in it. Numbers that are
chosen and not measured stand in the code beside the prose too; those that others have measured stand in a
paragraph with the citation; an exercise ("Try it") computes its own; and what a sentence only supposes is
listed here.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "chapters").rglob("*.md"))
LABS = sorted((ROOT / "labs").glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?!\.?\d)|\d+(?=\s?%)|\b\d+(?= (?:times|seconds|percentage)\b)")
EXERCISE = re.compile(r"^## Try it$.*?(?=^## |\Z)", re.M | re.S)
NO_PROSE = re.compile(r"`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|^%[^\n]*$|\(section [\d.]+\)", re.M | re.S)
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]*\$", re.S)
FENCE = re.compile(r"^(```+|~~~+|:::+)(.*?)\n(.*?)^\1[ \t]*$", re.M | re.S)

SUPPOSED = {
    "criteria/correlation": {"90"},
    "evaluation/fooling": {"0.9", "50", "90", "0.8"},
    "evaluation/measures": {"0.25"},
    "granularity/filter": {"0.5"},
    "granularity/hardware": {"0.9"},
    "granularity/unstructured": {"0.9"},
    "index": {"4.0"},
    "instructors/course": {"4.0"},
    "instructors/grading": {"23.10", "0.5"},
    "introduction": {"0.25", "92", "30"},
    "physical-pruning/surgery": {"30", "60"},
    "regularisation/growing": {"30", "50"},
    "scheduling/dense-sparse-dense": {"0.25", "0.5"},
    "labs/08-evaluation": {"0.25"},
}


def untraced(paragraphs: str, sources: str, allowed: set[str]) -> list[str]:
    """Numbers in prose that no source has, each with the words before it."""
    found = []
    for paragraph in re.split(r"\n\s*\n", paragraphs):
        if "{cite" in paragraph:
            continue
        prose = NO_PROSE.sub("", paragraph)
        for match in NUMBER.finditer(prose):
            text = match.group()
            known = re.search(rf"(?<![\d.]){re.escape(text)}(?![\d]|\.\d)", sources)
            if not known and text not in allowed:
                words = prose[max(0, match.start() - 40) : match.end() + 10]
                found.append(f"{text}: {words}".replace("\n", " "))
    return found


def test_a_glued_text_stands_in_no_code():
    """A backquote around one ends the code there, and readers see its markup."""
    assert [path.name for path in PAGES if "`{glue" in path.read_text("utf8")] == []


def of_page(text: str) -> tuple[str, str]:
    """Prose, and the code and formulas, of a page."""
    text = EXERCISE.sub("", re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S))
    sources = FORMULA.findall(text)

    def take(match: re.Match) -> str:
        kind = match[2].strip()
        if match[1].startswith(":"):
            return FENCE.sub(take, match[3])  # an admonition or a figure: prose
        if kind.startswith("{") and not kind.startswith(("{code", "{math", "{excerpt")):
            return FENCE.sub(take, match[3])
        sources.append(match[3])
        return "\n"

    return FENCE.sub(take, text), "\n".join(sources)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT / "chapters").as_posix())
def test_numbers_of_a_page_come_from_somewhere(path: Path) -> None:
    name = path.relative_to(ROOT / "chapters").with_suffix("").as_posix()
    assert untraced(*of_page(path.read_text()), SUPPOSED.get(name, set())) == []


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_numbers_of_a_lab_are_in_its_outputs_or_code(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    prose = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    sources = FORMULA.findall(prose)
    for cell in cells:
        if cell["cell_type"] == "code":
            sources.append("".join(cell["source"]))
            for output in cell["outputs"]:
                sources.append("".join(output.get("text") or output.get("data", {}).get("text/html", "")))
    assert untraced(prose, "\n".join(sources), SUPPOSED.get(f"labs/{path.stem}", set())) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It reaches 91.3 % then.", 1),
        ("It reaches 91 %, and is 3 times as fast.", 2),
        ("It reaches {glue:text}`accuracy`, with a share of $0.5$ and `0.7`.", 0),
        ("They report 1.90 {cite}`someone2020`.", 0),
        ("We remove 0.5 of them.\n\n```python\nprune(amount=0.5)\n```\n", 0),
        ("We remove 0.5 of them.\n\n```python\nprune(amount=0.55)\n```\n", 1),
        ("```{admonition} So\nIt takes 7.5 seconds.\n```\n", 1),
    ],
)
def test_what_counts_as_typed(text: str, found: int) -> None:
    assert len(untraced(*of_page(text), set())) == found
