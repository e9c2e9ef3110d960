"""The panel's readings against their definitions, and that it changes nothing."""

import functools
import inspect
import io
import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minitrain.batches import Batches
from minitrain.evaluation import evaluate
from minitrain.experiment.state import check_vectors
from minitrain.fingerprint import fingerprint
from minitrain.gradients import directional_derivative
from minitrain.hessians import hessian_vector_product
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.findings import Finding, Findings
from minitrain.instruments.panel import Panel
from minitrain.instruments.readings import log2_counts
from minitrain.instruments.watch import Watch
from minitrain.runs.board import Board
from minitrain.runs.scalars import step_scalars
from minitrain.sgd import SGD
from minitrain.training import train
from minitrain.vector import ParameterVector

LOSS = nn.functional.cross_entropy
EVERYTHING = Cadence(look=1, audit=1, truth=1, noise=1)


class Point(nn.Module):
    """A function of x and y as a model: forward takes nothing and gives f."""

    def __init__(self, f: Callable[[Tensor], Tensor], *start: float) -> None:
        super().__init__()
        self.f = f
        self.theta = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.f(self.theta)


def walk(model: Point, num_steps: int, cadence: Cadence = EVERYTHING, **options: Any):
    """Descend, and give what the panel reads of every step."""
    optimizer = SGD(model.parameters(), **options)
    panel = Panel(model, optimizer, cadence._replace(noise=0))
    for number in range(1, num_steps + 1):
        with panel.watch(number, model) as watch:
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
        yield {tag: float(value) for tag, value in watch.readings.items()}


def test_the_share_of_weight_decay_has_a_closed_form() -> None:
    """grad f = 2 theta, so that decay d is the share d / (2 + d) of what is used."""
    point = Point(lambda p: (p**2).sum(), 3.0, 4.0)
    for readings in walk(point, 3, lr=0.1, momentum=0.9, weight_decay=0.5):
        assert readings["weight_decay/share"] == pytest.approx(0.5 / 2.5, rel=1e-12)
    optimizer = torch.optim.AdamW(point.parameters(), lr=0.1, weight_decay=0.5)
    panel = Panel(point, optimizer, EVERYTHING._replace(noise=0))
    with panel.watch(1, point) as watch:
        point().backward()
        optimizer.step()
    assert "weight_decay/share" not in watch.readings, "it decays apart from g"
    assert "audit/ratio" in watch.readings
    assert "audit/margin" not in watch.readings, "the stable limit is that of SGD"


@pytest.mark.parametrize("lr", [0.1, 0.3, 0.5, 0.9, 1.0])
def test_every_reading_on_the_paraboloid_has_a_closed_form(lr: float) -> None:
    """f = x^2 + y^2 from (3, 4): each step multiplies the point by 1 - 2 lr."""
    factor = 1 - 2 * lr
    steps = walk(Point(lambda p: (p**2).sum(), 3.0, 4.0), 3, lr=lr)
    for k, readings in enumerate(steps):
        size, length = 5 * abs(factor) ** k, 2 * lr * 5 * abs(factor) ** k
        if size == 0:  # at lr = 0.5 the first step arrives
            break
        path = sum(2 * lr * 5 * abs(factor) ** j for j in range(k + 1))
        distance = 5 * abs(1 - factor ** (k + 1))
        expected = {
            "update_norm/global": length,
            "update_norm/theta": length,
            "update_ratio/global": 2 * lr,
            "update_ratio/theta": 2 * lr,
            "zero_share/theta": 0,
            "cosine/steepest_descent": 1,
            "momentum/share": 0,
            "momentum/effective_lr": lr,
            "path/distance": distance,
            "path/efficiency": distance / path,
            "audit/promised": lr * 4 * size**2,
            "audit/loss_after": size**2 * factor**2,
            "audit/delivered": size**2 * (1 - factor**2),
            "audit/ratio": 1 - lr,
            "audit/curvature": 2,
            "audit/largest_stable_lr": 1,
            "audit/margin": lr,
        }
        if k > 0:  # the gradient turns around with every step beyond the minimum
            expected["cosine/previous"] = math.copysign(1, factor)
        assert readings.pop("truth/error") < 1e-9
        assert readings.pop("truth/worst_error") < 1e-9
        assert readings == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_effective_lr_of_a_constant_gradient() -> None:
    """lr / (1 - momentum) in the end, of which the momentum's share is momentum."""
    steps = walk(Point(lambda p: p @ p.new_tensor([3.0, 4.0]), 1.0, 1.0), 200, lr=0.1,
                 momentum=0.9)  # fmt: skip
    last = list(steps)[-1]
    assert last["momentum/effective_lr"] == pytest.approx(1, rel=1e-6)
    assert last["momentum/share"] == pytest.approx(0.9, rel=1e-6)
    assert last["cosine/previous"] == pytest.approx(1, abs=1e-12)


def test_plain_sgd_in_float32_goes_straight_downhill() -> None:
    model, batches = mlp(), data()
    optimizer = SGD(ParameterVector(model), lr=0.1)
    panel = Panel(model, optimizer, EVERYTHING)
    for step in train(model, optimizer, batches, LOSS, epochs=5, watcher=panel):
        assert float(step.readings["cosine/steepest_descent"]) == (
            pytest.approx(1, abs=1e-6)
        )
        assert float(step.readings["momentum/share"]) < 1e-3


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), activation(), nn.Linear(16, 4))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 4),
    )  # fmt: skip


