"""Shards: their mean by a tree of one's own, their streams, who has which sample."""

import dataclasses
import math

import pytest
import torch
from harness.networks import Centered
from harness.processes import in_group
from torch import Tensor, nn

from minitrain import SGD, Batches, ParameterVector, tags, train
from minitrain.epochs import bounds_of
from minitrain.evaluation import evaluate
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.panel import Panel
from minitrain.loading import DatasetBatches
from minitrain.means import Mean, join
from minitrain.randomness import seed_by
from minitrain.shards import Alone, Shards


class Rank(Alone):
    """One of several processes, as far as it needs no other."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


def network(norm: type[nn.Module] = nn.Identity, width: int = 7) -> nn.Sequential:
    torch.manual_seed(1)
    normed = nn.BatchNorm1d(width) if norm is nn.BatchNorm1d else norm()
    layers = nn.Linear(5, width), normed, nn.Tanh(), nn.Dropout(0.4)
    return nn.Sequential(*layers, nn.Linear(width, 3))


def samples(num: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(num, 5, generator=generator)
    return inputs, torch.randint(3, (num,), generator=generator)


def mean_by_hand(
    model: nn.Module, batch: tuple[Tensor, Tensor], num: int, step: int, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient over the shards of a batch, level by level of the tree."""
    n, level = len(batch[0]), []
    for shard in range(num):
        part = slice(n * shard // num, n * (shard + 1) // num)
        inputs, targets = batch[0][part], batch[1][part]
        if not len(inputs):
            level.append((0, None))
            continue
        seed_by(f"shard {shard} of step {step}, seed {seed}")
        loss = nn.functional.cross_entropy(model(inputs), targets)
        grads = torch.autograd.grad(loss, [*model.parameters()])
        level.append((len(inputs), [loss.detach().double(), *grads]))
    while len(level) > 1:
        above = []
        for (n1, m1), (n2, m2) in zip(level[::2], level[1::2], strict=True):
            if m1 is None or m2 is None:
                above.append((n1 + n2, m2 if m1 is None else m1))
                continue
            w1, w2 = n1 / (n1 + n2), n2 / (n1 + n2)
            pairs = zip(m1, m2, strict=True)
            above.append((n1 + n2, [torch.add(x * w1, y, alpha=w2) for x, y in pairs]))
        level = above
    loss, *grads = level[0][1]
    return loss.float(), grads


@pytest.mark.parametrize("num", [2, 4, 8])
@pytest.mark.parametrize("as_vector", [True, False])
def test_a_step_is_that_of_the_tree(num: int, as_vector: bool) -> None:
    """With dropout; the last batch, of 3 samples, leaves shards empty."""
    inputs, targets = samples(19)
    model, other = network(), network()
    theta = ParameterVector(model) if as_vector else model.parameters()
    optimizer = SGD(theta, lr=0.5)
    batches = Batches(inputs, targets, batch_size=8)
    shards = Shards(num, seed=3)
    steps = train(
        model, optimizer, batches, nn.functional.cross_entropy, epochs=2, shards=shards
    )
    for step in steps:
        batch = list(batches.epoch(1))[(step.number - 1) % 3]
        loss, grads = mean_by_hand(other, batch, num, step.number, seed=3)
        assert (step.loss, step.num_samples) == (loss.item(), len(batch[0]))
        with torch.no_grad():
            for p, q, g in zip(
                model.parameters(), other.parameters(), grads, strict=True
            ):
                assert p.grad is not None and torch.equal(p.grad, g)
                q.sub_(0.5 * g)
                assert torch.allclose(p, q, rtol=0, atol=1e-7)
                q.copy_(p)  # the update itself is tested elsewhere


@pytest.mark.parametrize("accumulate", [1, 3])
def test_without_random_numbers_the_gradient_is_that_of_the_batch(accumulate) -> None:
    results = []
    for num in (1, 2, 8):
        model = network(width=4).double()
        model[3] = nn.Identity()
        inputs, targets = samples(23)
        batches = Batches(inputs.double(), targets, batch_size=5, seed=0)
        optimizer = SGD(ParameterVector(model), lr=0.1, momentum=0.9)
        options = {"accumulate": accumulate, "clip_norm": 0.5, "epochs": 2}
        loss_fn = nn.functional.cross_entropy
        steps = train(model, optimizer, batches, loss_fn, shards=Shards(num), **options)
        told = [(s.number, s.num_samples, s.ends_epoch, s.loss) for s in steps]
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        results.append((told, flat))
    (told, flat), *others = results
    for each, theta in others:
        assert [t[:3] for t in each] == [t[:3] for t in told]
        losses = zip(each, told, strict=True)
        assert all(math.isclose(a[3], b[3], rel_tol=1e-12) for a, b in losses)
        assert torch.allclose(theta, flat, rtol=1e-12, atol=1e-14)


def test_one_shard_changes_no_bit() -> None:
    states = []
    for shards in (None, Shards(1)):
        model, (inputs, targets) = network(nn.BatchNorm1d), samples(20)
        batches = Batches(inputs, targets, batch_size=6, seed=0)
        optimizer = SGD(ParameterVector(model), lr=0.1)
        torch.manual_seed(0)
        loss_fn = nn.functional.cross_entropy
        list(train(model, optimizer, batches, loss_fn, epochs=2, shards=shards))
        states.append([*model.state_dict().values(), torch.rand(3)])
    assert all(map(torch.equal, *states))


def test_each_shard_has_masks_of_its_own() -> None:
    """Of one input twice, two shards drop other units; the same ones in every run."""

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.masks = nn.Parameter(torch.ones(64)), []

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.functional.dropout(torch.ones(64)) != 0
            self.masks.append(mask)
            return (x * self.weight * mask).sum(dim=1)

    def masks(seed: int) -> list[Tensor]:
        model = Seen()
        batches = Batches(torch.ones(2, 64), torch.zeros(2), batch_size=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_fn = nn.functional.mse_loss
        shards = Shards(2, seed)
        list(train(model, optimizer, batches, loss_fn, epochs=2, shards=shards))
        return model.masks

    first, again, other = masks(0), masks(0), masks(1)
    assert len({tuple(mask.tolist()) for mask in (*first, *other)}) == 8
    assert all(map(torch.equal, first, again))


def test_batch_norm_has_the_mean_of_the_shards_statistics() -> None:
    """By the formula of running statistics, from the inputs of each shard."""
    inputs, targets = samples(12)
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))
    optimizer = SGD(ParameterVector(model), lr=0.1)
    batches = Batches(inputs, targets, batch_size=8)
    loss_fn, mean, var = nn.functional.cross_entropy, torch.zeros(5), torch.ones(5)
    for step in train(model, optimizer, batches, loss_fn, shards=Shards(2)):
        batch = inputs[:8] if step.number == 1 else inputs[8:]
        halves = batch.split(len(batch) // 2)
        mean = 0.9 * mean + 0.1 * torch.stack([x.mean(0) for x in halves]).mean(0)
        var = 0.9 * var + 0.1 * torch.stack([x.var(0) for x in halves]).mean(0)
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d) and norm.num_batches_tracked == 2
    found = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    assert torch.allclose(found[0], mean, atol=1e-7)
    assert torch.allclose(found[1], var, atol=1e-6)


