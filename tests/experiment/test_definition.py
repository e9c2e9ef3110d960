"""Experiments of one's own: what a file may say, and what is made of it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.commands import exit_code_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import minitrain
from minitrain.evaluation import evaluate
from minitrain.experiment import course, runner
from minitrain.experiment.reading import parse, read
from minitrain.experiment.source import load_file
from minitrain.runs.summary import Summary
from minitrain.system.errors import CheckpointError, SettingsError, Stopped
from minitrain.system.signals import Stop

POINTS = """
\"\"\"Points inside or outside of a circle.\"\"\"

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from minitrain import Data

SETTINGS = {"epochs": 2, "data.batch-size": 20, "optimizer.lr": 0.1}


def data(num: int = 200, noise: Annotated[float, Field(ge=0)] = 0.1) -> Data:
    \"\"\"Draw points.

    Args:
        num: How many points
            there are.
        noise: How far they are off.
    \"\"\"
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(num, 2, generator=dice)
    y = (x.norm(dim=1) < 1.2).long()
    x += noise * torch.randn(num, 2, generator=dice)
    return Data(train=(x[50:], y[50:]), test=(x[:50], y[:50]))


def model(hidden: tuple[int, ...] = (16,), name: str = "tanh") -> nn.Module:
    layers, width = [], 2
    for size in hidden:
        layers += [nn.Linear(width, size), nn.Tanh(), nn.Dropout(0.1)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 2))
