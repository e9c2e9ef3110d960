"""One update of one weight, worked out as in a textbook and checked in fractions.

A computer rounds every result to a number of its format. The lines here are computed
once more without rounding, from the very numbers that the run holds, and compared with
what it holds afterwards.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from minitrain.explain.arithmetic import FLOAT32, Format


class Line(NamedTuple):
    """A line of the rule, with its numbers, its exact result and the one held."""

    meaning: str
    target: str
    """The quantity that it computes."""
    symbols: str
    numbers: str
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


def line(
    meaning: str,
    symbols: str,
    terms: Sequence[tuple[float, ...]],
    stored: float,
    form: Format,
) -> Line:
    """Work out `target <- a sum of products`, each a number or a pair (factor, number).

    Factors are options of the rule, which torch rounds to the format first. Whether it
    rounds each product before they are added depends on the machine: either way the
    result is 1 ulp off at the most, where 1 ulp is that of the largest number in the
    line. (That of the result would not do: where 1 - 0.9999 cancels, the error of the 1
    stays.)

    >>> print(line("", "x <- x - lr * g", [(3,), (-0.5, 6)], 0.0, FLOAT32).equation)
    3 - 0.5 * 6 = 0
    """
    rounded = [[form.round(factor) for factor in term] for term in terms]
    products = [Fraction(math.prod(term)) for term in rounded]
    numbers = " ".join(
        _written(term, form, is_first=i == 0) for i, term in enumerate(rounded)
    )
    exact = Fraction(sum(products))
    return _checked(meaning, symbols, numbers, exact, products, stored, form)


def _written(term: list[Fraction], form: Format, is_first: bool) -> str:
    """A product with the sign that joins it to the sum: `+ 0.9 * (-0.1)`."""
    first, *others = term
    sign = ""
    if not is_first:
        sign, first = ("- " if first < 0 else "+ "), abs(first)
    rest = (f"({n})" if n[0] == "-" else n for n in map(form.shortest, others))
    return sign + " * ".join([form.shortest(first), *rest])


def _checked(
    meaning: str,
    symbols: str,
    numbers: str,
    exact: Fraction,
    terms: Iterable[Fraction],
    stored: float,
    form: Format,
    allowed: int = 1,
) -> Line:
    rounded = form.round(exact)
    largest = max(map(abs, [*terms, rounded, Fraction(stored)]))
    ulps = abs(rounded - Fraction(stored)) / form.ulp(largest)
    target = symbols.split(" <- ")[0]
    return Line(meaning, target, symbols, numbers, exact, stored, ulps, allowed, form)


class Rule(NamedTuple):
    """The options of `sgd_update`, and of the clipping before it."""

    lr: float
    momentum: float = 0
    dampening: float = 0
    weight_decay: float = 0
    nesterov: bool = False
    clip_norm: float | None = None


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
    """Where the run clips: the length of the whole gradient, before."""
    factor: float = 1
    """Where the run clips: what the gradient is multiplied by."""


def worked(
    rule: Rule, held: Held, form: Format = FLOAT32, name: str = "theta"
) -> list[Line]:
    """The update of one weight, line by line as `sgd_update` states it.

        g <- g * min(1, clip_norm / (|g| + 1e-6))    if clipping, in two lines
        g <- g + weight_decay * theta                if weight decay
        b <- momentum * b + (1 - dampening) * g      b <- g where there is no buffer yet
        g <- g + momentum * b                        if nesterov
        theta <- theta - lr * (b or g)

    >>> held = Held(3, 6, 6, 6, None, None, 6, 0)
    >>> [(line.symbols, line.equation) for line in worked(Rule(lr=0.5), held)]
    [('theta <- theta - lr * g', '3 - 0.5 * 6 = 0')]
    """
    lines = []
    if rule.clip_norm is not None:
        lines.append(_clip_factor(rule.clip_norm, held, form))
        terms = [(held.factor, held.grad)]
        meaning = "the gradient, clipped"
        lines.append(line(meaning, "g <- factor * g", terms, held.clipped, form))
    if rule.weight_decay != 0:
        meaning = f"the gradient with weight decay, which pulls {name} towards 0"
        terms = [(held.clipped,), (rule.weight_decay, held.theta)]
        symbols = f"g <- g + weight_decay * {name}"
        lines.append(line(meaning, symbols, terms, held.decayed, form))
    step = "g"
    if held.new_buf is not None:
        step = "b"
        if held.buf is None:
            meaning = "the momentum buffer, which begins with the first gradient"
            symbols, terms = "b <- g", [(held.decayed,)]
        else:
            meaning = "the momentum buffer, a fading sum of all gradients so far"
            gain = " * ".join(["(1 - dampening)"] * (rule.dampening != 0) + ["g"])
            symbols = f"b <- momentum * b + {gain}"
            own = (1 - rule.dampening, held.decayed)
            terms = [(rule.momentum, held.buf), own if rule.dampening else own[1:]]
        lines.append(line(meaning, symbols, terms, held.new_buf, form))
        if rule.nesterov:
            step = "g"
            meaning = "Nesterov's direction: the gradient, and on with the momentum"
            terms = [(held.decayed,), (rule.momentum, held.new_buf)]
            symbols = "g <- g + momentum * b"
            lines.append(line(meaning, symbols, terms, held.direction, form))
    meaning = f"the new {name}, a step downhill"
    symbols = f"{name} <- {name} - lr * {step}"
    terms = [(held.theta,), (-rule.lr, held.direction)]
    lines.append(line(meaning, symbols, terms, held.new_theta, form))
    return lines


def _clip_factor(clip_norm: float, held: Held, form: Format) -> Line:
    limit, small = form.round(clip_norm), form.round(1e-6)
    exact = min(Fraction(1), limit / (Fraction(held.norm) + small))
    length = form.shortest(held.norm)
    numbers = f"min(1, {form.shortest(limit)} / ({length} + 0.000001))"
    return _checked(
        "the factor that shortens the gradient to clip_norm, or leaves it",
        "factor <- min(1, clip_norm / (|g| + 0.000001))",
        numbers,
        exact,
        [],
        held.factor,
        form,
        allowed=2,  # torch rounds the sum, its reciprocal and the product
    )


def given(
    rule: Rule, held: Held, form: Format = FLOAT32, name: str = "theta"
) -> list[tuple[str, str, str]]:
    """What the lines start from: symbol, number and meaning of each quantity.

    >>> given(Rule(lr=0.5), Held(3, 6, 6, 6, None, None, 6, 0))[0]
    ('theta', '3', 'theta before this step')
    """
    loss = "L" if name == "theta" else "f"
    rows: list[tuple[str, float | None, str]] = [
        (name, held.theta, f"{name} before this step"),
        ("g", held.grad, f"its part of grad {loss}: the slope d{loss}/d{name}"),
        ("lr", rule.lr, "the learning rate of this step"),
    ]
    if rule.clip_norm is not None:
        rows.append(("|g|", held.norm, "the length of grad L, over all weights"))
        rows.append(("clip_norm", rule.clip_norm, "the length that it may have"))
    if rule.weight_decay != 0:
        rows.append(("weight_decay", rule.weight_decay, "how strongly 0 attracts"))
    if held.new_buf is not None:
        rows.append(("momentum", rule.momentum, "the share of b that is kept"))
        rows.append(("b", held.buf, "the momentum buffer before this step"))
    if rule.dampening != 0:
        rows.append(("dampening", rule.dampening, "the share of g kept out of b"))
    return [
        (name, "none yet" if x is None else form.shortest(form.round(x)), meaning)
        for name, x, meaning in rows
    ]


def textbook(
    rule: Rule, held: Held, form: Format = FLOAT32, name: str = "theta"
) -> list[str]:
    """The whole example, to be printed: what is given, each line, and the result."""
    rows, lines = given(rule, held, form, name), worked(rule, held, form, name)
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]]
    text = ["Given:"]
    for symbol, number, meaning in rows:
        text.append(f"  {symbol:{widths[0]}}  {number:{widths[1]}}  {meaning}")
    for number, each in enumerate(lines, start=1):
        indent = " " * (4 + len(each.target) + 2)
        text += [
            "",
            f"{number}. {each.meaning}:",
            f"    {each.symbols}",
            f"{indent}= {each.numbers}",
            f"{indent}= {form.shortest(each.stored)}    [{verdict(each)}]",
        ]
    return [*text, "", f"{lines[-1].symbols}: {lines[-1].equation}"]


def verdict(each: Line) -> str:
    """How the stored number compares with the exact one, in a few words."""
    off = "0" if each.ulps == 0 else f"{float(each.ulps):.3g}"
    if each.agrees:
        return f"{off} ulp off"
    rounded = each.format.shortest(each.format.round(each.exact))
    return f"WRONG: {off} ulp off, the formula gives {rounded}"


def closed_form(start: float, lr: float, steps: int) -> Fraction:
    """Where a walk down x^2 + y^2 is after some steps: (1 - 2 lr)^steps * start.

    >>> closed_form(3, 0.25, 2)
    Fraction(3, 4)
    """
    return (1 - 2 * Fraction(lr)) ** steps * Fraction(start)
