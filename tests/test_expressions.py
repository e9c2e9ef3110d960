"""Functions written as text: their values and gradients, and what is refused."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minitrain.descent import descend
from minitrain.expressions import DEEPEST, FUNCTIONS, LONGEST, parse
from minitrain.gradients import gradient


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


SAME_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "x**2 + 3*y**2": lambda x, y: x**2 + 3 * y**2,
    "(1 - x)**2 + 100*(y - x**2)**2": lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
    "sin(x)*exp(-y**2)": lambda x, y: torch.sin(x) * torch.exp(-(y**2)),
    "abs(x)**1.5 / (2 + cos(y))": lambda x, y: torch.abs(x) ** 1.5 / (2 + torch.cos(y)),
    "x**3/7 - +y*-x": lambda x, y: x**3 / 7 - +y * -x,
    "log(1 + e**x) - pi/4*tanh(y)": lambda x, y: (
        torch.log(1 + math.e**x) - math.pi / 4 * torch.tanh(y)
    ),
    "x**2**3 - (y - 1e-3)**-2": lambda x, y: x ** (2**3) - (y - 1e-3) ** -2,
    "sqrt(x*x + y*y)": lambda x, y: torch.sqrt(x * x + y * y),
}
"""Texts, and the Python that they are."""

same_function = pytest.mark.parametrize(
    ("text", "function"), SAME_FUNCTIONS.items(), ids=SAME_FUNCTIONS
)


@same_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_those_of_the_same_python(
    text: str, function: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    expression = parse(text)
    generator = torch.Generator().manual_seed(0)
    for point in 2 * torch.randn(20, 2, dtype=dtype, generator=generator):
        leaves = [x.clone().requires_grad_() for x in point]
        value = function(*leaves)
        assert torch.equal(expression(point), value)
        grads = torch.autograd.grad(value, leaves)
        found = gradient(expression)(point)
        assert isinstance(found, Tensor) and found.dtype == dtype
        torch.testing.assert_close(found, torch.stack(grads), rtol=0, atol=0)


@same_function
def test_a_walk_on_the_text_is_the_walk_on_the_python_bit_for_bit(
    text: str, function: Callable[..., Tensor]
) -> None:
    options = {"lr": 0.001, "steps": 30, "momentum": 0.9}
    written = descend(parse(text), (1.2, -0.7), **options)
    spoken = descend(function, (1.2, -0.7), **options)
    for a, b in zip(
        (written.points, written.values, written.gradients, written.grad_norms),
        (spoken.points, spoken.values, spoken.gradients, spoken.grad_norms),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_those_of_mathematics(name: str) -> None:
    at = 0.4
    exact = getattr(math, name) if name != "abs" else abs
    assert math.isclose(parse(f"{name}(x)")(vector(at)).item(), exact(at))
    constant = parse(f"0*x + {name}({at})")(vector(1.0)).item()
    assert math.isclose(constant, exact(at))


DERIVATIVES: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "x**2 + 3*y**2": lambda x, y: (2 * x, 6 * y),
    "x*y": lambda x, y: (y, x),
    "sin(x) + cos(y)": lambda x, y: (math.cos(x), -math.sin(y)),
    "exp(x*y)": lambda x, y: (y * math.exp(x * y), x * math.exp(x * y)),
    "x**y": lambda x, y: (y * x ** (y - 1), math.log(x) * x**y),
    "log(x)/sqrt(y)": lambda x, y: (1 / x / y**0.5, -math.log(x) / 2 / y**1.5),
    "tan(x) - tanh(y)": lambda x, y: (
        1 / math.cos(x) ** 2,
        math.tanh(y) ** 2 - 1,
    ),
}


@pytest.mark.parametrize(("text", "exact"), DERIVATIVES.items(), ids=DERIVATIVES)
def test_gradients_are_those_of_calculus(
    text: str, exact: Callable[[float, float], tuple[float, float]]
) -> None:
    for x, y in ((0.5, 1.2), (1.1, 0.3), (2.0, 2.5)):
        found = gradient(parse(text))(vector(x, y))
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, vector(*exact(x, y)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("y + x", ("x", "y")),
        ("x10*x2 + x", ("x", "x2", "x10")),
        ("b**a*e + pi", ("a", "b")),
        ("  -z ", ("z",)),
        ("(0x10 + 1_000)*Y/y", ("Y", "y")),
    ],
)
def test_variables_are_in_the_order_of_the_alphabet(
    text: str, variables: tuple[str, ...]
) -> None:
    assert parse(text).variables == variables


HOSTILE = [
    "__import__('os').system('true')",
    "().__class__.__bases__[0].__subclasses__()",
    "x.__class__",
    "x.data",
    "exec('1')",
    "eval('x')",
    "open('/etc/passwd')",
    "print(x)",
    "getattr(x, 'data')",
    "sin.__call__(x)",
    "sin(sin)(x)",
    "(lambda: x)()",
    "lambda x: x",
    "[y for y in x]",
    "(x := 3)",
    "x if x else y",
    "x[0]",
    "{x: x}",
    "{*x}",
    "f'{x}'",
    "'x' * 10**9",
    "b'x'",
    "x == y",
    "x and y",
    "not x",
    "~x",
    "x | y",
    "x ^ 2",
    "x << 9**9",
    "x // y",
    "x % y",
    "x @ y",
    "1j*x",
    "True*x",
    "None",
    "...",
    "_",
    "__builtins__",
    "\\N{LATIN SMALL LETTER E WITH ACUTE} + x",
    "os + x",
    "sin(x, y)",
    "sin(x=2)",
    "sin(x, out=x)",
    "sin(x, **{})",
    "sin(x, power=2)",
    "abs(x)(y)",
    "sin(*x)",
    "sin(x, *y)",
    "sin()",
    "sin",
    "x(2)",
    "pi(x)",
    "2(x)",
    "2x",
    "x y",
    "x +",
    "(x",
    "x; y",
    "x\ny",
    "x = 2",
    "import os",
    "await x",
    "yield x",
    "x\0",
    "",
    "   ",
    "2",
    "pi + e",
    "9**9**9**9 + x",
    "x**9**9**9**9",
    "(-1)**0.5 + x",
    "0**-1*x",
    "1/0 + x",
    "1e999*x",
    "log(0)*x",
    "sqrt(-1)*x",
    "9" * 400 + "*x",
    "(" * 240 + "x" + ")" * 240,
    "x+" * 1000 + "x",
    "-" * 100_000 + "x",
]
"""What would do something else than compute, hang, or has no value."""


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:30]))
def test_all_else_is_refused_with_what_it_is(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(text)
    message = str(refused.value)
    told = (
        "is not understood",
        "is not an expression",
        "is not a finite real number",
        "has no variable",
        "is nested too deeply",
        f"at most {LONGEST} are read",
    )
    assert any(words in message for words in told) and len(message) < 900


def test_an_error_names_the_part_and_what_may_stand_there() -> None:
    with pytest.raises(ValueError, match=r"'x \^ 2' is not understood: a power is .*"):
        parse("3*y + (x ^ 2)")
    with pytest.raises(ValueError, match=r"'foo\(x\)'.* takes one number.*sin, cos"):
        parse("1 + foo(x)")
    with pytest.raises(ValueError, match=r"'2 x' is not an expression: write 2\*x"):
        parse("2 x")


def test_chains_up_to_the_limit_are_computed_and_no_deeper_ones() -> None:
    assert parse("-" * (DEEPEST - 1) + "x")(vector(3.0)).item() == -3
    assert parse("+".join(["x"] * DEEPEST))(vector(1.0)).item() == DEEPEST
    for text in ("-" * DEEPEST + "x", "+".join(["x"] * (DEEPEST + 1))):
        with pytest.raises(ValueError, match=f"nested too deeply: at most {DEEPEST}"):
            parse(text)


def test_a_point_of_another_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 coordinates .* takes 2, x, y"):
        parse("x*y")(vector(1, 2, 3))
