"""What crosses the pipe, and what counts as right."""

import json
import math
import pickle

import numpy as np
import pytest
import torch

from prunelab.grading import check, exercise, worker

PLAIN = [
    None, True, 3, -2.5, "text", "\ud800", [], {}, [1, [2, {"a": 3}]],
    torch.arange(6).view(2, 3), torch.tensor(1.5), torch.zeros(0, 4), torch.tensor([True, False]),
    torch.arange(6).view(3, 2).half() / 7, np.arange(4, dtype=np.int8), np.float64(2.5), np.int64(7),
    {"layers": [torch.ones(2), np.zeros((1, 2))]},
]  # fmt: skip


def same(one, other):
    if isinstance(one, torch.Tensor | np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


@pytest.mark.parametrize("value", PLAIN)
def test_plain_values_arrive_as_they_were_sent(value):
    tree, numbers = worker.encode(value)
    assert same(value, worker.decode(json.loads(json.dumps(tree)), numbers))


def test_tuples_arrive_as_lists_and_parameters_as_tensors():
    layer = torch.nn.Linear(2, 2)
    assert check.plain((1, (2,))) == [1, [2]]
    assert torch.equal(check.plain(layer.weight), layer.weight.detach())


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1: 2},
        {"a": {1}},
        print,
        torch.nn.Linear(1, 1),
        np.array([object()]),
        torch.ones(1, dtype=torch.bfloat16),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_else_is_sent(value):
    with pytest.raises(TypeError):
        worker.encode(value)


def test_endless_values_are_not_sent():
    endless = []
    endless.append(endless)
    with pytest.raises(TypeError, match="nested deeper"):
        worker.encode(endless)


@pytest.mark.parametrize(
    ("tree", "numbers"),
    [
        ({"tensor": ["float32", [2]]}, b"1234"),  # too few numbers
        ({"tensor": ["float32", [1]]}, b"12345678"),  # too many
        ({"tensor": ["float64", [10**6, 10**6]]}, b""),
        ({"tensor": ["float32", [-1]]}, b""),
        ({"tensor": ["float32", [True]]}, b"1234"),
        ({"tensor": ["float32", [1.0]]}, b"1234"),
        ({"tensor": ["float32", [1] * 100]}, b"1234"),
        ({"tensor": ["object", [1]]}, pickle.dumps(1)),
        ({"array": ["O", [1]]}, b"12345678"),
        ({"array": ["V8", [1]]}, b"12345678"),
        ({"array": ["float32,float32", [1]]}, b"12345678"),
        ({"array": "float32"}, b""),
        ({"array": [[], []]}, b""),
        ({"dict": [["a"]]}, b""),
        ({"dict": [[1, 2]]}, b""),
        ({"tensor": ["float32", []], "array": 1}, b"1234"),
        ({"module": "os"}, b""),
        ({}, b""),
    ],
)
def test_malformed_values_are_refused(tree, numbers):
    with pytest.raises(ValueError):
        worker.decode(tree, numbers)


def test_values_nested_too_deep_are_refused():
    tree = []
    for _ in range(100):
        tree = [tree]
    with pytest.raises(ValueError, match="nested deeper"):
        worker.decode(tree, b"")


def test_a_byte_that_is_no_truth_value_becomes_one():
    mask = worker.decode({"tensor": ["bool", [3]]}, bytes([0, 1, 255]))
    assert mask.tolist() == [False, True, True] and mask.sum() == 2


# ------------------------------------------------------------------------------------ right and wrong

