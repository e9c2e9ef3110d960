"""Gradients that a loop forgets to reset: seen at the second step, and only there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from minitrain import SGD, ParameterVector
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.findings import Findings
from minitrain.instruments.panel import Panel

RARELY = Cadence(look=50, audit=50, truth=500, noise=50)
X = torch.linspace(-1, 1, 12).reshape(4, 3)


def walk(
    reset: Callable[[torch.optim.Optimizer, int], object],
    *,
    cadence: Cadence = RARELY,
    passes: int = 1,
    late_reset: bool = False,
    as_vector: bool = False,
    every: int = 1,
) -> list[int]:
    """Make 20 blocks of a stranger's loop; return the steps of the finding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    weights = ParameterVector(model) if as_vector else model.parameters()
    optimizer = SGD(weights, lr=1e-3)
    panel = Panel(model, optimizer, cadence)
    findings = Findings(num_steps=20, batch_size=4)

    def loss() -> Tensor:
        return model(X).square().mean()

    for number in range(1, 21):
        with panel.watch(number, loss, num_samples=4) as watch:
            if not late_reset:
                reset(optimizer, number)
            for _ in range(passes):
                (loss() / passes).backward()
            if number % every == 0:
                optimizer.step()
            if late_reset:
                reset(optimizer, number)
        findings.note(number, {"loss/train": 1 / number, **watch.readings})
    assert {found.kind for found in findings.found} <= {"gradient not reset"}
    return [found.step for found in findings.found]


def never(optimizer: torch.optim.Optimizer, number: int) -> None:
    pass


def to_none(optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()


def to_zero(optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("cadence", [RARELY, Cadence(look=1, audit=0, truth=0)])
@pytest.mark.parametrize("as_vector", [False, True])
@pytest.mark.parametrize("passes", [1, 3])
def test_a_forgotten_reset_is_named_at_the_second_step(
    cadence: Cadence, as_vector: bool, passes: int
) -> None:
    options = {"cadence": cadence, "as_vector": as_vector, "passes": passes}
    assert walk(never, **options) == [2]
    for reset in (to_none, to_zero):
        for late in (False, True):
            assert walk(reset, late_reset=late, **options) == [], (reset, late)


def test_a_reset_that_is_forgotten_later_is_named_where_steps_are_read() -> None:
    def until_9(optimizer: torch.optim.Optimizer, number: int) -> None:
        if number < 10:
            optimizer.zero_grad()

    assert walk(until_9, cadence=Cadence(look=5, audit=0, truth=0, noise=0)) == [10]


def test_blocks_that_only_accumulate_leave_their_gradient_with_reason() -> None:
    def after_update(optimizer: torch.optim.Optimizer, number: int) -> None:
        if number % 4 == 1:
            optimizer.zero_grad()

    every_block = Cadence(look=1, audit=0, truth=0, noise=0)
    assert walk(after_update, every=4, cadence=every_block) == []


def test_looking_changes_no_bit() -> None:
    def train(with_panel: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        panel = Panel(model, optimizer, RARELY)
        for number in range(1, 6):
            if with_panel:
                with panel.watch(number, lambda: model(X).square().mean()):
                    model(X).square().mean().backward()
                    optimizer.step()
            else:
                model(X).square().mean().backward()
                optimizer.step()
        return [*model.parameters(), torch.get_rng_state()]

    pairs = zip(train(True), train(False), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
