"""What the README claims about the code."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_run_and_learn(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    torch.manual_seed(0)
    names: dict = {}
    exec(code, names)
    out = capsys.readouterr().out
    accuracy = float(re.findall(r"accuracy=([\d.]+)", out)[0])
    assert out.count("|grad L|") == 20 and accuracy > 0.95


def test_every_module_stands_in_the_file_map_and_every_file_there_exists() -> None:
    table = README[README.index("| file |") :]
    named = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    modules = {f"minitrain/{path.name}" for path in (ROOT / "minitrain").glob("*.py")}
    assert modules - {"minitrain/__init__.py"} <= set(named)
    assert all((ROOT / name).exists() for name in named)


def test_every_picture_exists() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)
