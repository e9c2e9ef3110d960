"""The panel where torch shares the work among processes: DDP and `fully_shard`."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from harness.processes import in_process_group
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from minitrain import tags
from minitrain.batches import Batches
from minitrain.instruments import Findings, Panel, panel
from minitrain.instruments.cadence import IDLE, Cadence
from minitrain.instruments.preflight import preflight
from minitrain.instruments.readings import read_look
from minitrain.instruments.sharpness import sharpness
from minitrain.sgd import SGD
from minitrain.training import train

EVERYTHING = Cadence(look=1, audit=1, truth=1, noise=1)
NEVER = Cadence(look=0, audit=0, truth=0, noise=0)
NUM_STEPS = 4

loss_fn = nn.functional.cross_entropy


def network() -> nn.Sequential:
    """A network whose loss depends on buffers and on random numbers."""
    torch.manual_seed(0)
    first = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2)
    return nn.Sequential(*first, nn.Linear(8, 3))


def perceptron() -> nn.Sequential:
    """A network without either: two halves of a batch have the loss of the whole."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    """Samples that differ between ranks so much that their gradients do, too."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(NUM_STEPS, 16, 4, generator=generator)
    y = (x.sum(dim=2) > 0).long() + rank
    return [*zip(x, y, strict=True)]


class Seen(NamedTuple):
    readings: list[dict[str, float]]
    found: list[str]
    withheld: dict[str, str]
    state: list[float]
    """Of the model: parameters and buffers."""


def watch(
    model: nn.Module,
    own: list[tuple[Tensor, Tensor]],
    cadence: Cadence = EVERYTHING,
    spoil: Callable[[Tensor], Any] = lambda grad: None,
) -> Seen:
    """Train as a stranger does, with a panel, and spoil every gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    watcher = Panel(model, optimizer, cadence)
    findings = Findings(num_steps=NUM_STEPS, batch_size=16)
    readings, found = [], []
    for number, (x, y) in enumerate(own, 1):

        def loss_of(x: Tensor = x, y: Tensor = y) -> Tensor:
            return loss_fn(model(x), y)

        with watcher.watch(number, loss_of, num_samples=len(x)) as step:
            optimizer.zero_grad()
            loss_of().backward()
            for parameter in model.parameters():
                spoil(parameter.grad)  # type: ignore
            optimizer.step()
        readings.append({tag: float(value) for tag, value in step.readings.items()})
        found += findings.check_slopes(number, watcher.slopes)
    parts = model.state_dict().values()
    full = [x.full_tensor() if isinstance(x, DTensor) else x for x in parts]
    state = torch.cat([x.flatten() for x in full])
    return Seen(readings, [f.kind for f in found], watcher.withheld, state.tolist())


def test_a_correct_run_under_ddp_gives_no_false_alarm_and_stays_as_it_is() -> None:
    def work(rank: int) -> tuple[Seen, Seen]:
        seen = []
        for cadence in (EVERYTHING, NEVER):
            model = DistributedDataParallel(network())
            torch.manual_seed(rank)  # of the dropout masks
            seen.append(watch(model, batches(rank), cadence))
        return seen[0], seen[1]

    for watched, unwatched in in_process_group(2, work):
        assert watched.found == [] and watched.state == unwatched.state
        assert all(each[tags.TRUTH_ERROR] < 0.01 for each in watched.readings)
        assert {*watched.withheld} == {"noise"}
        assert "DistributedDataParallel" in watched.withheld["noise"]


def test_a_gradient_that_is_wrong_on_all_processes_is_found() -> None:
    def work(rank: int) -> list[str]:
        model = DistributedDataParallel(network())
        return watch(model, batches(rank), spoil=lambda grad: grad.mul_(1.5)).found

    assert in_process_group(2, work) == [["wrong gradient"]] * 2


def test_processes_whose_gradients_differ_do_not_wait_for_one_another() -> None:
    """How often the loss is computed must not depend on a gradient of one's own."""

    def work(rank: int) -> list[str]:
        model = DistributedDataParallel(network())
        factor = 1.0 if rank else 0.0
        return watch(model, batches(rank), spoil=lambda grad: grad.mul_(factor)).found

    assert in_process_group(2, work) == [["wrong gradient"]] * 2


def test_the_readings_under_ddp_are_those_of_one_process_with_the_whole_batch() -> None:
    doubles = [[(x.double(), y) for x, y in batches(rank)] for rank in range(2)]
    pairs = zip(*doubles, strict=True)
    wholes = [
        (torch.cat([x0, x1]), torch.cat([y0, y1])) for (x0, y0), (x1, y1) in pairs
    ]
    alone = watch(perceptron(), wholes, EVERYTHING._replace(noise=0))

    def work(rank: int) -> Seen:
        return watch(DistributedDataParallel(perceptron()), doubles[rank])

    for seen in in_process_group(2, work):
        for readings, expected in zip(seen.readings, alone.readings, strict=True):
            own = {k.replace("/module.", "/"): x for k, x in readings.items()}
            assert own.keys() == expected.keys()
            # Errors of a right gradient are rounding, which sums in another order have.
            for tag in own.keys() - {tags.TRUTH_ERROR, tags.TRUTH_WORST_ERROR}:
                assert own[tag] == pytest.approx(expected[tag], rel=1e-6, abs=1e-9)


