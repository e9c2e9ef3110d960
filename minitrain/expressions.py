"""Functions written as text, "x**2 + 3*y**2", read without running any of it.

>>> f = parse("x**2 + 3*y**2")
>>> f.variables, f(torch.tensor([3.0, 4.0]))
(('x', 'y'), tensor(57.))

Python's own parser makes a tree of the text, and only a handful of its nodes has a
meaning here: numbers, variables, + - * / **, parentheses, and the functions of one
number below. There is no way from them to an attribute, an index or a call of anything
else. Numbers are floats, so that 9**9**9 overflows at once rather than filling memory.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minitrain.variables import check_variables

LONGEST = 500
"""Characters in an expression."""

DEEPEST = 200
"""Levels of its tree, each of which takes a call to compute: a sum of 200 terms."""

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin, "cos": torch.cos, "tan": torch.tan,
    "asin": torch.asin, "acos": torch.acos, "atan": torch.atan,
    "sinh": torch.sinh, "cosh": torch.cosh, "tanh": torch.tanh,
    "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "abs": torch.abs,
}  # fmt: skip
CONSTANTS = {"pi": math.pi, "e": math.e}
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}

GRAMMAR = (
    "An expression holds numbers, variables such as x, y or x1, + - * / **, "
    f"parentheses, {', '.join(FUNCTIONS)}, pi and e"
)
VARIABLE = re.compile(r"[A-Za-z][0-9]*", re.ASCII)


@dataclass(frozen=True)
class Expression:
    """A function of the point (x, y, ...), as a text gives it; `parse` makes one."""

    text: str
    variables: tuple[str, ...]
    tree: ast.expr

    def __call__(self, point: Tensor) -> Tensor:
        """Return the value at a point of shape (n,), as Python would compute it."""
        check_variables(self.variables, len(point))
        return _value(self.tree, dict(zip(self.variables, point, strict=True)))


def parse(text: str) -> Expression:
    """Read a function of one or more variables from a text.

    The variables stand in the order of the alphabet, and x2 before x10.

    >>> parse("a*sin(x10) - x2/pi").variables
    ('a', 'x2', 'x10')

    Raises:
        ValueError: The text is no such function; the message has the part that is not
            understood, and what may stand there.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters: at most {LONGEST} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        _check(tree)
    except SyntaxError:
        hint = "write 2*x for 2 x, x**2 for its square, and close every parenthesis"
        raise ValueError(f"{text!r} is not an expression: {hint}") from None
    except (RecursionError, MemoryError):
        shown = f"{text[:20]}...{text[-20:]}"
        rule = f"is nested too deeply: at most {DEEPEST} levels are read"
        raise ValueError(f"{shown!r} {rule}") from None
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names -= FUNCTIONS.keys() | CONSTANTS.keys()
    if not names:
        raise ValueError(f"{text!r} has no variable: write x, y, ...")
    in_order = sorted(names, key=lambda name: (name[0], int(name[1:] or -1)))
    return Expression(text.strip(), tuple(in_order), tree)


def _check(node: ast.expr, depth: int = 1) -> float | None:
    """Make sure that all of a tree is known; return its value where it is constant.

    Raises:
        RecursionError: It has more than `DEEPEST` levels.
        ValueError: A part is not known, or a constant one is not a finite real number.
    """
    if depth > DEEPEST:
        raise RecursionError
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            parts = []
        case ast.Name(id=name) if name in CONSTANTS:
            parts = []
        case ast.Name(id=name) if VARIABLE.fullmatch(name):
            return None
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            parts = [left, right]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            parts = [operand]
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if (
            name in FUNCTIONS
        ):
            parts = [argument]
        case _:
            raise ValueError(
                f"{_shown(node)} is not understood{_hint(node)}. {GRAMMAR}"
            )
    if any(
        [_check(part, depth + 1) is None for part in parts]
    ):  # a list: all are checked
        return None
    return _constant(node)


def _constant(node: ast.expr) -> float:
    try:
        value = _value(node, {})
    except (ArithmeticError, ValueError):
        value = math.nan
    if isinstance(value, complex) or not math.isfinite(value):
        raise ValueError(f"{_shown(node)} is not a finite real number")
    return value


def _value(node: ast.expr, variables: Mapping[str, Tensor]) -> Any:
    """Return what a tree is worth: a tensor, or a float where it has no variable."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            return CONSTANTS[name] if name in CONSTANTS else variables[name]
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](
                _value(left, variables), _value(right, variables)
            )
        case ast.UnaryOp(op=op, operand=operand):
            return OPERATORS[type(op)](_value(operand, variables))
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            value = _value(argument, variables)
            if isinstance(value, Tensor):
                return FUNCTIONS[name](value)
            return FUNCTIONS[name](torch.tensor(value, dtype=torch.float64)).item()
    raise AssertionError("unreachable: the tree has been checked")


def _shown(node: ast.expr) -> str:
    text = ast.unparse(node)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _hint(node: ast.expr) -> str:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
        return ": a power is written **"
    if isinstance(node, ast.Call):
        return ": a function takes one number, and a product is written *"
    return ""
