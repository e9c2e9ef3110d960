"""A loop of one's own, recorded: against the same loop bare, and against no kill."""

import functools
import json
import math
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.commands import ROOT
from harness.files import contents
from harness.networks import network, tensors
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from minitrain import SGD, Batches, ParameterVector, Recorder
from minitrain.fingerprint import fingerprint
from minitrain.instruments import Cadence
from minitrain.runs import checkpoint
from minitrain.runs.folder import LOCK
from minitrain.system.errors import (
    CheckpointError,
    DivergedError,
    RunDirectoryError,
    SettingsError,
)

LOSS = nn.functional.cross_entropy
CADENCE = Cadence(look=2, audit=3, truth=10, noise=4)
Parts = dict[str, Any]


def classifier(kind: Callable[..., Any] = torch.optim.Adam) -> Parts:
    """A network with dropout, from equal weights, and an optimizer and a schedule."""
    model = network(dropout=0.3)
    optimizer = kind(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.7)
    torch.manual_seed(5)
    random.seed(5)
    return {"model": model, "optimizer": optimizer, "schedule": schedule}


def classify(
    folder: Path, parts: Parts, num_steps: int = 30, stop: int = 0, **options: Any
) -> Generator[Recorder, None, None]:
    """A recorded loop that may break off, given to the caller amid each step."""
    inputs, targets = tensors(23)
    model, optimizer, schedule = parts.values()
    options = {"cadence": CADENCE, "log_every": 2, "save_every": 5} | options
    with Recorder(folder, parts, num_steps=num_steps, **options) as run:
        for _ in run.steps():
            chosen = torch.randint(23, (8,))
            x, y = inputs[chosen], targets[chosen]
            with run.step(
                model, optimizer, lambda x=x, y=y: LOSS(model(x), y), num_samples=8
            ) as step:
                optimizer.zero_grad()
                step.loss().backward()
                optimizer.step()
            schedule.step()
            run.log({"drawn": random.random()})
            yield run
            if run.number == stop:
                break


def classify_bare(parts: Parts, num_steps: int = 30) -> None:
    inputs, targets = tensors(23)
    model, optimizer, schedule = parts.values()
    for _ in range(num_steps):
        chosen = torch.randint(23, (8,))
        optimizer.zero_grad()
        LOSS(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
        schedule.step()
        random.random()


def mark(parts: Parts) -> str:
    """Every bit of the parts, and of what would be drawn next."""
    states = [part.state_dict() for part in parts.values()]
    return fingerprint(*states, {"torch": torch.get_rng_state(), "r": random.random()})


def points(folder: Path) -> dict[tuple[str, int], float]:
    """Every point on the board but what tells of time, each there once."""
    events = EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()
    found = [
        ((tag, event.step), event.value)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
        if not tag.startswith("cost/")
    ]
    assert len(found) == len(dict(found)), "a point is there twice"
    return {key: value for key, value in found}


def pictures(folder: Path) -> list[tuple[str, int]]:
    events = EventAccumulator(str(folder), {"images": 0}).Reload()
    tags = events.Tags()["images"]
    return sorted((tag, event.step) for tag in tags for event in events.Images(tag))


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


# Watching changes nothing


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, SGD])
@pytest.mark.parametrize("cadence", [None, CADENCE, Cadence(1, 1, 1, 1)])
def test_a_recorded_loop_ends_with_the_bits_of_a_bare_one(
    kind: Callable[..., Any], cadence: Cadence | None, tmp_path: Path
) -> None:
    parts = classifier(kind)
    for _ in classify(tmp_path / "run", parts, cadence=cadence):
        pass
    recorded, parts = mark(parts), classifier(kind)
    classify_bare(parts)
    assert recorded == mark(parts)


