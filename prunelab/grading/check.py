"""What is asked of a student's function, and whether what it returned is right. The student's process has no
part in it.

A lab's checks are a Python file beside the labs, ``checks/<lab>.py``. Each exercise there is a reference
with the same name as the student's function, and parts, each of which draws inputs::

    @exercise("kept", expects="how many weights the mask keeps, a whole number")
    def kept(mask):
        return int(mask.sum())

    @kept.part("masks of many shapes", points=2, hint="true counts as one")
    def _(draw):
        for shape in [(8,), (5, 3), (2, 4, 3, 3)]:
            yield (torch.rand(shape, generator=draw) < 0.5,)
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from prunelab.grading import worker

Draw = Callable[[Generator], Iterable[tuple]]


@dataclass(frozen=True)
class Part:
    """Some calls of a student's function, which give their points together or not at all.

    Attributes:
        public: whether a report may show the inputs and what was expected.
        hint: for those who get it wrong.
        draw: from a seeded generator, one tuple of positional arguments for each call.
    """

    title: str
    points: float
    public: bool
    hint: str
    draw: Draw


@dataclass
class Exercise:
    """What one answer cell is asked for; see :func:`exercise`."""

    grade_id: str
    reference: Callable[..., Any]
    expects: str
    tolerance: float
    accept: Callable[..., bool] | None
    seconds: int
    parts: list[Part] = field(default_factory=list)

    @property
    def function(self) -> str:
        return self.reference.__name__

    @property
    def points(self) -> float:
        return sum(part.points for part in self.parts)

    def part(
        self, title: str, *, points: float, public: bool = False, hint: str = ""
    ) -> Callable[[Draw], Draw]:
        """Decorate a generator of inputs: one tuple of positional arguments for each call."""

        def add(draw: Draw) -> Draw:
            self.parts.append(Part(title, points, public, hint, draw))
            return draw

        return add


def exercise(
    grade_id: str,
    *,
    expects: str,
    tolerance: float = 1e-5,
    accept: Callable[..., bool] | None = None,
    seconds: int = 10,
) -> Callable[[Callable[..., Any]], Exercise]:
    """Decorate a reference; its name is the name of the student's function.

    Args:
        grade_id: of the answer cell.
        expects: what is to be returned, in words that a student may read.
        tolerance: the largest error of a number, relative to the expected one (absolute below 1).
        accept: where more than one answer is right: ``accept(answer, expected, *arguments)`` decides, once
        type
            and shape are those of the reference.
        seconds: CPU time for one part.
    """
    return lambda reference: Exercise(grade_id, reference, expects, tolerance, accept, seconds)


@dataclass(frozen=True)
class Question:
    """A part with its inputs drawn, and the reference's answers."""

    part: Part
    calls: list[tuple]
    expected: list[Any]


def questions(exercise: Exercise, seed: int) -> list[Question]:
    """The parts of an exercise, asked in the same way of everybody who has the same seed.

    Raises:
        ValueError: an input, or an answer of the reference, is not plain.
    """
    asked = []
    for part in exercise.parts:
        text = f"{seed}/{exercise.grade_id}/{part.title}"
        draw = torch.Generator().manual_seed(
            int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        )
        calls = [tuple(call) for call in part.draw(draw)]
        try:
            expected = [plain(exercise.reference(*plain(list(call)))) for call in calls]
        except (TypeError, ValueError) as error:
            raise ValueError(f"exercise {exercise.grade_id!r}, part {part.title!r}: {error}") from error
        if not calls:
            raise ValueError(f"exercise {exercise.grade_id!r}, part {part.title!r}: draws no inputs")
        asked.append(Question(part, calls, expected))
    return asked


def plain(value: Any) -> Any:
    """A copy of a value as it arrives from the sandbox: a tuple becomes a list.

    Raises:
        TypeError: it would not arrive.
    """
    return worker.decode(*worker.encode(value))


def fault(exercise: Exercise, call: tuple, expected: Any, answer: Any) -> tuple[str, str]:
    """What is wrong with an answer: in general words, and in detail. Two empty texts if it is right."""
    structure = difference(answer, expected, None)
    if structure:
        return "wrong type or shape", structure
    if exercise.accept is not None:
        try:
            right = bool(exercise.accept(answer, copy.deepcopy(expected), *copy.deepcopy(call)))
        except Exception:
            right = False  # an answer for which the check was not written
    else:
        right = not difference(answer, expected, exercise.tolerance)
    return ("", "") if right else ("wrong values", f"{show(answer)} was returned, {show(expected)} expected")