"""

QUIET = ["--instruments.budget", "0"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write an experiment's file into an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str = POINTS, name: str = "points.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def train(*words: object) -> Summary:
    return runner.run(parse([*map(str, words), *QUIET]))


def test_arguments_are_settings_with_types_ranges_and_help(file, capsys) -> None:
    path = file()
    config = parse([str(path), "--data.noise", "0.5", "--model.hidden", "3", "4"])
    assert (config.data.noise, config.data.num, config.epochs) == (0.5, 200, 2)
    assert (config.model.hidden, config.optimizer.lr) == ((3, 4), 0.1)
    with pytest.raises(SettingsError, match=r"data.noise = -1.0: must be greater"):
        parse([str(path), "--data.noise", "-1"])
    with pytest.raises(SystemExit):
        parse([str(path), "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--data.num INT How many points there are. (default: 200)" in told
    assert "Points inside or outside of a circle." in told


def test_flags_override_toml_and_toml_overrides_the_file(file) -> None:
    file()
    toml = file('experiment = "points.py"\nepochs = 7\n[data]\nnum = 300\n', "own.toml")
    config = parse([str(toml), "--data.num", "400"])
    assert (config.epochs, config.data.num, config.data.noise) == (7, 400, 0.1)
    assert config.data.batch_size == 20, "of SETTINGS"
    assert read(toml).data.num == 300


def test_a_run_keeps_source_and_settings_and_is_loaded_by_trust_alone(file) -> None:
    path, folder = file(), Path("run")
    summary = train(path, "--run-dir", folder)
    assert (folder / "source" / "points.py").read_text() == POINTS
    assert 'experiment = "source/points.py"' in (folder / "config.toml").read_text()
    assert summary.dataset == "points" and summary.test_accuracy is not None
    with pytest.raises(SettingsError, match=r"source/points\.py, which would be exec"):
        minitrain.load(folder)
    path.unlink()
    model = minitrain.load(folder, trust_code=True)
    x, y = load_file(folder / "source" / "points.py").data().test
    found = evaluate(model, [(x, y)], nn.functional.cross_entropy)
    assert found.accuracy == pytest.approx(summary.test_accuracy)
    kept = json.loads((folder / "summary.json").read_text())
    assert [*kept["fingerprints"]] == ["0", "8", "16"]
    assert kept["fingerprints"]["16"] == kept["fingerprint"] == summary.fingerprint


@pytest.mark.parametrize("by", ["file", "trust"])
def test_a_stopped_run_ends_as_if_never_stopped(file, by: str, monkeypatch) -> None:
    path = file()
    expected = train(path, "--run-dir", "whole", "--ema", "0.9").fingerprint
    monkeypatch.setattr(course.Saver, "save", stopping(course.Saver.save, at=8))
    with pytest.raises(KeyboardInterrupt):
        train(path, "--run-dir", "cut", "--ema", "0.9")
    monkeypatch.undo()
    monkeypatch.chdir(path.parent)
    named = [path] if by == "file" else ["--trust-code"]
    words = ["--run-dir", "cut", "--resume"]
    again = train(*named, *words) if by == "file" else train(*words, *named)
    assert again.fingerprint == expected and again.steps == 16
    assert weights("cut", "average") == weights("whole", "average")


def stopping(save: Callable, at: int) -> Callable:
    def save_and_stop(self: Any, must_succeed: bool) -> None:
        save(self, must_succeed)
        if self.summary.steps == at:
            raise KeyboardInterrupt

    return save_and_stop


def weights(folder: str, part: str) -> dict[str, list]:
    (newest,) = Path(folder).glob("checkpoints/step-00000016.*")
    state = torch.load(newest, weights_only=True)[part]
    return {name: tensor.tolist() for name, tensor in state.items()}


def test_changed_source_is_shown_refused_and_recorded(file, capsys) -> None:
    path = file()
    train(path, "--run-dir", "run")
    text = POINTS.replace("nn.Tanh()", "nn.ReLU()")
    file(text)
    words = [path, "--run-dir", "run", "--resume", "--epochs", "3"]
    with pytest.raises(SettingsError, match=r"source.sha256: \w{64} -> \w{64}"):
        train(*words)
    out = capsys.readouterr().out
    assert "-        layers += [nn.Linear(width, size), nn.Tanh()" in out
    assert "+        layers += [nn.Linear(width, size), nn.ReLU()" in out
    assert (Path("run") / "source" / "points.py").read_text() == POINTS
    summary = train(*words, "--allow-changes")
    assert {(c["step"], c["key"]) for c in summary.changes} >= {(16, "source.sha256")}
    assert (Path("run") / "source" / "points.py").read_text() == text
    assert exit_code_of("explain", "run", "--step", "3", "--trust-code") == 2


def test_a_changed_copy_in_the_run_is_refused(file) -> None:
    path = file()
    train(path, "--run-dir", "run")
    copy = Path("run") / "source" / "points.py"
    copy.write_text(POINTS.replace("Tanh", "ReLU"))
    with pytest.raises(SettingsError, match=r"source\.sha256"):
        train("--run-dir", "run", "--resume", "--trust-code", "--epochs", "3")


def test_modules_of_the_folder_belong_to_the_source(file) -> None:
    (file("def width(): return 7\n", "helper_of_points.py"))
    path = file(
        "import helper_of_points\n" + POINTS.replace("16", "helper_of_points.width()")
    )
    train(path, "--run-dir", "run")
    assert {p.name for p in Path("run/source").iterdir()} == {
        "points.py",
        "helper_of_points.py",
    }
    (path.parent / "helper_of_points.py").write_text("def width(): return 9\n")
    model = minitrain.load("run", trust_code=True)
    assert next(model.parameters()).shape == (7, 2)
    assert load_file(path).model()[0].out_features == 9, "imported anew"


def test_explain_works_in_the_dtype_of_the_weights(file, capsys) -> None:
    double = POINTS.replace("x[50:]", "x[50:].double()").replace(
        "x[:50]", "x[:50].double()"
    )
    double = double.replace("nn.Linear(width, 2))", "nn.Linear(width, 2)).double()")
    train(file(double), "--run-dir", "double")
    weight = ["--step", "5", "--parameter", "0.weight", "--index", "3", "1"]
    assert exit_code_of("explain", "double", *weight, "--trust-code") == 0
    assert "[0 ulp off]" in capsys.readouterr().out
    train(file(double.replace("double()", "bfloat16()")), "--run-dir", "half")
    assert exit_code_of("explain", "half", *weight, "--trust-code") == 2
    expected = "is of torch.bfloat16, and the lines are worked out in torch.float32"
    assert expected in capsys.readouterr().err


MASKED = """
class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    def forward(self, x):
        return x @ self.mask.softmax(dim=1)