def data(num: int = 160, batch_size: int = 16) -> Batches:
    """Four clouds of points that overlap."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (num,), generator=generator)
    centres = torch.randn(4, 20, generator=generator)
    inputs = centres[labels] + torch.randn(num, 20, generator=generator)
    return Batches(inputs, labels, batch_size, seed=0)


@pytest.mark.parametrize("is_of_parts", [False, True])
def test_readings_over_several_vectors_are_those_over_lists(is_of_parts: bool) -> None:
    """Two vectors of one model, or a vector each of two of its modules."""

    def run(as_vectors: bool) -> list[dict[str, float]]:
        torch.manual_seed(0)
        model = mlp()
        if is_of_parts:
            layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
            vectors: list[Any] = [ParameterVector(layer) for layer in layers]
            lists: list[Any] = [[*layer.parameters()] for layer in layers]
        else:
            named = dict(model.named_parameters())
            matrices = [name for name, p in named.items() if p.dim() > 1]
            chosen = matrices, [name for name in named if name not in matrices]
            vectors = [ParameterVector(model, only=names) for names in chosen]
            lists = [[named[name] for name in names] for names in chosen]
        groups = [{"params": each} for each in (vectors if as_vectors else lists)]
        groups[-1]["weight_decay"] = 0.0
        optimizer = SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)
        panel = Panel(model, optimizer, EVERYTHING)
        steps = train(model, optimizer, data(), LOSS, watcher=panel)
        return [dict(step.readings) for step in steps]

    for mine, reference in zip(run(True), run(False), strict=True):
        assert mine.keys() == reference.keys()
        assert "update_ratio/0.weight" in mine
        # Differences of losses are left of two numbers that are nearly equal.
        for tag, value in reference.items():
            assert mine[tag] == pytest.approx(value, rel=1e-3, abs=1e-4), tag


@pytest.mark.parametrize("is_vector", [False, True])
def test_readings_of_a_network_are_what_they_say(is_vector: bool) -> None:
    """Computed once more in plain torch, in float64, from what was kept by the way."""
    model = mlp()
    names = [name for name, _ in model.named_parameters()]
    params = ParameterVector(model) if is_vector else model.parameters()
    optimizer = SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01)
    panel = Panel(model, optimizer, EVERYTHING)

    def flat(tensors: Any) -> Tensor:
        return torch.cat([t.detach().double().flatten() for t in tensors])

    thetas, grads = [flat(model.parameters())], []
    steps = train(model, optimizer, data(), LOSS, clip_norm=0.5, watcher=panel)
    for step in steps:
        thetas.append(flat(model.parameters()))
        grads.append(flat([p.grad for p in model.parameters()]))  # clipped
        before, after, g = thetas[-2], thetas[-1], grads[-1]
        update, used = after - before, g + 0.01 * before
        sizes = [p.numel() for p in model.parameters()]
        path = sum((b - a).norm() for a, b in itertools.pairwise(thetas))
        norm = float(step.grad_norm)
        expected = {
            "update_norm/global": update.norm(),
            "update_ratio/global": update.norm() / before.norm(),
            "cosine/steepest_descent": -(update @ g) / (update.norm() * g.norm()),
            "momentum/effective_lr": update.norm() / used.norm(),
            "path/distance": (after - thetas[0]).norm(),
            "path/efficiency": (after - thetas[0]).norm() / path,
            "clip/fraction": float(norm > 0.5),
            "audit/promised": -(update @ g) * max(1, norm / 0.5),
        }
        direction = update / -0.1
        share = (direction - used).norm() / direction.norm()
        assert float(step.readings["momentum/share"]) == pytest.approx(
            share.item(), abs=1e-4
        )
        if len(grads) > 1:
            previous = grads[-2]
            cosine = g @ previous / (g.norm() * previous.norm())
            expected["cosine/previous"] = cosine
        for name, u, theta, part in zip(
            names, update.split(sizes), before.split(sizes), g.split(sizes), strict=True
        ):
            expected[f"update_norm/{name}"] = u.norm()
            expected[f"update_ratio/{name}"] = u.norm() / theta.norm()
            expected[f"zero_share/{name}"] = (part == 0).double().mean()
        for tag, value in expected.items():
            read = float(step.readings[tag])
            assert read == pytest.approx(float(value), rel=1e-4, abs=1e-6), tag


def test_clipped_fraction_counts_every_step_since_the_last_reading() -> None:
    model = mlp()
    optimizer = SGD(ParameterVector(model), lr=0.1)
    panel = Panel(model, optimizer, Cadence(look=4, audit=0, truth=0, noise=0))
    norms: list[float] = []
    for step in train(
        model, optimizer, data(), LOSS, clip_norm=0.9, epochs=3, watcher=panel
    ):
        norms.append(float(step.grad_norm))
        if step.number % 4 == 0:
            share = sum(norm > 0.9 for norm in norms[-4:]) / 4
            if step.number == 4:  # the first step was read, and starts a new count
                share = sum(norm > 0.9 for norm in norms[1:4]) / 3
            assert step.readings["clip/fraction"] == pytest.approx(share)
    assert 0 < sum(norm > 0.9 for norm in norms) < len(norms), "both must occur"


def test_curvature_of_a_smooth_network_is_that_of_its_hessian() -> None:
    """Within a tenth on at least 95 of 100 steps, where the loss is resolved."""
    model = mlp(nn.Tanh).double()
    batches = data()
    inputs = batches.inputs.double()
    batches = Batches(inputs, batches.targets, 16, seed=0)
    vector = ParameterVector(model)
    optimizer = SGD(vector, lr=0.02, momentum=0.5)
    panel = Panel(model, optimizer, Cadence(look=0, audit=1, truth=0, noise=0))
    close, thetas = [], [vector.theta.detach().clone()]
    names = [name for name, _ in model.named_parameters()]
    order = itertools.chain(*(batches.epoch(epoch) for epoch in range(1, 11)))
    for step in train(model, optimizer, batches, LOSS, epochs=10, watcher=panel):
        x, y = next(order)
        thetas.append(vector.theta.detach().clone())
        update = thetas[-1] - thetas[-2]

        def loss(theta: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
            values = dict(zip(names, vector.split(theta), strict=True))
            return LOSS(torch.func.functional_call(model, values, (x,)), y)

        product = hessian_vector_product(loss, thetas[-2], update)
        exact = (product @ update / update.square().sum()).item()
        close.append(abs(step.readings["audit/curvature"] / exact - 1) < 0.1)
        slope = directional_derivative(loss, thetas[-2], update).item()
        assert step.readings["audit/promised"] == pytest.approx(-slope, rel=1e-9)
    assert len(close) == 100 and sum(close) >= 95


def test_divergence_is_announced_before_it_happens() -> None:
    """A learning rate twenty times too large: margin above 1 while the loss is low."""
    model = mlp(nn.Tanh)
    optimizer = SGD(ParameterVector(model), lr=20.0)
    panel = Panel(model, optimizer, EVERYTHING)
    first, announced = None, False
    for step in train(model, optimizer, data(), LOSS, epochs=3, watcher=panel):
        first = first or float(step.loss)
        announced = announced or float(step.readings.get("audit/margin", 0)) > 1
        if float(step.loss) > 2 * first:
            break
    assert announced


# The truth test


class Twice(torch.autograd.Function):
    """x -> x, with a backward pass that doubles the gradient: a wrong one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def spoilt_step(fault: str, model: nn.Sequential, optimizer: SGD, batch: Any) -> None:
    """A training step with one of the mistakes that people make."""
    x, y = batch
    if fault != "forgotten zero_grad":
        optimizer.zero_grad()
    outputs = model[0](x)
    if fault == "wrong custom backward":
        outputs = Twice.apply(outputs)
    if fault == "detached block":
        outputs = outputs.detach()
    loss = LOSS(model[1:](outputs), y)
    if fault == "wrong accumulation divisor":
        (loss / 4).backward()
    elif fault == "still scaled":
        (loss * 65536).backward()
    else:
        loss.backward()
    if fault == "changed by someone else":
        dict(model.named_parameters())["2.weight"].grad.add_(0.1)
    optimizer.step()


