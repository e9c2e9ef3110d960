"""The rule as it is described against the rule as it is computed."""

import itertools

import pytest
import torch

from minitrain.rule import Rule, check_options, equation
from minitrain.sgd import sgd_update

COMBINATIONS = [
    {
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": decay,
        "nesterov": nesterov,
        "maximize": maximize,
    }
    for momentum, dampening, decay, nesterov, maximize in itertools.product(
        (0, 0.75), (0, 0.25), (0, 0.5), (False, True), (False, True)
    )
    if not nesterov or (momentum and not dampening)
]


@pytest.mark.parametrize("has_buffer", [False, True])
@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_the_lines_computed_one_by_one_are_the_update(options, has_buffer) -> None:
    """In powers of two, where no line rounds."""
    theta, grad = torch.tensor([3.0, -4.0]), torch.tensor([1.0, 2.0])
    buf = torch.tensor([8.0, 4.0]) if has_buffer else None
    values = {"theta": theta.clone(), "g": grad, "b": buf, "lr": 0.5, **options}
    values["(1 - dampening)"] = 1 - options["dampening"]
    for line in Rule(lr=0.5, **options).lines(has_buffer=has_buffer):
        total = torch.zeros(2)
        for term in line.terms:
            product = torch.ones(2)
            for symbol in term:
                sign = -1 if symbol[0] == "-" else 1
                product = product * sign * values[symbol.removeprefix("-")]
            total = total + product
        values[line.target] = total
    new_buf = sgd_update(theta, grad, buf, lr=0.5, **options)
    assert torch.equal(values["theta"], theta)
    if options["momentum"]:
        assert new_buf is not None and torch.equal(values["b"], new_buf)
    else:
        assert new_buf is buf


def test_the_docstring_of_the_update_states_these_lines() -> None:
    """Line by line, for all options at once; nesterov is the one alternative."""
    doc = " ".join((sgd_update.__doc__ or "").split())
    lines = Rule(0.1, 0.9, 0.1, 0.1, maximize=True).lines()
    for line in map(str, lines[:-1]):
        assert line in doc
    first = Rule(0.1, 0.9).lines(has_buffer=False)[0]
    assert f"{first} where there is no buffer yet" in doc
    assert f"{Rule(0.1, 0.9, nesterov=True).lines()[1]} if nesterov else b" in doc
    assert str(Rule(0.1).lines()[-1]) in doc


def test_the_equation_has_the_numbers_of_the_options() -> None:
    rule = Rule(0.1, 0.9, 0.25, 0.01, clip_norm=2.0)
    assert equation(rule, is_largest_lr=True).splitlines() == [
        "g <- grad L(theta)",
        "factor <- min(1, clip_norm / (|g| + 0.000001)) (clip_norm = 2)",
        "g <- factor * g",
        "g <- g + 0.01 * theta",
        "b <- 0.9 * b + 0.75 * g         (b <- g at the first step)",
        "theta <- theta - lr * b         (lr at most 0.1)",
    ]
    assert equation(Rule(0.5), function="f").splitlines() == [
        "g <- grad f(theta)",
        "theta <- theta - lr * g         (lr = 0.5)",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -0.1},
        {"momentum": -0.1},
        {"weight_decay": -0.1},
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
    ],
    ids=str,
)
def test_what_torch_refuses_is_refused(wrong: dict) -> None:
    usual = {"lr": 0.1, "momentum": 0, "dampening": 0, "weight_decay": 0}
    options = {**usual, "nesterov": False, **wrong}
    with pytest.raises(ValueError):
        torch.optim.SGD([torch.zeros(1)], **options)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        check_options(options)
