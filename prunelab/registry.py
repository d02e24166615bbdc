"""The one list of methods: what each is called, what it needs, who published it and where the book explains
it.

A method registers itself where it is defined. The names accepted by ``sparsify`` and ``prune``, the book's
method index, the labs' menus and the parametrised tests all read this list, so nothing is listed twice.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

AXES = ("granularity", "criterion", "schedule", "regulariser", "recipe")


@dataclass(frozen=True)
class Method:
    """One entry.

    Attributes:
        axis: which of the four questions it answers, one of :data:`AXES`.
        name: what a user types.
        function: the method itself.
        family: the group it is explained in, such as ``"norms"``.
        needs: evidence beyond the weights; each is an argument of ``function`` (see ``prunelab.evidence``).
        cite: key in ``references.bib``.
        section: page of the book.
    """

    axis: str
    name: str
    function: Callable
    family: str = ""
    needs: tuple[str, ...] = ()
    cite: str = ""
    section: str = ""

    @property
    def summary(self) -> str:
        """First paragraph of the docstring, on one line."""
        return " ".join((self.function.__doc__ or "").split("\n\n")[0].split())


_methods: dict[tuple[str, str], Method] = {}


def register(
    axis: str,
    *,
    name: str = "",
    family: str = "",
    needs: tuple[str, ...] = (),
    cite: str = "",
    section: str = "",
) -> Callable[[Callable], Callable]:
    """Decorator that puts a function on the list under ``name`` (its own name by default)."""
    if axis not in AXES:
        raise ValueError(f"axis={axis!r}: {suggestion(axis, AXES)}")

    def add(function: Callable) -> Callable:
        method = Method(axis, name or function.__name__, function, family, needs, cite, section)
        if (axis, method.name) in _methods:
            raise ValueError(f"there is a {axis} called {method.name!r} already")
        _methods[axis, method.name] = method
        return function

    return add


def methods(axis: str | None = None) -> list[Method]:
    """All registered methods, or those of one axis, in the order of the book."""
    if axis is not None and axis not in AXES:
        raise ValueError(f"axis={axis!r}: {suggestion(axis, AXES)}")
    return [method for method in _methods.values() if axis in (None, method.axis)]


def find(axis: str, wanted: str | Callable) -> Method:
    """The method called ``wanted``; a function is taken as a method of the caller's own, which needs only
    weights.

    Raises:
        ValueError: unknown name; the nearest one is suggested.
    """
    for method in methods(axis):
        if wanted in (method.name, method.function):
            return method
    if callable(wanted):
        return Method(axis, getattr(wanted, "__name__", repr(wanted)), wanted)
    raise ValueError(f"{axis}={wanted!r}: {suggestion(wanted, [method.name for method in methods(axis)])}")


def suggestion(wanted: object, names: list[str] | tuple[str, ...]) -> str:
    """``did you mean 'l1'? There are: …``"""
    near = difflib.get_close_matches(str(wanted).lower(), names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}There are: {', '.join(names)}"
