"""The list of methods: who is on it, who is found, and what is said about names that are not."""

import functools

import pytest

import prunelab as pl
from prunelab import registry


@pytest.fixture(autouse=True)
def a_list_of_its_own(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))


def names(axis=None):
    return [method.name for method in pl.methods(axis)]


def test_the_first_methods_are_there():
    assert names("granularity") == ["weight", "kernel", "filter", "channel"]
    assert {"l1", "l2", "random"} <= set(names("criterion"))
    assert names("schedule") == []
    assert sorted(names()) == sorted(names("granularity") + names("criterion"))


def test_a_method_registers_itself_where_it_is_defined():
    @registry.register(
        "criterion", family="norms", cite="someone2020", section="criteria/norms", needs=("x",)
    )
    def largest(groups):
        """Largest magnitude.

        More about it.
        """

    (method,) = [method for method in pl.methods("criterion") if method.name == "largest"]
    assert method.function is largest  # the decorator returns the function itself
    assert method.summary == "Largest magnitude."
    assert (method.axis, method.family, method.cite, method.section, method.needs) == (
        "criterion", "norms", "someone2020", "criteria/norms", ("x",)
    )  # fmt: skip
    assert registry.find("criterion", "largest") is registry.find("criterion", largest) is method
    assert names("criterion")[-1] == "largest"


def test_the_name_can_differ_from_the_functions():
    registry.register("schedule", name="one-shot")(lambda progress: 1.0)
    assert names("schedule") == ["one-shot"]


def test_a_name_is_taken_once_on_an_axis_but_free_on_another():
    with pytest.raises(ValueError, match="there is a criterion called 'l1' already"):
        registry.register("criterion", name="l1")(lambda groups: groups)
    assert registry.find("criterion", "l1").cite  # the first one stays
    registry.register("regulariser", name="l1")(lambda run: 0.0)
    assert registry.find("regulariser", "l1") is not registry.find("criterion", "l1")


def test_a_function_of_the_callers_own_is_a_method():
    def mine(groups):
        return groups.sum(1)

    method = registry.find("criterion", mine)
    assert (method.name, method.function, method.needs) == ("mine", mine, ())
    assert "mine" not in names()  # found, not registered
    assert registry.find("criterion", functools.partial(mine)).name.startswith("functools.partial")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("RANDOM", "'RANDOM': did you mean 'random'? There are: "),
        ("randon", "'randon': did you mean 'random'? There are: "),
        ("xyz", "'xyz': There are: "),
        (3, "3: There are: "),
    ],
)
def test_an_unknown_name_gets_the_nearest(wanted, said):
    with pytest.raises(ValueError) as caught:
        registry.find("criterion", wanted)
    assert str(caught.value) == f"criterion={said}{', '.join(names('criterion'))}"


def test_unknown_axes():
    for wrong in (lambda: pl.methods("criteria"), lambda: registry.register("criteria")):
        with pytest.raises(
            ValueError, match=r"axis='criteria': did you mean 'criterion'\? There are: granul"
        ):
            wrong()