@pytest.mark.parametrize("num", [1, 2, 4])
def test_a_buffer_that_is_bound_anew_has_the_mean_of_the_shards(num: int) -> None:
    """The mean of 0.9 m + 0.1 m_s over shards of equal size is that of the batch."""
    inputs, targets = samples(24)
    model, mean = Centered(), torch.zeros(5, dtype=torch.float64)
    model.num_passes = torch.tensor(0)
    batches = Batches(inputs, targets, batch_size=8)
    optimizer, loss_fn = SGD(model.parameters(), lr=0.1), nn.functional.cross_entropy
    for step in train(model, optimizer, batches, loss_fn, shards=Shards(num)):
        batch = inputs[8 * step.number - 8 : 8 * step.number].double()
        mean = 0.9 * mean + 0.1 * batch.mean(0)
        assert torch.allclose(model.mean.double(), mean, atol=1e-7)
        assert model.num_passes == step.number


@pytest.mark.parametrize("num", [1, 2, 4])
def test_audits_start_each_shard_from_the_buffers_of_the_step(num: int) -> None:
    """Where a pass depends on a buffer that it changes, the loss is the same again."""
    model = Centered()
    model.num_passes = torch.tensor(0)
    inputs, targets = samples(24)
    batches = Batches(3 * inputs + 2, targets, batch_size=8)
    optimizer, loss_fn = SGD(model.parameters(), lr=0.01), nn.functional.cross_entropy
    panel = Panel(model, optimizer, Cadence(look=0, audit=0, truth=1, noise=0))
    options = {"watcher": panel, "shards": Shards(num)}
    for step in train(model, optimizer, batches, loss_fn, **options):
        assert step.readings[tags.TRUTH_ERROR] < 1e-3


def test_a_buffer_that_no_shard_changes_keeps_its_bits() -> None:
    model = nn.Sequential(nn.Linear(5, 3))
    constant = torch.rand(50)
    model.register_buffer("constant", constant.clone())
    batches = Batches(*samples(7), batch_size=7)
    optimizer = SGD(model.parameters(), lr=0.1)
    list(
        train(model, optimizer, batches, nn.functional.cross_entropy, shards=Shards(4))
    )
    assert torch.equal(model.get_buffer("constant"), constant)


@pytest.mark.parametrize("num_samples", [60_000, 59_999, 5])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("kind", [Batches, DatasetBatches])
def test_every_sample_is_had_by_one_process(num_samples, world_size, kind) -> None:
    if kind is Batches:
        whole = Batches(torch.arange(num_samples), None, batch_size=64 % num_samples)
    else:
        size = 64 % num_samples
        whole = DatasetBatches(range(num_samples), batch_size=size)
    ranks = [Shards(4, 0, Rank(rank, world_size)) for rank in range(world_size)]
    for cut in (Shards.cut, Shards.deal):
        bounds = [bounds_of(cut(shards, whole)) for shards in ranks]
        had = sorted(
            i for own in bounds for start, end in own for i in range(start, end)
        )
        assert had == [*range(num_samples)]