def test_the_board_shows_loss_rate_norms_and_what_is_logged(tmp_path: Path) -> None:
    parts = classifier(torch.optim.SGD)
    model, optimizer, expected = parts["model"], parts["optimizer"], {}

    def note(*_: object) -> None:
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        expected[len(expected) + 1] = grads, optimizer.param_groups[0]["lr"]

    optimizer.register_step_pre_hook(note)
    for _ in classify(tmp_path / "run", parts):
        pass
    found = points(tmp_path / "run")
    logged = [number for number in range(1, 31) if number == 1 or number % 2 == 0]
    assert [n for tag, n in found if tag == "loss/train"] == logged
    assert [n for tag, n in found if tag == "drawn"] == [*range(1, 31)]
    for number in logged:
        grads, lr = expected[number]
        whole = torch.cat([g.flatten() for g in grads.values()]).norm().item()
        assert found["grad_norm/global", number] == pytest.approx(whole, rel=1e-5)
        assert found["lr", number] == pytest.approx(lr, rel=1e-6)
        for name, grad in grads.items():
            norm = found[f"grad_norm/{name}", number]
            assert norm == pytest.approx(grad.norm().item(), rel=1e-5)
        assert ("update_norm/global", number) in found
    assert {n for tag, n in found if tag == "audit/ratio"} >= {1, 3, 6, 30}


@pytest.mark.parametrize("kind", ["closure", "fused"])
def test_a_norm_is_shown_of_no_gradient_that_is_not_complete(kind, tmp_path) -> None:
    """Before the step it is that of an earlier gradient, or 65536 times as long."""
    model, x = nn.Linear(3, 1), torch.ones(4, 3)
    parameters = [*model.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.25, fused=kind == "fused")
    scaler = torch.amp.GradScaler("cpu", enabled=kind == "fused")
    parts = {"model": model, "optimizer": optimizer}
    with Recorder(tmp_path / "run", parts, num_steps=3, log_every=1) as run:
        for _ in run.steps():
            loss_of = lambda: model(x).square().mean()  # noqa: E731
            with run.step(model, optimizer, loss_of, num_samples=4) as step:

                def closure(step: Any = step) -> Tensor:
                    optimizer.zero_grad()
                    loss = step.loss()
                    scaler.scale(loss).backward()
                    return loss

                if kind == "closure":
                    optimizer.step(closure)
                else:
                    closure()
                    scaler.step(optimizer)
                    scaler.update()
    found = points(tmp_path / "run")
    assert [value for (tag, _), value in found.items() if tag == "lr"] == [0.25] * 3
    assert not any(tag.startswith(("grad_norm", "truth")) for tag, _ in found)
    assert told(tmp_path / "run")["findings"] == []