EVERY_BLOCK = {"global", "0.weight", "0.bias", "2.weight", "2.bias"}
FAULTS = {
    "forgotten zero_grad": {"global"},
    "wrong accumulation divisor": {
        "global",
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    },
    "still scaled": {"global", "0.weight", "0.bias", "2.weight", "2.bias"},
    "changed by someone else": {"2.weight"},
    "detached block": {"0.weight"},
    "wrong custom backward": {"0.weight", "0.bias"},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_vector", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_gradient_is_named_by_the_first_audit(
    fault: str, is_vector: bool, seed: int
) -> None:
    model = mlp()
    params = ParameterVector(model) if is_vector else model.parameters()
    optimizer = SGD(params, lr=0.1, momentum=0.9)
    panel = Panel(model, optimizer, Cadence(look=0, audit=0, truth=3, noise=0))
    for number, (x, y) in enumerate(data().epoch(seed), 1):
        with panel.watch(number + 1, lambda x=x, y=y: LOSS(model(x), y)):
            is_planted = number == 5
            spoilt_step(fault if is_planted else "", model, optimizer, (x, y))
        wrong = {name for name, slope in panel.slopes.items() if slope.is_wrong}
        if is_planted:
            assert wrong >= FAULTS[fault], panel.slopes
            if len(FAULTS[fault]) < 3 and "global" not in FAULTS[fault]:
                assert "2.bias" not in wrong, "a healthy block is not accused"
            return
        assert not wrong