def test_slices_of_a_data_set_are_those_of_its_batches() -> None:
    pairs = [(torch.tensor([float(i)]), i) for i in range(11)]
    whole = DatasetBatches(pairs, batch_size=3, seed=0)
    for rank in (0, 1):
        shards = Shards(4, 0, Rank(rank, 2))
        found = [*shards.cut(whole).epoch(1, skip=2)]
        expected = []
        for inputs, targets in [*whole.epoch(1)][1:]:
            n = len(inputs)
            for shard in shards.own:
                part = slice(n * shard // 4, n * (shard + 1) // 4)
                expected.append((inputs[part], targets[part]))
        for one, other in zip(found, expected, strict=True):
            assert all(map(torch.equal, one, other))


def test_means_of_nothing() -> None:
    nothing, one = Mean(0, torch.zeros(()), [None]), Mean(2, torch.ones(()), [None])
    assert join(nothing, one) is one and join(one, nothing) is one
    grads = [torch.tensor([3.0, 0.0])], [None]
    for left, right in (grads, grads[::-1]):
        pair = Mean(2, torch.zeros(()), left), Mean(1, torch.zeros(()), right)
        weight = 2 / 3 if left[0] is not None else 1 / 3
        expected = torch.tensor([3.0, 0.0]) * weight
        (grad,) = join(*pair).grads
        assert grad is not None and torch.equal(grad, expected)
        grads[0][0].copy_(torch.tensor([3.0, 0.0]))


@pytest.mark.parametrize(("num", "world_size"), [(3, 1), (0, 1), (4, 8), (2, 4)])
def test_what_cannot_be_shared_is_refused(num: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"shards = {num}: "):
        Shards(num, 0, Rank(0, world_size))


def test_a_stranger_is_not_cut() -> None:
    with pytest.raises(TypeError, match="list cannot be cut into shards"):
        Shards(2).cut([])


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_train_and_evaluate_as_one(world_size: int) -> None:
    """With a ragged last batch of two samples for four shards, and dropout."""

    def work(_: int, peers=None) -> list:
        model, (inputs, targets) = network(), samples(34)
        optimizer = SGD(ParameterVector(model), lr=0.1, momentum=0.9)
        shards = Shards(4, 5, peers or Alone())
        batches = Batches(inputs, targets, batch_size=8, seed=0)
        loss_fn = nn.functional.cross_entropy
        told = [
            (step.number, step.num_samples, step.loss, step.grad_norm)
            for step in train(
                model,
                optimizer,
                batches,
                loss_fn,
                epochs=2,
                clip_norm=1.0,
                shards=shards,
            )
        ]
        found = evaluate(model, batches, loss_fn, shards=shards)
        state = [p.detach().numpy().tobytes() for p in model.parameters()]
        return [told, found, state]

    def shared(rank: int) -> list:
        import torch.distributed as dist

        from minitrain.distributed.group import joined
        from minitrain.distributed.launch import Launch

        with joined(Launch.of(), torch.device("cpu"), lambda: 0) as group:
            assert dist.get_world_size() == world_size
            return work(rank, group)

    alone = work(0)
    assert in_group(world_size, shared) == [alone] * world_size


def test_batches_are_dataclasses_that_can_be_cut() -> None:
    batches = Batches(*samples(6), batch_size=3)
    cut = Shards(2).cut(batches)
    assert dataclasses.replace(cut, cut=None) == batches and len(cut) == 4


def test_instruments_read_the_batch_and_not_a_shard() -> None:
    """All readings of a run in shards are those of one without, the noise too.

    Batches of 7 samples, the last of 4, have shards of different sizes.
    """
    readings = []
    for num in (1, 2, 4):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        optimizer = SGD(ParameterVector(model), lr=0.1, momentum=0.5)
        panel = Panel(model, optimizer, Cadence(look=1, audit=1, truth=1, noise=1))
        inputs, targets = samples(18)
        batches = Batches(inputs.double(), targets, batch_size=7, seed=0)
        steps = train(
            model,
            optimizer,
            batches,
            nn.functional.cross_entropy,
            epochs=2,
            watcher=panel,
            shards=Shards(num),
        )
        readings.append([dict(step.readings) for step in steps])
        assert not panel.withheld
    whole, *others = readings
    assert {tags.SIGNAL_SHARE, tags.AUDIT_MARGIN, tags.TRUTH_ERROR} <= whole[0].keys()
    for each in others:
        for one, other in zip(each, whole, strict=True):
            truth = {tag for tag in one if tag.startswith("truth/")}  # of rounding
            assert one.keys() == other.keys()
            for tag in one.keys() - truth:
                assert math.isclose(one[tag], other[tag], rel_tol=1e-6, abs_tol=1e-9)
            assert all(one[tag] < 1e-3 for tag in truth)
