"""One update of one weight, worked out as in a textbook and checked in fractions.

A computer rounds every result to a number of its format. The lines here are computed
once more without rounding, from the very numbers that the run holds, and compared with
what it holds afterwards.
"""

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

from minitrain.explain.arithmetic import FLOAT32, Format
from minitrain.rule import Line, Rule


class Held(NamedTuple):
    """What the run holds of one weight around one step."""

    theta: float
    """The weight before the step."""
    grad: float
    """The partial derivative of the loss by it."""
    clipped: float
    """The same after clipping, or without it."""
    decayed: float
    """The same with weight decay added."""
    buf: float | None
    """The momentum buffer before the step; None where there is none yet."""
    new_buf: float | None
    """The momentum buffer after the step; None without momentum."""
    direction: float
    """What lr is multiplied by."""
    new_theta: float
    """The weight after the step."""
    norm: float = math.nan
    """Where the run clips: the norm of the whole gradient, before."""
    factor: float = 1
    """Where the run clips: what the gradient is multiplied by."""


class CheckedLine(NamedTuple):
    """A line of the rule, with its numbers, its exact result and the one held."""

    line: Line
    numbers: str
    """The right-hand side, with numbers in the place of the symbols."""
    exact: Fraction
    """The formula on the numbers that the run holds, without rounding."""
    stored: float
    """What the run holds instead."""
    ulps: Fraction
    """How far `stored` is from `exact` rounded, in ulp of the line's largest number."""
    allowed: int
    """How far it may be, for the roundings on the way."""
    format: Format

    @property
    def agrees(self) -> bool:
        return self.ulps <= self.allowed

    @property
    def equation(self) -> str:
        return f"{self.numbers} = {self.format.shortest(self.stored)}"

    @property
    def verdict(self) -> str:
        """How the stored number compares with the exact one, in a few words."""
        off = "0" if self.ulps == 0 else f"{float(self.ulps):.3g}"
        if self.agrees:
            return f"{off} ulp off"
        rounded = self.format.shortest(self.format.round(self.exact))
        return f"WRONG: {off} ulp off, the formula gives {rounded}"


def work_out(
    rule: Rule, held: Held, form: Format = FLOAT32, theta: str = "theta"
) -> list[CheckedLine]:
    """Compute the update of one weight, line by line as the rule states it.

    >>> held = Held(3, 6, 6, 6, None, None, 6, 0)
    >>> [(str(each.line), each.equation) for each in work_out(Rule(lr=0.5), held)]
    [('theta <- theta - lr * g', '3 - 0.5 * 6 = 0')]

    Args:
        rule: The options of the step.
        held: The numbers of the weight before and after it.
        form: The format of these numbers.
        theta: What the weight is called.
    """
    values = {
        theta: held.theta,
        "g": held.grad,
        "b": held.buf or 0.0,
        "lr": rule.lr,
        "momentum": rule.momentum,
        "weight_decay": rule.weight_decay,
        "(1 - dampening)": 1 - rule.dampening,
    }
    stored = {"factor": held.factor, "b": held.new_buf or 0.0, theta: held.new_theta}
    checked = []
    for line in rule.lines(theta=theta, has_buffer=held.buf is not None):
        if line.target == "g":
            if ("factor", "g") in line.terms:
                stored["g"] = held.clipped
            elif ("weight_decay", theta) in line.terms:
                stored["g"] = held.decayed
            else:
                stored["g"] = held.direction
        if line.target == "factor":
            checked.append(_check_clipping(line, rule, held, form))
        else:
            checked.append(_check_sum(line, values, stored[line.target], form))
        values[line.target] = stored[line.target]
    return checked


def _check_sum(
    line: Line, values: Mapping[str, float], stored: float, form: Format
) -> CheckedLine:
    """Compute a sum of products of numbers that the run holds.

    Options of the rule are rounded to the format first, as torch does. Whether it
    rounds each product before they are added depends on the machine: either way the
    result is 1 ulp off at the most, where 1 ulp is that of the largest number in the
    line. (That of the result would not do: where 1 - 0.9999 cancels, the error of the 1
    stays.)
    """

    def value_of(symbol: str) -> Fraction:
        sign = -1 if symbol.startswith("-") else 1
        return sign * form.round(values[symbol.removeprefix("-")])

    terms = [[value_of(symbol) for symbol in term] for term in line.terms]
    products = [Fraction(math.prod(term)) for term in terms]
    numbers = " ".join(
        _write_product(term, form, is_first=i == 0) for i, term in enumerate(terms)
    )
    return _check(line, numbers, Fraction(sum(products)), products, stored, form)


