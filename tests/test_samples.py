"""Samples of any form: what is done to a nest is done to each of its tensors."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from minitrain.samples import count, join, map_tensors, move, part, select, tensors_in

Pair = namedtuple("Pair", "left right")

X = torch.arange(12.0).reshape(4, 3)
Y = torch.tensor([3, 1, 0, 2])
Z = torch.tensor([True, False, True, True])

NESTS: dict[str, Any] = {
    "tensor": X,
    "tuple": (X, Y),
    "list": [X, [Y, (Z,)]],
    "named tuple": Pair(X, right=(Y, Z)),
    "dict": {"x": X, "y": {"deep": Y}},
    "dicts in a tuple": ({"x": X, "y": Y}, {"z": Z}),
    "what is no tensor": (X, None, {"name": "abc", "y": Y, "number": 7}, ()),
}
each_nest = pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)


def leaves(nest: Any) -> dict[str, Any]:
    """Every leaf by its path with the types on it: the form, and what is in it."""
    name = type(nest).__name__
    if isinstance(nest, dict):
        items: Any = nest.items()
    elif isinstance(nest, tuple | list):
        items = enumerate(nest)
    else:
        return {"": nest}
    inner = {
        f"{name}[{key!r}]{path}": leaf
        for key, value in items
        for path, leaf in leaves(value).items()
    }
    return inner or {name: None}


def check(result: Any, nest: Any, expected: Any) -> None:
    """Make sure of the form, of each tensor, and that all else is what it was."""
    results, olds = leaves(result), leaves(nest)
    assert list(results) == list(olds)
    for old, new in zip(olds.values(), results.values(), strict=True):
        if isinstance(old, Tensor):
            assert torch.equal(new, expected(old)) and new.dtype == expected(old).dtype
        else:
            assert new is old


@each_nest
def test_the_tensors_of_a_nest_in_their_order(nest: Any) -> None:
    expected = [leaf for leaf in leaves(nest).values() if isinstance(leaf, Tensor)]
    found = list(tensors_in(nest))
    assert all(a is b for a, b in zip(found, expected, strict=True)) and found


@each_nest
def test_a_function_of_every_tensor(nest: Any) -> None:
    check(map_tensors(lambda x: x + x, nest), nest, lambda x: x + x)


@each_nest
def test_samples_are_counted_selected_parted_moved_and_joined(nest: Any) -> None:
    assert count(nest) == 4
    indices = torch.tensor([2, 0, 2])
    check(select(nest, indices), nest, lambda x: x[[2, 0, 2]])
    check(part(nest, 1, 3), nest, lambda x: x[1:3])
    check(part(nest, 3, 9), nest, lambda x: x[3:])
    check(move(nest, torch.device("cpu")), nest, lambda x: x)
    check(join([part(nest, 0, 3), part(nest, 3, 4)]), nest, lambda x: x)
    check(join([nest]), nest, lambda x: x)


def test_parts_are_views_and_a_selection_is_not() -> None:
    x = X.clone()
    (seen,), (own,) = part((x,), 1, 2), select((x,), torch.tensor([1]))
    x[1] = -1
    assert seen.tolist() == [[-1, -1, -1]] and own.tolist() == [[3, 4, 5]]


def test_moving_reaches_every_tensor() -> None:
    there = move(({"x": X}, [Y, None]), torch.device("meta"))
    assert [x.device.type for x in tensors_in(there)] == ["meta", "meta"]
    assert move(X, torch.device("meta")).device.type == "meta"


def test_what_is_collated_can_be_selected() -> None:
    """The batch that a DataLoader makes of items is the selection of these samples."""
    nest = {"x": X, "pair": Pair(Y, (Z, X))}
    items = [map_tensors(lambda x, i=i: x[i], nest) for i in (3, 1)]
    collated = tensors_in(default_collate(items))
    selected = tensors_in(select(nest, torch.tensor([3, 1])))
    for a, b in zip(collated, selected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("nest", "message"),
    [
        (None, "^NoneType: samples are a tensor, or a nested"),
        ("abc", "^str: samples are a tensor"),
        ((), "^tuple: samples are a tensor"),
        ({"a": None}, "^dict: samples are a tensor"),
        (torch.tensor(1.0), "^a tensor has no dimension"),
        ((X, torch.tensor(1.0)), "^a tensor has no dimension"),
        ((X, {"y": Y[:3]}), r"^tensors of \[3, 4\] samples together"),
    ],
    ids=str,
)
def test_what_cannot_be_counted(nest: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count(nest)


def test_no_samples_are_counted_too() -> None:
    assert count((X[:0], Y[:0])) == 0
