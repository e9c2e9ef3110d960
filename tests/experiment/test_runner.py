"""Whole runs: what they leave behind, and that every number in it is right."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness.runs import PANEL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import minitrain
from minitrain.batches import Batches
from minitrain.datasets import digits, mnist
from minitrain.datasets.dataset import Dataset
from minitrain.experiment import Config, journal, parts, runner
from minitrain.experiment.reading import read
from minitrain.fingerprint import fingerprint
from minitrain.models import MLP
from minitrain.runs.summary import Summary
from minitrain.system.errors import (
    CheckpointError,
    DataError,
    RunDirectoryError,
    SettingsError,
    StorageError,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def small_digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return digits.digits(tmp_path_factory.mktemp("data"), num_train=640, num_test=200)


@pytest.fixture
def run(
    small_digits: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Summary]:
    """Run an experiment on few digits, in a folder of its own."""
    monkeypatch.setattr(digits, "digits", lambda root: small_digits)
    monkeypatch.chdir(tmp_path)

    def run_with(**settings) -> Summary:
        settings = {"epochs": 2, "data": {"name": "digits"}, **settings}
        return runner.run(Config(**settings))

    return run_with


def scalars(folder: Path) -> dict[str, list]:
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def only_run() -> Path:
    (folder,) = Path("runs").iterdir()
    return folder


def test_a_run_leaves_settings_events_and_summary(run, capsys) -> None:
    summary = run(seed=3)
    folder = only_run()
    assert folder.name.startswith("digits-mlp-seed3-")
    assert {path.name.split(".")[0] for path in folder.iterdir()} == {
        "checkpoints",
        "config",
        "events",
        "minitrain",
        "summary",
    }
    kept = json.loads((folder / "summary.json").read_text())
    assert set(kept) == {
        "status",
        "dataset",
        "data_sha256",
        "steps",
        "epochs",
        "test_accuracy",
        "test_loss",
        "average_metrics",
        "best_epoch",
        "best_loss",
        "best_step",
        "fingerprints",
        "is_stopped_early",
        "source_sha256",
        "test_metrics",
        "validation_loss",
        "validation_metrics",
        "train_seconds",
        "total_seconds",
        "fingerprint",
        "seed",
        "changes",
        "findings",
        "withheld",
        "run_id",
        "versions",
    }
    assert (kept["status"], kept["dataset"], kept["seed"]) == ("finished", "digits", 3)
    assert (kept["steps"], kept["epochs"]) == (20, 2)
    assert 0 < kept["train_seconds"] < kept["total_seconds"]
    assert kept["fingerprint"] == summary.fingerprint and len(summary.fingerprint) == 64
    config = read(folder / "config.toml")
    assert (config.seed, config.data.name, config.device) == (3, "digits", "cpu")
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in out if line.startswith("epoch")] == [
        "1/2",
        "2/2",
    ]
    assert f"digits: test accuracy {kept['test_accuracy']:.2%}" in "\n".join(out)


def test_an_instrument_that_gives_no_reading_says_why(run, tmp_path, capsys) -> None:
    """Batch normalization mixes the samples: no gradient is that of a single one."""
    reason = "head.1: BatchNorm1d mixes the samples"
    settings = {"model": {"name": "fast-cnn"}, "instruments": PANEL}
    settings["run_dir"] = tmp_path / "run"
    assert run(**settings, epochs=1).withheld == {"noise": reason}
    said = capsys.readouterr().out.splitlines()
    assert said.count(f"no readings of noise: {reason}") == 1
    again = run(**settings, epochs=2, resume=True, allow_changes=True)
    assert "no readings" not in capsys.readouterr().out, "once is enough"
    assert again.withheld == {"noise": reason}
    folder = tmp_path / "run"
    kept = json.loads((folder / "summary.json").read_text())
    assert kept["withheld"] == {"noise": reason}
    events = EventAccumulator(str(folder)).Reload()
    (text,) = events.Tensors("run/findings/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert f"no readings of **noise**: {reason}" in shown
    assert not any(tag.startswith("noise/") for tag in scalars(folder))


def test_every_number_on_the_dashboard_is_right(run, small_digits) -> None:
    """Against plain torch from the same start: losses, norms, rates, and evaluation."""
    no_panel = {"budget": 0.0}  # its readings have tests of their own
    summary = run(log={"every": 1}, optimizer={"nesterov": True}, instruments=no_panel)
    logged = scalars(only_run())

    torch.manual_seed(0)
    model = MLP()
    optimizer = torch.optim.SGD(
        model.parameters(),
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=True,
        foreach=False,
    )
    pixels = small_digits.train.images.double()
    mean, std = pixels.mean(), pixels.std(correction=0)
    norms: dict[str, list[float]] = {}
    losses, rates = [], []
    batches = Batches(pixels, small_digits.train.labels, 64, seed=0)
    for epoch in (1, 2):
        for indices in batches.order(epoch).split(64):
            step = len(losses)
            rate = 0.04 + 0.96 * step / 6 if step < 6 else (20 - step) / 14
            rates.append(0.05 * rate)
            optimizer.param_groups[0]["lr"] = rates[-1]
            optimizer.zero_grad()
            images = ((pixels[indices] - mean) / std).float()
            labels = small_digits.train.labels[indices]
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            losses.append(loss.item())
            for name, parameter in model.named_parameters():
                norms.setdefault(name, []).append(parameter.grad.double().norm().item())
            parts = [p.grad.flatten() for p in model.parameters()]
            norms.setdefault("global", []).append(
                torch.cat(parts).double().norm().item()
            )
            optimizer.step()

    def values(tag: str) -> list[float]:
        assert [e.step for e in logged[tag]] == list(range(1, 21))
        return [e.value for e in logged[tag]]

    assert values("lr") == pytest.approx(rates, rel=1e-6)
    assert values("loss/train") == pytest.approx(losses, rel=1e-6)
    for name, expected in norms.items():
        assert values(f"grad_norm/{name}") == pytest.approx(expected, rel=1e-6)
    images = ((small_digits.test.images - mean) / std).float()
    logits, labels = model(images), small_digits.test.labels
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    assert summary.test_accuracy == pytest.approx(accuracy)
    assert logged["accuracy/test"][-1].value == pytest.approx(accuracy)
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert logged["loss/test"][-1].value == pytest.approx(loss, rel=1e-5)
    assert [e.step for e in logged["loss/test"]] == [10, 20]
    assert set(logged) == {
        "loss/train",
        "loss/test",
        "accuracy/test",
        "lr",
        "throughput/samples_per_second",
        *(f"grad_norm/{name}" for name in norms),
    }


def test_the_fingerprint_depends_on_the_seed_and_on_nothing_else(run) -> None:
    prints = [
        run(seed=seed, log={"every": every}).fingerprint
        for seed, every in ((1, 10), (1, 1000), (2, 10))
    ]
    assert prints[0] == prints[1] != prints[2]
    assert len(list(Path("runs").iterdir())) == 3


def test_the_fingerprint_is_that_of_the_final_state(run, monkeypatch) -> None:
    seen = {}
    train = parts.train

    def spy(model, optimizer, *args, **kwargs):
        seen.update(model=model, optimizer=optimizer)
        return train(model, optimizer, *args, **kwargs)

    monkeypatch.setattr(parts, "train", spy)
    summary = run(epochs=1)
    model, optimizer = seen["model"], seen["optimizer"]
    assert summary.fingerprint == fingerprint(
        model.state_dict(), optimizer.state_dict()
    )
    (buffer,) = (state["momentum_buffer"] for state in optimizer.state.values())
    buffer[-1] = torch.nextafter(buffer[-1], torch.tensor(9.0))
    assert summary.fingerprint != fingerprint(
        model.state_dict(), optimizer.state_dict()
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (RuntimeError("a planted fault"), "failed: RuntimeError('a planted fault')"),
    ],
    ids=["Ctrl-C", "crash"],
)
def test_a_run_that_is_stopped_keeps_its_points_and_says_so(
    run, monkeypatch, error: BaseException, status: str
) -> None:
    def stop(*_):
        raise error

    monkeypatch.setattr(journal, "evaluate", stop)
    with pytest.raises(type(error)):
        run(log={"every": 1})
    kept = json.loads((only_run() / "summary.json").read_text())
    assert (kept["status"], kept["steps"], kept["epochs"]) == (status, 10, 1)
    assert kept["test_accuracy"] is None
    assert len(scalars(only_run())["loss/train"]) == 10


def test_a_run_never_enters_a_used_directory(run, tmp_path: Path) -> None:
    run(run_dir=tmp_path / "a b" / "run", epochs=1)

    def contents() -> dict[Path, bytes]:
        files = (tmp_path / "a b" / "run").rglob("*")
        return {path: path.read_bytes() for path in files if path.is_file()}

    before = contents()
    with pytest.raises(RunDirectoryError, match="not empty"):
        run(run_dir=tmp_path / "a b" / "run")
    assert contents() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="is a file"):
        run(run_dir=tmp_path / "file")
    with pytest.raises(StorageError, match="cannot create"):
        run(run_dir=tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert run(run_dir=tmp_path / "empty", epochs=1).status == "finished"


def test_a_device_that_is_not_here_is_a_settings_error(run, tmp_path: Path) -> None:
    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has an eighth GPU")
    with pytest.raises(SettingsError, match="device = 'cuda:7'"):
        run(device="cuda:7")
    assert list(tmp_path.iterdir()) == []


def test_a_batch_is_no_larger_than_the_data(run, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data.batch-size = 641: .* train on, 640"):
        run(data={"name": "digits", "batch_size": 641})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["softmax", "cnn", "fast-cnn"])
def test_every_model_trains_in_every_precision(run, model: str) -> None:
    summary = run(model={"name": model}, precision="bfloat16", accumulate=3, epochs=1)
    assert summary.status == "finished" and summary.steps == 4


def test_label_smoothing_spreads_a_share_of_the_target(run, small_digits) -> None:
    run(loss={"label_smoothing": 0.2}, epochs=1)
    torch.manual_seed(0)
    inputs = small_digits.inputs(small_digits.train)
    batches = Batches(inputs, small_digits.train.labels, 64, seed=0)
    images, labels = next(batches.epoch(1))
    surprise = -MLP()(images).log_softmax(dim=1)
    right = surprise.gather(1, labels[:, None]).mean()
    expected = 0.8 * right + 0.2 * surprise.mean()
    logged = scalars(only_run())["loss/train"][0].value
    assert logged == pytest.approx(expected.item(), rel=1e-5)


def test_a_trained_model_is_one_line_away(run, small_digits: Dataset) -> None:
    summary = run()
    model = minitrain.load(only_run())
    assert not model.training
    inputs = small_digits.inputs(small_digits.test)
    right = model(inputs).argmax(dim=1) == small_digits.test.labels
    assert right.double().mean().item() == pytest.approx(summary.test_accuracy)
    with pytest.raises(CheckpointError, match="no folder elsewhere"):
        minitrain.load("elsewhere")
    Path("elsewhere").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        minitrain.load("elsewhere")


def test_without_mnist_it_trains_on_digits_and_says_so(
    run, capsys, monkeypatch
) -> None:
    def missing(root):
        raise DataError("no address had MNIST")

    monkeypatch.setattr(mnist, "mnist", missing)
    assert run(data={"name": "auto"}, epochs=1).dataset == "digits"
    out = capsys.readouterr().out
    assert "no address had MNIST" in out
    assert "training on `digits`" in out and "*" * 40 in out
    assert read(only_run() / "config.toml").data.name == "digits"
    with pytest.raises(DataError):
        run(data={"name": "mnist"})


def test_the_default_run_on_mnist(mnist_root: Path, tmp_path: Path) -> None:
    """The command itself, without arguments, as the README gives it."""
    env = {**os.environ, "MINITRAIN_DATA": str(mnist_root)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--epochs", "2"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("mnist-mlp-seed0-")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["dataset"] == "mnist" and summary["test_accuracy"] > 0.97
    assert f"run directory runs/{folder.name}" in done.stdout
    events = EventAccumulator(str(folder), {"images": 0}).Reload()
    pictures = ["confusion/test", "layers/grad_norm", "layers/update_ratio"]
    pictures += ["mistakes/test", "weights/first_layer"]
    assert sorted(events.Tags()["images"]) == pictures
    assert len(events.Tags()["scalars"]) <= 45


def test_every_experiment_says_what_it_gives() -> None:
    for path in EXPERIMENTS.glob("*.toml"):
        assert "Result:" in path.read_text()
        assert read(path).data.name.split("-")[0] in path.stem
