"""The update rule as data: its options, their check, and its lines in symbols.

`minitrain.sgd.sgd_update` computes the rule. Whatever shows it, the dashboard, a walk
or `explain`, prints the lines of this description. Nothing here imports torch, so that
a command line can check options at once.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Line(NamedTuple):
    """One line of the rule: target <- a sum of products, in symbols."""

    target: str
    terms: tuple[tuple[str, ...], ...]
    """The products, each a tuple of factors; a minus stands before the first."""
    meaning: str
    """What the line does, in words."""

    def __str__(self) -> str:
        return self.with_numbers({})

    def with_numbers(self, numbers: Mapping[str, str]) -> str:
        """Write the line with numbers in the place of some symbols.

        >>> line = Line("g", (("g",), ("weight_decay", "theta")), "")
        >>> print(line.with_numbers({"weight_decay": "0.01"}))
        g <- g + 0.01 * theta
        """
        text = ""
        for first, *others in self.terms:
            sign, first = ("-", first[1:]) if first[0] == "-" else ("+", first)
            product = " * ".join(numbers.get(x, x) for x in (first, *others))
            text += f" {sign} {product}" if text else f"{sign}{product}".lstrip("+")
        return f"{self.target} <- {text}"


class Rule(NamedTuple):
    """The options of an update: those of `sgd_update`, and the clipping before it.

    >>> for line in Rule(lr=0.1, momentum=0.9, weight_decay=5e-4).lines():
    ...     print(line)
    g <- g + weight_decay * theta
    b <- momentum * b + g
    theta <- theta - lr * b
    """

    lr: float
    momentum: float = 0
    dampening: float = 0
    weight_decay: float = 0
    nesterov: bool = False
    maximize: bool = False
    clip_norm: float | None = None

    def lines(self, *, theta: str = "theta", has_buffer: bool = True) -> list[Line]:
        """Return the lines that these options have, in their order.

        Args:
            theta: What is updated.
            has_buffer: Whether there is a momentum buffer already: the first one is the
                gradient itself.
        """
        lines = []
        if self.clip_norm is not None:
            factor = "min(1, clip_norm / (|g| + 0.000001))"
            meaning = "the factor that shortens the gradient to clip_norm, or leaves it"
            lines.append(Line("factor", ((factor,),), meaning))
            lines.append(Line("g", (("factor", "g"),), "the gradient, clipped"))
        if self.maximize:
            lines.append(Line("g", (("-g",),), "the gradient turned, to walk uphill"))
        if self.weight_decay != 0:
            meaning = f"the gradient with weight decay, which pulls {theta} towards 0"
            lines.append(Line("g", (("g",), ("weight_decay", theta)), meaning))
        direction = "g"
        if self.momentum != 0:
            own = ("(1 - dampening)", "g") if self.dampening != 0 else ("g",)
            terms = (("momentum", "b"), own) if has_buffer else (("g",),)
            meaning = "the momentum buffer, which begins with the first gradient"
            if has_buffer:
                meaning = "the momentum buffer, a fading sum of all gradients so far"
            lines.append(Line("b", terms, meaning))
            direction = "b"
            if self.nesterov:
                meaning = "Nesterov's direction: the gradient, and on with the momentum"
                lines.append(Line("g", (("g",), ("momentum", "b")), meaning))
                direction = "g"
        meaning = f"the new {theta}, a step downhill"
        lines.append(Line(theta, ((theta,), ("-lr", direction)), meaning))
        return lines


def equation(rule: Rule, *, function: str = "L", is_largest_lr: bool = False) -> str:
    """Write the rule with the numbers of its options.

    >>> print(equation(Rule(lr=0.1, momentum=0.9, weight_decay=0.01)))
    g <- grad L(theta)
    g <- g + 0.01 * theta
    b <- 0.9 * b + g                (b <- g at the first step)
    theta <- theta - lr * b         (lr = 0.1)

    Args:
        rule: The options.
        function: The name of what is descended.
        is_largest_lr: Whether the learning rate changes, and is at most the rule's.
    """
    numbers = {
        "momentum": f"{rule.momentum:g}",
        "weight_decay": f"{rule.weight_decay:g}",
        "(1 - dampening)": f"{1 - rule.dampening:g}",
    }
    lines = [f"g <- grad {function}(theta)"]
    for line in rule.lines():
        text, note = line.with_numbers(numbers), ""
        if line.target == "factor":
            note = f"clip_norm = {rule.clip_norm:g}"
        if line.target == "b":
            note = "b <- g at the first step"
        if line.target == "theta":
            note = f"lr {'at most' if is_largest_lr else '='} {rule.lr:g}"
        lines.append(f"{text:<31} ({note})" if note else text)
    return "\n".join(lines)


def check_options(options: Mapping[str, Any]) -> None:
    """Make sure that the options of a rule are possible, as `torch.optim.SGD` asks.

    Args:
        options: By name; lr and weight_decay may be tensors with one element.

    Raises:
        ValueError: lr, momentum or weight_decay is negative or not finite, or nesterov
            lacks momentum or has dampening.
    """
    for name in ("lr", "momentum", "weight_decay"):
        if not 0 <= options[name] < math.inf:
            raise ValueError(
                f"{name} = {options[name]}: must be finite and not negative"
            )
    check_nesterov(options["nesterov"], options["momentum"], options["dampening"])


def check_nesterov(nesterov: bool, momentum: float, dampening: float) -> None:
    """Make sure that Nesterov's momentum has some, and all of it.

    Raises:
        ValueError: nesterov lacks momentum or has dampening.
    """
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError(
            "nesterov needs momentum > 0 and dampening = 0, "
            f"got momentum = {momentum}, dampening = {dampening}"
        )