def metrics(outputs, targets):
    return {"odd": torch.full_like(targets, torch.nan, dtype=torch.float32)}
"""


def test_an_infinite_buffer_and_a_metric_that_is_nan_end_no_run(file) -> None:
    """Such as a causal mask, which is saved, loaded and continued with."""
    text = POINTS.replace("layers, width = [], 2", "layers, width = [Masked()], 2")
    whole = train(path := file(text + MASKED), "--run-dir", "whole", "--epochs", 4)
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert summary["test_metrics"] == {"odd": None}
    (*_, last) = sorted((whole.folder / "checkpoints").glob("step-*"))
    last.unlink()  # as if it had been killed before
    resumed = train(path, "--run-dir", "whole", "--epochs", 4, "--resume")
    assert resumed.fingerprint == whole.fingerprint
    mask = minitrain.load("whole", trust_code=True).get_buffer("0.mask")
    assert mask[0, 1] == -torch.inf


ONCE = """
class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("it is differentiated once")
        return 2 * grad


class Doubled(nn.Module):
    def forward(self, x):
        return Once.apply(x)
"""


def test_what_has_no_second_derivative_has_no_sharpness(file, capsys) -> None:
    """The run goes on, and says once why."""
    once = POINTS.replace("nn.Tanh()", "Doubled(), nn.Tanh()") + ONCE
    summary = train(file(once), "--instruments.sharpness")
    assert summary.status == "finished"
    text = "no readings of sharpness/largest_eigenvalue: the loss has no second"
    assert capsys.readouterr().out.count(text) == 1


def test_targets_may_be_true_or_false(file) -> None:
    same = POINTS.replace("(width, 2))", "(width, 1))") + LOGITS
    expected = train(file(same)).fingerprint
    path = file(same.replace("< 1.2).long()", "< 1.2)"), "bools.py")
    assert train(path).fingerprint == expected


LOGITS = """
def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    to_float = targets.float()
    return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], to_float)
"""


def test_explain_agrees_for_an_own_experiment(file, capsys) -> None:
    train(file(), "--run-dir", "run", "--optimizer.decay", "matrices")
    for name, index in (("0.weight", ["3", "1"]), ("0.bias", ["3"])):
        where = ["--parameter", name, "--index", *index]
        code = exit_code_of("explain", "run", "--step", "5", *where, "--trust-code")
        out = capsys.readouterr().out
        assert code == 0 and ("weight_decay" in out) == (name == "0.weight")


def test_arguments_may_have_any_name(file) -> None:
    """Also those that the arguments of our own functions have."""
    text = POINTS.replace("data(", "data(kind: int = 7, ")
    text = text.replace("model(", "model(function: str = 'tanh', kind: int = 7, ")
    text += OWN_OPTIMIZER.replace("beta:", "kind: int = 7, function: int = 7, beta:")
    words = ["--data.kind", 8, "--model.kind", 8, "--optimizer.function", 8]
    assert train(file(text), *words).steps == train(file(POINTS + OWN_OPTIMIZER)).steps


def test_the_last_lines_say_commands_that_work(file, capsys) -> None:
    """For the source of the experiment, too, which the folder keeps."""
    train(file(), "--run-dir", "my run")
    lines = capsys.readouterr().out.partition("run directory my run; ")[2].splitlines()
    shown = {line[2:11].strip(): line[13:] for line in lines[1:]}
    assert [*shown] == ["curves", "a weight", "landscape", "in Python"]
    assert shown["curves"].startswith("tensorboard --logdir . --samples_per_plugin ")
    for what in ("a weight", "landscape"):
        program, *words = shlex.split(shown[what])
        assert program == "minitrain" and exit_code_of(*words) == 0
    weight = minitrain.load("my run", trust_code=True).state_dict()["0.weight"]
    index = [int(i) for i in re.findall(r"--index (\d+) (\d+)", shown["a weight"])[0]]
    assert weight[tuple(index)].abs() == weight.abs().max()
    network = eval(shown["in Python"], {"minitrain": minitrain})
    assert torch.equal(network[0].weight, weight)


@pytest.mark.parametrize("shipped", [True, False])
def test_an_interrupted_run_says_how_to_go_on(shipped, file, capsys) -> None:
    start = "spirals" if shipped else str(file())
    stop = Stop()
    stop.received = signal.SIGTERM
    with pytest.raises(Stopped):
        runner.run(parse([start, "--epochs=1", "--run-dir=cut", *QUIET]), stop=stop)
    last = capsys.readouterr().out.splitlines()[-1]
    _, door, command = last.rpartition(": minitrain train ")
    name = start if shipped else "points.py"
    assert door and command == f"{name} --run-dir cut --resume"
    assert train(*shlex.split(command), "--epochs=1").epochs == 1


OWN_OPTIMIZER = """

