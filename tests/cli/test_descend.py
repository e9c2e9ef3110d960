"""The command that walks down a function: what it prints, keeps and refuses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from harness.commands import ROOT, exit_code_of, in_a_process
from harness.pictures import assert_is_a_picture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minitrain.cli import descend
from minitrain.functions import EXAMPLES

SCRIPT = ROOT / "scripts" / "descend.py"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Run the command in this process, in an empty folder; return the exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda arguments: exit_code_of("descend", *arguments.split())


def test_names_are_those_of_the_functions():
    assert get_args(descend.Name) == tuple(EXAMPLES)


def test_a_whole_run(tmp_path: Path):
    command = ["paraboloid", "--start", "3", "4", "--lr", "0.1", "--steps", "30"]
    done = in_a_process(SCRIPT, *command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "step          x          y       value      df/dx      df/dy    |grad|",
        "   0     3.0000     4.0000      25.000     6.0000     8.0000    10.000",
        "   1     2.4000     3.2000      16.000     4.8000     6.4000    8.0000",
    ]
    assert len({len(line) for line in lines[:32]}) == 1 and len(lines[0]) <= 80
    assert lines[33].startswith("Arrived near the minimum (0, 0) after 30 steps")

    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"descend-paraboloid-\d{8}-\d{6}", folder.name)
    png = (folder / "descent.png").read_bytes()
    assert_is_a_picture(png)
    assert all(
        str(path.relative_to(tmp_path)) in done.stdout for path in folder.iterdir()
    )

    events = EventAccumulator(str(folder)).Reload()
    values = [(event.step, event.value) for event in events.Scalars("value")]
    norms = [event.value for event in events.Scalars("grad_norm/global")]
    assert values[:2] == [(0, 25), (1, 16)] and norms[:2] == [10, 8]
    assert len(values) == len(norms) == 31
    assert events.Images("descent")[0].encoded_image_string == png
    (text,) = events.Tensors("run/equation/text_summary")
    (markdown,) = text.tensor_proto.string_val
    assert "    g <- grad f(theta)\n    theta <- theta - lr * g  " in markdown.decode()
    assert "(2.4, 3.2) = (3, 4) - 0.1 * (6, 8)" in markdown.decode()


def test_divergence_is_told_with_all_that_is_finite(
    run: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("paraboloid --lr 1.1 --run-dir here") == 6
    out, err = capsys.readouterr()
    assert "Diverged at step 10: lr = 1.1 is too large" in err
    assert len(out.splitlines()) == 1 + 10 + 2 and "inf" not in out
    assert_is_a_picture((tmp_path / "here" / "descent.png").read_bytes())
    assert run("paraboloid --lr 1e300 --run-dir there") == 6
    assert run("saddle --steps 1000") == 6
    assert "falls forever" in capsys.readouterr().err


def test_every_run_has_a_folder_of_its_own(
    run: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("bowl --steps 3") == run("bowl --steps 3 --lr 0.1 --start 0 1") == 0
    first, second = (tmp_path / "runs").iterdir()
    out = capsys.readouterr().out
    assert out.count("Not arrived after 3 steps") == 2
    assert "Try more --steps" in out and "Try a smaller --lr" in out
    assert run(f"bowl --steps 3 --run-dir {first}") == 7
    assert "is not empty" in capsys.readouterr().err
    assert len(list(first.iterdir())) == len(list(second.iterdir())) == 2
    (tmp_path / "file").touch()
    assert run("bowl --steps 3 --run-dir file") == 5
    assert "is a file" in capsys.readouterr().err


def test_equation_is_the_first_step_for_all_options(
    run: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
):
    texts: list[str] = []
    monkeypatch.setattr(
        descend, "keep", lambda _, *walk: texts.append(descend.describe(*walk))
    )
    monkeypatch.setattr(Path, "glob", lambda *_: ["events"])
    run("paraboloid --momentum 0.5 --nesterov --steps 1")
    assert "    g <- g + 0.5 * b\n    theta <- theta - lr * g  " in texts[0]
    assert "(2.1, 2.8) = (3, 4) - 0.1 * (9, 12)" in texts[0]
    run("paraboloid --momentum 0.5 --steps 1")
    assert "    b <- 0.5 * b + g  " in texts[1] and "theta - lr * b  " in texts[1]
    assert "(2.4, 3.2) = (3, 4) - 0.1 * (6, 8)" in texts[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "required"),
        ("plane", "invalid choice 'plane'"),
        ("bowl --speed 3", "--speed"),
        ("bowl --start 3", "start: (3.0,) must be two numbers"),
        ("bowl --start 3 4 5", "start: (3.0, 4.0, 5.0) must be two numbers"),
        ("bowl --start", "start: () must be two numbers"),
        ("bowl --start 3 nan", "start.1 = nan: must be a finite number"),
        ("bowl --start inf 3", "start.0 = inf: must be a finite number"),
        ("bowl --start 1e300 0", "start = [1e+300, 0.0]: f or its gradient"),
        ("bowl --lr 0", "lr = 0.0: must be greater than 0"),
        ("bowl --lr -0.1", "lr = -0.1: must be greater than 0"),
        ("bowl --lr nan", "lr = nan: must be a finite number"),
        ("bowl --lr inf", "lr = inf: must be a finite number"),
        ("bowl --lr fast", "--lr: could not convert string to float: 'fast'"),
        ("bowl --steps 0", "steps = 0: must be greater than or equal to 1"),
        ("bowl --steps 2.5", "'2.5'"),
        ("bowl --momentum -1", "momentum = -1.0: must be greater than or equal to 0"),
        ("bowl --nesterov", "nesterov: needs momentum > 0"),
    ],
)
def test_bad_settings_end_with_2_and_leave_no_trace(
    arguments: str,
    message: str,
    run: Callable[[str], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert run(f"{arguments} --run-dir new") == 2
    out, err = capsys.readouterr()
    assert out == "" and message in " ".join(err.replace("│", "").split())
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_in_a_process(tmp_path: Path):
    done = in_a_process(SCRIPT, "bowl", "--lr", "-1", cwd=tmp_path)
    message = "error: lr = -1.0: must be greater than 0\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert list(tmp_path.iterdir()) == []