@pytest.mark.parametrize("model", ["relu", "tanh", "cnn"])
def test_no_healthy_gradient_is_called_wrong(model: str) -> None:
    """In float32, a thousand audits in all, of five slopes each."""
    network = {"relu": mlp, "tanh": functools.partial(mlp, nn.Tanh), "cnn": cnn}[
        model
    ]()
    optimizer = SGD(ParameterVector(network), lr=0.1, momentum=0.9)
    panel = Panel(network, optimizer, Cadence(look=0, audit=0, truth=1, noise=0))
    num_audits, errors = 0, []
    for step in train(network, optimizer, data(), LOSS, epochs=34, watcher=panel):
        assert not any(slope.is_wrong for slope in panel.slopes.values()), panel.slopes
        assert len(panel.slopes) == 5
        num_audits += 1
        errors.append(step.readings.get("truth/error"))
    assert num_audits == 340
    known = [error for error in errors if error is not None]
    assert len(known) > 100 and sorted(known)[len(known) // 2] < 0.01


def test_in_float64_a_smooth_gradient_is_true_to_six_digits() -> None:
    model = mlp(nn.Tanh).double()
    batches = data()
    batches = Batches(batches.inputs.double(), batches.targets, 16, seed=0)
    optimizer = SGD(ParameterVector(model), lr=0.01)
    panel = Panel(model, optimizer, Cadence(look=0, audit=0, truth=1, noise=0))
    for step in train(model, optimizer, batches, LOSS, epochs=2, watcher=panel):
        assert step.readings["truth/error"] < 1e-6


# Watching changes nothing


class Everything(nn.Module):
    """Dropout, BatchNorm and convolution in one small network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4),
            nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(24, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def end_of(folder: Path, draw: random.Random | None, **options: Any) -> str:
    """The fingerprint after 200 steps: parameters, buffers, optimizer, random state.

    With `draw` half of the instruments, of logging, of evaluations, of measured costs
    and of stops are there, without it none.
    """

    def maybe() -> bool:
        return draw is not None and draw.random() < 0.5

    def fresh() -> tuple[nn.Module, SGD, Panel]:
        torch.manual_seed(0)
        model = Everything()
        optimizer = SGD(ParameterVector(model), lr=0.05, momentum=0.9, nesterov=True)
        return model, optimizer, Panel(model, optimizer, cadence)

    def run(parts: tuple[nn.Module, SGD, Panel], start: int, end: int) -> None:
        model, optimizer, panel = parts
        options["watcher"] = panel if any(cadence) else None
        steps = train(model, optimizer, batches, LOSS, epochs=5, start=start, **options)
        for step in itertools.islice(steps, end - start):
            if logs:
                board.log(step.number, step_scalars(step))
            if evaluates and step.number % 7 == 0:
                evaluate(model, batches, LOSS)
            assert start < step.number <= end

    cadence = Cadence(*([0] * len(Cadence._fields)))
    if draw is not None:
        cadence = Cadence(*(draw.choice([0, 0, 1, 3, 10]) for _ in cadence))
    logs, evaluates, batches = maybe(), maybe(), data(40 * 8 * options["accumulate"], 8)
    parts = fresh()
    with Board(folder) as board:
        if maybe():
            x, y = next(iter(batches.epoch(1)))
            precision = options["autocast"]
            parts[2].fit(lambda: LOSS(parts[0](x), y), 8, 0.03, autocast=precision)
        stop = draw.randrange(1, 200) if draw is not None and maybe() else 0
        if stop:
            run(parts, 0, stop)
            state = [part.state_dict() for part in parts], torch.get_rng_state()
            states, random_state = copied(state)
            parts = fresh()
            for part, kept in zip(parts, states, strict=True):
                part.load_state_dict(kept)
            torch.set_rng_state(random_state)
        run(parts, stop, 200)
    state = {"random": torch.get_rng_state()}
    return fingerprint(parts[0].state_dict(), parts[1].state_dict(), state)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_any_half_of_the_instruments_leaves_the_run_as_it_is(
    precision: torch.dtype | None, accumulate: int, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    options = {"autocast": precision, "accumulate": accumulate, "clip_norm": 1.0}
    without = end_of(tmp_path / "none", None, **options)
    for number in range(5):
        watched = end_of(tmp_path / f"{number}", draw, **options)
        assert watched == without, f"seed {seed}, draw {number}"


def readings_of(model: nn.Module, optimizer: SGD, panel: Panel, start: int) -> Iterator:
    steps = train(
        model,
        optimizer,
        data(),
        LOSS,
        epochs=3,
        watcher=panel,
        clip_norm=1.0,
        start=start,
    )
    for step in steps:
        yield step.number, {tag: float(value) for tag, value in step.readings.items()}


@pytest.mark.parametrize("at", [1, 5, 9, 10, 20, 29])
def test_a_panel_continues_where_it_was(at: int) -> None:
    """What it reads after a stop is what it reads without one, to the last bit."""
    cadence = Cadence(look=2, audit=3, truth=10, noise=4)

    def fresh() -> tuple[nn.Module, SGD, Panel]:
        model = mlp()
        optimizer = SGD(ParameterVector(model), lr=0.1, momentum=0.9)
        return model, optimizer, Panel(model, optimizer, cadence)

    expected = dict(readings_of(*fresh(), start=0))
    first = fresh()
    kept = []
    for number, readings in readings_of(*first, start=0):
        assert readings == expected[number]
        if number == at:
            kept = copied([part.state_dict() for part in first])
            break
    second = fresh()
    for part, state in zip(second, kept, strict=True):
        part.load_state_dict(state)
    continued = dict(readings_of(*second, start=at))
    assert continued == {n: r for n, r in expected.items() if n > at}


def copied(state: Any) -> Any:
    """The state as a checkpoint would give it back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_hooks_are_gone_after_the_block_and_after_an_error() -> None:
    model = mlp()
    optimizer = SGD(ParameterVector(model), lr=0.1)
    panel = Panel(model, optimizer, EVERYTHING)

    def num_hooks() -> int:
        return len(optimizer._optimizer_step_pre_hooks) + sum(
            len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()
        )

    for error in (None, KeyError):
        try:
            with panel.watch(1, lambda: model(torch.ones(2, 20)).sum()) as watch:
                assert isinstance(watch, Watch) and num_hooks() > 0
                if error:
                    raise error
        except KeyError:
            pass
        assert num_hooks() == 0


def test_the_noise_is_that_of_the_gradients_of_single_samples() -> None:
    """Of the first step, from one backward pass a sample; clipping is no noise."""
    model, batches = mlp(), data()
    x, y = next(iter(batches.epoch(1)))
    grads = []
    for i in range(len(y)):
        model.zero_grad()
        LOSS(model(x[i : i + 1]), y[i : i + 1]).backward()
        grads.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
    single, num = torch.stack(grads), len(y)
    mean_square = single.square().sum(dim=1).mean().item()
    batch_square = single.mean(dim=0).square().sum().item()
    signal = (num * batch_square - mean_square) / (num - 1)
    trace = (mean_square - batch_square) / (1 - 1 / num)

    model.zero_grad()
    optimizer = SGD(ParameterVector(model), lr=0.1)
    panel = Panel(model, optimizer, EVERYTHING)
    first = next(train(model, optimizer, batches, LOSS, clip_norm=0.1, watcher=panel))
    share = signal / (signal + trace / num)
    assert first.readings["noise/scale"] == pytest.approx(trace / signal, rel=1e-4)
    assert first.readings["noise/signal_share"] == pytest.approx(share, rel=1e-4)


def test_a_clipped_gradient_is_no_lie() -> None:
    model = mlp()
    optimizer = SGD(ParameterVector(model), lr=0.1)
    panel = Panel(model, optimizer, Cadence(look=0, audit=0, truth=1, noise=0))
    for _ in train(model, optimizer, data(), LOSS, clip_norm=0.1, watcher=panel):
        assert not any(slope.is_wrong for slope in panel.slopes.values()), panel.slopes


def test_a_run_that_is_made_longer_reads_what_a_long_one_reads() -> None:
    """The last step is read in any case; of that no later reading may know."""
    cadence = Cadence(look=3, audit=3, truth=0, noise=3)

    def readings(epochs: int, parts: tuple, start: int = 0) -> dict[int, dict]:
        model, optimizer, panel = parts
        steps = train(
            model, optimizer, data(), LOSS, epochs=epochs, watcher=panel, start=start
        )
        return {s.number: {t: float(v) for t, v in s.readings.items()} for s in steps}

    def fresh() -> tuple[nn.Module, SGD, Panel]:
        model = mlp()
        optimizer = SGD(ParameterVector(model), lr=0.1, momentum=0.9)
        return model, optimizer, Panel(model, optimizer, cadence)

    whole, parts = readings(2, fresh()), fresh()
    short = readings(1, parts)
    assert short.pop(10) != whole[10], "the last step of the short run is read"
    assert short | {10: whole[10]} | readings(2, parts, start=10) == whole


def clipped_run(epochs: int, cadence: Cadence) -> tuple[nn.Module, Panel]:
    """Ten clipped steps, the last of which ends the run or does not."""
    model = mlp()
    optimizer = SGD(ParameterVector(model), lr=0.1, momentum=0.9)
    panel = Panel(model, optimizer, cadence)
    steps = train(
        model, optimizer, data(), LOSS, epochs=epochs, clip_norm=0.9, watcher=panel
    )
    for step in steps:
        if step.number == 10:
            break
    return model, panel


def plain(value: Any) -> Any:
    """A state without its seconds, with lists in the place of tensors."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k != "seconds"}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("every", [3, 11, 20])
def test_reading_the_last_step_beyond_the_cadence_writes_nothing(every: int) -> None:
    cadence = Cadence(look=every, audit=every, truth=0, noise=every)
    (_, last), (_, passed) = clipped_run(1, cadence), clipped_run(2, cadence)
    assert plain(last.state_dict()) == plain(passed.state_dict())
    assert last.state_dict()["clipping"][0] == (1 if every == 3 else 9)


def test_measuring_what_readings_cost_leaves_panel_and_model_as_they_were() -> None:
    model, panel = clipped_run(2, Cadence(look=11, audit=3, truth=5, noise=3))
    (x, y), kept = next(iter(data().epoch(1))), copied(panel.state_dict())
    before = fingerprint(model.state_dict())
    panel.fit(lambda: LOSS(model(x), y), 16, budget=0.02)
    assert plain(panel.state_dict()) == plain(kept) and kept["previous"] is not None
    assert panel.seconds == kept["seconds"]
    assert fingerprint(model.state_dict()) == before
    assert all(not p.grad.any() for p in model.parameters())


def test_what_gives_no_reading_says_why_and_is_asked_no_more() -> None:
    model, (x, y) = Everything(), next(iter(data().epoch(1)))
    panel = Panel(model, SGD(ParameterVector(model), lr=0.1), EVERYTHING)
    assert panel.withheld == {}
    cadence = panel.fit(lambda: LOSS(model(x), y), 16, budget=0.02)
    reason = "layers.2: BatchNorm2d mixes the samples"
    assert panel.withheld == {"noise": reason}
    assert cadence.noise == 0 and all(cadence[:3])


def test_a_loop_of_ones_own_has_the_noise_where_it_tells_how_many_samples() -> None:
    for told in (0, 16):
        model, (x, y) = mlp(), next(iter(data().epoch(1)))
        optimizer = SGD(ParameterVector(model), lr=0.1)
        panel = Panel(model, optimizer)

        def loss(model: nn.Module = model, x: Tensor = x, y: Tensor = y) -> Tensor:
            return LOSS(model(x), y)

        with panel.watch(1, loss, num_samples=told) as watch:
            loss().backward()
            optimizer.step()
        assert ("noise/signal_share" in watch.readings) == bool(told)
        assert panel.withheld == ({} if told else {"noise": "num_samples is not known"})


OF_SGD = {
    "momentum/share",
    "momentum/effective_lr",
    "audit/margin",
    "audit/largest_stable_lr",
}


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda p: SGD(p, lr=0.1), ""),
        (lambda p: torch.optim.SGD(p, lr=0.1), ""),
        (lambda p: SGD(p, lr=0.1, maximize=True), "the optimizer maximizes"),
        *(
            (kind, f"{kind.__name__} does not follow the rule of SGD")
            for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)
        ),
    ],
)
def test_what_rests_on_the_rule_of_sgd_is_withheld_of_others(
    make: Callable[..., torch.optim.Optimizer], reason: str
) -> None:
    """By name, and only that: what follows from losses and vectors alone stays."""
    point = Point(lambda p: (p**2).sum(), 3.0, 4.0)
    optimizer = make(point.parameters())
    panel = Panel(point, optimizer, EVERYTHING._replace(noise=0))
    for number in (1, 2):
        before = point.theta.detach().clone()
        with panel.watch(number, point) as watch:
            optimizer.zero_grad()
            point().backward()
            optimizer.step()
        update = point.theta.detach() - before
        assert OF_SGD & set(watch.readings) == (set() if reason else OF_SGD)
        assert watch.readings["audit/curvature"] == pytest.approx(2, rel=1e-9)
        length = update.norm().item()
        assert watch.readings["update_norm/global"] == pytest.approx(length, rel=1e-12)
    assert panel.withheld == (dict.fromkeys(OF_SGD, reason) if reason else {})
    cadence = panel.fit(point, 1, budget=0.02)
    assert cadence.look and cadence.audit, "which are read all the same"


def test_frozen_parameters_in_the_optimizer_change_no_reading_and_no_finding() -> None:
    """It updates the others alone: all is as where these are all that it has."""

    def train_some(of_all: bool) -> tuple[dict[str, float], list[Finding]]:
        model, (x, y) = mlp(nn.Tanh), next(iter(data().epoch(1)))
        frozen = model[0].requires_grad_(False)
        optimizer = SGD((model if of_all else model[2]).parameters(), lr=0.1)
        panel = Panel(model, optimizer, EVERYTHING)
        findings = Findings(num_steps=3, batch_size=16)
        for number in (1, 2, 3):
            with panel.watch(number, lambda: LOSS(model(x), y), num_samples=16) as step:
                optimizer.zero_grad()
                LOSS(model(x), y).backward()
                optimizer.step()
            assert panel.slopes.keys() == {"global", "2.weight", "2.bias"}
            findings.check_slopes(number, panel.slopes)
            findings.note(number, step.readings)
        assert all(p.grad is None for p in frozen.parameters())
        return dict(step.readings), findings.found

    (readings, found), (expected, nothing) = map(train_some, (True, False))
    assert found == nothing == []
    assert {tag: readings[tag] for tag in expected} == pytest.approx(expected, rel=1e-6)
    others = {tag: x for tag, x in readings.items() if tag not in expected}
    still = itertools.product(("update_norm", "update_ratio"), ("weight", "bias"))
    assert others == {f"{quantity}/0.{part}": 0 for quantity, part in still}


def test_a_loss_that_only_frozen_parameters_move_is_no_fault() -> None:
    """The others have a gradient of zero with reason."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    panel = Panel(model, optimizer, EVERYTHING._replace(noise=0))

    def loss() -> Tensor:
        return model[0](torch.ones(3)).square().sum() + 0 * model(torch.ones(3)).sum()

    with panel.watch(1, loss):
        loss().backward()
        optimizer.step()
    assert not any(slope.is_wrong for slope in panel.slopes.values())


WITH_DECAY = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and "weight_decay" in inspect.signature(kind).parameters
]


