"""The worked example: its numbers are the run's, and a wrong one is told."""

import functools
import hashlib
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from harness.commands import exit_code_of
from torch import nn

from minitrain.batches import Batches
from minitrain.experiment import Config, builtin, runner
from minitrain.experiment.reading import read
from minitrain.explain import replay
from minitrain.explain.arithmetic import FLOAT32, FLOAT64
from minitrain.explain.worked import Held, work_out, write_example
from minitrain.norms import norm
from minitrain.rule import Rule
from minitrain.runs import checkpoint
from minitrain.schedules import SCHEDULES, warmup
from minitrain.sgd import sgd_update

NAME, INDEX = "layers.0.weight", (64, 400)  # in the middle, where there is ink

Explain = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture
def explain(capsys) -> Explain:
    """The command in this process: exit code, output and error of some arguments."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = exit_code_of("explain", *arguments)
        return code, *capsys.readouterr()

    return call


def settings(folder: Path, **others) -> Config:
    """Ten steps, with a checkpoint after every third, all of them kept."""
    few = {
        "epochs": 1,
        "data": {"name": "digits"},
        "checkpoint": {"every": 3, "keep": 9},
        "instruments": {"look": 1, "audit": 0, "truth": 0, "noise": 2},
    }
    return Config(run_dir=folder, **{**few, **others})


def torch_replay(config: Config, step: int) -> dict[str, float]:
    """The same steps by torch's SGD over a list of parameters, in a plain loop."""
    dataset = builtin.load_data("digits")
    batches = Batches(
        dataset.inputs(dataset.train, torch.device("cpu")),
        dataset.train.labels,
        config.data.batch_size,
        seed=config.seed,
    )
    torch.manual_seed(config.seed)
    model = builtin.model(**config.model.model_dump())
    parameters = list(model.parameters())
    weight = dict(model.named_parameters())[NAME]
    options = config.optimizer.model_dump(exclude={"decay"})
    optimizer = torch.optim.SGD(parameters, foreach=False, **options)
    largest, num_steps = config.optimizer.lr, len(batches)
    shape = SCHEDULES[config.schedule.name]

    def lr(step: int) -> float:
        return largest * (shape(step, num_steps) * warmup(step, config.schedule.warmup))

    seen: dict[str, float] = {}

    def buffer() -> float | None:
        buf = optimizer.state.get(weight, {}).get("momentum_buffer")
        return None if buf is None else buf[INDEX].item()

    for number, (inputs, targets) in enumerate(batches.epoch(1), start=1):
        optimizer.param_groups[0]["lr"] = lr(number - 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        assert weight.grad is not None
        seen = {"lr": lr(number - 1), "theta": weight[INDEX].item()}
        seen["g"] = weight.grad[INDEX].item()
        if (old := buffer()) is not None:
            seen["b"] = old
        if config.clip_norm is not None:
            flat = torch.cat([p.grad.flatten() for p in parameters])
            size = norm(flat)  # which has tests of its own
            nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, size)
            seen |= {"|g|": size.item(), "clipped": weight.grad[INDEX].item()}
        optimizer.step()
        if (new := buffer()) is not None:
            seen["new b"] = new
        seen["new theta"] = weight[INDEX].item()
        if number == step:
            return seen
    raise AssertionError("no such step")


def printed(out: str) -> dict[str, float]:
    """The numbers of an example: those given, and the result of every line."""
    rows = re.findall(r"^  (\S+) +([-\d.e]+)  ", out, re.MULTILINE)
    numbers = {symbol: float(number) for symbol, number in rows}
    results = r"^    (\w+) <- (.*)\n +=.*\n += (\S+) "
    for target, formula, number in re.findall(results, out, re.MULTILINE):
        clipped = formula == "factor * g"
        numbers["clipped" if clipped else f"new {target}"] = float(number)
    return numbers


def float32(number: float) -> float:
    return torch.tensor(number, dtype=torch.float32).item()