T = torch.tensor


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (0.5, 0.5), (1, 1.0), (T(0.5), 0.5), (np.array(0.5), 0.5), (0.5, T(0.5)), (T(3), 3), (True, True),
        (float("nan"), float("nan")), (float("inf"), float("inf")), (1 + 5e-6, 1.0), (1e6 + 5, 1e6),
        ("text", "text"), (None, None), ([1, 2], [1, 2]), ({"b": 1, "a": 2}, {"a": 2, "b": 1}),
        (T([1.0, 2.0]), T([1.0, 2.0 + 1e-6])), (T([1, 2]), T([1.0, 2.0])),
        (T([1.0], dtype=torch.float64), T([1.0])), (T([True]), T([True])),
        (T([float("nan"), 1.0]), T([float("nan"), 1.0])), (T([float("-inf")]), T([float("-inf")])),
        (np.array([1, 2], np.int32), np.array([1, 2], np.int64)),
    ],
)  # fmt: skip
def test_right_answers(answer, expected):
    assert check.difference(answer, expected, 1e-5) == ""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (0.6, 0.5), (True, 1), (1, True), (1.0, 1), ("1", 1), (None, 0), (0.0, float("nan")),
        (float("nan"), 0.0), (float("inf"), 1e300), (1e300, float("inf")), (float("-inf"), float("inf")),
        (10**400, 1.0), ([1], [1, 2]), ([1, 3], [1, 2]), ({"a": 1}, {"b": 1}), ({"a": 1}, {"a": 2}),
        (T([1.0]), 1.0), ([1.0], T([1.0])), (np.array([1.0]), T([1.0])), (T([1.0, 2.0]), T([[1.0, 2.0]])),
        (T([1.0]), T([1.0, 1.0])), (T([1.0]), T([1])), (T([1]), T([True])), (T([float("nan")]), T([1.0])),
        (T([1.0]), T([float("nan")])), (T([float("inf")]), T([1.0])), (T([1.0]), T([float("inf")])),
        (T([]), T([1.0])), (T([False]), T([True])),
    ],
)  # fmt: skip
def test_wrong_answers(answer, expected):
    assert check.difference(answer, expected, 1e-5) != ""


def doubled(**options):
    @exercise("doubled", expects="twice the number", **options)
    def double(value):
        return 2.0 * value

    @double.part("one", points=1, public=True)
    def _(draw):
        yield (1.0,)

    @double.part("random", points=2.5)
    def _(draw):
        yield (torch.rand(3, generator=draw),)

    return double


def test_the_seed_decides_the_inputs_and_parts_differ():
    first, again, other = (check.questions(doubled(), seed) for seed in (0, 0, 1))
    assert torch.equal(first[1].calls[0][0], again[1].calls[0][0])
    assert not torch.equal(first[1].calls[0][0], other[1].calls[0][0])
    assert torch.allclose(first[1].expected[0], 2 * first[1].calls[0][0])
    assert doubled().points == 3.5


def test_the_reference_cannot_change_the_inputs():
    @exercise("zeroed", expects="zeros")
    def zeroed(value):
        return value.zero_()

    @zeroed.part("ones", points=1)
    def _(draw):
        yield (torch.ones(2),)

    assert torch.equal(check.questions(zeroed, 0)[0].calls[0][0], torch.ones(2))


def test_accept_decides_among_answers_of_the_right_shape():
    exercise = doubled(accept=lambda answer, expected, value: (answer == expected).sum() > value.sum() - 3)
    call, expected = (torch.ones(2),), 2 * torch.ones(2)
    assert check.fault(exercise, call, expected, T([2.0, 7.0])) == ("", "")
    assert check.fault(exercise, call, expected, T([2.0]))[0] == "wrong type or shape"
    hopeless = doubled(accept=lambda answer, expected, value: 1 / 0)
    assert check.fault(hopeless, call, expected, expected)[0] == "wrong values"


def test_what_is_shown_of_a_value_is_short():
    huge = [{"x" * 1000: torch.rand(1000, 1000)}] * 50
    assert len(check.show(huge)) < 320
    assert check.show(T([1.0, 2.0])) == "a tensor of shape (2,): [1. 2.]"
    assert math.isclose(float(check.show(0.1 + 0.2)), 0.3)


def test_a_part_without_inputs_is_a_mistake_of_the_author():
    @exercise("empty", expects="nothing")
    def empty():
        return None

    @empty.part("no calls", points=1)
    def _(draw):
        return []

    with pytest.raises(ValueError, match="no calls.*draws no inputs"):
        check.questions(empty, 0)
