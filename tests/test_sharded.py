"""Models under `fully_shard`: train, norms, clipping, SGD, and checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.processes import in_process_group
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

from minitrain import SGD, ParameterVector, train
from minitrain.fingerprint import fingerprint
from minitrain.norms import grad_norms, norm, norms
from minitrain.training import NotFiniteError, Step

RULE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
CLIP_NORM = 0.3
BATCHES = 6

loss_fn = nn.functional.cross_entropy


def network(seed: int = 0, *, is_sharded: bool = True) -> nn.Module:
    """A small network, whose parameters two processes cannot all share evenly."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 7), nn.Linear(7, 3))
    if is_sharded:
        fully_shard(model[0])
        fully_shard(model)
    return model


def batches(rank: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Batches of eight samples, or the four of them that are for one of two ranks."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCHES, 8, 3, generator=generator)
    y = torch.randint(3, (BATCHES, 8), generator=generator)
    own = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    return [*zip(x[:, own], y[:, own], strict=True)]


def whole(tensor: Any) -> list[float]:
    """All elements, which every process then has."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().flatten().tolist()


Result = tuple[list[Step], list[list[float]]]


def result(model: nn.Module, steps: list[Step]) -> Result:
    told = [step._replace(readings={}) for step in steps]  # what can be pickled
    return told, [whole(p) for p in model.parameters()]


def run(model: nn.Module, make: Any, rank: int | None, **options: Any) -> Result:
    optimizer = make(model.parameters(), **RULE, **options)
    steps = train(
        model, optimizer, batches(rank), loss_fn, epochs=2, clip_norm=CLIP_NORM
    )
    return result(model, [*steps])


def test_the_norm_of_a_dtensor_is_that_of_the_full_tensor() -> None:
    """However it is cut, also where a process holds nothing of it."""
    shapes = (7, 3), (1, 5), (4096, 2), ()
    layouts = (
        (Replicate(), Shard(0)),
        (Shard(0), Shard(1)),
        (Shard(1), Replicate()),
        (Replicate(), Replicate()),
    )
    torch.manual_seed(0)
    full = [torch.randn(shape) for shape in shapes]

    def work(rank: int) -> list[list[float]]:
        mesh = init_device_mesh("cpu", (2, 2))
        parts: list[Tensor] = [
            distribute_tensor(tensor, mesh, layout)
            for tensor, layout in zip(full, layouts, strict=True)
        ]
        summand = torch.full((3,), float(rank))
        parts.append(DTensor.from_local(summand, mesh, [Partial(), Partial()]))
        parts.append(torch.tensor([3.0, 4.0]))
        parameter = nn.Parameter(parts[0])
        lone = nn.Parameter(parts[1])
        lone.grad = parts[1]
        told = norms(parts), norm(parts), norm(parts[1]), grad_norms([parameter, lone])
        return [each.flatten().tolist() for each in told]

    each = [tensor.double().norm().item() for tensor in full]
    each += [6 * 3**0.5, 5.0]
    together = sum(x * x for x in each) ** 0.5
    told = in_process_group(4, work)
    assert all(of_rank == told[0] for of_rank in told)
    assert told[0][0] == pytest.approx(each, rel=2e-6)
    assert told[0][1] == pytest.approx([together], rel=2e-6)
    assert told[0][2] == pytest.approx([each[1]], rel=2e-6)
    assert told[0][3] == pytest.approx([0.0, each[1]], rel=2e-6)


def test_sgd_and_train_give_the_bits_of_torchs_sgd() -> None:
    """Every loss, norm and parameter, with all options of the rule, and clipping."""

    def work(rank: int) -> list[Any]:
        ours, ours_fused = (
            run(network(), SGD, rank, **options) for options in ({}, {"fused": True})
        )
        theirs = run(network(), torch.optim.SGD, rank, foreach=False)
        return [ours, ours_fused, theirs]

    for ours, ours_fused, theirs in in_process_group(2, work):
        assert ours == theirs and ours_fused == theirs
        factors = [CLIP_NORM / step.grad_norm for step in ours[0]]
        assert min(factors) < 1 < max(factors)  # some steps are clipped, and some not


def test_two_processes_train_as_one_with_both_halves_of_the_batch() -> None:
    """Up to rounding: sums over samples are taken in another order.

    After n steps of about 100 roundings of eps each an error of n * 100 eps is much.
    """
    alone = run(network(is_sharded=False), SGD, None)
    told = in_process_group(2, lambda rank: run(network(), SGD, rank))
    assert told[0] == told[1]
    steps, parameters = told[0]
    tolerance = 2 * BATCHES * 100 * torch.finfo(torch.float32).eps
    for step, expected in zip(steps, alone[0], strict=True):
        assert step.num_samples == expected.num_samples == 8
        assert step.loss == pytest.approx(expected.loss, rel=tolerance)
        assert step.grad_norm == pytest.approx(expected.grad_norm, rel=tolerance)
        assert step.grad_norms == pytest.approx(expected.grad_norms, rel=tolerance)
    for parameter, expected in zip(parameters, alone[1], strict=True):
        assert parameter == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_train_does_what_a_loop_with_torchs_own_clipping_does() -> None:
    def bare(model: nn.Module, rank: int) -> list[list[float]]:
        optimizer = torch.optim.SGD(model.parameters(), **RULE, foreach=False)
        for x, y in batches(rank) * 2:
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
        return [whole(p) for p in model.parameters()]

    def work(rank: int) -> list[Any]:
        return [run(network(), SGD, rank)[1], bare(network(), rank)]

    for ours, theirs in in_process_group(2, work):
        for parameter, expected in zip(ours, theirs, strict=True):
            assert parameter == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_checkpoint_of_dcp_continues_with_the_bits_of_the_whole_run(
    tmp_path: Path,
) -> None:
    half = BATCHES // 2

    def state_of(model: nn.Module, optimizer: SGD) -> dict[str, Any]:
        states = get_state_dict(model, optimizer)
        return {"model": states[0], "optimizer": states[1]}

    def steps_of(model: Any, optimizer: Any, rank: int, start: int) -> Iterator[Step]:
        return train(
            model, optimizer, batches(rank), loss_fn, clip_norm=CLIP_NORM, start=start
        )

    def work(rank: int) -> list[Any]:
        model = network()
        optimizer = SGD(model.parameters(), **RULE)
        steps = []
        for step in steps_of(model, optimizer, rank, 0):
            steps.append(step)
            if step.number == half:
                save(state_of(model, optimizer), checkpoint_id=tmp_path)
        again = network(seed=1)
        optimizer_again = SGD(again.parameters(), **RULE)
        state = state_of(again, optimizer_again)
        load(state, checkpoint_id=tmp_path)
        model_state, optim_state = state["model"], state["optimizer"]
        set_state_dict(
            again,
            optimizer_again,
            model_state_dict=model_state,
            optim_state_dict=optim_state,
        )
        rest = [*steps_of(again, optimizer_again, rank, half)]
        bufs = [
            [whole(each.state[p]["momentum_buffer"]) for p in m.parameters()]
            for m, each in ((model, optimizer), (again, optimizer_again))
        ]
        return [result(model, steps[half:]), result(again, rest), *bufs]

    for uninterrupted, continued, bufs, bufs_again in in_process_group(2, work):
        assert len(continued[0]) == BATCHES - half
        assert continued == uninterrupted and bufs_again == bufs


def test_a_loss_that_is_not_finite_on_one_process_ends_all() -> None:
    """With the same error: the others would wait for it for ever.

    Where a gradient is not finite either, it is not on all of them by itself.
    """

    def work(rank: int) -> tuple[int, str]:
        own = batches(rank)
        offsets = {(1, 2): torch.inf}  # by rank and batch; its gradient is 0

        def offset_loss(outputs: Tensor, targets: Tensor) -> Tensor:
            number = [torch.equal(targets, y) for _, y in own].index(True)
            return loss_fn(outputs, targets) + offsets.get((rank, number), 0.0)

        model = network()
        with pytest.raises(NotFiniteError) as caught:
            list(train(model, SGD(model.parameters()), own, offset_loss))
        return caught.value.step, caught.value.parameter

    assert in_process_group(2, work) == [(3, "")] * 2


def test_a_vector_refuses_dtensors_and_leaves_the_model_as_it_was() -> None:
    def work(rank: int) -> tuple[str, bool]:
        model = network()
        own = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
        before = [(p.data_ptr(), fingerprint({"p": p})) for p in own]
        with pytest.raises(TypeError) as caught:
            ParameterVector(model)
        own = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
        after = [(p.data_ptr(), fingerprint({"p": p})) for p in own]
        assert run(model, SGD, rank) == run(network(), SGD, rank)
        return str(caught.value), before == after and len(own) == 6

    for text, is_untouched in in_process_group(2, work):
        assert text.startswith("0.weight is a DTensor")
        assert text.endswith("give the optimizer a list: SGD(model.parameters())")
        assert is_untouched
