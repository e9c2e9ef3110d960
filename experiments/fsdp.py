"""A model that is shared out among processes: a transformer that sorts digits.

    torchrun --nproc-per-node 2 experiments/fsdp.py [--folder runs/fsdp] [--epochs 3]

Each process holds half of every parameter, of its gradient and of its momentum buffer
(`fully_shard`), and trains on half of every batch. Checkpoints are those of
torch.distributed.checkpoint, to which each process writes what it holds: started again,
also with another number of processes, the program goes on after the last complete one.
It runs on the CPU. This is a program, and no experiment for `scripts/train.py`.

Result: 0.998 of the digits are in their place; about 20 s on two cores.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard

from minitrain import SGD, Batches, train

LENGTH, BATCH_SIZE, NUM_SAMPLES = 8, 128, 20_000


def draw(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Digits in any order, shape (num, LENGTH), and the same ones sorted."""
    generator = torch.Generator().manual_seed(seed)
    digits = torch.randint(10, (num, LENGTH), generator=generator)
    return digits, digits.sort(dim=1).values


class Sorter(nn.Module):
    """Tells for every place which digit belongs there."""

    def __init__(self, width: int = 64, num_layers: int = 2) -> None:
        super().__init__()
        self.digit = nn.Embedding(10, width)
        self.place = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.out = nn.Linear(width, 10)

    def forward(self, digits: Tensor) -> Tensor:
        x = self.digit(digits) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.out(x).clone()  # fully_shard warns where a model returns a view


def loss_fn(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def shard(model: Sorter) -> None:
    """Share out the parameters: those of a layer are together only while it works."""
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)


def state_of(model: nn.Module, optimizer: SGD) -> dict[str, Any]:
    states = get_state_dict(model, optimizer)
    return {"model": states[0], "optimizer": states[1]}


def resume(folder: Path, model: nn.Module, optimizer: SGD) -> int:
    """Continue from the newest checkpoint; return its step, or 0 if there is none.

    The file .metadata is written last: a checkpoint without it is not complete.
    """
    found = sorted(path.parent for path in folder.glob("*/.metadata"))
    if not found:
        return 0
    state = state_of(model, optimizer)
    load(state, checkpoint_id=found[-1])
    weights, moments = state["model"], state["optimizer"]
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    return int(found[-1].name)


def run(folder: Path, epochs: int, num_samples: int) -> Iterator[tuple[int, str]]:
    """Train, save after every epoch, and yield what to print of it."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = Sorter()
    shard(model)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    start = resume(folder, model, optimizer)
    if start:
        yield start, "continued"
    x, y = (each[rank::world_size] for each in draw(num_samples, seed=1))
    batches = Batches(x, y, BATCH_SIZE // world_size, seed=0)
    steps = train(
        model, optimizer, batches, loss_fn, epochs=epochs, clip_norm=1.0, start=start
    )
    for step in steps:
        if step.ends_epoch:
            save(
                state_of(model, optimizer), checkpoint_id=folder / f"{step.number:06d}"
            )
            text = f"loss {step.loss:.4f} |grad L| {step.grad_norm:.4f}"
            yield step.number, text
    x, y = draw(1000, seed=2)
    with torch.no_grad():  # every process has the same samples, and the same answer
        share = (model(x).argmax(dim=-1) == y).float().mean().item()
    yield epochs * len(batches), f"{share:.4f} of the digits are in their place"


def main() -> None:
    parser = argparse.ArgumentParser(description="A sharded model that sorts digits.")
    parser.add_argument("--folder", type=Path, default=Path("runs/fsdp"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=NUM_SAMPLES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for number, text in run(arguments.folder, arguments.epochs, arguments.samples):
        if dist.get_rank() == 0:
            print(f"step {number}: {text}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