@pytest.mark.parametrize("kind", [SGD, *WITH_DECAY])
def test_the_share_of_weight_decay_is_read_where_it_is_a_part_of_the_gradient(
    kind: Callable[..., torch.optim.Optimizer],
) -> None:
    """There a step with it is one without it, of a gradient that has that part."""
    start = torch.tensor([[3.0, -1.0], [2.0, 5.0]], dtype=torch.float64)
    slope = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
    ends, whole = [], slope + 0.3 * start
    for each, decay in ((slope, 0.3), (whole, 0.0)):
        point = Point(lambda p, each=each: (each * p).sum())
        point.theta = nn.Parameter(start.clone())
        optimizer = kind(point.parameters(), lr=0.1, weight_decay=decay)
        panel = Panel(point, optimizer, EVERYTHING._replace(noise=0))
        with panel.watch(1, point) as watch:
            point().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append((point.theta.detach(), watch.readings, panel.withheld))
    (decayed, readings, withheld), (expected, *_) = ends
    if torch.allclose(decayed, expected, rtol=1e-12):
        share = 0.3 * start.norm().item() / whole.norm().item()
        assert readings["weight_decay/share"] == pytest.approx(share, rel=1e-12)
    else:
        assert "weight_decay/share" not in readings
        reason = "is not known to add weight decay to the gradient"
        is_said = reason in withheld.get("weight_decay/share", "")
        assert is_said != ("decoupled_weight_decay" in optimizer.defaults)


