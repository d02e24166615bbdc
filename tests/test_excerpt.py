"""What the book shows of the package is the package's code, laid out for a page."""

import ast
import re
from pathlib import Path

import pytest
from excerpt import COLUMNS, ROOT, excerpt

SHOWN = re.compile(r"```\{excerpt\} (\S+) (\S+)\n((?::.*\n)*)```")

SOURCE = '''
@register("criterion", cite="somebody2020thing")
@torch.no_grad()
def score(groups):
    r"""What it does:
    :math:`x`.
    """
    total = groups.abs()  # a remark that is too long to stand behind the line that it is about, so up it goes
    # Another one, alone on its line already, which goes on for more columns than the page has room for.
    return total.sum(1) if total.dim() == 2 else total.flatten(1).sum(1) + some_function(total)  # noqa: B9


class Penalty:
    """A class."""

    def value(self):
        """Its value."""
        begin = 1
        middle = "# no remark"

        return begin
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.py"
    path.write_text(SOURCE)
    return path


def test_a_function_without_docstring_and_registration_in_eighty_columns(source: Path) -> None:
    assert excerpt(source, "score").splitlines() == [
        "@torch.no_grad()",
        "def score(groups):",
        "    # a remark that is too long to stand behind the line that it is about, so up",
        "    # it goes",
        "    total = groups.abs()",
        "    # Another one, alone on its line already, which goes on for more columns",
        "    # than the page has room for.",
        "    return (",
        "        total.sum(1)",
        "        if total.dim() == 2",
        "        else total.flatten(1).sum(1) + some_function(total)",
        "    )",
    ]


def test_a_part_of_a_method(source: Path) -> None:
    assert excerpt(source, "Penalty.value", "middle", "return") == 'middle = "# no remark"'
    assert excerpt(source, "Penalty.value", "return") == "return begin"
    assert excerpt(source, "Penalty.value").startswith("def value(self):\n    begin = 1")


@pytest.mark.parametrize(
    "wanted", [("value",), ("Penalty.none",), ("score", "absent"), ("score", "total", "absent")]
)
def test_what_is_not_there_is_an_error(source: Path, wanted: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"source\.py.*(value|none|absent)"):
        excerpt(source, *wanted)


def shown() -> list[tuple[str, str, str, str]]:
    found = set()
    for page in (ROOT / "chapters").rglob("*.md"):
        for file, name, options in SHOWN.findall(page.read_text(encoding="utf-8")):
            part = dict(re.findall(r":([\w-]+): '?(.*?)'?\n", options))
            found.add((file, name, part.get("start-at", ""), part.get("end-before", "")))
    return sorted(found)


@pytest.mark.parametrize("file, name, start, end", shown())
def test_every_excerpt_of_the_book_is_the_code_that_runs(file: str, name: str, start: str, end: str) -> None:
    code = excerpt(ROOT / file, name, start, end)
    too_long = [line for line in code.splitlines() if len(line) > COLUMNS]
    assert all('"' in line for line in too_long)  # only messages, which no formatter breaks
    if not start:
        node: ast.AST = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        for part in name.split("."):
            node = next(child for child in node.body if getattr(child, "name", None) == part)
        if ast.get_docstring(node) is not None:
            node.body.pop(0)
        node.decorator_list.clear()
        ours = ast.parse(code).body[0]
        ours.decorator_list.clear()
        assert ast.dump(ours) == ast.dump(node)