def difference(answer: Any, expected: Any, tolerance: float | None) -> str:
    """Where two plain values differ, in words; nothing if they agree. Without a tolerance values play no
    part.

    A number may come as a tensor or array without dimensions, and a whole number where any number is
    expected.
    """
    if (
        isinstance(expected, bool | int | float)
        and isinstance(answer, Tensor | np.ndarray)
        and answer.ndim == 0
    ):
        answer = answer.item()
    elif (
        isinstance(expected, Tensor | np.ndarray)
        and expected.ndim == 0
        and isinstance(answer, bool | int | float)
    ):
        expected = expected.item()
    given, wanted = kind(answer), kind(expected)
    if given != wanted and (given, wanted) != ("a whole number", "a number"):
        return f"{given} was returned, {wanted} expected"
    if isinstance(expected, Tensor | np.ndarray):
        return _difference_of_arrays(np.asarray(answer), np.asarray(expected), tolerance)
    if isinstance(expected, list):
        if len(answer) != len(expected):
            return f"a list of {len(answer)} was returned, one of {len(expected)} expected"
        inside = (difference(*pair, tolerance) for pair in zip(answer, expected))
        return next((f"item {place}: {text}" for place, text in enumerate(inside) if text), "")
    if isinstance(expected, dict):
        if answer.keys() != expected.keys():
            return f"the keys {show(list(answer))} were returned, {show(list(expected))} expected"
        inside = (difference(answer[key], expected[key], tolerance) for key in expected)
        return next((f"entry {show(key)}: {text}" for key, text in zip(expected, inside) if text), "")
    if tolerance is None or answer == expected:
        return ""
    if isinstance(expected, float):
        with suppress(OverflowError):  # a whole number may be too large for it
            answer = float(answer)
            if math.isnan(answer) and math.isnan(expected):
                return ""
            if abs(answer - expected) <= tolerance * max(1, abs(expected)) < math.inf:
                return ""
    return "another value"


def _difference_of_arrays(answer: np.ndarray, expected: np.ndarray, tolerance: float | None) -> str:
    if answer.shape != expected.shape:
        return f"shape {answer.shape} was returned, {expected.shape} expected"
    words = {"b": "truth values", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}
    given, wanted = words[answer.dtype.kind], words[expected.dtype.kind]
    if given != wanted and (given, wanted) != ("whole numbers", "numbers"):
        return f"{given} ({answer.dtype}) were returned, {wanted} ({expected.dtype}) expected"
    if tolerance is None:
        return ""
    if wanted != "numbers":
        return "" if (answer == expected).all() else "other values"
    answer, expected = answer.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(answer - expected) <= tolerance * np.maximum(1, np.abs(expected))
        near &= np.isfinite(expected)
        same = near | (answer == expected) | (np.isnan(answer) & np.isnan(expected))
    return "" if same.all() else "other values"


def kind(value: Any) -> str:
    names = {bool: "a truth value", int: "a whole number", float: "a number", str: "text", list: "a list"}
    names |= {dict: "a dictionary", np.ndarray: "a NumPy array"}
    return "a tensor" if isinstance(value, Tensor) else names.get(type(value), "nothing (None)")


def show(value: Any, most: int = 300) -> str:
    """A plain value for a report, not too long."""
    with np.printoptions(precision=5, threshold=20, edgeitems=2):
        if isinstance(value, Tensor):
            text = f"a tensor of shape {tuple(value.shape)}: {value.numpy()}"
        elif isinstance(value, np.ndarray):
            text = f"an array of shape {value.shape}: {value}"
        elif isinstance(value, list | tuple):
            text = (
                "["
                + ", ".join(show(item, most) for item in value[:20])
                + (", …]" if len(value) > 20 else "]")
            )
        elif isinstance(value, dict):
            text = "{" + ", ".join(f"{key!r}: {show(item, most)}" for key, item in value.items()) + "}"
        elif isinstance(value, str):
            text = repr(value)
        else:
            text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " …"
