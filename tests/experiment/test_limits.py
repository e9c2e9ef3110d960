"""What cannot be trained is told before anything is made, or as soon as it shows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness.files import contents
from harness.runs import command

from minitrain.cli.train import train
from minitrain.experiment import fast_cnn
from minitrain.experiment.reading import parse
from minitrain.runs import checkpoint
from minitrain.runs.summary import Summary
from minitrain.system import terminal

pytestmark = pytest.mark.usefixtures("few_digits")

TOO_LARGE = {
    "--optimizer.lr 1e308": "optimizer.lr = 1e+308: must be less than or equal",
    "--optimizer.momentum 1e308": "optimizer.momentum = 1e+308: must be less than or",
    "--optimizer.weight-decay 1e308": "optimizer.weight-decay = 1e+308: must be less",
    "--optimizer.dampening 1e308": "optimizer.dampening = 1e+308: must be less than or",
    "--optimizer.dampening=-1e308": "optimizer.dampening = -1e+308: must be greater",
    f"--epochs {10**400}": "must be less than or equal to 1000000000",
    f"--schedule.warmup {10**400}": "must be less than or equal to 1000000000",
    f"--accumulate {10**30}": "must be less than or equal to 1000000000",
    f"--data.batch-size {10**30}": "must be less than or equal to 1000000000",
    "--data.batch-size 641": "must be at most the number of samples to train on, 640",
    "--threads 4096": f"threads = 4096: must be at most {16 * (os.cpu_count() or 1)}",
    "--model.name fast-cnn --data.batch-size 1": "data.batch-size = 1: the last batch",
    "--model.name fast-cnn --data.batch-size 639": "data.batch-size = 639: the last",
}


def refused(folder: Path, flags: str, capsys) -> str:
    """The error of settings that are refused, and make nothing."""
    arguments = ["--data.name", "digits", f"--run-dir={folder}", *flags.split()]
    code = terminal.exit_code(lambda: train(parse(arguments)))
    out, error = capsys.readouterr()
    assert (code, out, folder.exists()) == (2, "", False), error
    return error


@pytest.mark.parametrize("flags", TOO_LARGE, ids=lambda flags: flags[:40])
def test_what_is_too_large_is_refused(tmp_path, capsys, flags: str) -> None:
    assert TOO_LARGE[flags] in refused(tmp_path / "run", flags, capsys)


@pytest.mark.parametrize("rule", ["lr", "momentum", "weight-decay", "dampening"])
def test_the_largest_number_of_a_rule_can_be_computed_with(tmp_path, rule: str) -> None:
    """It may diverge; it is no number that torch cannot take."""
    flags = ["--data.name=digits", "--epochs=1", f"--run-dir={tmp_path}"]
    config = parse([*flags, f"--optimizer.{rule}=1e6", "--clip-norm=1e308"])
    assert terminal.exit_code(lambda: train(config)) in (0, 6)


TWICE = {
    "--epochs 2 --epochs 3": "--epochs: given twice",
    "--epochs=2 --epochs=2": "--epochs: given twice",
    "--data.batch-size 2 --data.batch_size 3": "--data.batch_size: given twice",
    "--optimizer.nesterov --optimizer.no-nesterov": "--optimizer.no-nesterov: given",
    "--data.root=": "--data.root: an empty value",
}


@pytest.mark.parametrize("flags", TWICE)
def test_a_flag_says_one_thing(tmp_path, capsys, flags: str) -> None:
    assert TWICE[flags] in refused(tmp_path / "run", flags, capsys)


@pytest.mark.parametrize("words", [["--run-dir", ""], ["--run-dir="]])
def test_no_name_is_no_folder(tmp_path, monkeypatch, capsys, words) -> None:
    monkeypatch.chdir(tmp_path)  # empty: "" is not it
    assert terminal.exit_code(lambda: train(parse(words))) == 2
    assert "--run-dir: an empty value" in capsys.readouterr().err
    (tmp_path / "a.toml").write_text("run-dir = ''")
    assert terminal.exit_code(lambda: train(parse(["a.toml"]))) == 2
    assert "run-dir: an empty value" in capsys.readouterr().err


def test_an_error_of_all_settings_names_no_key(capsys) -> None:
    assert terminal.exit_code(lambda: train(parse(["--resume"]))) == 2
    assert capsys.readouterr().err.startswith("error: resume needs --run-dir")


def test_a_byte_order_mark_is_no_part_of_the_settings(tmp_path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfepochs = 7\n")
    assert parse([str(tmp_path / "a.toml")]).epochs == 7


# Divergence in the last update


def test_divergence_in_the_last_update_is_told(tmp_path, capsys) -> None:
    """Two steps: loss and gradient are finite, but not what the second one makes."""
    flags = """--data.name digits --data.batch-size 640 --epochs 2
        --model.hidden 128 128 128 --optimizer.lr 1e6 --optimizer.momentum 0
        --optimizer.weight-decay 0 --schedule.name constant --instruments.budget 0"""
    config = parse([*flags.split(), f"--run-dir={tmp_path}"])
    assert terminal.exit_code(lambda: train(config)) == 6
    error = capsys.readouterr().err
    assert "the test loss after step 2, the last, is nan" in error
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    kept = json.loads(text)
    assert kept["status"].startswith("failed: DivergedError") and kept["steps"] == 2
    assert kept["test_loss"] is None
    (*_, path) = checkpoint.find_all(tmp_path / "checkpoints")
    tensors = checkpoint.load(path).state["model"].values()
    assert all(tensor.isfinite().all() for tensor in tensors), "unseen till then"
    again = config.model_copy(update={"resume": True})
    assert terminal.exit_code(lambda: train(again)) == 6, "nor does it end well later"


def test_no_summary_has_a_number_that_json_has_not() -> None:
    summary = Summary("digits", 0, test_loss=float("nan"), test_accuracy=float("inf"))

    def refuse(constant: str) -> None:
        pytest.fail(constant)

    told = json.loads(summary.to_json(), parse_constant=refuse)
    assert told["test_loss"] is told["test_accuracy"] is None and told["seed"] == 0


# Memory

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of address space")
def test_a_model_that_memory_cannot_hold_is_refused(tmp_path) -> None:
    python, *words = command(
        "--model.hidden", 65536, 65536, "--run-dir", tmp_path / "r"
    )
    done = subprocess.run(
        [python, "-c", LIMITED, *words], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: there is not enough memory: 16.0 GiB were ")
    assert "Lower --data.batch-size or --model.hidden" in done.stderr
    assert not (tmp_path / "r").exists()


def test_memory_that_is_short_in_a_step_is_told(tmp_path, monkeypatch, capsys) -> None:
    """The allocator's own error, of a petabyte; what was saved stays."""
    build = fast_cnn.FastCNN.forward

    def greedy(model, images):
        torch.empty(2**50 if torch.is_grad_enabled() else 0, dtype=torch.uint8)
        return build(model, images)

    monkeypatch.setattr(fast_cnn.FastCNN, "forward", greedy)
    flags = ["--data.name=digits", "--model.name=fast-cnn", "--instruments.budget=0"]
    config = parse([*flags, "--epochs=1", f"--run-dir={tmp_path}"])
    assert terminal.exit_code(lambda: train(config)) == 2
    assert "1048576.0 GiB were asked for at once" in capsys.readouterr().err
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert kept["status"].startswith("failed: RuntimeError") and kept["steps"] == 0
    monkeypatch.undo()
    before = contents(tmp_path)
    assert any("step-00000000." in name for name in before)
