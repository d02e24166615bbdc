"""How much a group matters: a criterion turns groups into one score each, **higher = keep**.

A criterion is a function of one matrix ``(groups, members)``, so each works at every granularity. One that
needs more than the weights takes it as a further argument of that name (see ``prunelab.evidence``).
"""

from collections.abc import Callable

from torch import Tensor

from prunelab.registry import register

Criterion = str | Callable[..., Tensor]


def criterion(
    *, family: str, cite: str, section: str, needs: tuple[str, ...] = (), name: str = ""
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a criterion where it is defined."""
    return register("criterion", name=name, family=family, needs=needs, cite=cite, section=section)


# They register themselves, in the order of the book.
# isort: off
from prunelab.criteria import norms  # noqa: E402, F401
from prunelab.criteria import gradient  # noqa: E402, F401
