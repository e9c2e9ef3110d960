"""Models whose gradients torch averages over processes."""

from typing import Any

import pytest
import torch
from harness.processes import in_process_group
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from minitrain import SGD, ParameterVector, train
from minitrain.data_parallel import groups_of, mean_over

loss_fn = nn.functional.mse_loss


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of rank 0 are twice as large as those of rank 1."""
    generator = torch.Generator().manual_seed(rank)
    num = 4 if rank == 0 else 2
    x = torch.randn(5, num, 3, generator=generator)
    return [*zip(x, x.sum(dim=2, keepdim=True) + rank, strict=True)]


@pytest.mark.parametrize("is_vector", [False, True])
def test_a_step_under_ddp_tells_the_mean_loss_whose_gradient_it_has(
    is_vector: bool,
) -> None:
    """And the samples of all processes; by a loop over both batches of each step."""

    def work(rank: int) -> tuple[list[tuple], list[float]]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        params: Any = ParameterVector(model) if is_vector else model.parameters()
        ddp = DistributedDataParallel(model)
        steps = train(ddp, SGD(params, lr=0.1), batches(rank), loss_fn)
        told = [(step.num_samples, step.loss, step.grad_norm) for step in steps]
        return told, [*model.weight.flatten().tolist(), model.bias.item()]

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for own, other in zip(batches(0), batches(1), strict=True):
        loss = (loss_fn(model(own[0]), own[1]) + loss_fn(model(other[0]), other[1])) / 2
        optimizer.zero_grad()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        expected.append((6, loss.item(), gradient.norm().item()))
        optimizer.step()
    told, *others = in_process_group(2, work)
    assert others == [told]
    for step, numbers in zip(told[0], expected, strict=True):
        assert step == pytest.approx(numbers, rel=1e-5)
    assert told[1][:3] == pytest.approx(model.weight.flatten().tolist(), rel=1e-5)
    assert told[1][3] == pytest.approx(model.bias.item(), rel=1e-5)


def test_the_processes_of_a_model_are_found_wherever_torch_keeps_them() -> None:
    def work(rank: int) -> list[list[int]]:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        ddp = DistributedDataParallel(nn.Linear(3, 4))
        within = DistributedDataParallel(
            nn.Linear(3, 4), process_group=mesh.get_group("shard")
        )
        sharded = nn.Linear(3, 4)
        fully_shard(sharded, mesh=mesh)
        models = nn.Linear(3, 4), ddp, nn.Sequential(ddp), within, sharded
        groups = [groups_of(model) for model in models]
        return [[group.size() for group in each] for each in groups]

    assert in_process_group(4, work) == [[[], [4], [4], [2], [2, 2]]] * 4


def test_a_mean_over_a_mesh_is_that_of_all_processes() -> None:
    def work(rank: int) -> list[float]:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        model = nn.Linear(3, 4)
        fully_shard(model, mesh=mesh)
        values = torch.tensor([float(rank), 1.0])
        return mean_over(groups_of(model), values).tolist() + values.tolist()

    expected = [[1.5, 1.0, float(rank), 1.0] for rank in range(4)]
    assert in_process_group(4, work) == expected


def test_an_ordinary_model_costs_no_message() -> None:
    values = torch.tensor([3.0])
    assert mean_over(groups_of(nn.Linear(3, 4)), values) is values