def test_weight_decay_of_what_has_no_gradient_does_not_count() -> None:
    """An optimizer passes over it; and where it maximizes, no share is given."""
    for maximize in (False, True):
        point = Point(lambda p: (p**2).sum(), 3.0, 4.0)
        point.unused = nn.Parameter(torch.full((2,), 1e6, dtype=torch.float64))
        options = {"lr": 0.1, "weight_decay": 0.5, "maximize": maximize}
        optimizer = SGD(point.parameters(), **options)
        panel = Panel(point, optimizer, EVERYTHING._replace(noise=0))
        with panel.watch(1, point) as watch:
            point().backward()
            optimizer.step()
        assert torch.equal(point.unused, torch.full_like(point.unused, 1e6))
        if maximize:
            assert panel.withheld["weight_decay/share"] == "the optimizer maximizes"
            assert "weight_decay/share" not in watch.readings
        else:
            share = watch.readings["weight_decay/share"]
            assert share == pytest.approx(0.5 / 2.5, rel=1e-12)


@pytest.mark.parametrize(
    "option, value",
    [("lr", 10.0), ("momentum", 0.9), ("dampening", 0.5), ("nesterov", True)],
)
@pytest.mark.parametrize("kind", [SGD, torch.optim.SGD])
def test_no_stable_limit_is_read_where_groups_follow_several_rules(
    kind: Callable[..., torch.optim.Optimizer], option: str, value: float
) -> None:
    """f = 0.005 x^2 + 50 y^2, both far below their own limits of 300 and 0.03."""
    model = nn.ParameterList([torch.ones(1), torch.ones(1)])
    groups = [{"params": [p]} for p in model]
    usual = {"lr": 0.005, "momentum": 0.5, "dampening": 0.0, "nesterov": False}
    optimizer = kind(groups, **usual)
    limits = {"audit/largest_stable_lr", "audit/margin"}

    def loss() -> Tensor:
        return (0.005 * model[0] ** 2 + 50 * model[1] ** 2).sum()

    def read(panel: Panel) -> set[str]:
        with panel.watch(1, loss) as watch:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        assert {*OF_SGD - limits, "audit/curvature"} <= watch.readings.keys()
        return limits & watch.readings.keys()

    panel = Panel(model, optimizer, EVERYTHING._replace(noise=0))
    assert read(panel) == limits and panel.withheld == {}
    optimizer.param_groups[0][option] = value  # as a schedule may do
    reason = f"{option} is not the same in all groups of the optimizer"
    assert Panel(model, optimizer).withheld == dict.fromkeys(limits, reason)
    assert read(panel) == set() and panel.withheld == dict.fromkeys(limits, reason)


