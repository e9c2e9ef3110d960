"""What the README claims about the code."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from harness.commands import exit_code_of

from minitrain.experiment.reading import parse
from minitrain.experiment.runner import run
from minitrain.runs.points import read_curves

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks_under(heading: str) -> list[str]:
    """The Python of a section."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)^## ", README, re.DOTALL | re.M)
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_a_walk_from_python_is_that_of_the_command_and_plots_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks_under("Walk down a hill")
    names: dict = {}
    exec(code, names)
    walk = names["walk"]
    assert walk.values[-1] < 0.1 < 57 == walk.values[0]
    assert walk.plot()._repr_png_().startswith(b"\x89PNG")
    (command,) = re.findall(r"descend\.py (\"x.*)", README)
    monkeypatch.chdir(tmp_path)
    assert exit_code_of("descend", *shlex.split(command), "--steps", 20) == 0
    assert (tmp_path / "walk.gif").stat().st_size < 2_000_000


def test_the_ten_lines_run_and_learn(capsys: pytest.CaptureFixture[str]) -> None:
    code, groups = blocks_under("Your own model and data, in ten lines")
    torch.manual_seed(0)
    names: dict = {}
    exec(code, names)
    out = capsys.readouterr().out
    accuracy = float(re.findall(r"'accuracy': ([\d.]+)", out)[0])
    assert out.count("|grad L|") == 20 and accuracy > 0.95
    exec(groups, names)
    kept, left = names["optimizer"].param_groups
    assert kept["weight_decay"] == 1e-3 and left["weight_decay"] == 0
    assert kept["params"][0].vector.names == ["0.weight", "2.weight"]
    assert left["params"][0].vector.names == ["0.bias", "2.bias"]


def test_the_experiment_in_a_file_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (text,) = (block for block in blocks if "def data(" in block)
    (command,) = re.findall(r"train\.py (circle\.py .*model.*)", README)
    monkeypatch.chdir(tmp_path)
    Path("circle.py").write_text(text, encoding="utf-8")
    summary = run(parse(command.split()))
    assert summary.dataset == "circle" and summary.test_metrics["accuracy"] > 0.95


def test_a_loop_of_ones_own_runs_and_goes_on(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (code,) = blocks_under("Your own loop")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for _ in range(2):
        exec(code, {})
    assert "runs/circle is finished: nothing is left to do" in capsys.readouterr().out
    curves = read_curves(tmp_path / "runs" / "circle")
    steps, accuracy = curves["accuracy/train"]
    assert steps == [100, 200, 300, 400, 500] and min(accuracy[1:]) > 0.85
    assert curves["loss/train"][0] == [1, *range(10, 501, 10)]
    assert {"grad_norm/global", "update_norm/global", "lr"} <= curves.keys()


def test_the_core_is_a_numbered_list_and_every_room_has_a_row() -> None:
    """Every file and folder of the package is named, and what is named exists."""
    named = re.findall(r"`(minitrain/[\w/]+(?:\.py|/))`", README)
    assert all((ROOT / name).exists() for name in named)
    package = ROOT / "minitrain"
    files = {f"minitrain/{path.name}" for path in package.glob("[!_]*.py")}
    rooms = {f"minitrain/{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert files | rooms <= set(named)
    numbered = re.findall(r"^(\d+)\. `minitrain/(\w+)\.py`", README, re.MULTILINE)
    assert [int(number) for number, _ in numbered] == [*range(1, 12)]


def test_every_picture_exists() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def test_a_run_in_a_notebook_has_a_history(
    few_digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the notebook's section shows, but for pandas, and on few digits."""
    monkeypatch.chdir(tmp_path)
    assert run(parse(["--data.name", "digits", "--run-dir", "runs/EARLIER"])).steps
    (code,) = blocks_under("The whole way in one notebook")
    code = code.replace("epochs=1", "epochs=1, data={'name': 'digits'}")
    names: dict = {}
    exec(re.sub(r"table = .*", "", code), names)
    assert names["steps"].tolist() == [1, 10] and len(names["losses"]) == 2
    assert names["earlier"]["loss/train"].steps.tolist() == [1, *range(10, 51, 10)]