def test_the_summary_tells_how_it_went(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in classify(folder, parts := classifier(), stop=17):
        pass
    found = told(folder)
    assert (found["status"], found["steps"]) == ("finished", 17)
    assert [*found["fingerprints"]] == ["0", "5", "10", "15", "17"]
    assert found["fingerprint"] == found["fingerprints"]["17"]
    weights = {f"model.{k}": x for k, x in parts["model"].state_dict().items()}
    others = {k: parts[k].state_dict() for k in ("optimizer", "schedule")}
    assert found["fingerprint"] == fingerprint(weights, others)
    assert 0 < found["train_seconds"] <= found["total_seconds"]
    reason = "Adam does not follow the rule of SGD"
    assert found["withheld"]["audit/margin"] == reason
    assert {"python", "torch", "minitrain"} <= found["versions"].keys()


# Going on


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
from experiment.test_recorder import classifier, classify
parts = classifier()
for run in classify(Path({folder!r}), parts):
    if run.number == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_loop_goes_on_to_the_bits_of_an_undisturbed_one(
    tmp_path: Path, rng: random.Random
) -> None:
    parts = classifier()
    for _ in classify(tmp_path / "whole", parts):
        pass
    folder, at = tmp_path / "killed", rng.randrange(1, 31)
    text = KILLED.format(tests=str(ROOT / "tests"), folder=str(folder), at=at)
    command = [sys.executable, "-c", text]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    again = classifier()
    torch.manual_seed(99)  # what was drawn so far is kept, and this is of no account
    numbers = [run.number for run in classify(folder, again)]
    assert numbers == [*range((at - 1) // 5 * 5 + 1, 31)]
    assert told(folder)["fingerprint"] == told(tmp_path / "whole")["fingerprint"]
    assert told(folder)["findings"] == told(tmp_path / "whole")["findings"]
    assert points(folder) == points(tmp_path / "whole")


def test_lives_of_a_loop_end_as_one_does(tmp_path: Path, rng: random.Random) -> None:
    """It fails in the midst of steps, again and again, with pictures and a budget."""

    def life(folder: Path, fails: bool) -> tuple[str, list[int]]:
        parts, numbers = classifier(), []
        try:
            for run in classify(folder, parts, save_every=3):
                numbers.append(run.number)
                run.show("step", torch.zeros(2, 2, dtype=torch.uint8))
                if fails and rng.random() < 0.15:
                    raise KeyError
        except KeyError:
            return life(folder, fails)
        return mark(parts), numbers

    expected, _ = life(tmp_path / "one", False)
    found, _ = life(tmp_path / "many", True)
    assert found == expected
    assert points(tmp_path / "many") == points(tmp_path / "one")
    shown = [("pictures/step", number) for number in range(1, 31)]
    assert pictures(tmp_path / "many") == pictures(tmp_path / "one") == shown


def test_the_measured_cadence_is_kept(tmp_path: Path) -> None:
    def cadences(stop: int) -> list[int]:
        for _ in classify(tmp_path / "run", classifier(), cadence=None, stop=stop):
            pass
        (path, *_) = reversed(checkpoint.find_all(tmp_path / "run" / "checkpoints"))
        return checkpoint.load(path).state["networks"][""]["cadence"]

    first = cadences(7)
    assert all(first) and cadences(9) == first


def test_a_finished_loop_is_left_as_it_is(tmp_path: Path, capsys: Any) -> None:
    for _ in classify(tmp_path / "run", classifier()):
        pass
    before, again = contents(tmp_path / "run"), classifier()
    with Recorder(tmp_path / "run", again, num_steps=30) as run:
        assert [*run.steps()] == [] and run.number == 30
        run.log({"test": 1.0})
    assert "is finished: nothing is left to do" in capsys.readouterr().out
    assert contents(tmp_path / "run") == before


def test_a_longer_loop_is_that_of_a_long_one(tmp_path: Path) -> None:
    for _ in classify(tmp_path / "whole", whole := classifier()):
        pass
    expected = mark(whole)
    for _ in classify(tmp_path / "short", classifier(), 20):
        pass
    for _ in classify(tmp_path / "short", longer := classifier()):
        pass
    assert mark(longer) == expected
    with pytest.raises(SettingsError, match=r"num_steps = 20: .* has made 30"):
        next(classify(tmp_path / "short", classifier(), 20))


def test_changed_settings_are_told_and_kept(tmp_path: Path, capsys: Any) -> None:
    for stop, lr in ((8, 0.1), (0, 0.2)):
        options: Any = {"settings": {"lr": lr}, "stop": stop}
        for _ in classify(tmp_path / "run", classifier(), **options):
            pass
    assert "changed lr: 0.1 -> 0.2" in capsys.readouterr().out
    change = {"step": 8, "key": "lr", "old": 0.1, "new": 0.2}
    assert told(tmp_path / "run")["changes"] == [change]


# Several networks


def gan() -> Parts:
    """A generator whose loss passes through a discriminator with running statistics."""
    torch.manual_seed(2)
    random.seed(2)
    generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    discriminator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    parts: Parts = {"generator": generator, "discriminator": discriminator}
    for name in [*parts]:
        kind = SGD if name == "discriminator" else torch.optim.Adam
        parts[f"{name}_optimizer"] = kind(parts[name].parameters(), lr=0.02)
    return parts


def losses(parts: Parts) -> dict[str, Callable[[], Tensor]]:
    g, d = parts["generator"], parts["discriminator"]
    bce = nn.functional.binary_cross_entropy_with_logits
    real, noise, one = torch.randn(8, 2) + 3, torch.randn(8, 3), torch.ones(8, 1)

    def of_discriminator() -> Tensor:
        return bce(d(real), one) + bce(d(g(noise).detach()), 0 * one)

    return {
        "discriminator": of_discriminator,
        "generator": lambda: bce(d(g(noise)), one),
    }


def play(folder: Path | None, parts: Parts, stop: int = 0, save_every: int = 7) -> str:
    """Train both, the generator at every second step; no gradient is ever reset but
    by its own optimizer."""

    def is_due(name: str, number: int) -> bool:
        return name == "discriminator" or number % 2 == 0

    def update(name: str, loss: Tensor) -> None:
        parts[f"{name}_optimizer"].zero_grad()
        loss.backward()
        parts[f"{name}_optimizer"].step()

    if folder is None:
        for number in range(1, 41):
            for name, loss_of in losses(parts).items():
                if is_due(name, number):
                    update(name, loss_of())
        return mark(parts)
    options: Any = {"log_every": 1, "save_every": save_every, "cadence": CADENCE}
    with Recorder(folder, parts, num_steps=40, **options) as run:
        for number in run.steps():
            for name, loss_of in losses(parts).items():
                pair = parts[name], parts[f"{name}_optimizer"]
                if is_due(name, number):
                    with run.step(*pair, loss_of, num_samples=8, name=name) as step:
                        update(name, step.loss())
            if number == stop:
                raise KeyError
    return mark(parts)


@pytest.mark.parametrize("at", [1, 7, 8, 22])
def test_two_networks_have_two_panels_and_leave_no_trace(
    at: int, tmp_path: Path
) -> None:
    expected = play(None, gan())
    assert play(tmp_path / "run", gan()) == expected
    found = points(tmp_path / "run")
    for name, start in (("discriminator", 1), ("generator", 2)):
        steps = [n for tag, n in found if tag == f"{name}/grad_norm/global"]
        assert steps == [*range(start, 41, start)]
        assert (f"{name}/update_norm/0.weight", start) in found
    assert ("discriminator/audit/margin", 1) in found
    assert ("generator/audit/ratio", 2) in found
    assert ("generator/audit/margin", 2) not in found, "Adam has none"
    withheld = told(tmp_path / "run")["withheld"]
    assert withheld["generator/audit/margin"].startswith("Adam does not follow")
    with pytest.raises(KeyError):
        play(tmp_path / "again", gan(), stop=at)
    assert play(tmp_path / "again", gan()) == expected
    assert points(tmp_path / "again") == found


def test_a_network_without_steps_for_a_while_is_kept(tmp_path: Path) -> None:
    """Between two starts the generator, whose turn is every second, makes no step."""
    play(tmp_path / "whole", gan())
    for stop in (8, 10, 10, 11):  # a step that fails is made again
        with pytest.raises(KeyError):
            play(tmp_path / "lives", gan(), stop + 1, save_every=1)
    play(tmp_path / "lives", gan(), save_every=1)
    assert points(tmp_path / "lives") == points(tmp_path / "whole")


def test_measuring_leaves_all_gradients_as_they_were(tmp_path: Path) -> None:
    """Of a discriminator too, through which the generator's loss passes."""
    parts = gan()
    of = losses(parts)
    of["discriminator"]().backward()
    before = {p: p.grad.clone() for p in parts["discriminator"].parameters()}
    assert all(p.grad is None for p in parts["generator"].parameters())
    with Recorder(tmp_path / "run", parts, num_steps=1) as run:
        for _ in run.steps():
            pair = parts["generator"], parts["generator_optimizer"]
            with run.step(*pair, of["generator"]):
                assert all(map(torch.equal, before.values(), map(grad_of, before)))
                assert all(p.grad is None for p in parts["generator"].parameters())


def grad_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


# What is found


def test_findings_are_printed_and_kept(tmp_path: Path, capsys: Any) -> None:
    """A gradient that is half of the truth, of a network with a name."""
    parts = gan()
    model, optimizer = parts["generator"], parts["generator_optimizer"]
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: grad / 2)
    x, cadence = torch.randn(16, 3), Cadence(1, 1, 1, 0)
    loss_of = lambda: model(x).square().sum(dim=1).mean()  # noqa: E731
    for num_steps in (3, 6):  # the second start goes on, and finds nothing anew
        options: Any = {"num_steps": num_steps, "log_every": 1, "cadence": cadence}
        with Recorder(tmp_path / "run", parts, **options) as run:
            for _ in run.steps():
                with run.step(model, optimizer, loss_of, name="generator") as step:
                    optimizer.zero_grad()
                    step.loss().backward()
                    optimizer.step()
    out, (found,) = capsys.readouterr().out, told(tmp_path / "run")["findings"]
    assert found["kind"] == "wrong gradient" and found["text"].startswith("generator: ")
    assert "finding: wrong gradient at step 1: generator: " in out
    assert "--" not in found["advice"], "there are no flags here"


def rising(model: nn.Module, x: Tensor, number: int) -> Tensor:
    return model(x).square().mean() + number


def test_losses_that_move_each_other_are_no_evidence(tmp_path: Path) -> None:
    """A loss that rises is a finding, but not of one network among several."""
    for name, kinds in (("", ["learning rate too large"]), ("generator", [])):
        model = nn.Linear(3, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        x, parts = torch.randn(8, 3), {"model": model, "optimizer": optimizer}
        options: Any = {"log_every": 1, "cadence": Cadence(1, 0, 0, 0)}
        with Recorder(tmp_path / f"run{name}", parts, num_steps=30, **options) as run:
            for number in run.steps():
                loss_of = functools.partial(rising, model, x, number)
                with run.step(model, optimizer, loss_of, name=name) as step:
                    optimizer.zero_grad()
                    step.loss().backward()
                    optimizer.step()
        found = told(tmp_path / f"run{name}")["findings"]
        assert [each["kind"] for each in found] == kinds


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_clipping_has_the_bits_of_train_and_is_no_lie(
    max_norm: float, tmp_path: Path
) -> None:
    parts, bare = classifier(SGD), classifier(SGD)
    inputs, targets = tensors(16)
    for _ in range(4):
        model, optimizer, _ = bare.values()
        optimizer.zero_grad()
        LOSS(model.eval()(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
    options: Any = {"cadence": Cadence(1, 1, 1, 1), "log_every": 1}
    model, optimizer, _ = parts.values()
    whole = 0.0
    for layer in model:
        layer.eval()  # no dropout, and yet the model is in training mode
    with Recorder(tmp_path / "run", parts, num_steps=4, **options) as run:
        for _ in run.steps():
            loss_of = lambda: LOSS(model(inputs), targets)  # noqa: E731
            with run.step(model, optimizer, loss_of, num_samples=16) as step:
                optimizer.zero_grad()
                step.loss().backward()
                whole = step.clip(max_norm)
                optimizer.step()
            assert whole > 0.01
    ours, theirs = model.state_dict(), bare["model"].state_dict()
    assert all(torch.allclose(ours[k], theirs[k], rtol=1e-5) for k in ours)
    found = points(tmp_path / "run")
    assert found["grad_norm/global", 4] == pytest.approx(whole, rel=1e-5)
    assert found["clip/fraction", 4] == (max_norm < 1)
    kinds = {each["kind"] for each in told(tmp_path / "run")["findings"]}
    assert "wrong gradient" not in kinds


def test_an_infinite_loss_is_found_and_never_saved(tmp_path: Path, capsys: Any) -> None:
    parts = classifier(SGD)
    parts["optimizer"].param_groups[0]["lr"] = 1e38
    with pytest.raises(DivergedError, match=r"not finite.*smaller learning rate") as e:
        for _ in classify(tmp_path / "run", parts):
            pass
    assert "--" not in str(e.value)
    kinds = [each["kind"] for each in told(tmp_path / "run")["findings"]]
    assert "learning rate too large" in kinds
    assert told(tmp_path / "run")["status"].startswith("failed: DivergedError")


def test_evaluation_mode_is_told_once(tmp_path: Path) -> None:
    steps = classify(tmp_path / "run", parts := classifier())
    next(steps)
    parts["model"].eval()
    with pytest.warns(UserWarning, match="the model is in evaluation mode") as all_told:
        for _ in range(4):
            next(steps)
    assert len(all_told) == 1
    assert Path(all_told[0].filename) == Path(__file__), "where the loop stands"
    steps.close()


# A frozen layer, vectors, and other forms


def test_a_frozen_layer_counts_as_zero(tmp_path: Path) -> None:
    parts = classifier()
    parts["model"][0].requires_grad_(False)
    for _ in classify(tmp_path / "run", parts):
        pass
    found = points(tmp_path / "run")
    assert found["grad_norm/0.weight", 10] == 0 < found["grad_norm/3.weight", 10]


def test_a_vector_of_parameters_is_recorded_like_a_list(tmp_path: Path) -> None:
    found = []
    for name, make in (("list", list), ("vector", None)):
        torch.manual_seed(5)
        model = network()
        params = [*model.parameters()] if make else ParameterVector(model)
        parts: Parts = {"model": model, "optimizer": SGD(params, lr=0.1)}
        inputs, targets = tensors(20)
        batches = Batches(inputs, targets, 5, seed=0)
        options: Any = {"cadence": CADENCE, "log_every": 1}
        with Recorder(str(tmp_path / name), parts, num_steps=12, **options) as run:
            for number in run.steps():
                epoch, place = divmod(number - 1, len(batches))
                x, y = [*batches.epoch(epoch + 1)][place]
                loss_of = lambda x=x, y=y, model=model: LOSS(model(x), y)  # noqa: E731
                pair = model, parts["optimizer"]
                with run.step(*pair, loss_of, num_samples=5) as step:
                    pair[1].zero_grad()
                    step.loss().backward()
                    pair[1].step()
        found.append(points(tmp_path / name))
    assert found[0].keys() == found[1].keys()
    for key in found[0]:
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-4, abs=1e-5), key


def test_figures_tensors_and_texts_are_shown(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    with Recorder(tmp_path / "run", classifier(), num_steps=1) as run:
        for _ in run.steps():
            run.show("figure", Figure())
            run.show("own/tensor", torch.zeros(3, 4, 5, dtype=torch.uint8))
            run.show("text", "**bold**")
        run.log({"test": torch.tensor(3.0)})
    shown = [("own/tensor", 1), ("pictures/figure", 1)]
    assert pictures(tmp_path / "run") == shown
    assert points(tmp_path / "run") == {("test", 1): 3.0}


# What is refused, each in a sentence


def opened(folder: Path, **others: Any) -> Recorder:
    return Recorder(folder, classifier() | others, num_steps=5)


def test_a_forgotten_with_is_an_error(tmp_path: Path) -> None:
    closed = opened(tmp_path / "run")
    for use in (lambda: next(closed.steps()), lambda: closed.log({"a": 1})):
        with pytest.raises(RuntimeError, match="use it in a `with Recorder"):
            use()
    assert not (tmp_path / "run").exists()
    parts = classifier()
    refused = pytest.raises(RuntimeError, match="made and never entered: write `with")
    with refused, Recorder(tmp_path / "run", parts, num_steps=5) as run:
        for _ in run.steps():
            run.step(parts["model"], parts["optimizer"], lambda: torch.zeros(()))
    assert told(tmp_path / "run")["status"].startswith("failed: RuntimeError")


def test_an_update_outside_of_the_block_is_told(tmp_path: Path, capsys: Any) -> None:
    parts, (x, y) = classifier(), tensors(8)
    model, optimizer = parts["model"], parts["optimizer"]
    with Recorder(tmp_path / "run", parts, num_steps=3, log_every=1) as run:
        for _ in run.steps():
            with run.step(model, optimizer, lambda: LOSS(model(x), y)) as step:
                step.loss().backward()
            optimizer.step()
    assert capsys.readouterr().out.count("optimizer.step() was not called") == 1


def test_steps_that_a_checkpoint_would_lack_are_refused(tmp_path: Path) -> None:
    parts, other = classifier(), network()
    adam = torch.optim.Adam(parts["model"].parameters())
    zero = lambda: parts["model"](torch.zeros(1, 6)).sum()  # noqa: E731
    wrong: dict[str, tuple[Any, ...]] = {
        "the model of this step is not among the parts": (other, adam, zero),
        "the optimizer of this step is not among": (parts["model"], adam, zero),
        "loss_of is of Tensor: it must be a function": (
            parts["model"], parts["optimizer"], zero(),
        ),
    }  # fmt: skip
    for number, (message, given) in enumerate(wrong.items()):
        refused = pytest.raises((ValueError, TypeError), match=message)
        with refused, Recorder(tmp_path / f"{number}", parts, num_steps=5) as run:
            for _ in run.steps():
                run.step(*given)


def test_a_parameter_that_only_the_optimizer_knows_is_refused(tmp_path: Path) -> None:
    """Such as the temperature of a loss: a run that goes on would begin it anew."""
    parts, scale, (x, y) = classifier(), nn.Parameter(torch.zeros(())), tensors(8)
    model = parts["model"]
    parts["optimizer"] = optimizer = torch.optim.SGD([*model.parameters(), scale])

    def train(folder: Path) -> None:
        with Recorder(folder, parts, num_steps=2) as run:
            for _ in run.steps():
                loss_of = lambda: LOSS(model(x), y) * (-scale).exp() + scale  # noqa: E731
                with run.step(model, optimizer, loss_of) as step:
                    step.loss().backward()
                    optimizer.step()

    with pytest.raises(ValueError, match="updates a parameter that no model"):
        train(tmp_path / "refused")
    parts["scale"] = nn.ParameterList([scale])
    train(tmp_path / "kept")
    assert scale != 0


def test_one_name_is_of_one_network(tmp_path: Path) -> None:
    parts = gan()
    refused = pytest.raises(ValueError, match="name = '': is that of another model")
    with refused, Recorder(tmp_path / "run", parts, num_steps=5) as run:
        for _ in run.steps():
            for name, loss_of in losses(parts).items():
                pair = parts[name], parts[f"{name}_optimizer"]
                with run.step(*pair, loss_of):
                    loss_of().backward()
                    pair[1].step()


@pytest.mark.parametrize(
    "parts, message",
    [
        ({}, "parts holds no model with parameters"),
        ({"model": nn.ReLU()}, "parts holds no model with parameters"),
        ({"model": network(), "data": [1]}, r"parts\['data'\] is of list"),
        ({"my.model": network()}, r"parts\['my.model'\] is of Sequential: a part has"),
    ],
)
def test_parts_that_cannot_be_kept_are_refused(
    parts: Parts, message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Recorder(tmp_path / "run", parts, num_steps=5)


class Strange:
    """Its state is of a class that no checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        return {"own": self}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise AssertionError


def test_a_state_that_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"parts\['odd'\] cannot be kept"):
        opened(tmp_path / "run", odd=Strange())


@pytest.mark.parametrize("name", ["num_steps", "log_every", "save_every", "keep"])
def test_numbers_out_of_range_are_refused(name: str, tmp_path: Path) -> None:
    options: Any = {"num_steps": 5} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} = 0: must be at least 1"):
        Recorder(tmp_path / "run", classifier(), **options)
    with pytest.raises(ValueError, match="budget = 0"):
        Recorder(tmp_path / "run", classifier(), num_steps=5, budget=0)


def test_a_folder_that_is_not_ours_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(RunDirectoryError, match=r"it holds thesis.tex. Nothing was"):
        opened(tmp_path).__enter__()
    assert contents(tmp_path) == {"thesis.tex": b"all of it"}
    assert not (tmp_path / LOCK).exists()


def test_a_run_in_the_folder_goes_on_or_is_refused(tmp_path: Path) -> None:
    steps = classify(tmp_path / "run", classifier())
    next(steps)
    with pytest.raises(RunDirectoryError, match="is in use by process"):
        opened(tmp_path / "run").__enter__()
    steps.close()
    before = contents(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="resume=False allows none to go on"):
        next(classify(tmp_path / "run", classifier(), resume=False))
    other = classifier() | {"model": nn.Linear(6, 4)}
    with pytest.raises(CheckpointError, match=r"does not fit .* weights are those of"):
        next(classify(tmp_path / "run", other))
    with pytest.raises(CheckpointError, match="besides models are optimizer, schedule"):
        Recorder(tmp_path / "run", {"model": network()}, num_steps=30).__enter__()
    assert contents(tmp_path / "run") == before


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "settings": lambda state: state.update(settings="[1]"),
    "no JSON": lambda state: state.update(settings="lr = 1"),
    "a weight that is not finite": lambda state: state["model"].update(
        {"model.0.weight": torch.full((8, 6), math.nan)}
    ),
    "no networks": lambda state: state.pop("networks"),
    "a cadence": lambda state: state["networks"][""].update(cadence=[1, 2, 3]),
    "a negative cadence": lambda state: state["networks"][""].update(cadence=[-1] * 4),
    "a panel": lambda state: state["networks"][""]["panel"].pop("corner"),
    "findings": lambda state: state["networks"][""]["findings"].update(found=[1]),
    "steps": lambda state: state["summary"].update(steps=3),
    "something more": lambda state: state.update(more=1),
    "an optimizer": lambda state: state.update(optimizer=[]),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_checkpoint_with_wrong_content_is_refused(fault: str, tmp_path: Path) -> None:
    for _ in classify(tmp_path / "run", classifier(), stop=7):
        pass
    (*_, path) = checkpoint.find_all(tmp_path / "run" / "checkpoints")
    state = checkpoint.load(path).state
    path.unlink()
    WRONG[fault](state)
    del state["format"]
    checkpoint.save(path.parent, state.pop("step"), state)
    before = contents(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is not the state of a recorded loop: "):
        next(classify(tmp_path / "run", classifier()))
    assert contents(tmp_path / "run") == before