def hashes(folder: Path) -> dict[Path, tuple[str, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


RUNS = {
    "momentum and weight decay": {},
    "plain": {"optimizer": {"momentum": 0.0, "weight_decay": 0.0}},
    "nesterov": {"optimizer": {"nesterov": True}},
    "dampening": {"optimizer": {"dampening": 0.3}},
    "clipping": {"clip_norm": 0.5},
    "clipping nothing": {"clip_norm": 1e6},
}


@pytest.mark.parametrize("name", RUNS)
def test_its_numbers_are_those_of_torch(tmp_path, explain: Explain, name: str) -> None:
    """The first step, one right after a checkpoint, and one with a checkpoint."""
    config = settings(tmp_path, **RUNS[name])
    runner.run(config)
    before = hashes(tmp_path)
    for step in (1, 4, 6):
        command = (tmp_path, "--step", step, "--parameter", NAME, "--index", *INDEX)
        code, out, _ = explain(*command)
        assert code == 0, out
        numbers, expected = printed(out), torch_replay(config, step)
        expected["lr"] = float32(expected["lr"])
        assert expected["g"] != 0 and expected["new theta"] != expected["theta"]
        assert {k: float32(numbers[k]) for k in expected} == expected
        assert ("b" in numbers) == ("b" in expected)
        assert f"checkpoint of step {(step - 1) // 3 * 3}." in out
        assert ("bit for bit" in out) == (step == 6)
        assert out.count(" ulp off]") == out.count(" <- ") - 1 and "WRONG" not in out
    assert hashes(tmp_path) == before


def test_without_checkpoints_it_replays_from_the_seed(
    tmp_path, explain: Explain
) -> None:
    config = settings(tmp_path)
    runner.run(config)
    for path in checkpoint.find_all(tmp_path / "checkpoints"):
        path.write_bytes(b"damaged")
    before = hashes(tmp_path)
    command = (tmp_path, "--step", 7, "--parameter", NAME, "--index", *INDEX)
    code, out, error = explain(*command)
    assert code == 0 and "Replayed from the seed." in out
    assert error.count("is damaged") == 5 and hashes(tmp_path) == before
    expected = torch_replay(config, 7)
    assert float32(printed(out)["new theta"]) == expected["new theta"]


def test_a_run_that_is_another_one_is_told(tmp_path, explain: Explain) -> None:
    """A replay that comes to another state than the run's checkpoint exits with 1."""
    runner.run(settings(tmp_path))
    path = tmp_path / "config.toml"
    path.write_text(path.read_text().replace("momentum = 0.9", "momentum = 0.8"))
    command = (tmp_path, "--step", 6, "--parameter", NAME, "--index", *INDEX)
    code, out, _ = explain(*command)
    assert code == 1 and "DIFFER from" in out
    assert "Settings changed since then: optimizer.momentum: 0.9 -> 0.8." in out


def test_a_step_made_by_other_settings_is_not_invented(
    tmp_path, explain: Explain
) -> None:
    """Without a checkpoint between them no replay goes through both settings."""
    runner.run(settings(tmp_path))
    kept = read(tmp_path / "config.toml")
    optimizer = kept.optimizer.model_copy(update={"momentum": 0.5})
    update = {"optimizer": optimizer, "epochs": 2, "allow_changes": True}
    runner.run(kept.model_copy(update=update | {"resume": True}))
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()  # as rotation does in the course of a longer run
    command = (tmp_path, "--step", 14, "--parameter", NAME, "--index", *INDEX)
    code, _, error = explain(*command)
    assert code == 2 and "optimizer.momentum from 0.9 to 0.5" in error


@pytest.mark.parametrize("step", [5, 10, 11, 14])
def test_a_step_is_explained_by_the_settings_that_it_was_made_with(
    tmp_path, explain: Explain, step: int
) -> None:
    """Ten steps with momentum 0.9, and ten with 0.5 and another learning rate."""
    settings_of = functools.partial(settings, checkpoint={"every": 1, "keep": 99})
    runner.run(settings_of(tmp_path))
    kept = read(tmp_path / "config.toml")
    optimizer = kept.optimizer.model_copy(update={"momentum": 0.5})
    update = {"optimizer": optimizer, "epochs": 2, "allow_changes": True}
    runner.run(kept.model_copy(update=update | {"resume": True}))
    command = (tmp_path, "--step", step, "--parameter", NAME, "--index", *INDEX)
    code, out, error = explain(*command)
    assert code == 0 and "bit for bit" in out, error
    # One-cycle: down from step 3 of 10, and from step 6 of 20.
    lr = {5: 0.05 * 6 / 7, 10: 0.05 / 7, 11: 0.05 * 10 / 14, 14: 0.05 * 7 / 14}
    assert printed(out)["lr"] == pytest.approx(lr[step])
    assert printed(out)["momentum"] == (0.9 if step <= 10 else 0.5)


@pytest.mark.parametrize("form", [FLOAT32, FLOAT64])
@pytest.mark.parametrize(
    ("dampening", "nesterov"), [(0.0, False), (0.3, False), (0.0, True)]
)
def test_no_line_of_the_rule_is_off_by_more_than_1_ulp(
    form, dampening: float, nesterov: bool
) -> None:
    """Random numbers, and those that cancel: b close to -g / momentum."""
    dtype = torch.float32 if form is FLOAT32 else torch.float64
    generator = torch.Generator().manual_seed(0)
    theta, grad, noise = torch.randn(3, 501, dtype=dtype, generator=generator)
    noise *= 10 ** (-8 * torch.rand(501, dtype=dtype, generator=generator))
    rule = Rule(0.1, 0.9, dampening, 0.03, nesterov)
    buf = -(1 - dampening) / 0.9 * grad * (1 + noise)
    new_theta, new_buf = theta.clone(), buf.clone()
    sgd_update(new_theta, grad, new_buf, **options(rule))
    worst = Fraction(0)
    for i in range(501):
        around = (theta, grad, buf, new_buf, new_theta)
        held = replay.look(rule, *around, lambda x, i=i: x[i].item())
        lines = work_out(rule, held, form)
        assert len(lines) == 3 + nesterov and all(line.agrees for line in lines)
        worst = max(worst, *(line.ulps for line in lines))
    assert 0 < worst <= 1  # rounding is seen


def options(rule: Rule) -> dict:
    return {k: v for k, v in rule._asdict().items() if k != "clip_norm"}


def test_two_ulp_are_told() -> None:
    """Each number that a line computes, 0, 1 and 2 steps of its format away."""
    rule = Rule(0.5, 0.5, 0, 0.25, True, clip_norm=1.0)
    held = Held(
        theta=4.0,
        grad=16.0,
        clipped=1.0,
        decayed=2.0,
        buf=6.0,
        new_buf=5.0,
        direction=4.5,
        new_theta=1.75,
        norm=16.0,
        factor=0.0625,
    )
    lines = work_out(rule, held)
    assert [line.ulps for line in lines[1:]] == [0] * 5
    ulp = float(FLOAT32.ulp(4.0))  # of the largest number in the last line
    for steps, word in [(1, "1 ulp off"), (2, "WRONG: 2 ulp off, the formula gives")]:
        off = held._replace(new_theta=1.75 + steps * ulp)
        assert work_out(rule, off)[-1].agrees == (steps < 2)
        assert f"[{word}" in "\n".join(write_example(rule, off))
    for field, at in {"decayed": 2, "new_buf": 3, "direction": 4}.items():
        wrong = {field: getattr(held, field) + 3 * ulp}
        assert not work_out(rule, held._replace(**wrong))[at].agrees, field


@pytest.mark.parametrize("fault", ["weight_decay", "momentum", "lr"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_wrong_rule_is_found(
    tmp_path, explain, monkeypatch, fault: str, nesterov: bool
) -> None:
    """The lines share nothing with the rule that they check."""

    def wrong(param, grad, buf, **options):
        if fault in options and not (fault == "momentum" and buf is None):
            options[fault] *= 1.01
        return sgd_update(param, grad, buf, **options)

    for module in ("minitrain.sgd", "minitrain.explain.look"):
        monkeypatch.setattr(f"{module}.sgd_update", wrong)
    runner.run(settings(tmp_path, optimizer={"nesterov": nesterov}))
    command = (tmp_path, "--step", 5, "--parameter", NAME, "--index", *INDEX)
    code, out, _ = explain(*command)
    assert code == 1 and "WRONG" in out and "DISAGREES" in out


# A walk


@pytest.mark.parametrize("lr", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("step", [1, 3, 20])
def test_on_the_paraboloid_it_is_a_power(explain, lr: float, step: int) -> None:
    code, out, _ = explain("paraboloid", "--step", step, "--start", 3, 4, "--lr", lr)
    assert code == 0
    for name, first in [("x", 3), ("y", 4)]:
        old, new = (first * (1 - 2 * lr) ** k for k in (step - 1, step))
        numbers = printed(out)
        assert numbers[name] == pytest.approx(old, rel=1e-12)
        assert numbers[f"new {name}"] == pytest.approx(new, rel=1e-12)
        assert f"df/d{name}" in out
    assert out.count("the walk is there but for") == 2


def test_its_last_lines_are_the_equations(explain: Explain) -> None:
    _, out, _ = explain("paraboloid", "--step", 3, "--start", 3, 4, "--lr", 0.1)
    assert "x <- x - lr * g: 1.92 - 0.1 * 3.84 = 1.536\n" in out
    assert "After 3 from 4: 0.8^3 * 4 = 2.048, and" in out


def test_a_walk_with_momentum_is_torchs(explain: Explain) -> None:
    point = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([point], lr=1e-3, momentum=0.9, foreach=False)
    for _ in range(5):
        optimizer.zero_grad()
        x, y = point
        ((1 - x) ** 2 + 100 * (y - x**2) ** 2).backward()
        optimizer.step()
    flags = ("--step", 5, "--start", -1.2, 1, "--lr", 1e-3, "--momentum", 0.9)
    code, out, _ = explain("rosenbrock", *flags)
    numbers = printed(out)
    assert code == 0 and [numbers["new x"], numbers["new y"]] == point.tolist()


def test_a_walk_that_is_off_is_told(explain, monkeypatch) -> None:
    look = replay.look

    def planted(*args) -> Held:
        held = look(*args)
        ulp = FLOAT64.ulp(held.theta)
        return held._replace(new_theta=float(Fraction(held.new_theta) + 2 * ulp))

    monkeypatch.setattr("minitrain.explain.look.look", planted)
    code, out, _ = explain("paraboloid", "--step", 2)
    assert code == 1 and out.count("WRONG: 2 ulp off") == 2


# Errors


def test_errors_are_for_people(tmp_path, explain: Explain) -> None:
    runner.run(settings(tmp_path))
    at = (tmp_path, "--step", 3, "--parameter", NAME, "--index")
    shape = "layers.0.weight has the shape (128, 784), so its index is 2 numbers"
    cases: list[tuple[tuple, int, str]] = [
        (("nowhere", "--step", 1), 2, "there is no run nowhere"),
        ((tmp_path / "checkpoints", "--step", 1), 2, "it holds no config.toml"),
        ((tmp_path, "--step", 0), 2, "step = 0: must be greater than or equal to 1"),
        ((tmp_path, "--step", 11), 2, "step = 11: the run has made the steps 1 to 10"),
        (
            (tmp_path, "--step", 1),
            2,
            "a run needs --parameter, one of layers.0.weight,",
        ),
        ((*at[:4], "layer.2.bias"), 2, "did you mean layers.2.bias?"),
        ((*at, 3), 2, f"index = (3,): {shape}: 0 to 127, 0 to 783"),
        ((*at, 128, 0), 2, f"index = (128, 0): {shape}"),
        ((*at, -1, 0), 2, f"index = (-1, 0): {shape}"),
        ((*at, 1, 2, "--lr", 0.1), 2, "--lr is for a function, and "),
        (("saddle", "--step", 1, "--index", 1), 2, "--index is for a run, and saddle"),
        (("saddle", "--step", 1, "--start", 1), 2, "must be two numbers, x and y"),
        (("bowl", "--step", 90, "--lr", 0.2), 6, "the walk diverged at step"),
    ]
    for arguments, expected, message in cases:
        code, out, error = explain(*arguments)
        assert (code, out) == (expected, "") and message in error, arguments


def test_missing_data_is_told(tmp_path, explain: Explain, monkeypatch) -> None:
    run = Config(run_dir=tmp_path, data=dict(name="mnist", root=tmp_path / "none"))
    (tmp_path / "config.toml").write_text(
        f"[data]\nname = 'mnist'\nroot = '{run.data.root}'\n"
    )

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    code, _, error = explain(
        tmp_path, "--step", 1, "--parameter", NAME, "--index", 1, 2
    )
    assert code == 3 and "mnist" in error.lower()