def test_train_under_ddp_audits_the_loss_of_all_processes() -> None:
    """The loss after a step is that before the next one, on the same batch."""

    def work(rank: int) -> tuple[list[float], list[float]]:
        model = DistributedDataParallel(perceptron())
        optimizer = SGD(model.parameters(), lr=0.1)
        x, y = batches(rank)[0]
        watcher = Panel(model, optimizer, EVERYTHING)
        own = [(x.double(), y)] * NUM_STEPS
        steps = [*train(model, optimizer, own, loss_fn, watcher=watcher)]
        assert all(step.readings[tags.TRUTH_ERROR] < 1e-3 for step in steps)
        after = [step.readings[tags.AUDIT_LOSS] for step in steps]
        return [step.loss for step in steps][1:], after[:-1]

    first, second = in_process_group(2, work)
    assert first == second and first[0] == first[1]


def test_all_processes_read_as_often_however_fast_each_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(rank: int) -> Cadence:
        model = DistributedDataParallel(network())
        (x, y), *_ = batches(rank)
        watcher = Panel(model, torch.optim.SGD(model.parameters(), lr=0.1))

        def loss_of() -> Tensor:
            return loss_fn(model(x), y)

        def read_slowly(*args: Any) -> Any:
            time.sleep(0.01 * rank)
            return read_look(*args)

        monkeypatch.setattr(panel, "read_look", read_slowly)
        return watcher.fit(loss_of, len(x), budget=0.02)

    first, second = in_process_group(2, work)
    assert first == second and first.noise == 0 and min(first[:3]) > 0


def test_all_readings_of_sharded_models_are_withheld_by_name() -> None:
    """Nothing is wrong, nothing crashes, and the run stays as it is."""

    def sharded() -> nn.Module:
        model = perceptron()
        fully_shard(model[0])
        fully_shard(model)
        return model

    def work(rank: int) -> tuple[Seen, Seen, Cadence]:
        own = [(x.double(), y) for x, y in batches(rank)]
        seen = [watch(sharded(), own, cadence) for cadence in (EVERYTHING, NEVER)]
        model = sharded()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        watcher = Panel(model, optimizer)
        assert watcher.cadence.plan(1) == IDLE
        x, y = own[0]
        fitted = watcher.fit(lambda: loss_fn(model(x), y), len(x), 0.02)
        watcher.cadence = EVERYTHING  # as somebody may who does not look at `withheld`
        for step in train(model, optimizer, own, loss_fn, watcher=watcher):
            assert not step.readings
        watcher.load_state_dict(watcher.state_dict())
        return seen[0], seen[1], fitted

    for watched, unwatched, fitted in in_process_group(2, work):
        assert watched.readings == [{}] * NUM_STEPS and watched.found == []
        assert watched.state == unwatched.state and fitted == NEVER
        assert {*watched.withheld} == {*Cadence._fields, tags.LEFT_OVER}
        assert all(
            "0.weight is a DTensor" in each for each in watched.withheld.values()
        )


def test_the_preflight_looks_at_what_ddp_wraps_and_at_data_of_sharded_models() -> None:
    """Alone on each process: what one finds, and how fast, is not what others find."""
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(64) % 3

    def kinds(model: nn.Module) -> list[str]:
        return [each.kind for each in preflight(model, loss_fn, Batches(x, y, 16))]

    def probable() -> nn.Module:
        normalized = nn.BatchNorm1d(3), nn.Softmax(dim=1)
        return nn.Sequential(nn.Linear(4, 3), *normalized)

    def work(rank: int) -> list[list[str]]:
        model = DistributedDataParallel(probable())
        found = kinds(model) if rank == 0 else []
        model = probable()
        fully_shard(model)
        return [found, kinds(model)]

    expected = kinds(probable())
    assert "probabilities instead of logits" in expected
    of_data = [kind for kind in expected if kind != "probabilities instead of logits"]
    assert in_process_group(2, work) == [[expected, of_data], [[], of_data]]


def test_the_sharpness_of_a_sharded_model_is_refused_in_a_sentence() -> None:
    def work(rank: int) -> str:
        (x, y), *_ = batches(rank)
        model = nn.Linear(4, 3)
        fully_shard(model)
        with pytest.raises(ValueError, match="without fully_shard") as caught:
            sharpness(model, x, y, loss_fn)
        return str(caught.value)

    for text in in_process_group(2, work):
        assert text.startswith("weight is a DTensor")
