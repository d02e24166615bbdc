"""Sphinx extension: show the code of a function or class, as a page needs it.

    ```{excerpt} prunelab/criteria/norms.py lamp
    ```

It is the code that runs, laid out anew so that it fits the page, and without what the page itself says: the
docstring, and what registers the method. `:start-at:` and `:end-before:` take a part of it, from the
first line that contains a text to the next one that contains another.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import textwrap
import tokenize
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
COLUMNS = 80  # what the theme's text column holds on a small laptop
FOR_TOOLS = re.compile(r"\s*# (fmt: skip|noqa|type: ignore).*$", re.M)


def excerpt(file: Path, name: str, start: str = "", end: str = "") -> str:
    """The code of ``name``, such as ``"lamp"`` or ``"GroupLasso.shrink"``.

    Raises:
        ValueError: the file has no such name, or no such line.
    """
    text = file.read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        inside = [child for child in getattr(node, "body", []) if getattr(child, "name", None) == part]
        if not inside:
            raise ValueError(f"{file.name} has no {name}")
        node = inside[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    hidden: set[int] = set()
    if ast.get_docstring(node) is not None:
        hidden.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))  # type: ignore[operator]
    first = node.lineno
    for decorator in node.decorator_list:
        first = min(first, decorator.lineno)
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("register", "criterion"):
            hidden.update(range(decorator.lineno, decorator.end_lineno + 1))  # type: ignore[operator]
    lines = text.splitlines()
    numbers = (number for number in range(first, (node.end_lineno or first) + 1) if number not in hidden)
    shown = FOR_TOOLS.sub("", textwrap.dedent("\n".join(lines[number - 1] for number in numbers)))
    laid_out = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", str(COLUMNS), "-"],
        input=_short_comments(shown), capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    part_start = _line(laid_out, start, 0, file) if start else 0
    part_end = _line(laid_out, end, part_start + 1, file) if end else len(laid_out)
    return textwrap.dedent("\n".join(laid_out[part_start:part_end])).strip("\n")


def _short_comments(code: str) -> str:
    """No formatter breaks comments: they become as many lines as they need, above what they are about."""
    lines = code.splitlines()
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(code).readline))):
        (row, column), line = token.start, token.line.rstrip("\n")
        if token.type == tokenize.COMMENT and len(line) > COLUMNS:
            indent = line[: len(line) - len(line.lstrip())]
            comment = textwrap.wrap(
                token.string[1:].strip(),
                COLUMNS,
                initial_indent=f"{indent}# ",
                subsequent_indent=f"{indent}# ",
            )
            lines[row - 1 : row] = comment + [line[:column].rstrip()] * bool(line[:column].strip())
    return "\n".join(lines)


def _line(lines: list[str], text: str, after: int, file: Path) -> int:
    for number in range(after, len(lines)):
        if text in lines[number]:
            return number
    raise ValueError(f"{file.name}: no line has {text!r}")


class Excerpt(SphinxDirective):
    required_arguments = 2
    option_spec: ClassVar[dict[str, Any]] = {
        "start-at": directives.unchanged_required,
        "end-before": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        file = ROOT / self.arguments[0]
        try:
            code = excerpt(
                file, self.arguments[1], self.options.get("start-at", ""), self.options.get("end-before", "")
            )
        except (OSError, ValueError) as error:
            raise self.error(str(error)) from error
        self.env.note_dependency(str(file))
        code = f"# {self.arguments[0]}\n{code}\n"
        block = nodes.literal_block(code, code, language="python", classes=["excerpt"])
        self.set_source_info(block)
        return [block]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("excerpt", Excerpt)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