class Spectrum(nn.Module):
    """|x w + b|^2 of complex numbers, or of the same numbers in pairs."""

    def __init__(self, is_complex: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in (("weight", (4, 3)), ("bias", (3,))):
            start = torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
            start = torch.view_as_complex(start) if is_complex else start
            self.register_parameter(name, nn.Parameter(start))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (
            p if p.is_complex() else torch.view_as_complex(p) for p in self.parameters()
        )
        return (x @ weight + bias).abs().square()


class Words(nn.Module):
    """Embeddings, whose gradient is sparse or dense, of words that repeat."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 3, sparse=sparse, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x % 5).sum(1).square()


@pytest.mark.parametrize("kind", [Spectrum, Words])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_complex_parameters_and_sparse_gradients_are_read_like_real_and_dense_ones(
    kind: Callable[[bool], nn.Module], momentum: float
) -> None:
    """The twin has the same numbers in another form; both walk the same way."""
    x = torch.randint(20, (8, 4), generator=torch.Generator().manual_seed(1))
    x = x if kind is Words else torch.complex(x.double(), -x.double() / 3) / 20
    ends = []
    for is_odd in (True, False):
        model = kind(is_odd)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
        panel = Panel(model, optimizer, EVERYTHING._replace(noise=0))
        for number in (1, 2, 3):
            with panel.watch(number, lambda model=model: model(x).mean()) as watch:
                optimizer.zero_grad(set_to_none=number == 2)
                model(x).mean().backward()
                grads = [p.grad for p in model.parameters() if p.grad is not None]
                sizes = [log2_counts(g).tolist() for g in grads]
                optimizer.step()
        check_vectors(panel.state_dict(), [*model.parameters()])
        ends.append((dict(watch.readings), panel.withheld, sizes))
        assert not any(slope.is_wrong for slope in panel.slopes.values())
    (readings, withheld, sizes), (expected, nothing, same) = ends
    assert readings == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert withheld == nothing == {} and sizes == same
    assert readings.keys() >= OF_SGD and readings["truth/error"] < 1e-4


def test_noise_of_complex_and_sparse_gradients_is_withheld_by_name() -> None:
    reasons = []
    for layer, x in (
        (nn.Linear(2, 3, dtype=torch.complex64), torch.ones(4, 2) + 0j),
        (nn.Embedding(5, 3, sparse=True), torch.arange(4)),
    ):
        optimizer = SGD(layer.parameters(), lr=0.1)
        panel = Panel(layer, optimizer, EVERYTHING)

        def loss(layer: nn.Module = layer, x: Tensor = x) -> Tensor:
            return layer(x).abs().square().mean()

        with panel.watch(1, loss, num_samples=4) as watch:
            loss().backward()
            optimizer.step()
        assert not any(tag.startswith("noise/") for tag in watch.readings)
        reasons += panel.withheld.values()
    assert len(reasons) == 2
    assert "is not real" in reasons[0] and "its gradient is sparse" in reasons[1]


@pytest.mark.parametrize("what", ["as it is", "some", "more", "unscaled", "divided"])
def test_noise_is_read_of_the_gradient_that_the_update_uses_or_withheld(what) -> None:
    """Where it is not the mean over the samples, the number would be a wrong one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    extra = nn.Parameter(torch.ones(()))
    parts = {"some": [*model[0].parameters()], "more": [*model.parameters(), extra]}
    optimizer = SGD(parts.get(what, [*model.parameters()]), lr=0.1)
    panel = Panel(model, optimizer, EVERYTHING)
    for number in (1, 2):
        with panel.watch(number, lambda: LOSS(model(x), y), num_samples=32) as watch:
            optimizer.zero_grad()
            loss = LOSS(model(x), y) + (extra - extra.detach() if what == "more" else 0)
            (loss * (1024 if what in ("unscaled", "divided") else 1)).backward()
            for p in model.parameters() if what in ("unscaled", "divided") else ():
                assert p.grad is not None
                p.grad /= 1024
            optimizer.step()
        found = watch.readings.keys() & {"noise/signal_share", "noise/scale"}
        assert bool(found) == (what == "as it is")
        assert "zero_grad/forgotten" not in watch.readings
    reasons = {
        "as it is": None,
        "some": "the optimizer updates others than the trainable parameters",
        "more": "the optimizer updates others than the trainable parameters",
        "unscaled": "the gradient of the update is not the one that backward() has",
        "divided": "the gradient of the update is not the one that backward() has",
    }
    assert panel.withheld.get("noise", "None").startswith(str(reasons[what]))


def test_of_a_step_with_a_closure_nothing_is_read_and_nothing_found() -> None:
    model, x = nn.Linear(3, 1), torch.ones(4, 3)
    for optimizer in (
        torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=2),
        SGD(model.parameters(), lr=0.1),
    ):
        panel = Panel(model, optimizer, EVERYTHING)

        def closure(optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        for number, given in ((1, {}), (2, {"closure": closure}), (3, {})):
            with panel.watch(number, closure, num_samples=4) as watch:
                optimizer.step(**given) if given else optimizer.step(closure)
            assert watch.readings == {}
        assert panel.withheld.keys() >= {"look", "audit", "truth", "noise"}
        assert "got a closure" in panel.withheld["truth"]


@pytest.mark.parametrize("is_own", [True, False])
def test_a_gradient_that_no_update_uses_is_not_left_over(is_own: bool) -> None:
    """zero_grad of an optimizer of some parameters leaves those of the others."""
    model, x = (
        nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)),
        torch.ones(4, 3),
    )
    optimizer = SGD(model[0].parameters(), lr=0.1)
    panel = Panel(model, optimizer, EVERYTHING._replace(noise=0))
    loss_of = lambda: model(x).square().mean()  # noqa: E731
    for number in (1, 2):
        with panel.watch(number, loss_of) as watch:
            if is_own:
                optimizer.zero_grad()
            loss_of().backward()
            optimizer.step()
    assert ("zero_grad/forgotten" in watch.readings) == (not is_own)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("how", ["skipped", "blocks", "thawed"])