def optimizer(parameters, lr: float = 0.01, beta: float = 0.9):
    return torch.optim.Adam(parameters, lr=lr, betas=(beta, 0.999))
"""


COUNTING = """

class Counting(torch.optim.SGD):
    def step(self, closure=None):
        self.state["num_steps"] = self.state.get("num_steps", 0) + 1
        return super().step(closure)


def optimizer(parameters, lr: float = 0.1):
    return Counting(parameters, lr=lr)
"""


def test_an_optimizer_may_keep_what_belongs_to_no_parameter(file) -> None:
    path = file(POINTS + COUNTING)
    whole = train(path, "--run-dir", "whole")
    (*_, last) = sorted((whole.folder / "checkpoints").glob("step-*"))
    last.unlink()
    resumed = train(path, "--run-dir", "whole", "--resume")
    assert resumed.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    "made, message",
    [
        ("torch.optim.LBFGS(parameters)", "LBFGS.step needs a closure"),
        ("torch.optim.Adam([nn.Parameter(torch.ones(1))])", "updates no parameter of"),
        ("parameters", "has no attribute"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused(file, made, message) -> None:
    text = (
        POINTS + f"\ndef optimizer(parameters, lr: float = 0.1):\n    return {made}\n"
    )
    with pytest.raises(SettingsError, match=rf"optimizer\(\.\.\.\).*{message}"):
        train(file(text))


def test_another_optimizer_is_resumed_and_not_explained(
    file, capsys, monkeypatch
) -> None:
    path = file(POINTS + OWN_OPTIMIZER)
    whole = train(path, "--run-dir", "whole", "--optimizer.beta", "0.8")
    out = capsys.readouterr().out
    assert "minitrain landscape whole" in out and "minitrain explain" not in out
    monkeypatch.setattr(course.Saver, "save", stopping(course.Saver.save, at=8))
    with pytest.raises(KeyboardInterrupt):
        train(path, "--run-dir", "cut", "--optimizer.beta", "0.8")
    monkeypatch.undo()
    monkeypatch.chdir(path.parent)
    assert train(path, "--run-dir", "cut", "--resume").fingerprint == whole.fingerprint
    with pytest.raises(SystemExit):
        parse([str(path), "--optimizer.momentum", "0.9"])
    words = ["--step", "3", "--parameter", "0.bias", "--index", "0", "--trust-code"]
    assert exit_code_of("explain", "whole", *words) == 2
    assert "are not SGD's" in capsys.readouterr().err


# Validation, early stopping and the best model.


def scalars(folder: str) -> dict[str, list]:
    events = EventAccumulator(folder, {"scalars": 0}).Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def test_with_a_validation_set_the_test_set_is_touched_once(file) -> None:
    path = file()
    summary = train(
        path, "--run-dir", "run", "--data.validation", "0.2", "--epochs", "4"
    )
    logged = scalars("run")
    assert [e.step for e in logged["loss/validation"]] == [6, 12, 18, 24]
    assert [e.step for e in logged["loss/test"]] == [24]
    losses = [e.value for e in logged["loss/validation"]]
    best = losses.index(min(losses)) + 1
    assert (summary.best_epoch, summary.best_step) == (best, 6 * best)
    assert summary.best_loss == pytest.approx(min(losses))


def test_the_best_model_is_tested_and_loaded(file) -> None:
    """With a learning rate that spoils it at the end."""
    path = file(POINTS + SPOILED)
    words = ["--epochs", "4", "--schedule.name", "constant", "--checkpoint.keep", "2"]
    summary = train(path, "--run-dir", "run", *words)
    assert summary.best_epoch == 1 and summary.steps == 32
    model = minitrain.load("run", trust_code=True)
    definition = load_file(path)
    data = definition.data()
    found = evaluate(model, [data.test], nn.functional.cross_entropy)
    assert found.loss == pytest.approx(summary.test_loss)
    found = evaluate(model, [data.valid], nn.functional.cross_entropy)
    assert found.loss == pytest.approx(summary.best_loss)


SPOILED = """