def _check_clipping(line: Line, rule: Rule, held: Held, form: Format) -> CheckedLine:
    limit, small = form.round(rule.clip_norm or 0), form.round(1e-6)
    exact = min(Fraction(1), limit / (Fraction(held.norm) + small))
    norm = form.shortest(held.norm)
    numbers = f"min(1, {form.shortest(limit)} / ({norm} + 0.000001))"
    # torch rounds the sum, its reciprocal and the product.
    return _check(line, numbers, exact, [], held.factor, form, allowed=2)


def _check(
    line: Line,
    numbers: str,
    exact: Fraction,
    terms: Iterable[Fraction],
    stored: float,
    form: Format,
    allowed: int = 1,
) -> CheckedLine:
    rounded = form.round(exact)
    largest = max(map(abs, [*terms, rounded, Fraction(stored)]))
    ulps = abs(rounded - Fraction(stored)) / form.ulp(largest)
    return CheckedLine(line, numbers, exact, stored, ulps, allowed, form)


def _write_product(factors: list[Fraction], form: Format, is_first: bool) -> str:
    """Write a product with the sign that joins it to the sum: `+ 0.9 * (-0.1)`."""
    first, *others = factors
    sign = ""
    if not is_first:
        sign, first = ("- " if first < 0 else "+ "), abs(first)
    rest = (f"({n})" if n[0] == "-" else n for n in map(form.shortest, others))
    return sign + " * ".join([form.shortest(first), *rest])


def list_given(
    rule: Rule, held: Held, form: Format = FLOAT32, theta: str = "theta"
) -> list[tuple[str, str, str]]:
    """List what the lines start from: symbol, number and meaning of each quantity.

    >>> list_given(Rule(lr=0.5), Held(3, 6, 6, 6, None, None, 6, 0))[0]
    ('theta', '3', 'theta before this step')
    """
    loss = "L" if theta == "theta" else "f"
    rows: list[tuple[str, float | None, str]] = [
        (theta, held.theta, f"{theta} before this step"),
        ("g", held.grad, f"its part of grad {loss}: the slope d{loss}/d{theta}"),
        ("lr", rule.lr, "the learning rate of this step"),
    ]
    if rule.clip_norm is not None:
        rows.append(("|g|", held.norm, "the norm of grad L, over all weights"))
        rows.append(("clip_norm", rule.clip_norm, "the norm that it may have"))
    if rule.weight_decay != 0:
        rows.append(("weight_decay", rule.weight_decay, "how strongly 0 attracts"))
    if rule.momentum != 0:
        rows.append(("momentum", rule.momentum, "the share of b that is kept"))
        rows.append(("b", held.buf, "the momentum buffer before this step"))
    if rule.dampening != 0:
        rows.append(("dampening", rule.dampening, "the share of g kept out of b"))
    return [
        (symbol, "none yet" if x is None else form.shortest(form.round(x)), meaning)
        for symbol, x, meaning in rows
    ]


def write_example(
    rule: Rule, held: Held, form: Format = FLOAT32, theta: str = "theta"
) -> list[str]:
    """Write the whole example: what is given, each line, and the result."""
    rows = list_given(rule, held, form, theta)
    lines = work_out(rule, held, form, theta)
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]]
    text = ["Given:"]
    for symbol, number, meaning in rows:
        text.append(f"  {symbol:{widths[0]}}  {number:{widths[1]}}  {meaning}")
    for number, each in enumerate(lines, start=1):
        indent = " " * (4 + len(each.line.target) + 2)
        text += [
            "",
            f"{number}. {each.line.meaning}:",
            f"    {each.line}",
            f"{indent}= {each.numbers}",
            f"{indent}= {form.shortest(each.stored)}    [{each.verdict}]",
        ]
    return [*text, "", f"{lines[-1].line}: {lines[-1].equation}"]


def closed_form(start: float, lr: float, steps: int) -> Fraction:
    """Return where a walk down x^2 + y^2 is after some steps: (1 - 2 lr)^steps * start.

    >>> closed_form(3, 0.25, 2)
    Fraction(3, 4)
    """
    return (1 - 2 * Fraction(lr)) ** steps * Fraction(start)