def test_noise_is_compared_with_what_the_first_update_uses(how, changed) -> None:
    """Also where the first watched step has no update, or others train later."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    model[2].requires_grad_(how != "thawed")
    updated = model[0] if how == "thawed" else model
    optimizer = torch.optim.SGD(updated.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=how == "skipped" and changed)
    panel = Panel(model, optimizer, Cadence(look=1, audit=0, truth=0, noise=1))

    def loss_of() -> Tensor:
        return LOSS(model(x), y)

    for number in (1, 2):
        is_update = number == 2 or how == "thawed"
        if number == 2 and how == "thawed":
            model[2].requires_grad_(changed)
        with panel.watch(number, loss_of, num_samples=32) as watch:
            if number == 1 or not (how == "blocks" and changed):
                model.zero_grad()
            scaler.scale(loss_of()).backward()
            if is_update:
                scaler.step(optimizer)
                scaler.update()
    found = watch.readings.keys() & {"noise/signal_share", "noise/scale"}
    assert bool(found) == (not changed)
    reason = "the gradient of the update is not the one that backward() has left"
    assert panel.withheld.get("noise", "").startswith(reason) == changed


@pytest.mark.parametrize("unscales", [False, True])
def test_a_gradient_that_a_fused_optimizer_unscales_is_not_read(unscales: bool) -> None:
    """Before its step the gradient is 65536 times as long: no lie of the backward."""
    model, batches = mlp(), data()
    x, y = next(iter(batches.epoch(1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    panel = Panel(model, optimizer, EVERYTHING._replace(noise=0))
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    with panel.watch(1, lambda: LOSS(model(x), y), num_samples=16) as watch:
        scaler.scale(LOSS(model(x), y)).backward()
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert not any(slope.is_wrong for slope in panel.slopes.values())
    if unscales:
        length = (after - before).norm().item()
        assert watch.readings["update_norm/global"] == pytest.approx(length, rel=1e-5)
        assert watch.readings["momentum/effective_lr"] == pytest.approx(0.1, rel=1e-4)
    else:
        assert watch.readings == {} and (after != before).any()
        assert "call scaler.unscale_(optimizer)" in panel.withheld["truth"]