def loss(outputs, targets):
    loss.calls = getattr(loss, "calls", 0) + torch.is_grad_enabled()
    value = nn.functional.cross_entropy(outputs, targets)
    return value if loss.calls <= 8 or not torch.is_grad_enabled() else -value


own = data


def data():
    points = own()
    return Data(points.train, points.test, valid=points.test)
"""


def test_patience_ends_a_run_and_outlasts_a_restart(file, monkeypatch) -> None:
    path = file(POINTS + SPOILED)
    words = ["--epochs", "9", "--schedule.name", "constant", "--stop.patience", "2"]
    summary = train(path, "--run-dir", "whole", *words)
    assert (summary.epochs, summary.best_epoch) == (3, 1) and summary.is_stopped_early
    assert summary.status == "finished"
    monkeypatch.setattr(course.Saver, "save", stopping(course.Saver.save, at=24))
    with pytest.raises(KeyboardInterrupt):
        train(path, "--run-dir", "cut", *words)
    monkeypatch.undo()
    monkeypatch.chdir(path.parent)
    again = train(path, "--run-dir", "cut", "--resume")
    assert (again.epochs, again.fingerprint) == (3, summary.fingerprint)
    assert again.test_loss == summary.test_loss


def test_without_a_validation_set_nothing_is_chosen(file) -> None:
    summary = train(file(), "--run-dir", "run")
    assert (summary.best_loss, summary.best_step) == (None, 0)
    assert [e.step for e in scalars("run")["loss/test"]] == [8, 16]


# Files that define no experiment. What stands left is refused with what stands right.

LOSS = "\n\ndef loss(outputs, targets):\n    return {}\n"

BAD: dict[str, tuple[str, int, str]] = {
    "no model": (POINTS.replace("def model(", "def net("), 2, "no function model(...)"),
    "no data": (POINTS.replace("def data(", "def dat("), 2, "no function data(...)"),
    "syntax": ("def data(:\n", 2, "SyntaxError"),
    "import": ("import no_such_module_here\n" + POINTS, 2, "No module named 'no_such"),
    "exits": ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
    "raises": ("1 / 0\n", 2, "ZeroDivisionError: division by zero"),
    "empty": ("", 2, "no function data(...)"),
    "default": (POINTS.replace("] = 0.1", "] = -0.1"), 2, "data.noise = -0.1: must be"),
    "type of default": (
        POINTS.replace("num: int = 200", "num: int = 'x'"),
        2,
        "data.num = 'x'",
    ),
    "no default": (
        POINTS.replace("num: int = 200", "num: int"),
        2,
        "it has no default",
    ),
    "odd type": (
        POINTS.replace("num: int = 200", "num: dict = {}"),
        2,
        "cannot be a set",
    ),
    "kwargs": (POINTS.replace("num: int = 200", "*num"), 2, "needs a name of its own"),
    "twice": (
        POINTS.replace("num: int", "batch_size: int"),
        2,
        "there is a setting of this",
    ),
    "SETTINGS": (
        POINTS.replace('"epochs": 2', '"epoch": 2'),
        2,
        "there is no setting 'epoch'; did you mean epochs?",
    ),
    "SETTINGS value": (
        POINTS.replace('"epochs": 2', '"epochs": 0'),
        2,
        "epochs = 0: must",
    ),
    "SETTINGS list": (
        POINTS.replace("SETTINGS = {", "SETTINGS = [1] or {"),
        2,
        "SETTINGS is not a dictionary",
    ),
    "model is none": (
        POINTS.replace("def model(", "model = 3\ndef net("),
        2,
        "model is not a function",
    ),
    "data raises": (
        POINTS.replace("    dice =", "    raise OSError('gone')\n    dice ="),
        3,
        "data(...) failed: OSError: gone",
    ),
    "data returns": (
        POINTS.replace("return Data(", "return dict("),
        3,
        "returned dict: it must return minitrain.Data",
    ),
    "data empty": (
        POINTS.replace("x[50:], y[50:]", "x[:0], y[:0]"),
        3,
        "the samples of train: there are none",
    ),
    "lengths": (
        POINTS.replace("x[50:], y[50:]", "x[50:], y[51:]"),
        3,
        "150 inputs and 149 targets",
    ),
    "a tensor": (
        POINTS.replace("(x[50:], y[50:])", "x[50:]"),
        3,
        "neither a tuple (inputs, targets) nor",
    ),
    "targets": (
        POINTS.replace("1.2).long()", "1.2).long() + 5"),
        3,
        "the target of training sample",
    ),
    "model raises": (
        POINTS.replace(
            "    layers, width", "    raise ValueError('no')\n    layers, width"
        ),
        2,
        "model(...) failed: ValueError: no",
    ),
    "model returns": (
        POINTS.replace("return nn.Sequential(", "return list("),
        2,
        "model(...)",
    ),
    "no parameters": (
        POINTS.replace(
            "return nn.Sequential(*layers, nn.Linear(width, 2))", "return nn.Flatten()"
        ),
        2,
        "has no parameters",
    ),
    "shapes": (
        POINTS.replace("layers, width = [], 2", "layers, width = [], 3"),
        2,
        "cannot go through model, loss",
    ),
    "loss (N,)": (
        POINTS + LOSS.format("(outputs.sum(1) - targets) ** 2"),
        2,
        "a tensor of shape (2,): it must be a tensor of one",
    ),
    "loss float": (POINTS + LOSS.format("3.0"), 2, "the loss is float"),
    "no usual loss": (
        POINTS.replace(".long()", ".float()"),
        2,
        "without a loss of its own",
    ),
    "metrics": (
        POINTS + LOSS.replace("loss", "metrics").format("dict(mean=outputs.mean())"),
        2,
        "metric 'mean' is ()",
    ),
    "optimizer": (
        POINTS + OWN_OPTIMIZER.replace("lr=lr", "eps=-1"),
        2,
        "optimizer(...) failed: ValueError",
    ),
    "typo": (POINTS + LOSS.replace("loss", "lss").format("0"), 2, "and no loss(...)"),
    "draw": (
        POINTS + "\n\ndef draw(model, data):\n    return 3\n",
        2,
        "draw(...) returned int: it must return pictures",
    ),
    "picture": (
        POINTS + "\n\ndef draw(model, data):\n    return {'a': 3}\n",
        2,
        "a picture is int",
    ),
    "no metrics": (
        POINTS + LOSS.replace("loss", "metrics").format("None"),
        2,
        "metrics returned NoneType: they must be a dictionary",
    ),
    "broadcast": (
        POINTS.replace(".long()", ".float()").replace("(width, 2)", "(width, 1)")
        + LOSS.format("nn.functional.mse_loss(outputs, targets)"),
        2,
        "Using a target size",
    ),
    "patience": (
        POINTS.replace('"epochs": 2', '"stop.patience": 2'),
        2,
        "stop.patience = 2: a validation set is needed",
    ),
    "hidden of 0": (POINTS.replace("(16,)", "(-1,)"), 2, "model(...) failed: "),
    "one sample": (
        POINTS.replace("nn.Dropout(0.1)", "nn.BatchNorm1d(size)").replace(
            'size": 20', 'size": 149'
        ),
        2,
        "BatchNorm1d normalizes over a batch",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_in_a_sentence(kind, file, tmp_path, capsys) -> None:
    text, code, told = BAD[kind]
    assert text != POINTS
    path = file(text)
    before = sorted(tmp_path.rglob("*"))
    assert exit_code_of("train", str(path), *QUIET) == code
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's special files")
def test_what_is_no_file_is_not_waited_for(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.py")
    Path("folder.py").mkdir()
    for name in ("pipe.py", "folder.py", "gone.py"):
        assert exit_code_of("train", f"./{name}") == 2
        assert f"cannot read {name}: " in capsys.readouterr().err


def test_what_a_file_prints_is_no_harm(file) -> None:
    path = file("print('hello')\n" + POINTS)
    done = subprocess.run(
        [sys.executable, "-m", "minitrain", "train", str(path), *QUIET],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(minitrain.__file__).parents[1])},
    )
    assert done.returncode == 0 and done.stdout.startswith("hello\n")
    assert not list(path.parent.rglob("__pycache__"))


FAILING = """

