"""Slices of each batch, which processes share: the same bits, however many they are.

A batch is cut into S slices, its shards. Each has its own forward and backward pass,
and its own random stream, a function of (seed, step, shard). Loss and gradient of the
batch are the means over the shards, weighted by their numbers of samples and taken in
the order of a binary tree: of two halves with n_1 and n_2 of n samples the mean is

    m = (n_1 / n) m_1 + (n_2 / n) m_2.

W processes, where W divides S and both are powers of two, compute a subtree each, tell
each other its mean, and then all compute the rest of the tree alike. No sum depends on
W, nor on who is faster, and what moves between processes is never added on its way.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from minitrain.batches import Batches
from minitrain.epochs import Bounds, size_of
from minitrain.loading import DatasetBatches
from minitrain.means import Mean, as_message, from_message, root
from minitrain.randomness import seed_by
from minitrain.samples import move
from minitrain.watcher import UNWATCHED, Watch
from minitrain.windows import Window

T = TypeVar("T")


class Peers(Protocol):
    """The processes that share a training."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """W, how many they are."""
        ...

    def gather(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the tensors of every process, by rank; all have the same shapes."""
        ...

    def gather_objects(self, own: T) -> list[T]:
        """Return the object of every process, by rank."""
        ...


class Alone:
    """A single process, which has nobody to talk to."""

    rank, world_size = 0, 1

    def gather(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        return [[*tensors]]

    def gather_objects(self, own: T) -> list[T]:
        return [own]


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards of every batch, and which of them are computed here.

    Args:
        num: S, a power of two. With 1 nothing of a step is other than without shards.
        seed: Of the random streams.
        peers: The processes that share them; by default there is one.

    Raises:
        ValueError: S is no power of two, or W does not divide it.
    """

    num: int = 1
    seed: int = 0
    peers: Peers = dataclasses.field(default_factory=Alone)

    def __post_init__(self) -> None:
        world_size = self.peers.world_size
        if self.num < 1 or self.num & (self.num - 1):
            raise ValueError(f"shards = {self.num}: must be a power of two")
        if self.num % world_size:
            raise ValueError(
                f"shards = {self.num}: {world_size} processes cannot share them evenly"
            )

    @property
    def own(self) -> range:
        """Those that are computed here."""
        size = self.num // self.peers.world_size
        return range(self.peers.rank * size, (self.peers.rank + 1) * size)

    def cut(self, batches: Any) -> Any:
        """Return the batches in slices, those alone that are computed here.

        Their order is: all slices of the first batch, then those of the second one.

        Raises:
            TypeError: They are not of a kind that can be cut.
        """
        return batches if self.num == 1 else self._with_cut(batches, self._slices)

    def deal(self, batches: Any) -> Any:
        """Return every W-th of the batches, from the one with the number of the rank.

        Raises:
            TypeError: They are not of a kind that can be dealt.
        """
        if self.peers.world_size == 1:
            return batches
        return self._with_cut(batches, self._every)

    def numbered(self, dealt: Iterable[T]) -> Iterator[tuple[int, T]]:
        """Yield batches that were dealt, each with its number among all, from 0."""
        for place, batch in enumerate(dealt):
            yield place * self.peers.world_size + self.peers.rank, batch

    def collect(self, own: list[T]) -> list[T]:
        """Return what every process has of its dealt batches, in the batches' order."""
        if self.peers.world_size == 1:
            return own
        of_all = self.peers.gather_objects(move(own, torch.device("cpu")))
        rounds = itertools.zip_longest(*of_all, fillvalue=self)  # self: nothing
        return [each for turn in rounds for each in turn if each is not self]

    def _with_cut(self, batches: Any, cut: Callable[..., Iterator[Bounds]]) -> Any:
        if not isinstance(batches, Batches | DatasetBatches):
            raise TypeError(
                f"batches of type {type(batches).__name__} cannot be cut into shards: "
                "give Batches or DatasetBatches"
            )
        return dataclasses.replace(batches, cut=cut)

    def _slices(self, bounds: Iterable[Bounds]) -> Iterator[Bounds]:
        for start, end in bounds:
            size = end - start
            for shard in self.own:
                first, last = (size * s // self.num for s in (shard, shard + 1))
                yield start + first, start + last

    def _every(self, bounds: Sequence[Bounds]) -> Iterator[Bounds]:
        yield from bounds[self.peers.rank :: self.peers.world_size]

    def seed_stream(self, text: str, device: torch.device) -> None:
        """Start a random stream that is a function of the seed and a text."""
        if self.num > 1:
            seed_by(f"{text}, seed {self.seed}", device)

    def loss(
        self, window: Window, model: nn.Module, loss_of: Callable[[Window], Tensor]
    ) -> Tensor:
        """Return the mean loss of a window.

        Args:
            window: The batches of a step, in the slices that are computed here.
            model: The model.
            loss_of: Computes the mean loss of some of them.
        """
        if self.num == 1:
            return loss_of(window)
        parameter = next(model.parameters())
        before = [buffer.detach().clone() for buffer in model.buffers()]

        def leaf(part: Window) -> Mean:
            _copy(before, model.buffers())  # as `backward` does
            return Mean(part.num_samples, _exact(loss_of(part)))

        return self._reduce(window, leaf, Mean(0, _zero(parameter))).loss.to(parameter)

    def backward(
        self,
        window: Window,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Window], Tensor],
        watch: Watch = UNWATCHED,
    ) -> tuple[Tensor, int]:
        """Leave the gradient of the mean loss of a window in the parameters.

        The buffers, such as BatchNorm's running statistics, are left as the mean of
        what each shard makes of them; the shards are normalized one by one.

        Args:
            window: The batches of a step, in the slices that are computed here.
            model: The model, for its buffers.
            optimizer: Has the parameters, whose gradients are zero or absent.
            backward: Adds the gradient of some of the batches, and returns their loss.
            watch: Watches the step.

        Returns:
            The mean loss, and the number of samples.
        """
        if self.num == 1:
            return backward(window), window.num_samples
        params = [p for group in optimizer.param_groups for p in group["params"]]
        before = [buffer.detach().clone() for buffer in model.buffers()]
        nothing = Mean(0, _zero(params[0]), [None] * len(params), before)
        is_only = len(self.own) == 1  # so that nothing overwrites its gradient

        def leaf(part: Window) -> Mean:
            optimizer.zero_grad()
            _copy(before, model.buffers())
            loss = _exact(backward(part))
            grads = [p.grad for p in params]
            if not is_only:
                grads = [None if g is None else g.clone() for g in grads]
            after = [buffer.detach().clone() for buffer in model.buffers()]
            reading = watch.read_shard(part.num_samples)
            return Mean(part.num_samples, loss, grads, after, reading)

        mean = self._reduce(window, leaf, nothing, params)
        watch.note_shards(mean.reading)
        _copy(mean.buffers, model.buffers())
        for param, grad in zip(params, mean.grads, strict=True):
            if grad is None or param.grad is None:
                param.grad = grad
            else:
                param.grad.copy_(grad)
        return mean.loss.to(params[0].dtype), mean.num_samples

    def _reduce(
        self,
        window: Window,
        leaf: Callable[[Window], Mean],
        nothing: Mean,
        params: Sequence[Tensor] = (),
    ) -> Mean:
        """Return the mean over all shards, from the leaves that are computed here.

        Args:
            window: The batches of a step, in the slices that are computed here.
            leaf: Computes the mean over some of them.
            nothing: The mean over no sample, of the same form.
            params: Have the shapes of the gradients.
        """

        def leaves() -> Iterator[Mean]:
            num_own = len(self.own)
            for place, shard in enumerate(self.own):
                slices = window.batches[place::num_own]
                slices = [batch for batch in slices if size_of(batch)]
                num_samples = sum(map(size_of, slices))
                part = window._replace(batches=slices, num_samples=num_samples)
                what = f"shard {shard} of step {window.number}"
                self.seed_stream(what, nothing.loss.device)
                yield leaf(part) if num_samples else nothing

        mean = root(leaves(), len(self.own))
        if self.peers.world_size == 1:
            return mean
        messages = self.peers.gather(as_message(mean, params))
        means = (from_message(message, len(params)) for message in messages)
        return root(means, len(messages))


def _exact(loss: Tensor) -> Tensor:
    """Return a loss in memory of its own, in the widest dtype that its device has."""
    return loss.detach().to(_zero(loss).dtype, copy=True)


def _zero(like: Tensor) -> Tensor:
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    return torch.zeros((), dtype=dtype, device=like.device)


@torch.no_grad()
def _copy(values: Iterable[Tensor], buffers: Iterable[Tensor]) -> None:
    for value, buffer in zip(values, buffers, strict=True):
        buffer.copy_(value)