class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(2, 2), 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > LIMIT:
            raise ValueError("enough of it")
        return self.layer(x)


def model():
    return Failing()
"""


def test_an_error_of_the_experiment_in_training_is_told_as_its_own(
    file, tmp_path, capsys
) -> None:
    """Bugs of ours end with code 70 and a traceback: see `test_commands`."""
    path = file(POINTS + FAILING.replace("LIMIT", "4"))
    words = [str(path), "--run-dir", "run", *QUIET, "--checkpoint.every", "3"]
    assert exit_code_of("train", *words) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    line = (
        path.read_text()
        .splitlines()
        .index('            raise ValueError("enough of it")')
    )
    assert f"ValueError: enough of it ({path}, line {line + 1})" in told
    assert "error: forward(...) of the experiment failed at step 5: " in told
    assert "The checkpoint of step 3 is safe." in told
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed: ValueError('enough of it')"


def test_a_start_that_fails_leaves_no_folder(file, tmp_path, capsys) -> None:
    """The model fails in the passes that measure the panel's cost."""
    path = file(POINTS + FAILING.replace("LIMIT", "0"))
    assert exit_code_of("train", str(path), "--run-dir", "run") == 2
    told = capsys.readouterr().err
    assert "failed at step 1: " in told and "Nothing was trained yet." in told
    assert not (tmp_path / "run").exists()
    (tmp_path / "own").mkdir()
    assert exit_code_of("train", str(path), "--run-dir", "own") == 2
    assert (tmp_path / "own").exists(), "it was there before"


def test_an_experiment_behind_the_flags_is_sent_to_the_front(file, capsys) -> None:
    path = file()
    for words in (["--epochs", "1", str(path)], ["--trust-code", str(path)]):
        assert exit_code_of("train", *words) == 2
        told = capsys.readouterr().err
        assert f"{path}. An experiment comes first on the command line" in told
    assert parse([str(path), "--run-dir", "a.py"]).run_dir == Path("a.py"), "a value"


def test_bad_samples_are_the_cause_that_an_end_names(file, capsys) -> None:
    spoiled = POINTS.replace(
        "    return Data(", "    x[60, 1] = torch.nan\n    return Data("
    )
    words = [str(file(spoiled)), "--run-dir", "run", *QUIET]
    assert exit_code_of("train", *words) == 6
    told = capsys.readouterr().err
    assert "The cause is in the data: sample " in told
    assert "learning rate" not in told


def test_a_folder_that_is_not_there_is_not_called_empty(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere"):
        minitrain.load(tmp_path / "nowhere")
